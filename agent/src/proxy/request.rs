//! What a call asks for, held until somebody takes it: as a command of Redis, or as frames.

use std::{borrow::Cow, ops::Range};

use agent_common::frame::{FRAME_MAX, Flags, Frame, HEAD_MAX, HEADER_LEN, Header, Kind, MetaBuilder, entries, id};
use bytes::{Bytes, BytesMut};

use super::{out::owned, says::RedisCall};
use crate::{
    rules::{Name, Says, environment as environment_of, hash_key, said},
    trace::Context,
    wire::{envelope::scan_request, reply::bulk_header},
};

/// What stands before the argument of a call that was not sent as a command of its own.
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n";
/// What stands behind it.
const END: &[u8] = b"\r\n";
/// What calls of Redis clients are.
const JSON: &[u8] = b"application/json";

/// A whole call.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What a command of Redis begins with, before `bytes`.
    head: Bytes,
    /// Slices of what came.
    bytes: Bytes,
    /// What stands behind them.
    tail: &'static [u8],
    /// Where the call's body lies in `bytes`.
    body: Range<usize>,
    /// The header and the metadata, of a call that came in frames.
    frame: Option<Box<(Header, Bytes)>>,
}

impl Request {
    /// A command of a Redis client, as it came, with where its argument lies.
    pub(crate) fn command_of(raw: Bytes, argument: Range<usize>) -> Self {
        Self { head: Bytes::new(), bytes: raw, tail: &[], body: argument, frame: None }
    }

    /// An argument with its length before it and its end behind it, which begins at `at`.
    pub(crate) fn argument_of(bytes: Bytes, at: usize) -> Self {
        let body = at..bytes.len() - END.len();
        Self { head: Bytes::from_static(GET), bytes, tail: &[], body, frame: None }
    }

    /// A call that came in frames.
    pub(crate) fn framed(header: Header, meta: Bytes, body: Bytes) -> Self {
        Self { head: Bytes::new(), body: 0..body.len(), bytes: body, tail: END, frame: Some(Box::new((header, meta))) }
    }

    /// Bytes that it holds.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.frame.as_ref().map_or(0, |frame| HEADER_LEN + frame.1.len())
    }

    pub(crate) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Makes it a command of Redis.
    pub(crate) fn into_command(mut self) -> Self {
        if self.frame.is_some() && self.head.is_empty() {
            self.head = [GET, &bulk_header(self.bytes.len())].concat().into();
        }
        self
    }

    /// The parts of the command.
    pub(crate) fn command(&self) -> [&[u8]; 3] {
        [&self.head, &self.bytes, self.tail]
    }

    pub(crate) fn command_len(&self) -> usize {
        self.head.len() + self.bytes.len() + self.tail.len()
    }

    /// Has it not hold on to a large buffer for a few bytes.
    pub(crate) fn own(&mut self) {
        self.bytes = owned(std::mem::take(&mut self.bytes));
    }

    pub(crate) fn owned(mut self) -> Self {
        self.own();
        self
    }

    /// The frames of the call, from a header with its numbers, its service and its time. `meta` begins with the service.
    pub(crate) fn frames(&self, numbers: Header, service_meta: &[u8], notes: &Notes<'_>, mut each: impl FnMut(Frame)) {
        let body = self.bytes.slice(self.body.clone());
        let (flags, meta) = match &self.frame {
            Some(frame) => (frame.0.flags, notes.added_to(&frame.1)),
            None => (Flags::NONE, self.metadata(&body, service_meta, notes)),
        };
        split(Header { kind: Kind::Request as u8, flags: flags | notes.flags(), ..numbers }, meta, body, &mut each);
    }

    /// The metadata of a call that came as a command.
    fn metadata(&self, body: &[u8], service_meta: &[u8], notes: &Notes<'_>) -> Bytes {
        let mut meta = MetaBuilder::from(BytesMut::from(service_meta));
        let call = RedisCall { envelope: scan_request(body).unwrap_or_default(), application: "" };
        let mut put = |id, value: Option<Cow<'_, [u8]>>| {
            if let Some(value) = value.filter(|value| value.len() <= HEAD_MAX / 8) {
                meta.put(id, &value);
            }
        };
        put(id::METHOD, call.get(&Name::Method).filter(|method| !method.is_empty()));
        put(id::HASH_KEY, hash_key(&call));
        put(id::STRESS, said(&call, &Name::Stress));
        let environment = notes.environment.map(|name| Cow::Borrowed(name.as_bytes()));
        put(id::ENVIRONMENT, environment.or_else(|| environment_of(&call)));
        notes.put_others(&mut meta);
        if notes.traceparent.is_none() {
            let traceparent = call.get(&Name::Entry(id::TRACEPARENT));
            if let Some(traceparent) = traceparent.filter(|text| text.len() <= HEAD_MAX / 8) {
                meta.put(id::TRACEPARENT, &traceparent);
            }
        }
        meta.put(id::CONTENT_TYPE, JSON);
        if body.len() + meta.len() + HEADER_LEN > FRAME_MAX {
            meta.put(id::BODY_LEN, &(body.len() as u64).to_be_bytes());
        }
        meta.finish()
    }
}

/// What this agent says about a call to the next one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Notes<'a> {
    pub(crate) environment: Option<&'a str>,
    /// Who calls: the application, and its process if that is known.
    pub(crate) source: Option<(&'a str, &'a str)>,
    /// The metadata that its service begins with, if it goes to another one than it names.
    pub(crate) service: Option<&'a [u8]>,
    pub(crate) traceparent: Option<[u8; Context::TEXT_BYTES]>,
    /// Its answer is dropped.
    pub(crate) shadow: bool,
}

