//! The hooks in the kernel, as the agent sees them: a connect to one of its gates goes to a sibling if it is shut.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

pub use agent_common::failover::{Decision, Decisions, PEERS_MAX, SIBLINGS_MAX, WORKERS_MAX};

/// What is asked of the kernel about connects to this agent. All of it can be called from any thread. Times are nanoseconds
/// of the monotonic clock.
pub trait Hooks: Send + Sync {
    /// Whether connects are diverted at all.
    fn set_on(&self, on: bool);

    /// What [`Hooks::set_on`] said last, perhaps in a former process.
    fn is_on(&self) -> bool;

    /// How many beats there are. None of them counts until its worker beats; before that, a gate is open whose listener is
    /// there.
    fn set_workers(&self, workers: usize);

    /// From what age on a beat means that its worker hangs.
    fn set_stale(&self, after: Duration);

    /// Until then connects go to siblings though the agent lives, as long as one is believed alive.
    fn set_away_until(&self, until_ns: u64);

    /// Until then beats do not count.
    fn set_hold_until(&self, until_ns: u64);

    /// The gate at this address of a namespace, and where its connects go when it is shut, in order of preference. No more
    /// than [`SIBLINGS_MAX`] count.
    ///
    /// # Errors
    /// There are too many gates, or too many different siblings. Then the gate is as it was.
    fn set_gate(&self, netns: u64, address: SocketAddr, siblings: &[SocketAddr]) -> io::Result<()>;

    /// Takes the gate away: connects to this address are none of ours.
    fn remove_gate(&self, netns: u64, address: SocketAddr);

    /// All gates, those of former processes too.
    fn gates(&self) -> Vec<GateLook>;

    /// What the agent believes of a sibling: down until then; 0: up. Of no effect on one that no gate ever named.
    fn tell_down(&self, sibling: SocketAddr, until_ns: u64);

    /// All siblings that were ever named, as long as there is room for them.
    fn peers(&self) -> Vec<PeerLook>;

    /// What was decided about connects to the gates.
    ///
    /// # Errors
    /// The kernel refused to read the counters.
    fn decisions(&self) -> io::Result<Decisions>;

    /// The page with the beats, [`agent_common::failover::Failover`], for those who beat and the process that watches.
    ///
    /// # Errors
    /// There is no room for a descriptor.
    fn page(&self) -> io::Result<OwnedFd>;
}

/// A gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateLook {
    /// The cookie of its namespace.
    pub netns: u64,
    /// Where the agent listens, or should.
    pub address: SocketAddr,
    /// Where connects go when it is shut, in order of preference.
    pub siblings: Vec<SocketAddr>,
}

/// What is known of a sibling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLook {
    /// Its address.
    pub address: SocketAddr,
    /// Until when the agent believes it down.
    pub told_down_until_ns: u64,
    /// Until when the kernel sends nothing to it, as a connect failed.
    pub failed_until_ns: u64,
    /// Connects that were sent to it.
    pub diverted: u64,
    /// How many of them failed.
    pub failed: u64,
}
