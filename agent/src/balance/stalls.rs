//! Ten instances of which one is slow, and an agent that stalls: for 100 ms of each second all answers are late, whoever gave
//! them. What is left of the balance then.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Fit, Loads, Pick, Policy, Set,
    tests::{loads, members, options},
};

const INSTANCES: u32 = 10;
const SLOW: u32 = 0;
const SLOWER: f64 = 5.0;
const CALLS_PER_S: f64 = 1_000.0;
const WARM: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_millis(100);

/// An answer on its way: when the agent sees it, when the call was made, by which instance.
type Answer = (Duration, Duration, u32);

struct Outcome {
    /// The share of calls that the slow one got.
    slow: f64,
    p50: f64,
    p99: f64,
}

struct Simulation {
    start: Instant,
    dice: StdRng,
    set: Set,
    loads: Loads,
    answers: BinaryHeap<Reverse<Answer>>,
    service_ms: f64,
    stalls: bool,
}

impl Simulation {
    fn new(policy: Policy, service_ms: f64, stalls: bool, seed: u64) -> Self {
        let start = Instant::now();
        let set = Set::new(options(policy), members(&[1; INSTANCES as usize]), None, start);
        let loads = loads(INSTANCES as usize, start);
        Self { start, dice: StdRng::seed_from_u64(seed), set, loads, answers: BinaryHeap::new(), service_ms, stalls }
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.dice.random::<f64>()).ln())
    }

    /// When the agent sees what comes at this time.
    fn seen(&mut self, at: Duration) -> Duration {
        let stalled = self.stalls && at.subsec_nanos() < STALL.subsec_nanos();
        if stalled { at + Duration::from_secs_f64(self.dice.random_range(0.020..0.050)) } else { at }
    }

    fn run(mut self) -> Outcome {
        let mut at = Duration::ZERO;
        let (mut calls, mut slow, mut latencies) = (0.0, 0.0, Vec::new());
        while at < END {
            at += self.exponential(1.0 / CALLS_PER_S);
            while self.answers.peek().is_some_and(|Reverse(next)| next.0 <= at) {
                let Reverse((seen, began, index)) = self.answers.pop().unwrap();
                self.loads.end(index);
                self.loads.observe(index, seen - began, self.start + seen);
            }
            let pick = Pick { now: self.start + at, loads: &self.loads, key: None, dice: &mut self.dice };
            let index = self.set.pick(pick, |_| Fit::Ready).unwrap();
            self.loads.begin(index);
            let mean = self.service_ms * if index == SLOW { SLOWER } else { 1.0 };
            let took = self.exponential(mean / 1000.0);
            let seen = self.seen(at + took);
            self.answers.push(Reverse((seen, at, index)));
            if at >= WARM {
                calls += 1.0;
                slow += if index == SLOW { 1.0 } else { 0.0 };
                latencies.push((seen - at).as_secs_f64() * 1000.0);
            }
        }
        latencies.sort_unstable_by(f64::total_cmp);
        let part = |of: usize| latencies[latencies.len() * of / 100];
        Outcome { slow: slow / calls, p50: part(50), p99: part(99) }
    }
}

#[test]
fn an_agent_that_stalls_still_knows_who_is_slow() {
    let seed = super::tests::rng("an_agent_that_stalls_still_knows_who_is_slow").random();
    for service_ms in [1.0, 3.0, 10.0, 30.0] {
        for policy in [Policy::PeakEwma, Policy::LeastRequest, Policy::RoundRobin] {
            for stalls in [false, true] {
                let Outcome { slow, p50, p99 } = Simulation::new(policy, service_ms, stalls, seed).run();
                let slow = slow * 100.0;
                println!("{service_ms} ms, {policy:?}, stalls {stalls}: {slow:.2} % to the slow one, p50 {p50:.1}, p99 {p99:.1} ms");
            }
        }
    }
}