impl Notes<'_> {
    /// The flags that go with them.
    pub(crate) fn flags(&self) -> Flags {
        let shadow = if self.shadow { Flags::SHADOW } else { Flags::NONE };
        if self.source.is_some() { shadow | Flags::VERIFIED } else { shadow }
    }

    /// Metadata with the notes in it, instead of what it said about the same.
    pub(crate) fn added_to(&self, meta: &Bytes) -> Bytes {
        if self.environment.is_none() && self.source.is_none() && self.service.is_none() && self.traceparent.is_none() {
            return meta.clone();
        }
        let replaced = |id| match id {
            id::ENVIRONMENT => self.environment.is_some(),
            id::SOURCE_APPLICATION | id::SOURCE_INSTANCE => self.source.is_some(),
            id::URI | id::GROUP => self.service.is_some(),
            id::TRACEPARENT => self.traceparent.is_some(),
            _ => false,
        };
        let mut out = self.service.map_or_else(MetaBuilder::new, |service| MetaBuilder::from(BytesMut::from(service)));
        for (id, value) in entries(meta).map_while(Result::ok).filter(|(id, _)| !replaced(*id)) {
            out.put(id, value);
        }
        if let Some(environment) = self.environment {
            out.put(id::ENVIRONMENT, environment.as_bytes());
        }
        self.put_others(&mut out);
        // Metadata that is as long as it may be goes as it came.
        if out.len() + HEADER_LEN > HEAD_MAX { meta.clone() } else { out.finish() }
    }

    fn put_others(&self, meta: &mut MetaBuilder) {
        if let Some((application, instance)) = self.source {
            meta.put(id::SOURCE_APPLICATION, application.as_bytes());
            if !instance.is_empty() {
                meta.put(id::SOURCE_INSTANCE, instance.as_bytes());
            }
        }
        if let Some(traceparent) = self.traceparent {
            meta.put(id::TRACEPARENT, &traceparent);
        }
    }
}

/// Cuts a message into frames: the first one has the metadata, the last one the end.
pub(crate) fn split(header: Header, meta: Bytes, body: Bytes, each: &mut impl FnMut(Frame)) {
    pieces(header, meta, body, true, each);
}

/// Cuts a part of a message into frames. `ends`: the message ends with it.
pub(crate) fn pieces(header: Header, mut meta: Bytes, mut body: Bytes, ends: bool, each: &mut impl FnMut(Frame)) {
    let meta_len = u16::try_from(meta.len()).unwrap_or(u16::MAX);
    let mut header = Header { meta_len, flags: header.flags.without(Flags::END_STREAM), ..header };
    loop {
        let piece = body.split_to(body.len().min(FRAME_MAX - header.head_len()));
        let end = if ends && body.is_empty() { Flags::END_STREAM } else { Flags::NONE };
        let body_len = u32::try_from(piece.len()).unwrap_or(0);
        each(Frame {
            header: Header { flags: header.flags | end, body_len, ..header },
            meta: std::mem::take(&mut meta),
            body: piece,
        });
        if body.is_empty() {
            return;
        }
        let kept = header.flags.0 & (Flags::TO_CALLER | Flags::ONE_WAY).0;
        header = Header { kind: Kind::Data as u8, meta_len: 0, word: 0, flags: Flags(kept), ..header };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_into_frames_that_are_as_large_as_they_may_be() {
        let body = Bytes::from(vec![7; 150_000]);
        let header = Header { flags: Flags::IDEMPOTENT | Flags::END_STREAM, stream: 1, ..Header::new(Kind::Request) };
        let mut frames = Vec::new();
        split(header, Bytes::from_static(b"meta"), body.clone(), &mut |frame| frames.push(frame));
        let lens: Vec<_> = frames.iter().map(|frame| frame.header.frame_len()).collect();
        assert_eq!(lens, [FRAME_MAX, FRAME_MAX, 150_000 + 4 + 3 * HEADER_LEN - 2 * FRAME_MAX]);
        let flags: Vec<_> = frames.iter().map(|frame| frame.header.flags).collect();
        assert_eq!(flags, [Flags::IDEMPOTENT, Flags::NONE, Flags::END_STREAM]);
        assert_eq!(frames.iter().flat_map(|frame| frame.body.clone()).collect::<Vec<_>>(), body);
    }

    #[test]
    fn a_call_is_the_same_as_a_command_and_as_frames() {
        let json = br#"{"action":"/s","params":{"m":"get","args":[]}}"#;
        let raw = Bytes::from(crate::wire::reply::array_of_bulks(&[b"GET", json]));
        let request = Request::command_of(raw.clone(), raw.len() - 2 - json.len()..raw.len() - 2);
        assert_eq!(request.command().concat(), raw);
        let mut service = MetaBuilder::new();
        service.put(id::URI, b"/s");
        let mut frames = Vec::new();
        request.frames(Header { stream: 3, ..Header::new(Kind::Request) }, service.as_ref(), &Notes::default(), |frame| {
            frames.push(frame);
        });
        let [frame] = &frames[..] else { panic!("one frame") };
        assert_eq!(&frame.body[..], json);
        assert_eq!(agent_common::frame::find(&frame.meta, id::METHOD), Some(&b"get"[..]));
        let back = Request::framed(frame.header, frame.meta.clone(), frame.body.clone()).into_command();
        assert_eq!(back.command().concat(), raw);
    }
}
