use std::{
    collections::{HashMap, VecDeque},
    task::Waker,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Error,
    frames::Received,
    lane_calls::Laned,
    made::Made,
    sending::Sending,
    taken::{Start, Taken, Terms},
};
use crate::frame::{
    FRAME_MAX, Flags, Frame, HEADER_LEN, Header, Hello, Inbox, Kind, Message, MetaBuilder, Outbox, Violation, id, status,
    status::reason,
};

/// What the frames of one direction of a call have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) stream: u32,
    pub(super) via: u64,
    pub(super) service: u64,
    /// [`Flags::TO_CALLER`] and [`Flags::ONE_WAY`], as they are on what is sent from here.
    pub(super) flags: Flags,
}

/// Everything that a connection knows, without its socket and without a clock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) laned: Laned,
    /// The window of a message that comes.
    pub(super) window: u32,
    /// A frame of a long body has so many bytes, so that a window holds several.
    pub(super) piece: usize,
    pub(super) calls_max: usize,
    pub(super) queued_bytes_max: usize,
    /// Calls that are made from here.
    pub(super) made: HashMap<u64, Made>,
    pub(super) last: u64,
    /// Calls that are served here.
    pub(super) taken: HashMap<u64, Taken>,
    pub(super) terms: Terms,
    /// Bytes that the socket took.
    pub(super) written: u64,
    /// Who waits until the socket has taken so many bytes, in their order.
    pub(super) marks: VecDeque<Mark>,
    pub(super) phase: Phase,
    pub(super) driver: Option<Waker>,
    pub(super) pings: Pings,
    /// Frames of calls that are not in flight.
    pub(super) ignored: u64,
    pub(super) fault: Option<Fault>,
    /// What the peer's GOAWAY says, if it is not in good order.
    pub(super) blamed: Option<String>,
    refills: Vec<Message>,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// No new calls from here: it ends when those in flight have.
    Leaving,
    /// GOAWAY was sent: it ends when this PING is answered and the calls in flight have ended.
    Draining {
        ping: Option<u64>,
    },
    /// It ends now.
    Closing,
    Closed,
}

/// A whole message that nothing answers.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) first_end: u64,
    pub(super) end: u64,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug, Default)]
pub(super) struct Pings {
    next: u64,
    unanswered: u32,
}

/// Why a connection ends that could have gone on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: u32,
    pub(super) text: String,
}

/// PINGs without an answer after which a connection is dead.
const SILENCE: u32 = 3;

impl Names {
    pub(super) fn header(&self, kind: Kind) -> Header {
        let flags = if kind == Kind::Data { self.flags } else { self.flags.without(Flags::ONE_WAY) };
        Header { flags, stream: self.stream, via: self.via, service: self.service, ..Header::new(kind) }
    }

    pub(super) fn message(&self) -> Message {
        Message { via: self.via, to_caller: self.flags.has(Flags::TO_CALLER) }
    }
}

impl State {
    pub(super) fn new(
        peer: &Hello,
        window: crate::frame::Windows,
        terms: Terms,
        calls_max: usize,
        queued_bytes_max: usize,
    ) -> Self {
        let piece = FRAME_MAX.min(usize::try_from(peer.windows.stream / 4).unwrap_or(FRAME_MAX));
        Self {
            outbox: Outbox::new(peer.windows),
            inbox: Inbox::new(window.connection),
            laned: Laned::new(peer.lane.is_some()),
            window: window.stream,
            piece,
            calls_max,
            queued_bytes_max,
            made: HashMap::new(),
            last: 0,
            taken: HashMap::new(),
            terms,
            written: 0,
            marks: VecDeque::new(),
            phase: Phase::Open,
            driver: None,
            pings: Pings::default(),
            ignored: 0,
            fault: None,
            blamed: None,
            refills: Vec::new(),
        }
    }

