use std::{
    future::poll_fn,
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, timeout};

use super::{
    address::Socket,
    frames::Frames,
    lane_calls::LaneOver,
    lane_socket::LaneReader,
    link::{Link, lock},
    state::{Fault, Phase, State},
    taken::Start,
};
use crate::frame::{Flags, Header, Kind, MetaBuilder, id, status::reason};

/// Starts a task for each call that is to be served.
pub(super) trait Serve: Send + Sync {
    /// The call begins.
    fn start(&self, link: &Link, start: Start) -> tokio::task::AbortHandle;
}

/// What moves bytes between a connection's socket and its state.
pub(super) struct Driver {
    link: Link,
    socket: Socket,
    frames: Frames,
    lane: Option<LaneReader>,
    ticks: Interval,
    serve: Option<Arc<dyn Serve>>,
    starts: Vec<Start>,
}

/// How a connection ends.
enum End {
    Fault(Fault),
    /// The socket's, or the peer's silence.
    Lost(String),
    /// In good order.
    Done,
}

/// Reads in a row, so that what waits to be sent waits no longer.
const READS: usize = 4;
/// What a peer has time for to take the last words.
const FAREWELL: Duration = Duration::from_secs(1);
/// Slices of one write.
const SLICES: usize = 32;

impl Driver {
    pub(super) fn new(link: Link, socket: Socket, frames: Frames, ping: Duration, serve: Option<Arc<dyn Serve>>) -> Self {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + ping, ping);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { link, socket, frames, lane: None, ticks, serve, starts: Vec::new() }
    }

    /// Runs until the connection ends.
    pub(super) async fn run(mut self) {
        let mut end = match self.take() {
            Ok(()) => poll_fn(|cx| self.poll(cx)).await,
            Err(fault) => End::Fault(fault),
        };
        self.take_answers();
        let last = self.link.look(|state| {
            if let Some(fault) = state.fault.take() {
                end = End::Fault(fault);
            }
            let text = match &end {
                End::Fault(fault) => format!("the agent broke a rule: {}", fault.text),
                End::Lost(text) => {
                    let text = state.blamed.as_ref().unwrap_or(text);
                    format!("the connection to the agent broke: {text}")
                }
                End::Done => "the connection has ended".to_owned(),
            };
            let drained = matches!(state.phase, Phase::Draining { .. });
            state.fail(&text);
            last_words(&end, drained, state)
        });
        self.link.0.phase.send_replace(Phase::Closing);
        if let Some(last) = last {
            farewell(self.socket, &last).await;
        }
        self.link.0.phase.send_replace(Phase::Closed);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.ticks.poll_tick(cx).is_ready() {
            if let Err(text) = self.link.look(State::tick) {
                return Poll::Ready(End::Lost(text));
            }
        }
        // Before the stream connection: so no CANCEL overtakes its call.
        let lane_idle = self.poll_lane(cx);
        let mut idle = false;
        for _ in 0..READS {
            match self.frames.poll_read(cx, &self.socket) {
                Poll::Pending => {
                    idle = true;
                    break;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(End::Lost("the agent closed it".to_owned())),
                Poll::Ready(Ok(_)) => {
                    if let Err(fault) = self.take() {
                        return Poll::Ready(End::Fault(fault));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(error.to_string())),
            }
        }
        self.take_last();
        let mut end = self.poll_write(cx);
        if matches!(end, Poll::Ready(End::Done)) && !self.is_done() {
            cx.waker().wake_by_ref();
            end = Poll::Pending;
        }
        if end.is_pending() && !(idle && lane_idle) {
            cx.waker().wake_by_ref();
        }
        end
    }

    /// Hands on the frames that have come.
    fn take(&mut self) -> Result<(), Fault> {
        let mut result = Ok(());
        let (phase, fault) = {
            let mut state = lock(&self.link.0.state);
            while result.is_ok() {
                match self.frames.next() {
                    Ok(Some(frame)) => result = state.receive(frame, &mut self.starts),
                    Ok(None) => break,
                    Err(broken) => result = Err(broken.into()),
                }
            }
            (state.phase, state.fault.is_some())
        };
        if phase != *self.link.0.phase.borrow() {
            self.link.0.phase.send_replace(phase);
        }
        self.start();
        if fault { self.link.look(|state| state.fault.take()).map_or(result, Err) } else { result }
    }

    /// Reads the lane. True if there is nothing more to read now.
    fn poll_lane(&mut self, cx: &mut Context<'_>) -> bool {
        let arrived = lock(&self.link.0.arrived).take();
        if let Some(lane) = arrived {
            self.lane = Some(lane);
            // What came behind its HELLO.
            self.take_lane(true);
        }
        for _ in 0..READS {
            let Some(lane) = &mut self.lane else { return true };
            match lane.poll_read(cx) {
                Poll::Pending => return true,
                Poll::Ready(read) => self.take_lane(read.is_ok_and(|read| read > 0)),
            }
        }
        false
    }

    /// Hands on the frames that have come by the lane; nothing comes behind them if it has ended.
    fn take_lane(&mut self, goes_on: bool) {
        let Some(lane) = &mut self.lane else { return };
        let mut state = lock(&self.link.0.state);
        let mut goes_on = goes_on && state.laned.open.is_some();
        if !goes_on {
            // It was given up by who sent something: what is there is read, and all that is left.
            let _ = lane.read_now();
        }
        let broken = loop {
            match lane.next() {
                Ok(Some(frame)) => match state.receive_by_lane(frame, &mut self.starts) {
                    Ok(()) => {}
                    Err(LaneOver) => break true,
                },
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        goes_on &= !broken;
        if !goes_on {
            state.end_lane();
        }
        drop(state);
        if !goes_on {
            self.lane = None;
            self.link.0.lane_over.notify_one();
        }
        self.start();
    }

    /// Ends a lane that was given up. And before the connection ends in good order, looks whether calls lie on the lane that
    /// the runtime does not know of yet: what the agent gave before its last word is there.
    fn take_last(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        let (over, last) = self.link.look(|state| (state.laned.open.is_none() || state.is_lane_done(), state.is_done()));
        if last && !over {
            let _ = lane.read_now();
        }
        if over || last {
            self.take_lane(!over);
        }
    }

    /// Whether nothing keeps the connection, also after another look at the lane: what was to be written before the end may
    /// have gone only after the last one.
    fn is_done(&mut self) -> bool {
        if let Some(lane) = &mut self.lane
            && self.link.look(|state| state.phase != Phase::Closing)
        {
            let _ = lane.read_now();
            self.take_lane(true);
        }
        self.link.look(|state| state.is_done())
    }

    /// The connection has ended: answers that lie on the lane have come all the same. Calls have not, as nobody could answer
    /// them.
    fn take_answers(&mut self) {
        let Some(mut lane) = self.lane.take() else { return };
        let _ = lane.read_now();
        let mut state = lock(&self.link.0.state);
        while let Ok(Some(frame)) = lane.next() {
            let is_answer = frame.header.kind() == Some(Kind::Response);
            if is_answer && state.receive_by_lane(frame, &mut Vec::new()).is_err() {
                break;
            }
        }
    }

    fn start(&mut self) {
        let Some(serve) = &self.serve else { return };
        if self.starts.is_empty() {
            return;
        }
        // Outside of the lock: a runtime that is going down drops a task at once, and what it drops takes the lock.
        let tasks: Vec<_> = self.starts.drain(..).map(|start| (start.names, serve.start(&self.link, start))).collect();
        self.link.look(|state| {
            for (names, task) in tasks {
                match state.taken_mut(names) {
                    Some(taken) => taken.task = Some(task),
                    None => task.abort(),
                }
            }
        });
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut state = lock(&self.link.0.state);
        if let Some(lane) = &self.lane {
            while state.laned.is_waiting() && lane.poll_writable(cx).is_ready() {
                state.flush_lane();
            }
            if state.laned.open.is_none() {
                cx.waker().wake_by_ref();
            }
        }
        loop {
            if let Some(fault) = state.fault.take() {
                return Poll::Ready(End::Fault(fault));
            }
            if !state.schedule() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = state.outbox.fill(&mut slices);
            match self.socket.poll_write(cx, &slices[..count]) {
                Poll::Ready(Ok(written)) => state.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(error.to_string())),
                Poll::Pending => break,
            }
        }
        if state.is_done() {
            return Poll::Ready(End::Done);
        }
        state.driver = Some(cx.waker().clone());
        if lock(&self.link.0.arrived).is_some() {
            // A lane that has come since it was looked for has found nobody to wake.
            cx.waker().wake_by_ref();
        }
        let phase = state.phase;
        drop(state);
        if phase != *self.link.0.phase.borrow() {
            self.link.0.phase.send_replace(phase);
        }
        Poll::Pending
    }
}

/// What is still said: what is ready and a final GOAWAY, or nothing to a peer that is not there.
fn last_words(end: &End, drained: bool, state: &State) -> Option<Vec<u8>> {
    let (reason, text) = match end {
        End::Lost(_) => return None,
        End::Done if !drained => return Some(Vec::new()),
        End::Done => (reason::DRAIN, ""),
        End::Fault(fault) => (fault.reason, &fault.text[..]),
    };
    let mut slices = [IoSlice::new(&[]); SLICES];
    let count = state.outbox.fill(&mut slices);
    let mut words: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
    if words.len() < state.outbox.ready_bytes() {
        return None;
    }
    words.extend_from_slice(&goaway(reason, text, state.inbox.last_stream()));
    Some(words)
}

/// Sends the last words, and closes once the peer has had time for them.
pub(super) async fn farewell(mut socket: Socket, words: &[u8]) {
    let close = async {
        if socket.write_all(words).await.is_ok() {
            socket.close().await;
        }
    };
    let _ = timeout(FAREWELL, close).await;
}

/// A final GOAWAY.
pub(super) fn goaway(reason: u32, text: &str, stream: u32) -> Vec<u8> {
    let mut meta = MetaBuilder::new();
    if !text.is_empty() {
        meta.put(id::ERROR_TEXT, text.as_bytes());
    }
    let meta_len = u16::try_from(meta.len()).unwrap_or(0);
    let header = Header { flags: Flags::END_STREAM, word: reason, stream, meta_len, ..Header::new(Kind::GoAway) };
    let mut bytes = header.bytes().to_vec();
    bytes.extend_from_slice(meta.as_ref());
    bytes
}
