//! Calls that are made from here: the rules of a caller.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Error,
    frames::Received,
    lane_calls::Begun,
    pipe::Pipe,
    sending::Sending,
    state::{Fault, Mark, Names, Phase, State, error_text},
};
use crate::frame::{FRAME_MAX, Flags, Header, Kind, Released, Violation, is_after, status};

/// A call in flight.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) names: Names,
    pub(super) sending: Sending,
    /// The lane that it went by, if it did.
    pub(super) lane: Option<u32>,
    waits: Waits,
}

#[derive(Debug)]
enum Waits {
    Answer(oneshot::Sender<Answer>),
    /// The rest of an answer.
    Rest(Arc<Pipe>),
    /// That the socket takes it.
    Written(oneshot::Sender<Result<(), Error>>),
}

/// What came of a call.
pub(super) type Answer = Result<Head, Error>;

/// The beginning of an answer, or all of it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) header: Header,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
    /// Where the rest comes.
    pub(super) pipe: Option<Arc<Pipe>>,
}

/// What is to be sent as a REQUEST.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) service: u64,
    pub(super) flags: Flags,
    pub(super) timeout_ms: u32,
    pub(super) meta: Bytes,
    /// None if it comes piece by piece.
    pub(super) body: Option<Bytes>,
    /// Its trace is recorded.
    pub(super) sampled: bool,
}

/// Which connection a call may go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The lane, if there is one and the call fits.
    Any,
    /// The stream connection.
    Stream,
}

/// What is known of a call that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) names: Names,
    pub(super) by_lane: bool,
}

/// Who is told what came of a call.
pub(super) enum Told {
    Answer(oneshot::Sender<Answer>),
    Written(oneshot::Sender<Result<(), Error>>),
}

impl Made {
    /// A frame of a call has left; `at` is where it ends among the bytes of the connection.
    pub(super) fn released(calls: &mut HashMap<u64, Self>, marks: &mut VecDeque<Mark>, released: Released, at: u64) -> bool {
        let Some(made) = calls.get_mut(&released.message.via) else { return false };
        made.names.stream = released.stream;
        let more = made.sending.released(released, at);
        if released.end
            && matches!(made.waits, Waits::Written(_))
            && let Some(Self { mut sending, waits: Waits::Written(done), .. }) = calls.remove(&released.message.via)
        {
            sending.wake();
            marks.push_back(Mark { first_end: sending.first_end.unwrap_or(at), end: at, done });
        }
        more
    }
}

impl State {
    /// Begins a call.
    pub(super) fn call(&mut self, mut request: Outgoing, told: Told, way: Way) -> Result<Begin, Error> {
        if self.phase != Phase::Open {
            return Err(Error::broken("the connection is about to end", true));
        }
        let queued =
            self.outbox.waiting_bytes() + request.meta.len() + request.body.as_ref().map_or(0, Bytes::len).min(FRAME_MAX);
        if self.made.len() >= self.calls_max || queued > self.queued_bytes_max {
            let text = if queued > self.queued_bytes_max { "queued_bytes_max is reached" } else { "calls_max is reached" };
            return Err(Error::new(status::LIMIT, text));
        }
        if request.sampled && self.laned.offered {
            request.flags |= Flags::SLOW_PATH;
        }
        self.last += 1;
        let via = self.last;
        let one_way = if matches!(told, Told::Written(_)) { Flags::ONE_WAY } else { Flags::NONE };
        // It gets its number when it leaves.
        let names = Names { stream: 0, via, service: request.service, flags: one_way };
        let header = Header { flags: request.flags | one_way, word: request.timeout_ms, ..names.header(Kind::Request) };
        let (waits, may) = match told {
            Told::Answer(answer) => (Waits::Answer(answer), way == Way::Any),
            Told::Written(done) => (Waits::Written(done), false),
        };
        let begun = if may && self.fits_lane(&request) {
            self.call_by_lane(names, header, request.meta, request.body.unwrap_or_default())
        } else {
            let sending = self.begin(names, header, request.meta, request.body);
            Begun { names, sending, lane: None }
        };
        let Begun { names, sending, lane } = begun;
        self.made.insert(via, Made { names, sending, lane, waits });
        Ok(Begin { names, by_lane: lane.is_some() })
    }

    /// Nobody is interested any more, or the call cannot go on. True if that ends it.
    pub(super) fn abandon(&mut self, names: Names, status: u32) -> bool {
        let Some(mut made) = self.made.remove(&names.via) else { return false };
        made.sending.wake();
        if let Waits::Rest(pipe) = made.waits {
            pipe.fail(Error::new(status, "the call was cancelled"));
        }
        let message = names.message();
        let unsent = if made.lane.is_some() { self.laned.cancel(message) } else { self.outbox.cancel(message) };
        if !unsent {
            self.cancel_frame(made.names, status, "");
        }
        true
    }