    /// A frame came. Calls that begin with it are put behind `starts`.
    pub(super) fn receive(&mut self, frame: Received, starts: &mut Vec<Start>) -> Result<(), Fault> {
        let header = frame.header;
        if let Some(credit) = self.inbox.receive(&header)? {
            self.control(&Header { word: credit, ..Header::new(Kind::Credit) }, &[]);
        }
        let to_caller = header.flags.has(Flags::TO_CALLER);
        match header.kind() {
            Some(Kind::Request) => self.on_request(frame, None, starts)?,
            Some(Kind::Response) => self.on_response(frame)?,
            Some(Kind::Data) if to_caller => self.on_answer_data(frame)?,
            Some(Kind::Data) => self.on_request_data(frame)?,
            Some(Kind::Cancel) if to_caller => self.on_failed(&frame),
            Some(Kind::Cancel) => self.on_cancelled(&header),
            Some(Kind::Ping) => self.control(&Header { via: header.via, ..Header::new(Kind::Pong) }, &[]),
            Some(Kind::Pong) => self.on_pong(header.via),
            Some(Kind::Credit) => {
                self.outbox.credit(&header).map_err(|_| Violation::Credit { stream: header.stream })?;
            }
            Some(Kind::GoAway) => self.on_goaway(&frame),
            Some(Kind::Hello) | None => {}
        }
        Ok(())
    }

    /// Sends what needs no credit.
    pub(super) fn control(&mut self, header: &Header, meta: &[u8]) {
        if self.outbox.control(header, meta).is_err() {
            let text = "the peer takes none of what it is sent".to_owned();
            self.fault.get_or_insert(Fault { reason: reason::LIMIT, text });
        }
    }

    pub(super) fn cancel_frame(&mut self, names: Names, status: u32, text: &str) {
        let mut meta = MetaBuilder::new();
        if !text.is_empty() {
            meta.put(id::ERROR_TEXT, text.as_bytes());
        }
        let meta_len = u16::try_from(meta.len()).unwrap_or(0);
        self.control(&Header { word: status, meta_len, ..names.header(Kind::Cancel) }, meta.as_ref());
    }

    /// Begins to send a message. Without a whole body, pieces follow with [`Self::piece`].
    pub(super) fn begin(&mut self, names: Names, header: Header, meta: Bytes, whole: Option<Bytes>) -> Sending {
        let room = FRAME_MAX - HEADER_LEN - meta.len();
        let last = whole.is_some();
        let mut rest = whole.unwrap_or_default();
        let first =
            if rest.len() <= room { rest.len() } else { self.piece.saturating_sub(HEADER_LEN + meta.len()).clamp(1024, room) };
        let body = rest.split_to(first);
        let ended = last && rest.is_empty();
        let flags = if ended { header.flags | Flags::END_STREAM } else { header.flags };
        let (meta_len, body_len) = (u16::try_from(meta.len()).unwrap_or(0), u32::try_from(body.len()).unwrap_or(0));
        self.outbox.push(Frame { header: Header { flags, meta_len, body_len, ..header }, meta, body });
        let mut sending = Sending { rest, last, ended, ..Sending::default() };
        sending.refill(&mut self.outbox, names, self.piece);
        sending
    }

    /// Makes ready what may go next. True if anything is.
    pub(super) fn schedule(&mut self) -> bool {
        let mut at = self.written + self.outbox.ready_bytes() as u64;
        let mut refills = std::mem::take(&mut self.refills);
        let Self { outbox, made, taken, marks, piece, .. } = self;
        outbox.schedule(|released| {
            at += released.len as u64;
            let again = if released.message.to_caller {
                Taken::released(taken, released, at)
            } else {
                Made::released(made, marks, released, at)
            };
            if again {
                refills.push(released.message);
            }
        });
        for message in refills.drain(..) {
            if let Some((names, sending)) = if message.to_caller {
                taken.get_mut(&message.via).and_then(|taken| Some((taken.names, taken.sending.as_mut()?)))
            } else {
                made.get_mut(&message.via).map(|made| (made.names, &mut made.sending))
            } {
                sending.refill(outbox, names, *piece);
                sending.wake();
            }
        }
        self.refills = refills;
        self.outbox.ready_bytes() > 0
    }

