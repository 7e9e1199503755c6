//! What calls say of themselves, for the rules of their services.

use std::borrow::Cow;

use agent_common::frame::{entries, id};

use crate::{
    rules::{Name, Says},
    wire::envelope::{Envelope, JsonStr},
};

/// The call of a Redis client.
pub(super) struct RedisCall<'a> {
    pub(super) envelope: Envelope<'a>,
    /// What the client calls itself; empty if it does not.
    pub(super) application: &'a str,
}

/// A call in frames.
pub(super) struct FrameCall<'a> {
    pub(super) meta: &'a [u8],
    /// The method, which every call is counted by.
    pub(super) method: &'a [u8],
    /// Who calls, as the connection or another agent says; empty if it is not known.
    pub(super) application: &'a str,
    pub(super) instance: &'a str,
}

impl Says for RedisCall<'_> {
    fn get(&self, what: &Name) -> Option<Cow<'_, [u8]>> {
        match what {
            Name::Method => self.envelope.method.as_ref().and_then(text),
            Name::Application => Some(self.application.as_bytes().into()),
            Name::ContentType => Some(Cow::Borrowed(b"application/json")),
            Name::Entry(id::TRACEPARENT) => self.property("traceparent"),
            Name::Entry(id::BAGGAGE) => self.property("baggage"),
            Name::Property(name) => self.property(name),
            _ => None,
        }
    }
}

impl RedisCall<'_> {
    fn property(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let props = self.envelope.props.as_ref()?;
        // The last one of two with the same name counts.
        let value = props.iter().filter(|(key, _)| key.is(name)).last()?.1;
        Some(owned_or_raw(value))
    }
}

/// A string of the text, without a copy if it has no escapes.
fn owned_or_raw(value: JsonStr<'_>) -> Cow<'_, [u8]> {
    if value.is_escaped() {
        return value.decode().map(|text| text.into_owned().into_bytes()).unwrap_or_default().into();
    }
    Cow::Borrowed(value.raw)
}

fn text<'a>(value: &'a JsonStr<'_>) -> Option<Cow<'a, [u8]>> {
    Some(owned_or_raw(*value))
}

impl Says for FrameCall<'_> {
    fn get(&self, what: &Name) -> Option<Cow<'_, [u8]>> {
        let number = match what {
            Name::Application => return Some(self.application.as_bytes().into()),
            Name::Instance => return Some(self.instance.as_bytes().into()),
            Name::Property(name) => return agent_common::frame::property(self.meta, name.as_bytes()).map(Cow::Borrowed),
            Name::Method => return Some(Cow::Borrowed(self.method)),
            Name::Group => id::GROUP,
            Name::Environment => id::ENVIRONMENT,
            Name::Zone => id::ZONE,
            Name::Stress => id::STRESS,
            Name::HashKey => id::HASH_KEY,
            Name::ContentType => id::CONTENT_TYPE,
            Name::Entry(number) => *number,
        };
        let found = entries(self.meta).map_while(Result::ok).find(|(found, _)| *found == number);
        found.map(|(_, value)| Cow::Borrowed(value))
    }
}
