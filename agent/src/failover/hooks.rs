//! What is asked of the kernel about connects to this agent.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

/// What was decided about connects, by the number of the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decisions {
    /// How often.
    pub counts: [u64; 9],
}

/// A gate: where applications connect to this agent, and where their connects go when it is shut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateLook {
    /// The cookie of the network namespace.
    pub netns: u64,
    /// The address.
    pub address: SocketAddr,
    /// In order of preference.
    pub siblings: Vec<SocketAddr>,
}

/// What is believed of a sibling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLook {
    /// Where it takes this agent's applications.
    pub address: SocketAddr,
    /// Until when the agent believes that it is down.
    pub told_down_until_ns: u64,
    /// Until when the kernel does, as a connect to it failed.
    pub failed_until_ns: u64,
    /// Connects that were sent there.
    pub diverted: u64,
    /// Those of them that failed.
    pub failed: u64,
}

/// What is asked of the kernel about connects to this agent. All of it can be called from any thread. Times are those of
/// `CLOCK_MONOTONIC`.
pub trait Hooks: Send + Sync {
    /// A worker lives, now. One store, without a lock.
    fn beat(&self, worker: usize);

    /// Turns everything on or off: while it is off, no connect is touched.
    fn set_on(&self, on: bool);

    /// Whether it is on.
    fn is_on(&self) -> bool;

    /// How many workers' beats count; all begin anew.
    fn set_workers(&self, workers: usize);

    /// After how long without a beat a worker hangs.
    fn set_stale(&self, after: Duration);

    /// Until then new connects go to siblings though the agent lives, as long as one is believed alive; `u64::MAX` is for good.
    fn set_away_until(&self, until_ns: u64);

    /// Until then beats do not count.
    fn set_hold_until(&self, until_ns: u64);

    /// The gate at this address of a namespace, and where its connects go when it is shut, in order of preference.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_gate(&self, netns: u64, address: SocketAddr, siblings: &[SocketAddr]) -> io::Result<()>;

    /// There is no such gate any more.
    fn remove_gate(&self, netns: u64, address: SocketAddr);

    /// All gates.
    fn gates(&self) -> Vec<GateLook>;

    /// A sibling is down until then; 0: it is up.
    fn tell_down(&self, sibling: SocketAddr, until_ns: u64);

    /// What is believed of all siblings.
    fn peers(&self) -> Vec<PeerLook>;

    /// What was decided so far.
    ///
    /// # Errors
    /// The kernel did not say.
    fn decisions(&self) -> io::Result<Decisions>;

    /// The page with the beats, for the process that watches.
    ///
    /// # Errors
    /// The kernel did not give it.
    fn page(&self) -> io::Result<OwnedFd>;
}
