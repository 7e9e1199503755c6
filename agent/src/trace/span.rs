//! Spans, as the data plane makes them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{By, Context, Record, SpanId};

/// A call, or one side of it, for a collector.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace, and its own number.
    pub context: Context,
    /// The span that it is below; none if the trace begins here.
    pub parent: Option<SpanId>,
    /// Which side it tells of.
    pub kind: Kind,
    /// The URI that was called.
    pub service: Arc<str>,
    /// The group that was called, if not the default one.
    pub group: Option<Arc<str>>,
    /// The method; empty if it is not known.
    pub method: String,
    /// Who calls, as it says; empty if it does not.
    pub application: String,
    /// The address of the instance that answered, or was tried last: `host:port`, or a path.
    pub instance: Option<Arc<str>>,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// The code of the error that it ended with; none if all went well.
    pub code: Option<u16>,
    /// Who answered.
    pub by: By,
    /// What went wrong, for people; empty if there is nothing to say.
    pub error: String,
    /// What happened meanwhile, in the order of time.
    pub events: Vec<Event>,
    /// What else is worth knowing.
    pub attributes: Vec<(&'static str, Value)>,
}

impl Span {
    /// The beginning of a span: what is known of a call before it is made.
    #[must_use]
    pub fn of(record: &Record, (context, parent, kind): (Context, Option<SpanId>, Kind), started: SystemTime) -> Self {
        Self {
            context,
            parent,
            kind,
            service: record.service.clone(),
            group: record.group.clone(),
            method: record.method.clone(),
            application: record.application.clone(),
            instance: None,
            started,
            took: Duration::ZERO,
            code: None,
            by: By::Service,
            error: String::new(),
            events: Vec::new(),
            attributes: Vec::new(),
        }
    }
}

/// The side of a call that a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The agent calls an instance.
    Client,
    /// The agent is called.
    Server,
}

/// Something that happened during a span, such as `retry` or `hedge`.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What.
    pub name: &'static str,
    /// What is to say about it.
    pub attributes: Vec<(&'static str, Value)>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

impl Event {
    /// Another instance is tried, as something went wrong.
    #[must_use]
    pub fn retry(at: SystemTime, instance: &str, reason: &str) -> Self {
        Self::try_(at, "retry", instance, reason)
    }

    /// A second copy is sent, as the answer is late.
    #[must_use]
    pub fn hedge(at: SystemTime, instance: &str, reason: &str) -> Self {
        Self::try_(at, "hedge", instance, reason)
    }

    fn try_(at: SystemTime, name: &'static str, instance: &str, reason: &str) -> Self {
        Self { at, name, attributes: vec![("moa.instance", instance.into()), ("moa.reason", reason.into())] }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
