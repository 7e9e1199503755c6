//! What a pick, a refresh and a rate limiter's word cost: `cargo xtask bench policy`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Fit, Limiter, Loads, Member, Options, Pick, Policy, RateLimits, Ring, Set, tests::options};
use crate::measure::Measure;

const PICKS: [(&str, Policy, bool); 9] = [
    ("peak-ewma", Policy::PeakEwma, true),
    ("peak-ewma-weighted", Policy::PeakEwma, false),
    ("round-robin", Policy::RoundRobin, true),
    ("round-robin-weighted", Policy::RoundRobin, false),
    ("least-request", Policy::LeastRequest, true),
    ("least-request-weighted", Policy::LeastRequest, false),
    ("random", Policy::Random, true),
    ("random-weighted", Policy::Random, false),
    ("ketama", Policy::Ketama, true),
];

struct Service {
    set: Set,
    loads: Loads,
    began: Instant,
}

impl Service {
    fn new(policy: Policy, n: u32, equal: bool, ring: Option<&Arc<Ring>>) -> Self {
        let (now, mut dice) = (Instant::now(), SmallRng::seed_from_u64(n.into()));
        let loads = Loads::new(n as usize, Duration::from_secs(10), now);
        let weight = |dice: &mut SmallRng| if equal { 1 } else { dice.random_range(1..100) };
        let members = (0..n).map(|index| Member { index, weight: weight(&mut dice), level: 2, since: None }).collect();
        for index in 0..n {
            loads.observe(index, Duration::from_micros(900 + u64::from(index % 200)), now);
        }
        Self { set: Set::new(Options { panic: 50, ..options(policy) }, members, ring.cloned(), now), loads, began: now }
    }

    fn pick(&mut self, call: u32, dice: &mut SmallRng) {
        let now = self.began + Duration::from_micros(call.into());
        let key = Some(call.wrapping_mul(0x9e37_79b9));
        black_box(self.set.pick(Pick { now, loads: &self.loads, key, dice }, |_| Fit::Ready));
    }
}

fn ring(service: u32, n: u32) -> Arc<Ring> {
    Arc::new(Ring::new(&(0..n).map(|i| format!("10.{service}.{}.{}:80", i / 256, i % 256)).collect::<Vec<_>>()))
}

#[test]
#[ignore = "a measurement"]
fn pick() {
    for n in [10, 1_000, 20_000] {
        let (mut measure, ring) = (Measure::new(format!("pick_{n}")), ring(0, n));
        for (name, policy, equal) in PICKS {
            let (mut service, mut dice) = (Service::new(policy, n, equal, Some(&ring)), SmallRng::seed_from_u64(3));
            measure.add(name, move |call| service.pick(call, &mut dice));
        }
        measure.run();
    }
}

/// Each call is one of another service, so that little of what it needs is in the CPU's caches.
#[test]
#[ignore = "a measurement"]
fn pick_in_many_services() {
    let mut measure = Measure::new("pick_2000x10");
    for (name, policy, equal) in PICKS {
        let mut dice = SmallRng::seed_from_u64(3);
        let ring = |service| (policy == Policy::Ketama).then(|| ring(service, 10));
        let mut services: Vec<_> = (0..2_000).map(|service| Service::new(policy, 10, equal, ring(service).as_ref())).collect();
        measure.add(name, move |call| {
            let service = dice.random_range(0..services.len());
            services[service].pick(call, &mut dice);
        });
    }
    measure.run();
}

#[test]
#[ignore = "a measurement"]
fn refresh() {
    for n in [10, 1_000, 20_000] {
        let mut measure = Measure::new(format!("refresh_{n}")).seldom(10 * n);
        for (name, policy, equal) in PICKS.into_iter().filter(|(_, policy, _)| *policy != Policy::Ketama) {
            let mut service = Service::new(policy, n, equal, None);
            measure.add(name, move |call| service.set.refresh(service.began, |index| index % 20 != call % 20));
        }
        measure.run();
    }
}

/// A call each microsecond.
#[test]
#[ignore = "a measurement"]
fn admit() {
    let mut measure = Measure::new("rate");
    for (name, callers, service_per_s) in
        [("1-caller", 1, 10_000_000), ("1000-callers", 1_000, 10_000_000), ("1-caller-refused", 1, 1_000)]
    {
        let (began, burst) = (Instant::now(), Duration::from_millis(100));
        let limits = RateLimits { service_per_s, caller_per_s: 5_000_000, burst, ..RateLimits::default() };
        let limiter = Limiter::new(&limits, began);
        let shares: Vec<_> = (0..callers).map(|caller| limiter.caller(&format!("caller-{caller}"), began)).collect();
        let mut dice = SmallRng::seed_from_u64(3);
        let mut now = began;
        measure.add(name, move |_| {
            now += Duration::from_micros(1);
            let share = &shares[dice.random_range(0..shares.len())];
            black_box(limiter.admit(share, now)).ok();
        });
    }
    measure.run();
}
