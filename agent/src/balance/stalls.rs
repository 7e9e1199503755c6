//! Ten instances of which one is slow, and an agent that stalls: for 100 ms of each second it runs only every 20 to 50 ms, and sees
//! all answers late. What is left of the balance then.

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
/// What of each second is full of stalls.
const BUSY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stalls {
    None,
    /// The agent does not know that it stalls.
    Unknown,
    Known,
}

/// An answer on its way: when it comes, when the call was made, by which instance.
type Answer = (Duration, Duration, u32);

struct Simulation {
    start: Instant,
    dice: StdRng,
    set: Set,
    loads: Loads,
    answers: BinaryHeap<Reverse<Answer>>,
    service_ms: f64,
    stalls: Stalls,
    /// The latest stall that was asked for.
    stall: (Duration, Duration),
}

impl Simulation {
    fn new(policy: Policy, service_ms: f64, stalls: Stalls, seed: u64) -> Self {
        let start = Instant::now();
        let set = Set::new(options(policy), members(&[1; INSTANCES as usize]), None, start);
        let loads = loads(INSTANCES as usize, start);
        let stall = (Duration::ZERO, Duration::ZERO);
        Self { start, dice: StdRng::seed_from_u64(seed), set, loads, answers: BinaryHeap::new(), service_ms, stalls, stall }
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.dice.random::<f64>()).ln())
    }

    /// The stall at this time, if there is one. Times are asked for in their order.
    fn stall(&mut self, at: Duration) -> Option<(Duration, Duration)> {
        if self.stalls == Stalls::None {
            return None;
        }
        while self.stall.1 <= at {
            let from = self.stall.1;
            let from = if from.subsec_nanos() < BUSY.subsec_nanos() { from } else { Duration::from_secs(from.as_secs() + 1) };
            self.stall = (from, from + Duration::from_secs_f64(self.dice.random_range(0.020..0.050)));
        }
        (self.stall.0 <= at).then_some(self.stall)
    }

    /// Returns the share of calls that the slow one got, in percent, and the 99th percentile of latency in milliseconds.
    fn run(mut self) -> (f64, f64) {
        let mut at = Duration::ZERO;
        let (mut calls, mut slow, mut latencies) = (0.0, 0.0, Vec::new());
        while at < END {
            at += self.exponential(1.0 / CALLS_PER_S);
            // A call that comes during a stall is seen after it, as the answers are.
            let stall = self.stall(at);
            let now = stall.map_or(at, |(_, until)| until);
            while let Some(Reverse((came, began, index))) = self.answers.peek().copied().filter(|Reverse(next)| next.0 <= now) {
                self.answers.pop();
                let held = stall.filter(|(from, _)| *from <= came);
                let (seen, late) = held.map_or((came, Duration::ZERO), |(from, until)| (until, until - from));
                let late = if self.stalls == Stalls::Known { late } else { Duration::ZERO };
                self.loads.end(index);
                self.loads.observe_late(index, seen - began, late, self.start + seen);
                latencies.push((seen - began).as_secs_f64() * 1000.0);
            }
            let pick = Pick { now: self.start + now, loads: &self.loads, key: None, dice: &mut self.dice };
            let index = self.set.pick(pick, |_| Fit::Ready).unwrap();
            self.loads.begin(index);
            let mean = self.service_ms * if index == SLOW { SLOWER } else { 1.0 };
            let took = self.exponential(mean / 1000.0);
            self.answers.push(Reverse((now + took, now, index)));
            if at < WARM {
                latencies.clear();
            } else {
                calls += 1.0;
                slow += if index == SLOW { 1.0 } else { 0.0 };
            }
        }
        latencies.sort_unstable_by(f64::total_cmp);
        (slow / calls * 100.0, latencies[latencies.len() * 99 / 100])
    }
}

#[test]
fn an_agent_that_stalls_still_knows_who_is_slow() {
    let seed = super::tests::rng("an_agent_that_stalls_still_knows_who_is_slow").random();
    for service_ms in [1.0, 3.0, 10.0] {
        let [without, unknown, known] = [Stalls::None, Stalls::Unknown, Stalls::Known].map(|stalls| {
            for policy in [Policy::LeastRequest, Policy::RoundRobin] {
                let (slow, p99) = Simulation::new(policy, service_ms, stalls, seed).run();
                println!("{service_ms} ms, stalls {stalls:?}, {policy:?}: {slow:.2} % to the slow one, p99 {p99:.1} ms");
            }
            let (slow, p99) = Simulation::new(Policy::PeakEwma, service_ms, stalls, seed).run();
            println!("{service_ms} ms, stalls {stalls:?}, peak EWMA: {slow:.2} % to the slow one, p99 {p99:.1} ms");
            slow
        });
        assert!(without < 2.5 && known < 2.0 * without + 0.5, "{without} % without stalls, {known} % with them");
        assert!(service_ms > 3.0 || known < unknown / 1.5, "{known} % if the agent knows that it stalls, {unknown} % if not");
    }
}