    pub(super) fn made_mut(&mut self, names: Names) -> Option<&mut Made> {
        self.made.get_mut(&names.via)
    }

    /// The call has ended for its caller, who stops sending it.
    fn end_made(&mut self, via: u64) -> Option<Made> {
        let mut made = self.made.remove(&via)?;
        if made.lane.is_some() {
            self.laned.cancel(made.names.message());
        } else {
            self.outbox.cancel(made.names.message());
        }
        made.sending.wake();
        Some(made)
    }

    fn is_made(&mut self, header: &Header) -> Option<&mut Made> {
        let made = self.made.get_mut(&header.via).filter(|made| made.names.stream == header.stream);
        if made.is_none() {
            self.ignored += 1;
        }
        made
    }

    pub(super) fn on_response(&mut self, frame: Received) -> Result<(), Fault> {
        let Received { header, meta, body } = frame;
        let window = self.window;
        let Some(made) = self.is_made(&header) else { return Ok(()) };
        if !matches!(made.waits, Waits::Answer(_)) {
            self.ignored += 1;
            return Ok(());
        }
        if header.flags.has(Flags::END_STREAM) {
            if let Some(Made { waits: Waits::Answer(answer), .. }) = self.end_made(header.via) {
                let _ = answer.send(Ok(Head { header, meta, body, pipe: None }));
            }
            return Ok(());
        }
        let pipe = Arc::new(Pipe::new(window));
        let names = made.names;
        let waits = std::mem::replace(&mut made.waits, Waits::Rest(Arc::clone(&pipe)));
        let credit = pipe.push(body, header.frame_len(), false).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
        if let Waits::Answer(answer) = waits {
            let head = Head { header, meta, body: Bytes::new(), pipe: Some(pipe) };
            let _ = answer.send(Ok(head));
        }
        self.give_back(names, credit);
        Ok(())
    }

    pub(super) fn on_answer_data(&mut self, frame: Received) -> Result<(), Fault> {
        let Received { header, body, .. } = frame;
        let Some(made) = self.is_made(&header) else { return Ok(()) };
        let names = made.names;
        let Waits::Rest(pipe) = &made.waits else {
            self.ignored += 1;
            return Ok(());
        };
        let end = header.flags.has(Flags::END_STREAM);
        let credit = pipe.push(body, header.frame_len(), end).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
        if end {
            self.end_made(header.via);
        }
        self.give_back(names, credit);
        Ok(())
    }

    /// A CANCEL to the caller.
    pub(super) fn on_failed(&mut self, frame: &Received) {
        let header = &frame.header;
        if self.is_made(header).is_none() {
            return;
        }
        let error = Error::new(header.word, error_text(&frame.meta, header.word));
        self.fail_one(header.via, error.not_executed(header.flags.has(Flags::NOT_EXECUTED)));
    }

    /// A final GOAWAY: calls after its stream are not executed.
    pub(super) fn on_final(&mut self, frame: &Received) {
        let last = frame.header.stream;
        // It tells of the stream connection alone: what has left by a lane may be executed whatever its number is.
        let has_left_by_lane = |made: &Made| made.lane.is_some() && made.sending.first_end.is_some();
        let is_after = |made: &Made| (last == 0 || is_after(made.names.stream, last)) && !has_left_by_lane(made);
        let after: Vec<u64> = self.made.iter().filter(|(_, made)| is_after(made)).map(|(via, _)| *via).collect();
        for via in after {
            self.fail_one(via, Error::broken(format!("the agent goes away: {}", error_text(&frame.meta, 0)), true));
        }
    }

    pub(super) fn fail_made(&mut self, text: &str) {
        let calls: Vec<(u64, bool)> =
            self.made.iter().map(|(via, made)| (*via, made.sending.first_end.is_none_or(|end| end > self.written))).collect();
        for (via, unwritten) in calls {
            self.fail_one(via, Error::broken(text.to_owned(), unwritten));
        }
    }

    pub(super) fn fail_one(&mut self, via: u64, error: Error) {
        match self.end_made(via).map(|made| made.waits) {
            Some(Waits::Answer(answer)) => drop(answer.send(Err(error))),
            Some(Waits::Rest(pipe)) => pipe.fail(error.not_executed(false)),
            Some(Waits::Written(done)) => drop(done.send(Err(error))),
            None => {}
        }
    }

    pub(super) fn give_back(&mut self, names: Names, credit: Option<u32>) {
        if let Some(word) = credit {
            self.control(&Header { word, ..names.header(Kind::Credit) }, &[]);
        }
    }
}
