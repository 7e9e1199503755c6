//! What a pick costs: `cargo test --release -p agent --lib -- --ignored --nocapture nanoseconds_per_pick`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Fit, Loads, Member, Options, Pick, Policy, Ring, Set, tests::options};

const PICKS: u32 = 1_000_000;

struct Case {
    set: Set,
    loads: Loads,
    now: Instant,
}

fn case(policy: Policy, n: u32, equal: bool, ring: Option<&Arc<Ring>>) -> Case {
    let (now, mut dice) = (Instant::now(), SmallRng::seed_from_u64(n.into()));
    let loads = Loads::new(n as usize, Duration::from_secs(10), now);
    let weight = |dice: &mut SmallRng| if equal { 1 } else { dice.random_range(1..100) };
    let members = (0..n).map(|index| Member { index, weight: weight(&mut dice), level: 2, since: None }).collect();
    for index in 0..n {
        loads.observe(index, Duration::from_micros(900 + u64::from(index % 200)), now);
    }
    Case { set: Set::new(Options { panic: 50, ..options(policy) }, members, ring.cloned(), now), loads, now }
}

/// The best of five rounds: the machine is not ours alone.
fn nanoseconds(case: &mut Case) -> f64 {
    let mut dice = SmallRng::seed_from_u64(3);
    let rounds = (0..5).map(|_| {
        let started = Instant::now();
        for i in 0..PICKS {
            let now = case.now + Duration::from_micros(u64::from(i));
            let key = Some(i.wrapping_mul(0x9e37_79b9));
            let picked = case.set.pick(Pick { now, loads: &case.loads, key, dice: &mut dice }, |_| Fit::Ready);
            black_box(picked);
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
    });
    rounds.fold(f64::MAX, f64::min)
}

#[test]
#[ignore = "a measurement"]
fn microseconds_per_refresh() {
    for (policy, equal) in [(Policy::PeakEwma, true), (Policy::PeakEwma, false), (Policy::RoundRobin, false)] {
        for n in [10, 1_000, 20_000] {
            let mut case = case(policy, n, equal, None);
            let rounds = (0..20).map(|round| {
                let started = Instant::now();
                case.set.refresh(case.now, |index| index % 20 != round);
                started.elapsed().as_secs_f64() * 1e6
            });
            println!("{policy:?} {} {n}: {:.1} us", if equal { "equal" } else { "weighted" }, rounds.fold(f64::MAX, f64::min));
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn nanoseconds_per_pick() {
    let sizes = [10_u32, 1_000, 20_000];
    println!("{:<14} {:>10} {:>10} {:>10}", "ns per pick", sizes[0], sizes[1], sizes[2]);
    let rings =
        sizes.map(|n| Arc::new(Ring::new(&(0..n).map(|i| format!("10.0.{}.{}:80", i / 256, i % 256)).collect::<Vec<_>>())));
    for (policy, equal) in [
        (Policy::PeakEwma, true),
        (Policy::PeakEwma, false),
        (Policy::RoundRobin, true),
        (Policy::RoundRobin, false),
        (Policy::LeastRequest, true),
        (Policy::LeastRequest, false),
        (Policy::Random, true),
        (Policy::Random, false),
        (Policy::Ketama, true),
    ] {
        let of = |i: usize| nanoseconds(&mut case(policy, sizes[i], equal, Some(&rings[i])));
        let name = format!("{policy:?}{}", if equal { "" } else { " w" });
        println!("{name:<14} {:>10.1} {:>10.1} {:>10.1}", of(0), of(1), of(2));
    }
}
