//! A service of 100 instances of which some are slow, fail, flap or restart, and four workers that call it: what each policy
//! makes of it. Nothing is retried and nobody is ejected here: what is seen is the balancing alone.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Fit, Loads, Member, Options, Pick, Policy, Set, tests::options};

const INSTANCES: u32 = 100;
const WORKERS: usize = 4;
/// An instance works on so many calls at once.
const SERVERS: usize = 8;
const SERVICE_MS: f64 = 10.0;
const CALLS_PER_S: f64 = 8_000.0;
/// Until then some are slow and some fail.
const TROUBLE: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(80);
/// How long it takes until everyone knows that an instance is down or up.
const DETECTION: Duration = Duration::from_millis(200);
const RESTARTED: Duration = Duration::from_secs(10);

/// What is wrong with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Well,
    /// Five times slower until `TROUBLE` is over.
    Slow,
    /// Fails at once until then.
    Failing,
    /// Down for one second of five, until then.
    Flapping,
    /// Drained and down for three seconds, and then four times slower for five.
    Restarting,
}

const KINDS: [Kind; 5] = [Kind::Well, Kind::Slow, Kind::Failing, Kind::Flapping, Kind::Restarting];

fn kind(index: u32) -> Kind {
    match index {
        0..8 => Kind::Slow,
        8..12 => Kind::Failing,
        12..16 => Kind::Flapping,
        16..20 => Kind::Restarting,
        _ => Kind::Well,
    }
}

/// How much slower than it should be an instance is at this time; none if it fails.
fn slowness(index: u32, at: Duration) -> Option<f64> {
    let second = Duration::from_secs;
    match kind(index) {
        Kind::Slow if at < TROUBLE => Some(5.0),
        Kind::Failing if at < TROUBLE => None,
        Kind::Flapping if at < TROUBLE && (at.as_secs() + u64::from(index)).is_multiple_of(5) => None,
        Kind::Restarting if (RESTARTED..RESTARTED + second(3)).contains(&at) => None,
        Kind::Restarting if (RESTARTED + second(3)..RESTARTED + second(8)).contains(&at) => Some(4.0),
        _ => Some(1.0),
    }
}

/// What the health checks know. A failing one passes them.
fn usable(index: u32, at: Duration) -> bool {
    match kind(index) {
        Kind::Failing => true,
        Kind::Restarting => slowness(index, at).is_some(),
        _ => slowness(index, at.saturating_sub(DETECTION)).is_some(),
    }
}

struct Worker {
    set: Set,
    loads: Loads,
    down: BTreeSet<u32>,
}

impl Worker {
    fn new(options: &Options, now: Instant) -> Self {
        let member = |index| Member { index, weight: 1, level: 2, since: None };
        let set = Set::new(options.clone(), (0..INSTANCES).map(member).collect(), None, now);
        Self { set, loads: Loads::new(INSTANCES as usize, Duration::from_secs(10), now), down: BTreeSet::new() }
    }

    fn follow(&mut self, start: Instant, at: Duration) {
        let down: BTreeSet<u32> = (0..INSTANCES).filter(|index| !usable(*index, at)).collect();
        if down != self.down {
            self.down.difference(&down).for_each(|index| self.set.set_since(*index, Some(start + at)));
            self.set.refresh(start + at, |index| !down.contains(&index));
            self.down = down;
        }
    }
}

/// An answer that is on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    at: Duration,
    began: Duration,
    index: u32,
    worker: usize,
    failed: bool,
}

#[derive(Debug, Default)]
struct Outcome {
    latencies_us: Vec<u128>,
    failed: u32,
    calls: u32,
    /// Calls to each instance in each second.
    seconds: Vec<Vec<u32>>,
}

impl Outcome {
    fn percentile(&mut self, percent: usize) -> f64 {
        self.latencies_us.sort_unstable();
        self.latencies_us[self.latencies_us.len() * percent / 100] as f64 / 1000.0
    }

    /// Calls to an instance of the kind, as a part of what all get on average.
    fn share(&self, of: Kind, seconds: std::ops::Range<usize>) -> f64 {
        let calls = &self.seconds[seconds];
        let all = calls.iter().flatten().sum::<u32>();
        let members = (0..INSTANCES).filter(|index| kind(*index) == of);
        let (n, theirs) =
            members.fold((0, 0), |(n, sum), index| (n + 1, sum + calls.iter().map(|c| c[index as usize]).sum::<u32>()));
        f64::from(theirs) / f64::from(n) / (f64::from(all) / f64::from(INSTANCES))
    }

    /// How many seconds after the trouble the kind has half of its share again.
    fn recovery(&self, of: Kind) -> Option<usize> {
        let from = usize::try_from(TROUBLE.as_secs()).unwrap();
        (from..self.seconds.len()).find(|second| self.share(of, *second..second + 1) > 0.5).map(|second| second - from)
    }
}

struct Simulation {
    start: Instant,
    dice: StdRng,
    workers: Vec<Worker>,
    /// When each server of each instance is free.
    servers: Vec<BinaryHeap<Reverse<Duration>>>,
    answers: BinaryHeap<Reverse<Answer>>,
    outcome: Outcome,
}

