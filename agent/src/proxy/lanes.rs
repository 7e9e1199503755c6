//! What the data plane asks of the kernel about calls that it routes from lane to lane, and tells it.

mod eligible;
mod keeper;
mod lacking;
mod registry;
mod share;
mod trace;

use std::{
    io,
    os::fd::BorrowedFd,
    task::{Context, Poll},
};

pub(crate) use keeper::{BODY_MAX, Keeper, Verdicts};
pub(crate) use registry::{Event, Lanes, Late, Letter, Owner, Source};
pub(crate) use share::Drawn;
pub use trace::{Decision, TraceLine, Tracer};

pub use agent_common::lane::{Call as RoutedCall, Member as RoutedMember, Routed, Traced, Unrouted};

/// A lane. Its index is used again, with another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Its place among the lanes.
    pub index: u32,
    /// How many had that place before.
    pub generation: u32,
}

/// How an instance is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// In turn, by weight.
    Turns,
    /// Of two by chance, the one with fewer calls in flight.
    Least,
    /// Of two by chance, the one where calls in flight times latency are less.
    Faster,
    /// By chance, by weight.
    Chance,
}

/// A service whose calls are routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneRoute {
    /// The hash of its URI and group.
    pub service: u64,
    /// How an instance is picked.
    pub pick: Pick,
    /// The labels of the callers that may call; none: all may.
    pub callers: Option<Vec<u32>>,
    /// How long a call may take that does not say.
    pub timeout_ms: u32,
    /// Of a million calls, so many go to the agent by chance.
    pub to_agent_per_million: u32,
    /// Bytes that the body of a call may have.
    pub body_max: u32,
    /// Its instances: the lane, the weight, and the number that its calls are counted by.
    pub instances: Vec<(LaneId, u32, u32)>,
}

/// What is known of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneLook {
    /// Calls that it was given and has not answered.
    pub in_flight: u64,
    /// Bytes of calls that it was given and has not proven to have read.
    pub queued: u64,
    /// Bytes of answers that it has not proven to have read.
    pub unread: u64,
    /// The moving average of its latency, in nanoseconds.
    pub latency_ns: u64,
    /// Calls that it has made.
    pub made: u64,
}

/// The part of the kernel path that routes calls. All of it can be called from any thread.
pub trait LanePath: Send + Sync {
    /// Makes a lane of a connection that the agent has accepted, if both its ends are enrolled and everything that came
    /// on it, which is `read` bytes, was redirected. Before its HELLO is answered. The application may have `calls_max` calls
    /// in flight, and is called `label` where callers need leave.
    ///
    /// # Errors
    /// Why it can't be one.
    fn open(&self, socket: BorrowedFd<'_>, read: u64, label: u32, calls_max: u32) -> Result<LaneId, String>;

    /// Whether lanes can be opened at all.
    fn is_on(&self) -> bool;

    /// Who sends on a lane is called so from now on, where callers need leave.
    fn relabel(&self, lane: LaneId, label: u32);

    /// Whether a lane is given calls.
    fn pause(&self, lane: LaneId, paused: bool);

    /// Returns when each call that was decided before a lane was paused is counted there. It takes the kernel some
    /// milliseconds: not for a worker's thread.
    fn settle(&self);

    /// A lane is over: nothing is routed from it or to it any more, and what is decided for it at this moment is void. Calls
    /// that are in flight stay in the table until somebody claims them. After this, each of them is seen by [`LanePath::calls`].
    fn close(&self, lane: LaneId);

    /// No call in flight is of this lane any more: its place can be used again.
    fn free(&self, lane: LaneId);

    /// Puts these services in the place of all those that were routed. Gives those that cannot be, whose calls all go to the
    /// agent: without an instance, with more than 64 of them, or with weights of which 64 turns give nobody his share; and those
    /// beyond as many services, or callers that have leave, as there is room for.
    ///
    /// # Errors
    /// The kernel refused: what was routed before is routed still.
    fn publish(&self, routes: &[LaneRoute]) -> io::Result<Vec<u64>>;

    /// Turns routing on or off. Lanes stay lanes; their calls go to the agent.
    fn set_on(&self, on: bool);

    /// Shows each call in flight, with the `via` that its callee has seen.
    fn calls(&self, each: &mut dyn FnMut(u64, &RoutedCall));

    /// A call in flight, by the `via` that its callee has seen.
    fn peek(&self, via: u64) -> Option<RoutedCall>;

    /// Takes a call out of the table: then whoever has asked owns its answer. None if it has been answered. What it has
    /// reserved at its callee stays reserved, until [`LanePath::release`].
    fn claim(&self, via: u64) -> Option<RoutedCall>;

    /// The late answer to a call that was claimed has come, or was read by the agent: what it had reserved is free.
    fn release(&self, call: &RoutedCall);

    /// What is known of a lane; none if it is over.
    fn look(&self, lane: LaneId) -> Option<LaneLook>;

    /// The counters of a member, which only grow.
    fn member(&self, member: u32) -> Option<RoutedMember>;

    /// What became of messages on lanes, over all CPUs.
    ///
    /// # Errors
    /// The kernel did not say.
    fn routed(&self) -> io::Result<Routed>;

    /// Shows what is decided about each message of a service, by its hash, until the reader is dropped.
    ///
    /// # Errors
    /// Somebody traces a service already, or this one cannot be traced.
    fn trace(&self, service: u64) -> Result<Box<dyn LaneTrace>, String>;
}

/// What is decided about the messages of a service.
pub trait LaneTrace: Send {
    /// The next decision; none if there will be no more.
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Traced>>;

    /// Decisions that there was no room for, since that was asked last.
    fn dropped(&mut self) -> u64;
}
