//! Counters of calls. Each worker writes its own, so that no two CPUs share a cache line; whoever reads adds them up.

mod methods;
mod policy;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use agent_common::{lane::Member as RoutedMember, latency};

pub use self::{methods::MethodSums, policy::PolicySums};
pub(crate) use self::{
    methods::{METHODS_MAX, MethodCounters, MethodSet},
    policy::{PolicyCounters, PolicySet},
};

/// Codes that are counted by themselves: MOA's, with the client's (30x0) and the server's own (30x1) variants. Others are counted as 0.
pub const CODES: [u16; 32] = [
    0, 300, 301, 302, 303, 304, 305, 306, 401, 402, 501, 502, 503, 504, 505, 506, 3000, 3001, 3010, 3011, 3020, 3021, 3030, 3031,
    3040, 3041, 3050, 3051, 3060, 3061, 5030, 5031,
];

/// Buckets of a [`Histogram`].
pub use agent_common::latency::BUCKETS;

/// A counter with one writer, which needs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long something took, as counters have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    ns: u64,
    bucket: usize,
}

impl From<Duration> for Took {
    fn from(took: Duration) -> Self {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Self { ns, bucket: latency::bucket(ns) }
    }
}

/// What one worker counts for one instance, or for the calls of a service that reached none.
#[derive(Debug)]
pub(crate) struct CallCounters {
    pub(crate) calls: Counter,
    pub(crate) in_flight: Counter,
    pub(crate) retries: Counter,
    pub(crate) connections: Counter,
    pub(crate) queued: Counter,
    mesh: [Counter; CODES.len()],
    service: [Counter; CODES.len()],
    latency_ns: Counter,
    latency: Box<[Counter]>,
    /// Tries that ended at the instance, those of them that speak against it, and how long they took.
    tries: Counter,
    failures: Counter,
    tries_ns: Counter,
    /// What the balancer takes its latency for: nanoseconds as the bits of an `f32`; 0 before it has seen one.
    ewma: Counter,
}

impl Default for CallCounters {
    fn default() -> Self {
        Self {
            calls: Counter::default(),
            in_flight: Counter::default(),
            retries: Counter::default(),
            connections: Counter::default(),
            queued: Counter::default(),
            mesh: Default::default(),
            service: Default::default(),
            latency_ns: Counter::default(),
            latency: (0..BUCKETS).map(|_| Counter::default()).collect(),
            tries: Counter::default(),
            failures: Counter::default(),
            tries_ns: Counter::default(),
            ewma: Counter::default(),
        }
    }
}

impl CallCounters {
    /// A call was answered by the service, with an error code or without.
    pub(crate) fn answered(&self, took: Took, error: Option<u16>) {
        self.took(took);
        if let Some(code) = error {
            self.service[index(code)].add(1);
        }
    }

    /// A call was not begun. It took no time that would tell anything.
    pub(crate) fn refused(&self, code: u16) {
        self.calls.add(1);
        self.mesh[index(code)].add(1);
    }

    /// A call was answered by the mesh.
    pub(crate) fn failed(&self, took: Took, code: u16) {
        self.took(took);
        self.mesh[index(code)].add(1);
    }

    /// Tries that ended, those of them that speak against the instance, and how long all took.
    pub(crate) fn tries(&self) -> (u64, u64, Duration) {
        (self.tries.get(), self.failures.get(), Duration::from_nanos(self.tries_ns.get()))
    }

    /// What the balancer takes its latency for now.
    pub(crate) fn set_ewma(&self, ns: f32) {
        self.ewma.set(u64::from(ns.to_bits()));
    }

    fn ewma(&self) -> Duration {
        let ns = f32::from_bits(u32::try_from(self.ewma.get()).unwrap_or(0));
        Duration::try_from_secs_f32(ns * 1e-9).unwrap_or_default()
    }

    /// One try has ended at the instance.
    pub(crate) fn tried(&self, took: Took, failed: bool) {
        self.tries.add(1);
        self.failures.add(u64::from(failed));
        self.tries_ns.add(took.ns);
    }