impl Simulation {
    fn new(policy: Policy, seed: u64) -> Self {
        let start = Instant::now();
        let options = Options { slow_start: Duration::from_secs(10), panic: 50, ..options(policy) };
        let servers = (0..INSTANCES).map(|_| (0..SERVERS).map(|_| Reverse(Duration::ZERO)).collect()).collect();
        let seconds = vec![vec![0; INSTANCES as usize]; usize::try_from(END.as_secs()).unwrap() + 1];
        Self {
            start,
            dice: StdRng::seed_from_u64(seed),
            workers: (0..WORKERS).map(|_| Worker::new(&options, start)).collect(),
            servers,
            answers: BinaryHeap::new(),
            outcome: Outcome { seconds, ..Outcome::default() },
        }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.dice.random::<f64>()).ln()
    }

    fn run(mut self) -> Outcome {
        let (mut at, mut tick) = (Duration::ZERO, Duration::ZERO);
        while at < END {
            at += Duration::from_secs_f64(self.exponential(1.0 / CALLS_PER_S));
            while self.answers.peek().is_some_and(|Reverse(answer)| answer.at <= at) {
                let Reverse(answer) = self.answers.pop().unwrap();
                self.answered(&answer);
            }
            if at >= tick {
                self.workers.iter_mut().for_each(|worker| worker.follow(self.start, at));
                tick += Duration::from_millis(50);
            }
            self.call(at);
        }
        self.outcome
    }

    fn call(&mut self, at: Duration) {
        let number = self.dice.random_range(0..WORKERS);
        let worker = &mut self.workers[number];
        let pick = Pick { now: self.start + at, loads: &worker.loads, key: None, dice: &mut self.dice };
        let index = worker.set.pick(pick, |_| Fit::Ready).unwrap();
        worker.loads.begin(index);
        self.outcome.seconds[usize::try_from(at.as_secs()).unwrap()][index as usize] += 1;
        let (end, failed) = match slowness(index, at) {
            None => (at + Duration::from_millis(1), true),
            Some(slower) => (self.serve(index, at, slower), false),
        };
        self.answers.push(Reverse(Answer { at: end, began: at, index, worker: number, failed }));
    }

    fn serve(&mut self, index: u32, at: Duration, slower: f64) -> Duration {
        let service = Duration::from_secs_f64(self.exponential(SERVICE_MS * slower) / 1000.0);
        let servers = &mut self.servers[index as usize];
        let Reverse(free) = servers.pop().unwrap();
        let end = free.max(at) + service;
        servers.push(Reverse(end));
        end
    }

    fn answered(&mut self, answer: &Answer) {
        let (loads, now, took) = (&self.workers[answer.worker].loads, self.start + answer.at, answer.at - answer.began);
        loads.end(answer.index);
        if answer.failed {
            loads.fail(answer.index, took, now);
        } else {
            loads.observe(answer.index, took, now);
        }
        if answer.began < TROUBLE {
            self.outcome.calls += 1;
            self.outcome.failed += u32::from(answer.failed);
            self.outcome.latencies_us.push(took.as_micros());
        }
    }
}

fn simulate(policy: Policy, seed: u64) -> (Outcome, f64) {
    let mut outcome = Simulation::new(policy, seed).run();
    let (p50, p99, p999) = (outcome.percentile(50), outcome.percentile(99), outcome.latencies_us.len() * 999 / 1000);
    let p999 = outcome.latencies_us[p999] as f64 / 1000.0;
    let failed = f64::from(outcome.failed) / f64::from(outcome.calls) * 100.0;
    println!("{policy:?}: p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms, {failed:.2} % failed");
    let trouble = 2..usize::try_from(TROUBLE.as_secs()).unwrap();
    let shares = KINDS.map(|kind| (kind, (outcome.share(kind, trouble.clone()) * 100.0).round()));
    println!("  of the mean share, in percent: {shares:?}");
    let cold = outcome.share(Kind::Restarting, 13..18) * 100.0;
    let (slow, failing) = (outcome.recovery(Kind::Slow), outcome.recovery(Kind::Failing));
    println!("  cold ones get {cold:.0} %; half of their share again after {slow:?} s (slow), {failing:?} s (failing)");
    (outcome, p99)
}

#[test]
fn a_hundred_instances_in_trouble() {
    let seed = super::tests::rng("a_hundred_instances_in_trouble").random();
    let (mut ewma, ewma_p99) = simulate(Policy::PeakEwma, seed);
    let (mut rotation, rotation_p99) = simulate(Policy::RoundRobin, seed);
    let (least, least_p99) = simulate(Policy::LeastRequest, seed);

    assert!(ewma_p99 < rotation_p99 * 0.6, "tail: {ewma_p99} against {rotation_p99}");
    assert!(ewma_p99 < least_p99 * 0.8, "tail: {ewma_p99} against {least_p99} of least request");
    assert!(ewma.percentile(50) < rotation.percentile(50) * 1.1);
    assert!(
        ewma.failed * 10 < rotation.failed && ewma.failed * 10 < least.failed,
        "{} {} {}",
        ewma.failed,
        rotation.failed,
        least.failed
    );
    assert!(ewma.share(Kind::Slow, 2..30) < 0.35 && ewma.share(Kind::Failing, 2..30) < 0.1);
    // Who is well carries the calls, evenly.
    let well: Vec<u32> = (20..100).map(|index| ewma.seconds[5..30].iter().map(|second| second[index]).sum()).collect();
    let (fewest, most) = (well.iter().min().unwrap(), well.iter().max().unwrap());
    println!("calls to those that are well: {fewest} to {most}");
    assert!(f64::from(*most) < f64::from(*fewest) * 3.0);
    // What was seen fades: they come back, and then the shares are even again.
    assert!(ewma.recovery(Kind::Slow).is_some_and(|seconds| seconds <= 30));
    assert!(ewma.recovery(Kind::Failing).is_some_and(|seconds| seconds <= 45));
    assert!(ewma.recovery(Kind::Flapping).is_some_and(|seconds| seconds <= 45));
    for kind in KINDS {
        let share = ewma.share(kind, 76..80);
        assert!((0.6..1.5).contains(&share), "{kind:?}: {share}");
    }
}
