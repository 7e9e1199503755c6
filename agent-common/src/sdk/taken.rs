//! Calls that are served here: the rules of a callee.

use std::{collections::HashMap, sync::Arc, task::Waker};

use bytes::Bytes;
use tokio::task::AbortHandle;

use super::{
    Error,
    frames::Received,
    pipe::Pipe,
    sending::Sending,
    state::{Fault, Names, Phase, State},
};
use crate::frame::{
    Flags, Frame, Header, Kind, MetaBuilder, Offer, Released, Violation, entries, id, service_hash, status, status::reason,
};

/// A call in flight.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) names: Names,
    /// The answer, once it has begun.
    pub(super) sending: Option<Sending>,
    /// The lane that it came by, if it did.
    lane: Option<u32>,
    /// Where the rest of the request goes.
    pipe: Option<Arc<Pipe>>,
    pub(super) task: Option<AbortHandle>,
    pub(super) watchers: Vec<Waker>,
}

/// What is served on a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    pub(super) offers: Arc<HashMap<u64, Offer>>,
}

/// A call that begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) header: Header,
    pub(super) names: Names,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
    pub(super) pipe: Option<Arc<Pipe>>,
}

impl Taken {
    /// A frame of an answer has left.
    pub(super) fn released(calls: &mut HashMap<u64, Self>, released: Released, at: u64) -> bool {
        let Some(taken) = calls.get_mut(&released.message.via) else { return false };
        let Some(sending) = &mut taken.sending else { return false };
        let more = sending.released(released, at);
        if released.end
            && let Some(mut taken) = calls.remove(&released.message.via)
        {
            taken.end("the call was answered");
        }
        more
    }

    /// Tells everybody who waits for something of the call.
    fn end(&mut self, why: &'static str) {
        if let Some(pipe) = self.pipe.take() {
            pipe.fail(Error::new(status::CANCELLED, why));
        }
        if let Some(sending) = &mut self.sending {
            sending.wake();
        }
        self.watchers.drain(..).for_each(Waker::wake);
    }
}

impl State {
    /// A call begins here, which came by this lane if it did by one.
    pub(super) fn on_request(&mut self, frame: Received, lane: Option<u32>, starts: &mut Vec<Start>) -> Result<(), Fault> {
        let Received { header, meta, body } = frame;
        if self.taken.contains_key(&header.via) {
            return Err(Violation::Via { stream: header.stream }.into());
        }
        if self.outbox.waiting_bytes() > self.queued_bytes_max {
            return Err(Fault { reason: reason::LIMIT, text: "the peer takes no answers".to_owned() });
        }
        let names = Names { stream: header.stream, via: header.via, service: header.service, flags: Flags::TO_CALLER };
        if let Err((status, text)) = self.check(&header, &meta) {
            if !header.flags.has(Flags::ONE_WAY) {
                self.refuse(names, lane, status, text);
            }
            return Ok(());
        }
        let mut taken = Taken { names, sending: None, lane, pipe: None, task: None, watchers: Vec::new() };
        let mut start = Start { header, names, meta, body, pipe: None };
        if !header.flags.has(Flags::END_STREAM) {
            let pipe = Arc::new(Pipe::new(self.window));
            let body = std::mem::take(&mut start.body);
            let credit =
                pipe.push(body, header.frame_len(), false).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
            self.give_back(names, credit);
            start.pipe = Some(Arc::clone(&pipe));
            taken.pipe = Some(pipe);
        }
        self.taken.insert(header.via, taken);
        starts.push(start);
        Ok(())
    }

    /// Whether a call may be executed here.
    fn check(&self, header: &Header, meta: &[u8]) -> Result<(), (u32, &'static str)> {
        let (mut uri, mut group) = (None, &[][..]);
        for (at, entry) in entries(meta).enumerate() {
            let (found, value) = entry.map_err(|_| (status::SERIALIZATION, "the metadata is not readable"))?;
            match found {
                id::URI if at == 0 => uri = Some(value),
                id::GROUP => group = value,
                _ => {}
            }
            if matches!(found, id::URI | id::METHOD | id::GROUP) && std::str::from_utf8(value).is_err() {
                return Err((status::SERIALIZATION, "the metadata is not UTF-8"));
            }
        }
        let uri = uri.ok_or((status::NO_URI, "the metadata does not begin with a URI"))?;
        if service_hash(uri, group) != header.service {
            return Err((status::SERIALIZATION, "URI and group do not hash to the service"));
        }
        let offer = self.terms.offers.get(&header.service);
        if !offer.is_some_and(|offer| offer.uri.as_bytes() == uri && offer.group.as_bytes() == group) {
            return Err((status::SERVICE_NOT_FOUND, "this service is not offered here"));
        }
        if self.taken.len() >= self.calls_max {
            return Err((status::LIMIT, "calls_max is reached"));
        }
        Ok(())
    }