    /// Calls were answered that the kernel had routed: the programs' own counters, before and now.
    pub(crate) fn routed(&self, before: &RoutedMember, now: &RoutedMember) {
        let (calls, ns) = (now.answered().saturating_sub(before.answered()), now.sum_ns.saturating_sub(before.sum_ns));
        self.calls.add(calls);
        self.tries.add(calls);
        self.latency_ns.add(ns);
        self.tries_ns.add(ns);
        for (bucket, (before, now)) in self.latency.iter().zip(before.took.iter().zip(&now.took)) {
            bucket.add(now.saturating_sub(*before));
        }
    }

    fn took(&self, took: Took) {
        self.calls.add(1);
        self.latency_ns.add(took.ns);
        self.latency[took.bucket].add(1);
    }
}

fn index(code: u16) -> usize {
    CODES.binary_search(&code).unwrap_or(0)
}

/// Times to the answer, in logarithmic buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Calls in each bucket, not cumulative.
    pub counts: Vec<u64>,
    /// The sum of all times.
    pub sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], sum: Duration::ZERO }
    }
}

impl Histogram {
    /// The upper bound of a bucket; the last one has none and takes everything above.
    #[must_use]
    pub fn upper_bound(bucket: usize) -> Duration {
        let octave = bucket / 4;
        let quarter = bucket as u64 % 4 + 1;
        Duration::from_nanos((4 + quarter) << (octave + latency::FIRST_OCTAVE as usize - 2))
    }

    /// Calls were answered that the kernel had routed: the programs' own counters, before and now.
    pub(crate) fn add_routed(&mut self, before: &RoutedMember, now: &RoutedMember) {
        self.sum += Duration::from_nanos(now.sum_ns.saturating_sub(before.sum_ns));
        let took = before.took.iter().zip(&now.took).map(|(before, now)| now.saturating_sub(*before));
        self.counts.iter_mut().zip(took).for_each(|(sum, count)| *sum += count);
    }

    fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// How many calls it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that a share `q` of the calls did not exceed, within a bucket's width (19 %); zero without calls.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let total = self.count();
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "a quantile is an estimate")]
            if *count > 0 && seen as f64 >= q * total as f64 {
                return Self::upper_bound(bucket);
            }
        }
        Duration::ZERO
    }
}

/// Sums over all workers, for one instance or one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallSums {
    /// Calls that were answered, by whomever.
    pub calls: u64,
    /// Calls that are being served.
    pub in_flight: u64,
    /// Calls that were sent again elsewhere.
    pub retries: u64,
    /// Open connections.
    pub connections: u64,
    /// Calls that wait for a connection.
    pub queued: u64,
    /// Errors that the mesh answered, by code; only those that happened.
    pub mesh_errors: Vec<(u16, u64)>,
    /// Errors that the service answered, by code; only those that happened; 0 stands for codes that are none of MOA's.
    pub service_errors: Vec<(u16, u64)>,
    /// Times to the answer.
    pub latency: Histogram,
    /// Tries that ended at the instance.
    pub tries: u64,
    /// Those of them that speak against it.
    pub failures: u64,
    /// How long they took.
    pub tries_took: Duration,
    /// What balancers take its latency for, each worker's that has seen one: their sum, and how many they are.
    pub ewma: (Duration, u32),
}

impl CallSums {
    fn of(counters: &CallCounters) -> Self {
        let codes = |counters: &[Counter]| {
            let all = CODES.iter().copied().zip(counters.iter().map(Counter::get));
            all.filter(|(_, count)| *count > 0).collect()
        };
        Self {
            calls: counters.calls.get(),
            in_flight: counters.in_flight.get(),
            retries: counters.retries.get(),
            connections: counters.connections.get(),
            queued: counters.queued.get(),
            mesh_errors: codes(&counters.mesh),
            service_errors: codes(&counters.service),
            latency: Histogram {
                counts: counters.latency.iter().map(Counter::get).collect(),
                sum: Duration::from_nanos(counters.latency_ns.get()),
            },
            tries: counters.tries.get(),
            failures: counters.failures.get(),
            tries_took: Duration::from_nanos(counters.tries_ns.get()),
            ewma: (counters.ewma(), u32::from(counters.ewma.get() > 0)),
        }
    }

