//! What holds of every policy.

mod levels;
mod picks;
mod ring;
mod shares;

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Fit, Loads, Local, Member, Options, Pick, Policy, Set};

const POLICIES: [Policy; 5] = [Policy::PeakEwma, Policy::RoundRobin, Policy::LeastRequest, Policy::Random, Policy::Ketama];

/// A random generator whose seed was printed, or came from `MOA_SEED`.
pub(super) fn rng(test: &str) -> StdRng {
    let seed = match std::env::var("MOA_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("MOA_SEED is {text:?}: expected a whole number")),
        Err(_) => rand::rng().random::<u64>(),
    };
    println!("{test}: MOA_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

pub(super) fn options(policy: Policy) -> Options {
    Options { policy, slow_start: Duration::ZERO, panic: 0, local: Local::Always, failover: true, overprovisioning: 140 }
}

/// One instance for each weight, all on the same level.
pub(super) fn members(weights: &[u32]) -> Vec<Member> {
    (0..).zip(weights).map(|(index, &weight)| Member { index, weight, level: 2, since: None }).collect()
}

pub(super) fn loads(n: usize, now: Instant) -> Loads {
    Loads::new(n, Duration::from_secs(10), now)
}

/// Picks with nothing in flight; each call takes a millisecond.
fn count(set: &mut Set, n: usize, calls: u32, dice: &mut StdRng, fit: impl Fn(u32) -> Fit) -> Vec<u32> {
    let mut now = Instant::now();
    let loads = loads(n, now);
    let mut counts = vec![0; n];
    for _ in 0..calls {
        let key = Some(dice.random());
        let pick = set.pick(Pick { now, loads: &loads, key, dice }, &fit).unwrap();
        now += Duration::from_millis(1);
        loads.observe(pick, Duration::from_millis(1), now);
        counts[pick as usize] += 1;
    }
    counts
}
