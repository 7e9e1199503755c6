//! What an operator is shown of a call: the lines of `GET /v1/calls`.
//!
//! The rule of the admin API holds here too: fields are only ever added, with a default.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A line of `GET /v1/calls`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// A call that has ended.
    Call(Arc<Record>),
    /// Calls were left out, as the reader was too slow for them.
    Dropped {
        /// How many, since the last such line.
        count: u64,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// A call that has ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Record {
    /// When it ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The worker that served it.
    pub worker: usize,
    /// How the caller spoke: `redis` or `frames`.
    pub protocol: Arc<str>,
    /// The caller's address; empty where it has none.
    pub peer: String,
    /// Who called, as it says; empty if it does not.
    pub application: String,
    /// The URI that was called.
    pub service: Arc<str>,
    /// The group that was called, if not the default one.
    pub group: Option<Arc<str>>,
    /// The method; empty if it is not known.
    pub method: String,
    /// The instance that answered, or was tried last; none if none was.
    pub instance: Option<Arc<str>>,
    /// The error that it ended with; 0 if all went well.
    pub code: i64,
    /// Who answered.
    pub by: By,
    /// Why the mesh answered, or what the service says that went wrong; empty if there is nothing to say.
    pub reason: String,
    /// The rule of the traffic policy that decided where it went, or that it went nowhere.
    pub rule: Option<Arc<str>>,
    /// From its last byte at the agent to the first byte of the answer there.
    pub duration_us: u64,
    /// How long the instance that answered took; 0 if none did.
    pub try_us: u64,
    /// How long it waited for a connection.
    pub queued_us: u64,
    /// How often it was sent, hedges included; 0 if never.
    pub tries: u32,
    /// How often of these it was sent again as something went wrong.
    pub retries: u32,
    /// Whether a second copy was sent, as the answer was late.
    pub hedged: bool,
    /// Whether it is a copy whose answer is dropped.
    pub shadow: bool,
    /// The fault that was put into it, for a drill.
    pub fault: Option<Arc<str>>,
    /// The bytes of the call.
    pub request_bytes: u64,
    /// The bytes of the answer.
    pub response_bytes: u64,
    /// The trace that it belongs to, in hexadecimal.
    pub trace_id: Option<String>,
    /// Whether that trace is recorded.
    pub sampled: bool,
    /// The environment that it asked for.
    pub environment: Option<String>,
    /// Whether it bears the mark of a stress test.
    pub stress: bool,
}

/// Who answered a call.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The service.
    #[default]
    Service,
    /// The mesh itself, as the call could not be served.
    Mesh,
    /// Nobody: the caller went away, or wants no answer.
    Nobody,
}

impl By {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Mesh => "mesh",
            Self::Nobody => "nobody",
        }
    }
}

impl Record {
    /// Whether it is one of `moa calls --errors`.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.code != 0 || self.by == By::Mesh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_versions_are_read() {
        let newer = r#"{"kind":"call","service":"/service/user","code":504,"by":"mesh","what_comes":[1]}"#;
        let record = Record { service: "/service/user".into(), code: 504, by: By::Mesh, ..Record::default() };
        assert_eq!(serde_json::from_str::<Line>(newer).expect("read"), Line::Call(Arc::new(record)));
        assert_eq!(serde_json::from_str::<Line>(r#"{"kind":"what_comes","a":{}}"#).expect("read"), Line::Unknown);
        assert_eq!(serde_json::from_str::<Line>(r#"{"kind":"dropped","count":3}"#).expect("read"), Line::Dropped { count: 3 });
    }

    #[test]
    fn a_record_is_written_flat() {
        let record = Record { service: "/service/user".into(), hedged: true, ..Record::default() };
        let line = serde_json::to_value(Line::Call(Arc::new(record.clone()))).expect("written");
        assert_eq!((&line["kind"], &line["service"], &line["hedged"]), (&"call".into(), &"/service/user".into(), &true.into()));
        assert_eq!(serde_json::from_value::<Line>(line).expect("read"), Line::Call(Arc::new(record)));
    }
}