    /// The socket took so many bytes.
    pub(super) fn advance(&mut self, written: usize) {
        self.outbox.advance(written);
        self.written += written as u64;
        while self.marks.front().is_some_and(|mark| mark.end <= self.written) {
            if let Some(mark) = self.marks.pop_front() {
                let _ = mark.done.send(Ok(()));
            }
        }
    }

    /// An interval has passed.
    pub(super) fn tick(&mut self) -> Result<(), String> {
        if self.pings.unanswered >= SILENCE {
            return Err(format!("{SILENCE} PINGs were not answered"));
        }
        self.tick_lanes();
        self.ping();
        Ok(())
    }

    fn ping(&mut self) -> u64 {
        self.pings.next += 1;
        self.pings.unanswered += 1;
        self.control(&Header { via: self.pings.next, ..Header::new(Kind::Ping) }, &[]);
        self.pings.next
    }

    fn on_pong(&mut self, via: u64) {
        // An answer that comes late is one too.
        let since = u32::try_from(self.pings.next.wrapping_sub(via)).unwrap_or(u32::MAX);
        self.pings.unanswered = self.pings.unanswered.min(since);
        if let Phase::Draining { ping: Some(ping) } = self.phase
            && via >= ping
        {
            self.phase = Phase::Draining { ping: None };
        }
    }

    /// Asks the peer to begin no more calls. What it began before it saw that came before the answer to the PING.
    pub(super) fn drain(&mut self) {
        if !matches!(self.phase, Phase::Open | Phase::Leaving) {
            return;
        }
        self.control(&Header { stream: self.inbox.last_stream(), ..Header::new(Kind::GoAway) }, &[]);
        self.phase = Phase::Draining { ping: Some(self.ping()) };
    }

    /// Whether nothing keeps the connection any more.
    pub(super) fn is_done(&self) -> bool {
        if self.phase == Phase::Closing {
            return true;
        }
        let asked = matches!(self.phase, Phase::Leaving | Phase::Draining { ping: None });
        let waits = self.outbox.ready_bytes() > 0 || self.laned.is_waiting() || !self.marks.is_empty();
        asked && self.made.is_empty() && self.taken.is_empty() && !waits
    }

    fn on_goaway(&mut self, frame: &Received) {
        if self.phase == Phase::Open {
            self.phase = Phase::Leaving;
        }
        let reason = frame.header.word;
        if reason != reason::DRAIN {
            self.blamed = Some(format!("GOAWAY with reason {reason}: {}", error_text(&frame.meta, 0)));
        }
        if frame.header.flags.has(Flags::END_STREAM) {
            self.on_final(frame);
        }
    }

    /// The connection has ended, and every call on it.
    pub(super) fn fail(&mut self, text: &str) {
        self.phase = Phase::Closed;
        self.laned.open = None;
        for mark in self.marks.drain(..) {
            let _ = mark.done.send(Err(Error::broken(text.to_owned(), mark.first_end > self.written)));
        }
        self.fail_made(text);
        self.fail_taken();
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self { reason: violation.reason(), text: violation.to_string() }
    }
}

impl From<crate::frame::Broken> for Fault {
    fn from(broken: crate::frame::Broken) -> Self {
        let reason = if matches!(broken, crate::frame::Broken::Version(_)) { reason::VERSION } else { reason::PROTOCOL };
        Self { reason, text: broken.to_string() }
    }
}

/// What an answer says went wrong.
pub(super) fn error_text(meta: &[u8], status: u32) -> String {
    let text = crate::frame::find(meta, id::ERROR_TEXT).map(|text| String::from_utf8_lossy(text).into_owned());
    text.unwrap_or_else(|| match status {
        status::TIMEOUT => "no answer in time".to_owned(),
        status::SERVICE_NOT_FOUND => "no such service".to_owned(),
        _ => "the call failed".to_owned(),
    })
}