    /// Answers a call that was not executed.
    fn refuse(&mut self, names: Names, lane: Option<u32>, status: u32, text: &str) {
        let mut meta = MetaBuilder::new();
        meta.put(id::ERROR_TEXT, text.as_bytes());
        let meta_len = u16::try_from(meta.len()).unwrap_or(0);
        let mut header = Header { word: status, meta_len, ..names.header(Kind::Response) };
        header.flags |= Flags::END_STREAM | Flags::NOT_EXECUTED;
        let (meta, body) = (meta.finish(), Bytes::new());
        if !self.answer_by_lane(lane, header, &meta, Some(&body)) {
            self.outbox.push(Frame { header, meta, body });
        }
    }

    pub(super) fn on_request_data(&mut self, frame: Received) -> Result<(), Fault> {
        let Received { header, body, .. } = frame;
        let Some((names, Some(pipe))) = self.taken.get(&header.via).map(|taken| (taken.names, taken.pipe.as_ref())) else {
            self.ignored += 1;
            return Ok(());
        };
        let end = header.flags.has(Flags::END_STREAM);
        let credit = pipe.push(body, header.frame_len(), end).map_err(|_| Violation::StreamWindow { stream: names.stream })?;
        if end && let Some(taken) = self.taken.get_mut(&header.via) {
            taken.pipe = None;
        }
        self.give_back(names, credit);
        Ok(())
    }

    /// A CANCEL from the caller.
    pub(super) fn on_cancelled(&mut self, header: &Header) {
        let Some(mut taken) = self.taken.remove(&header.via) else {
            self.ignored += 1;
            return;
        };
        self.outbox.cancel(taken.names.message());
        if let Some(task) = &taken.task {
            task.abort();
        }
        taken.end("the caller has cancelled the call");
        if taken.lane.is_some() && taken.sending.is_none() {
            self.settle(taken.names, taken.lane);
        }
    }

    /// Nobody wants the answer, but it proves that the call was read from the lane: until then the room that it took there is
    /// not given to others.
    fn settle(&mut self, names: Names, lane: Option<u32>) {
        let mut header = Header { word: status::CANCELLED, ..names.header(Kind::Response) };
        header.flags |= Flags::END_STREAM;
        let (meta, body) = (Bytes::new(), Bytes::new());
        if !self.answer_by_lane(lane, header, &meta, Some(&body)) {
            self.outbox.push(Frame { header, meta, body });
        }
    }

    pub(super) fn taken_mut(&mut self, names: Names) -> Option<&mut Taken> {
        self.taken.get_mut(&names.via).filter(|taken| taken.names.stream == names.stream)
    }

    /// Begins to answer, and says whether it did by the lane. None if the call has ended before.
    pub(super) fn answer(&mut self, names: Names, header: Header, meta: Bytes, whole: Option<Bytes>) -> Option<bool> {
        if self.phase == Phase::Closed || self.taken_mut(names).is_none_or(|taken| taken.sending.is_some()) {
            return None;
        }
        let lane = self.taken_mut(names).and_then(|taken| taken.lane);
        if self.answer_by_lane(lane, header, &meta, whole.as_ref()) {
            self.remove_taken(names.via, "the call was answered");
            return Some(true);
        }
        let sending = self.begin(names, header, meta, whole);
        if let Some(taken) = self.taken_mut(names) {
            taken.sending = Some(sending);
        }
        Some(false)
    }

    /// The call ends here: without an answer, or with a CANCEL.
    pub(super) fn end_taken(&mut self, names: Names, cancel: Option<(u32, &str)>) {
        if self.taken_mut(names).is_none() {
            return;
        }
        self.remove_taken(names.via, "the call has ended");
        self.outbox.cancel(names.message());
        if let Some((status, text)) = cancel {
            self.cancel_frame(names, status, text);
        }
    }

    fn remove_taken(&mut self, via: u64, why: &'static str) {
        if let Some(mut taken) = self.taken.remove(&via) {
            taken.end(why);
        }
    }

    pub(super) fn fail_taken(&mut self) {
        for (_, mut taken) in self.taken.drain() {
            if let Some(task) = &taken.task {
                task.abort();
            }
            taken.end("the connection to the agent has ended");
        }
    }
}
