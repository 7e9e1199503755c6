use std::time::Duration;

use bytes::Bytes;

use super::{Body, Error, Incoming, body::Kind, made::Outgoing};
use crate::frame::{FRAME_MAX, Flags, HEAD_MAX, HEADER_LEN, MetaBuilder, entries, find, id, property, service_hash, status};

/// A call that is to be made.
#[derive(Debug, Clone)]
pub struct Request {
    uri: String,
    group: String,
    rest: MetaBuilder,
    flags: Flags,
    pub(super) timeout: Option<Duration>,
    pub(super) body: Body,
    too_long: bool,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Response {
    /// 0 for success.
    pub status: u32,
    /// What is said of it, with bits that only the application knows.
    pub flags: Flags,
    /// Its entries.
    pub metadata: Metadata,
    /// What it says.
    pub body: Incoming,
}

/// The metadata of a message that came.
#[derive(Debug, Clone, Default)]
pub struct Metadata(pub(super) Bytes);

impl Request {
    /// A call of the service with this URI.
    #[must_use]
    pub fn new(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            group: String::new(),
            rest: MetaBuilder::new(),
            flags: Flags::NONE,
            timeout: None,
            body: Body::default(),
            too_long: false,
        }
    }

    /// Calls this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        self.metadata(id::METHOD, method.as_bytes())
    }

    /// Calls the service of this group.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        group.clone_into(&mut self.group);
        self
    }

    /// How long the answer, all of it, may take. Without one the service's own timeout counts.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Whether the call may be executed more than once.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        let flags = self.flags.without(Flags::IDEMPOTENT);
        self.flags = if idempotent { flags | Flags::IDEMPOTENT } else { flags };
        self
    }

    /// Says more of it, as [`Flags::COMPRESSED`].
    #[must_use]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags |= flags.without(Flags::END_STREAM | Flags::TO_CALLER | Flags::ONE_WAY | Flags::VERIFIED);
        self
    }

    /// One more entry of metadata: [`id`] has those of the protocol, and those from 128 on are the application's.
    #[must_use]
    pub fn metadata(mut self, id: u8, value: &[u8]) -> Self {
        self.too_long |= value.len() > HEAD_MAX;
        self.rest.put(id, value);
        self
    }

    /// One more property.
    #[must_use]
    pub fn property(mut self, name: &str, value: &[u8]) -> Self {
        self.too_long |= name.len() > 255 || value.len() > HEAD_MAX;
        self.rest.put_property(name, value);
        self
    }

    /// What it says: bytes, or a [`Body::channel`].
    #[must_use]
    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn is_idempotent(&self) -> bool {
        self.flags.has(Flags::IDEMPOTENT)
    }

    /// As it is sent, after having been sent so often before.
    pub(super) fn outgoing(&self, timeout_ms: u32, sent_before: u8) -> Result<Outgoing, Error> {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, self.uri.as_bytes());
        if !self.group.is_empty() {
            meta.put(id::GROUP, self.group.as_bytes());
        }
        let mut sampled = false;
        for (entry, value) in entries(self.rest.as_ref()).map_while(Result::ok) {
            sampled |= entry == id::TRACEPARENT && is_sampled(value);
            meta.put(entry, value);
        }
        if sent_before > 0 {
            meta.put(id::RETRY_COUNT, &[sent_before]);
        }
        let (meta, body) = finish(meta, &self.body);
        if self.uri.is_empty() {
            return Err(Error::new(status::NO_URI, "the request has no URI").not_executed(true));
        }
        if self.too_long || meta.len() > HEAD_MAX - HEADER_LEN {
            return Err(Error::new(status::SERIALIZATION, "the metadata is too long for a frame"));
        }
        let service = service_hash(self.uri.as_bytes(), self.group.as_bytes());
        Ok(Outgoing { service, flags: self.flags, timeout_ms, meta, body, sampled })
    }
}

/// Whether a W3C `traceparent` says that the trace is recorded: the lowest bit of its last field.
fn is_sampled(traceparent: &[u8]) -> bool {
    let flags = traceparent.get(53..55).and_then(|flags| std::str::from_utf8(flags).ok());
    flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
}

/// The metadata of a message with this body: with its length, if it does not fit into one frame.
pub(super) fn finish(mut meta: MetaBuilder, body: &Body) -> (Bytes, Option<Bytes>) {
    let Kind::Whole(body) = &body.0 else { return (meta.finish(), None) };
    if HEADER_LEN + meta.len() + body.len() > FRAME_MAX {
        meta.put(id::BODY_LEN, &(body.len() as u64).to_be_bytes());
    }
    (meta.finish(), Some(body.clone()))
}

impl Metadata {
    /// The first entry with this id.
    #[must_use]
    pub fn get(&self, id: u8) -> Option<&[u8]> {
        find(&self.0, id)
    }

    /// The first entry with this id, if it is UTF-8.
    #[must_use]
    pub fn text(&self, id: u8) -> Option<&str> {
        self.get(id).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The property with this name.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&[u8]> {
        property(&self.0, name.as_bytes())
    }

    /// All of it, as it came: to be read with [`crate::frame::entries`].
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_recorded_if_its_last_field_says_so() {
        let parent = |flags| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        for (flags, sampled) in [("01", true), ("03", true), ("00", false), ("02", false), ("zz", false), ("", false)] {
            assert_eq!(is_sampled(parent(flags).as_bytes()), sampled, "{flags}");
        }
        assert!(!is_sampled(b""));
    }
}