    pub(crate) fn add(&mut self, counters: &CallCounters) {
        self.merge(&Self::of(counters));
    }

    /// The same without what is only of this moment.
    pub(crate) fn ended(self) -> Self {
        Self { in_flight: 0, connections: 0, queued: 0, ewma: (Duration::ZERO, 0), ..self }
    }

    /// What balancers take its latency for, on average over the workers that have seen one; zero if none has.
    #[must_use]
    pub fn ewma_mean(&self) -> Duration {
        self.ewma.0.checked_div(self.ewma.1).unwrap_or_default()
    }

    /// Adds another sum to this one.
    pub fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.in_flight += other.in_flight;
        self.retries += other.retries;
        self.connections += other.connections;
        self.queued += other.queued;
        add_codes(&mut self.mesh_errors, other.mesh_errors.iter().copied());
        add_codes(&mut self.service_errors, other.service_errors.iter().copied());
        self.tries += other.tries;
        self.failures += other.failures;
        self.tries_took += other.tries_took;
        self.ewma.0 += other.ewma.0;
        self.ewma.1 += other.ewma.1;
        self.latency.merge(&other.latency);
    }
}

fn add_codes(sums: &mut Vec<(u16, u64)>, more: impl Iterator<Item = (u16, u64)>) {
    for (code, count) in more.filter(|(_, count)| *count > 0) {
        match sums.binary_search_by_key(&code, |(code, _)| *code) {
            Ok(at) => sums[at].1 += count,
            Err(at) => sums.insert(at, (code, count)),
        }
    }
}

/// Everything that is counted, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every service, sorted by URI.
    pub services: Vec<ServiceSnapshot>,
    /// Calls that named no known service, by the code that they were answered with.
    pub unrouted: Vec<(u16, u64)>,
    /// Application connections that the agent closed, by reason.
    pub closed: Vec<(&'static str, u64)>,
    /// Frames of calls that were not in flight.
    pub frames_dropped: u64,
}

/// One service.
#[derive(Debug, Clone, Default)]
pub struct ServiceSnapshot {
    /// Its URI.
    pub uri: String,
    /// Calls that reached no instance.
    pub unsent: CallSums,
    /// Its instances.
    pub instances: Vec<InstanceSnapshot>,
    /// Its methods.
    pub methods: Vec<MethodSums>,
    /// What its policy did.
    pub policy: PolicySums,
}

/// One instance.
#[derive(Debug, Clone, Default)]
pub struct InstanceSnapshot {
    /// `host:port`.
    pub address: String,
    /// Whether it is healthy.
    pub healthy: bool,
    /// Its share of the calls, in relation to the others'.
    pub weight: u32,
    /// Whether it is out of traffic for what its calls showed.
    pub ejected: bool,
    /// How often it was.
    pub ejections: u64,
    /// Its calls.
    pub sums: CallSums,
}

/// What one worker counts for itself.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    /// Connections of applications of other agents.
    pub(crate) foreign_accepted: Counter,
    /// Connections that belong to no such application.
    pub(crate) foreign_refused: Counter,
    pub(crate) queued_bytes: Counter,
    /// Read and written on all connections.
    pub(crate) bytes: Counter,
    /// Frames of calls that were over already.
    pub(crate) frames_dropped: Counter,
    /// Calls in flight.
    pub(crate) in_flight: Counter,
    /// Calls that were refused as the agent had too much to bear.
    pub(crate) shed: Counter,
    /// How late it was.
    pub(crate) lag: LagCounters,
    /// Calls without a service, which no other counter has.
    pub(crate) unrouted: UnroutedCounters,
    pub(crate) closed: [Counter; CloseReason::ALL.len()],
}

impl WorkerCounters {
    /// Counts bytes that were read or written.
    pub(crate) fn moved(&self, bytes: usize) -> usize {
        self.bytes.add(bytes as u64);
        bytes
    }
}

