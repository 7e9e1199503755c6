//! A load generator for one address: blocking threads, one a connection, with times in nanoseconds.
//!
//! It is closed: a connection sends when an answer comes (or when its rate says so), so that it measures latency, not how
//! a queue grows; [`Load::start_open`] is the other kind. Requests of one connection are in flight up to a depth, in order; the time of each is from the write
//! that sent it to the read that completed its answer.

mod client;
pub(crate) mod frames;
mod open;
mod resp;
pub(crate) mod slow;
#[cfg(test)]
mod tests;

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

pub(crate) use self::resp::get;

/// Latencies are kept to three digits, up to this many nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// What to send, where, and how hard.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// A Redis server: the agent, a proxy or a service.
    pub(crate) to: SocketAddr,
    /// The requests as bytes ([`get`] makes them), sent in turn.
    pub(crate) requests: Vec<Vec<u8>>,
    /// How many connections.
    pub(crate) connections: usize,
    /// Requests in flight on each. What is in flight must fit the buffers on the way, as a blocked write reads nothing.
    pub(crate) depth: usize,
    /// Requests a second over all connections; none: as fast as the answers come.
    pub(crate) rate: Option<f64>,
    /// The CPU that all threads stay on; none: wherever the scheduler puts them.
    pub(crate) cpu: Option<usize>,
    /// How long an answer may take before its connection is given up and opened again.
    pub(crate) timeout: Duration,
    /// Whether the sockets do not block, as those of event loops, and are waited for by `poll`.
    pub(crate) polls: bool,
}

/// What happened in a stretch of time.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// How long the stretch was.
    pub(crate) elapsed: Duration,
    /// Nanoseconds that each answered request took.
    pub(crate) latency_ns: Histogram<u64>,
    /// Answers that are errors (`-ERR`, no value, an `ec` other than 0 and 200), and requests that were never answered.
    pub(crate) errors: u64,
    /// What the latest of them was.
    pub(crate) last_error: Option<String>,
}

/// A load that is going on.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    clients: Vec<(Arc<Mutex<Stats>>, JoinHandle<()>)>,
    since: Instant,
}

/// What a connection's thread gets of its load.
struct Seat {
    load: Arc<Load>,
    index: usize,
    stats: Arc<Mutex<Stats>>,
    stop: Arc<AtomicBool>,
}

/// What one connection has seen since it was last asked.
#[derive(Debug)]
struct Stats {
    latency_ns: Histogram<u64>,
    errors: u64,
    last_error: Option<String>,
}

impl Load {
    /// As fast as possible on one connection, one request at a time.
    pub(crate) fn new(to: SocketAddr, requests: Vec<Vec<u8>>) -> Self {
        Self { to, requests, connections: 1, depth: 1, rate: None, cpu: None, timeout: Duration::from_secs(5), polls: false }
    }

    /// Opens every connection, then starts sending on all.
    pub(crate) fn start(self) -> Result<Running> {
        self.started(|seat| {
            let client = client::Client::new(seat.load, seat.index, seat.stats, seat.stop);
            move |socket| client.run(socket)
        })
    }

    /// As [`Self::start`], but open: requests are due at their rate, however long those before take, and their time counts from
    /// when they were due. Each connection is a caller that waits for its answer and then makes the next request that is due; a
    /// connection that fails is not opened again.
    pub(crate) fn start_open(self) -> Result<Running> {
        let rate = self.rate.filter(|rate| *rate > 0.0).context("an open load needs a rate")?;
        let schedule = Arc::new(open::Schedule::new(rate));
        self.started(|seat| {
            let schedule = Arc::clone(&schedule);
            move |socket| open::run(&seat, socket, &schedule)
        })
    }

    fn started<F: FnOnce(TcpStream) + Send + 'static>(self, client: impl Fn(Seat) -> F) -> Result<Running> {
        anyhow::ensure!(!self.requests.is_empty() && self.connections > 0 && self.depth > 0, "a load of nothing");
        let sockets: Vec<_> = (0..self.connections).map(|_| client::connect(&self)).collect::<Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let load = Arc::new(self);
        let mut clients = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            let stats = Arc::new(Mutex::new(Stats::new()?));
            let run = client(Seat { load: Arc::clone(&load), index, stats: Arc::clone(&stats), stop: Arc::clone(&stop) });
            let thread = thread::Builder::new().name(format!("load-{index}")).stack_size(128 << 10).spawn(move || run(socket));
            clients.push((stats, thread.context("a thread for the load cannot be started")?));
        }
        Ok(Running { stop, clients, since: Instant::now() })
    }
}

impl Running {
    /// What happened since the start, or since the last call.
    pub(crate) fn take(&mut self) -> Result<Report> {
        let now = Instant::now();
        let mut report = Report::new(now - self.since)?;
        self.since = now;
        for (stats, _) in &self.clients {
            let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
            report.add(&mut stats)?;
        }
        Ok(report)
    }

    /// Sends nothing more, waits for what is in flight, and reports on what happened since the last [`Running::take`].
    pub(crate) fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut lost = 0;
        for (_, thread) in &mut self.clients {
            let ended = std::mem::replace(thread, thread::spawn(|| ()));
            lost += usize::from(ended.join().is_err());
        }
        anyhow::ensure!(lost == 0, "{lost} threads of the load panicked");
        self.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    fn new(elapsed: Duration) -> Result<Self> {
        Ok(Self { elapsed, latency_ns: histogram()?, errors: 0, last_error: None })
    }

    /// Takes what a connection has, which begins anew.
    fn add(&mut self, stats: &mut Stats) -> Result<()> {
        self.latency_ns.add(&stats.latency_ns).context("latencies cannot be added")?;
        self.errors += std::mem::take(&mut stats.errors);
        self.last_error = stats.last_error.take().or_else(|| self.last_error.take());
        stats.latency_ns.reset();
        Ok(())
    }

    /// Adds a later stretch of time.
    pub(crate) fn absorb(&mut self, later: &Self) -> Result<()> {
        self.latency_ns.add(&later.latency_ns).context("latencies cannot be added")?;
        self.elapsed += later.elapsed;
        self.errors += later.errors;
        self.last_error = later.last_error.clone().or_else(|| self.last_error.take());
        Ok(())
    }

    /// Requests that were answered, errors included.
    pub(crate) fn answered(&self) -> u64 {
        self.latency_ns.len()
    }

    /// Answers a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate is printed with few digits")]
    pub(crate) fn per_second(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The latency below which `percent` of the answers came; 0 if there were none.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        self.latency_ns.value_at_percentile(percent)
    }
}

impl Stats {
    fn new() -> Result<Self> {
        Ok(Self { latency_ns: histogram()?, errors: 0, last_error: None })
    }

    fn answered(&mut self, latency: Duration, error: Option<String>) {
        self.latency_ns.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
        if let Some(error) = error {
            self.error(1, error);
        }
    }

    fn error(&mut self, count: u64, text: impl Into<String>) {
        self.errors += count;
        self.last_error = Some(text.into());
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).context("no histogram")
}
