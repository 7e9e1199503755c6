//! What the kernel decides about the messages of one service, as operators read it: the lines of `GET /v1/kernel/trace`.
//!
//! The rule of the admin API holds here too: fields are only ever added, with a default.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_common::lane::NOBODY;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{LaneId, LaneTrace, Traced, registry::Lanes};
use crate::clock::now_ns;

/// A line of `GET /v1/kernel/trace`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TraceLine {
    /// A call.
    Call(Decision),
    /// An answer.
    Answer(Decision),
    /// Decisions were left out, as they were made faster than they were read.
    Dropped {
        /// How many, since the last such line.
        count: u64,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What was decided about a message.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Decision {
    /// When, in microseconds since 1970.
    pub unix_us: u64,
    /// The application that calls, `/` and its process; none of an answer that was not routed.
    pub caller: Option<Arc<str>>,
    /// The application that serves, `/` and its process; none of a call that was not routed.
    pub instance: Option<Arc<str>>,
    /// The call's number, on its caller's connection.
    pub stream: u32,
    /// Bytes of the message.
    pub bytes: u64,
    /// `routed`, or why not, as `moa kernel` counts it.
    pub verdict: String,
    /// Of an answer that was routed: nanoseconds since its call was.
    pub took_ns: Option<u64>,
}

/// Whoever looks on at what is decided. Ends it when dropped.
pub struct Tracer {
    lanes: Arc<Lanes>,
    decisions: Box<dyn LaneTrace>,
    /// Closed when it is to end.
    ends: mpsc::Receiver<Infallible>,
    /// What was read before it was said that others were dropped.
    held: Option<Traced>,
    /// Those that were seen: a lane may be over when it is read what was decided of it.
    names: HashMap<LaneId, Arc<str>>,
    /// What is to be added to the programs' clock for the time since 1970.
    offset: Duration,
}

impl Tracer {
    /// Traces a service, by its hash, until the sender is dropped that belongs to the receiver.
    pub(crate) fn open(lanes: Arc<Lanes>, service: u64, ends: mpsc::Receiver<Infallible>) -> Result<Self, String> {
        let decisions = lanes.path().trace(service)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let offset = since.saturating_sub(Duration::from_nanos(now_ns()));
        Ok(Self { lanes, decisions, ends, held: None, names: HashMap::new(), offset })
    }

    /// The next line, as a future polls it; none if the agent ends.
    pub(crate) fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<TraceLine>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(self.line(&held)));
        }
        if self.ends.poll_recv(task).is_ready() {
            return Poll::Ready(None);
        }
        let next = ready!(self.decisions.poll_next(task));
        match self.decisions.dropped() {
            0 => Poll::Ready(next.map(|traced| self.line(&traced))),
            count => {
                self.held = next;
                Poll::Ready(Some(TraceLine::Dropped { count }))
            }
        }
    }

    fn line(&mut self, traced: &Traced) -> TraceLine {
        let at = Duration::from_nanos(traced.at_ns) + self.offset;
        let decision = Decision {
            unix_us: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
            caller: self.name(traced.caller, traced.caller_generation),
            instance: self.name(traced.callee, traced.callee_generation),
            stream: traced.stream,
            bytes: traced.bytes.into(),
            verdict: match (traced.verdict, traced.why()) {
                (0, _) => "routed".to_owned(),
                (_, Some(why)) => why.name().to_owned(),
                (number, None) => format!("reason-{number}"),
            },
            took_ns: Some(traced.took_ns).filter(|_| traced.answer != 0 && traced.verdict == 0),
        };
        if traced.answer == 0 { TraceLine::Call(decision) } else { TraceLine::Answer(decision) }
    }

    fn name(&mut self, index: u32, generation: u32) -> Option<Arc<str>> {
        if index == NOBODY {
            return None;
        }
        let lane = LaneId { index, generation };
        if let Some((application, instance)) = self.lanes.name(lane) {
            self.names.insert(lane, format!("{application}/{instance}").into());
        }
        Some(self.names.get(&lane).cloned().unwrap_or_else(|| format!("lane {index}, which is over").into()))
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}