/// How late a worker was each time that it wanted to run at a certain time.
#[derive(Debug)]
pub(crate) struct LagCounters {
    /// How often it wanted to.
    begun: Counter,
    /// How often it did, by how late it was.
    ended: Box<[Counter]>,
}

impl Default for LagCounters {
    fn default() -> Self {
        Self { begun: Counter::default(), ended: (0..BUCKETS).map(|_| Counter::default()).collect() }
    }
}

impl LagCounters {
    pub(crate) fn begins(&self) {
        self.begun.add(1);
    }

    pub(crate) fn ended(&self, late: Duration) {
        self.ended[Took::from(late).bucket].add(1);
    }

    /// How often it wanted to run, and how often it did by how late it was, in the buckets of a [`Histogram`].
    pub(crate) fn look(&self) -> (u64, Vec<u64>) {
        let begun = self.begun.get();
        (begun, self.ended.iter().map(Counter::get).collect())
    }
}

/// Calls that named no known service.
#[derive(Debug, Default)]
pub(crate) struct UnroutedCounters([Counter; CODES.len()]);

impl UnroutedCounters {
    pub(crate) fn add(&self, code: u16) {
        self.0[index(code)].add(1);
    }

    pub(crate) fn add_to(&self, sums: &mut Vec<(u16, u64)>) {
        add_codes(sums, CODES.iter().copied().zip(self.0.iter().map(Counter::get)));
    }
}

/// Why the agent closed an application's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The application closed or reset it.
    Peer,
    /// It said QUIT.
    Quit,
    /// It broke the protocol.
    Protocol,
    /// An answer broke off after its beginning had been passed on.
    CutAnswer,
    /// It took none of its answers for too long, or sent nothing more of a command that it began.
    Stalled,
    /// The agent holds as many bytes as it may.
    Full,
    /// The agent drains.
    Drain,
    /// The file of its network namespace is gone.
    Namespace,
}

impl CloseReason {
    pub(crate) const ALL: [Self; 8] =
        [Self::Peer, Self::Quit, Self::Protocol, Self::CutAnswer, Self::Stalled, Self::Full, Self::Drain, Self::Namespace];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Quit => "quit",
            Self::Protocol => "protocol",
            Self::CutAnswer => "cut_answer",
            Self::Stalled => "stalled",
            Self::Full => "full",
            Self::Drain => "drain",
            Self::Namespace => "namespace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_for_the_search() {
        assert!(CODES.is_sorted());
    }

    #[test]
    fn a_time_lies_within_its_bucket() {
        for ns in [1u64, 1024, 1279, 1280, 1_000_000, 123_456_789, 60_000_000_000] {
            let bucket = latency::bucket(ns);
            assert!(Duration::from_nanos(ns) < Histogram::upper_bound(bucket), "{ns}");
            if bucket > 0 {
                assert!(Duration::from_nanos(ns) >= Histogram::upper_bound(bucket - 1), "{ns}");
            }
        }
        assert_eq!(latency::bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let counters = CallCounters::default();
        for ms in 1..=100 {
            counters.answered(Duration::from_millis(ms).into(), None);
        }
        counters.failed(Duration::from_millis(1).into(), 504);
        counters.answered(Duration::from_millis(1).into(), Some(777));
        let mut sums = CallSums::default();
        sums.add(&counters);
        let p50 = sums.latency.quantile(0.5).as_millis();
        assert!((45..=60).contains(&p50), "{p50}");
        assert_eq!((sums.calls, &sums.mesh_errors[..], &sums.service_errors[..]), (102, &[(504, 1)][..], &[(0, 1)][..]));
    }

    #[test]
    fn an_average_is_that_of_the_workers_that_have_seen_one() {
        let counters = [CallCounters::default(), CallCounters::default(), CallCounters::default()];
        counters[0].set_ewma(1e6);
        counters[2].set_ewma(3e6);
        let mut sums = CallSums::default();
        assert_eq!(sums.ewma_mean(), Duration::ZERO);
        counters.iter().for_each(|counters| sums.add(counters));
        assert_eq!(sums.ewma_mean().as_micros(), 2_000);
    }
}
