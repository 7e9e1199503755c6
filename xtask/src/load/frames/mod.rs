//! A load and a service that speak frames, for both ends of an agent (`docs/protocol.md`).
//!
//! Each is one thread with an event loop, as applications are, and keeps the windows: large bodies take turns with small
//! calls, and room is given back. As with the load of Redis, a call is begun when another one was answered.

mod client;
mod events;
mod input;
mod lane;
mod link;
mod output;
pub(crate) mod service;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_common::frame::Windows;
use anyhow::{Context, Result, ensure};

use self::client::{Client, Shared};
pub(crate) use self::socket::Peer;
use super::{Report, Stats, client::pin};

/// The service.
pub(crate) const URI: &str = "/service/bench";

/// What both ends say that may be on its way to them.
const WINDOWS: Windows = Windows { stream: 256 << 10, connection: 1 << 20 };

/// What to call, where, and how hard.
#[derive(Debug, Clone)]
pub(crate) struct FrameLoad {
    /// An agent, a proxy or a service.
    pub(crate) to: Peer,
    /// How frames go.
    pub(crate) setup: Setup,
    /// How many connections.
    pub(crate) connections: usize,
    /// What goes over each of them at the same time.
    pub(crate) flows: Vec<Flow>,
    /// Calls in all; none: until it is stopped.
    pub(crate) calls: Option<u64>,
    /// The CPU that the thread stays on; none: wherever the scheduler puts it.
    pub(crate) cpu: Option<usize>,
    /// How long nothing may come before it counts as an error.
    pub(crate) timeout: Duration,
}

/// How frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Those that fit go by a lane beside each connection, which the agent must give.
    pub(crate) lanes: bool,
    /// Bytes of the longest frame on a stream connection.
    pub(crate) frame_max: usize,
}

impl Setup {
    /// No lanes, and frames of which several fit into the smallest window.
    pub(crate) const USUAL: Self = Self { lanes: false, frame_max: output::FRAME };
}

/// Calls that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Bytes of a call's body, and of its answer's.
    pub(crate) body: usize,
    /// Calls in flight on each connection.
    pub(crate) depth: usize,
}

/// A load that is going on.
pub(crate) struct FrameRunning {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    since: Instant,
}

impl FrameLoad {
    /// One connection with one flow, for as long as it is not stopped.
    pub(crate) fn new(to: impl Into<Peer>, flow: Flow) -> Self {
        Self {
            to: to.into(),
            setup: Setup::USUAL,
            connections: 1,
            flows: vec![flow],
            calls: None,
            cpu: None,
            timeout: Duration::from_secs(5),
        }
    }

    /// Opens every connection, then begins to call.
    pub(crate) fn start(self) -> Result<FrameRunning> {
        ensure!(self.connections > 0 && self.flows.iter().any(|flow| flow.depth > 0), "a load of nothing");
        let stats = self.flows.iter().map(|_| Stats::new()).collect::<Result<_>>()?;
        let shared = Shared { stats: Mutex::new(stats), stop: AtomicBool::new(false), bytes: AtomicU64::new(0) };
        let shared = Arc::new(shared);
        let client = Client::open(&self, Arc::clone(&shared))?;
        let run = move || {
            // An affinity that cannot be had shows as noise, no more.
            let _ = self.cpu.map(pin);
            client.run();
        };
        let thread = thread::Builder::new().name("frames".to_owned()).spawn(run);
        Ok(FrameRunning { shared, thread: thread.context("a thread for the load cannot be started")?, since: Instant::now() })
    }
}

impl FrameRunning {
    /// What happened since the start, or since the last call: a report for each flow.
    pub(crate) fn take(&mut self) -> Result<Vec<Report>> {
        let now = Instant::now();
        let elapsed = now - std::mem::replace(&mut self.since, now);
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |stats: &mut Stats| {
            let mut report = Report::new(elapsed)?;
            report.add(stats)?;
            Ok(report)
        };
        stats.iter_mut().map(report).collect()
    }

    /// Begins no more calls, waits for those in flight, and reports on what happened since the last [`Self::take`]. With
    /// it, how many bytes ever went and came on all connections.
    pub(crate) fn stop(self) -> Result<(Vec<Report>, u64)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        Ok((self.end()?, shared.bytes.load(Ordering::Relaxed)))
    }

    /// The same, but waits until as many calls were made as should be.
    pub(crate) fn end(mut self) -> Result<Vec<Report>> {
        let thread = std::mem::replace(&mut self.thread, thread::spawn(|| ()));
        ensure!(thread.join().is_ok(), "the thread of the load panicked");
        self.take()
    }
}

impl Drop for FrameRunning {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
