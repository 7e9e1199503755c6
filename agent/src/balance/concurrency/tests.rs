use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::balance::seed;

/// A server with so many places; a call that finds none free waits. Times are exponential, calls come by chance (M/M/c).
struct Server {
    places: usize,
    takes: Duration,
    /// Calls each second.
    load: f64,
    bound: Adaptive,
    now: Instant,
    next: Instant,
    /// When they end, and when they came.
    busy: BinaryHeap<Reverse<(Instant, Instant)>>,
    waiting: VecDeque<Instant>,
    /// Whether all calls fail: quickly, or after a time.
    fails: Option<Duration>,
    dice: StdRng,
}

/// What was seen for a time.
#[derive(Default)]
struct Seen {
    refused: u32,
    took: Vec<Duration>,
    limits: Vec<u32>,
}

impl Server {
    fn new(places: usize, takes_ms: u64, load: f64, bound: Adaptive, dice: StdRng) -> Self {
        let now = Instant::now();
        let (takes, busy) = (Duration::from_millis(takes_ms), BinaryHeap::new());
        Self { places, takes, load, bound, now, next: now, busy, waiting: VecDeque::new(), fails: None, dice }
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.busy.len() + self.waiting.len()).unwrap()
    }

    fn run(&mut self, time: Duration) -> Seen {
        let (end, mut seen) = (self.now + time, Seen::default());
        loop {
            let ends = self.busy.peek().map(|Reverse((ends, _))| *ends);
            let next = ends.map_or(self.next, |ends| ends.min(self.next));
            if next >= end {
                self.now = end;
                return seen;
            }
            self.now = next;
            if ends == Some(next) {
                self.ends(&mut seen);
            } else {
                self.comes(&mut seen);
            }
        }
    }

    fn comes(&mut self, seen: &mut Seen) {
        self.next = self.now + seed::gap(&mut self.dice, self.load);
        if self.bound.admits(self.in_flight()) {
            self.waiting.push_back(self.now);
            self.serve();
        } else {
            seen.refused += 1;
        }
    }

    fn ends(&mut self, seen: &mut Seen) {
        let in_flight = self.in_flight();
        let Some(Reverse((_, came))) = self.busy.pop() else { return };
        let took = self.now - came;
        self.bound.observe(took, in_flight, self.fails.is_some(), self.now);
        seen.took.push(took);
        seen.limits.push(self.bound.limit());
        self.serve();
    }

    fn serve(&mut self) {
        while self.busy.len() < self.places {
            let Some(came) = self.waiting.pop_front() else { return };
            let takes = self.fails.unwrap_or_else(|| seed::gap(&mut self.dice, 1.0 / self.takes.as_secs_f64()));
            self.busy.push(Reverse((self.now + takes, came)));
        }
    }
}

impl Seen {
    fn mean(&self) -> Duration {
        self.took.iter().sum::<Duration>() / u32::try_from(self.took.len().max(1)).unwrap()
    }

    fn limit(&mut self, percent: usize) -> u32 {
        self.limits.sort_unstable();
        self.limits[(self.limits.len() - 1) * percent / 100]
    }

    fn report(&mut self, what: &str) {
        let (least, middle, most) = (self.limit(1), self.limit(50), self.limit(99));
        println!(
            "{what}: bound {middle} ({least}–{most}), {} served, {} refused, mean {:.1?}",
            self.took.len(),
            self.refused,
            self.mean()
        );
    }
}

fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn server(places: usize, takes_ms: u64, load: f64, dice: &mut StdRng) -> Server {
    let capacity = places as f64 / (takes_ms as f64 / 1000.0);
    Server::new(places, takes_ms, capacity * load, Adaptive::new(8, 10_000), StdRng::from_rng(dice))
}

#[test]
fn converges_near_capacity() {
    let mut dice = seed::rng("converges_near_capacity");
    for (places, takes_ms) in [(20, 10), (100, 10), (100, 100), (1000, 20), (32, 1000)] {
        for load in [1.2, 3.0] {
            let mut server = server(places, takes_ms, load, &mut dice);
            server
                .run(s(takes_ms.max(100) / 10))
                .report(&format!("{places} places of {takes_ms} ms at {load} × capacity, first"));
            let time = s(takes_ms.max(100) * 6 / 10);
            let mut then = server.run(time);
            then.report("  then");
            let served = then.took.len() as f64 / (places as f64 * time.as_secs_f64() * 1000.0 / takes_ms as f64);
            let slower = then.mean().as_secs_f64() * 1000.0 / takes_ms as f64;
            println!("  {served:.3} of capacity, latency × {slower:.2}");
            let bound = then.limit(50) as usize;
            assert!((places..=places * 5 / 2).contains(&bound), "{bound} for {places} places");
            assert!(
                served >= if takes_ms < 1000 { 0.95 } else { 0.9 } && slower <= 2.5,
                "{served} of capacity, latency × {slower}"
            );
        }
    }
}

/// With fewer places than the least bound there is no more to wait than that says.
#[test]
fn keeps_the_least_bound() {
    let mut dice = seed::rng("keeps_the_least_bound");
    let mut server = server(4, 5, 2.0, &mut dice);
    server.run(s(10));
    let mut then = server.run(s(60));
    then.report("4 places");
    assert!(then.limit(0) >= 8 && then.limit(50) <= 24);
}

#[test]
fn leaves_a_service_alone_that_can_take_its_load() {
    let mut dice = seed::rng("leaves_a_service_alone_that_can_take_its_load");
    for (places, takes_ms, load) in [(100, 10, 0.5), (100, 10, 0.8), (20, 10, 0.7), (1000, 20, 0.9)] {
        let mut server = server(places, takes_ms, load, &mut dice);
        let first = server.run(s(10));
        let mut then = server.run(s(120));
        then.report(&format!("{places} places at {load} × capacity, {} refused in the beginning", first.refused));
        assert!(f64::from(first.refused) <= 0.1 * first.took.len() as f64);
        assert!(f64::from(then.refused) <= 0.001 * then.took.len() as f64, "{} refused", then.refused);
    }
}

#[test]
fn recovers_after_a_slow_phase() {
    let mut dice = seed::rng("recovers_after_a_slow_phase");
    let mut server = server(100, 10, 1.2, &mut dice);
    let mut settle = |what: &str, change: &dyn Fn(&mut Server), seconds, served: f64| {
        change(&mut server);
        server.run(s(seconds)).report(&format!("{what}, first {seconds} s"));
        let mut then = server.run(s(20));
        then.report(&format!("{what}, then"));
        assert!(then.took.len() as f64 >= served * 20.0 * 0.9, "{what}: {} served", then.took.len());
        assert!((100..=250).contains(&then.limit(50)), "{what}: {}", then.limit(50));
    };
    settle("healthy", &|_| {}, 5, 10_000.0);
    settle("ten times as slow", &|server| server.takes *= 10, 10, 1_000.0);
    settle("healthy again", &|server| server.takes /= 10, 5, 10_000.0);
}

#[test]
fn recovers_after_an_outage() {
    let mut dice = seed::rng("recovers_after_an_outage");
    let mut server = server(100, 10, 1.2, &mut dice);
    server.run(s(10)).report("healthy");
    server.fails = Some(s(1));
    server.run(s(40)).report("timeouts");
    assert_eq!(server.bound.limit(), 8, "what does not answer gets no more than the least");
    server.fails = None;
    server.run(s(5)).report("healthy again, first 5 s");
    let mut then = server.run(s(20));
    then.report("healthy again, then");
    assert!((100..=250).contains(&then.limit(50)));
    server.fails = Some(Duration::from_micros(10));
    server.run(s(1));
    let before = server.bound.limit();
    server.run(s(20));
    assert_eq!(server.bound.limit(), before, "quick failures say nothing");
}

proptest! {
    #[test]
    fn never_leaves_its_range(
        min in 0_u32..50,
        max in 0_u32..100,
        calls in proptest::collection::vec((0_u64..2_000_000_000_000, 0_u32..200, any::<bool>(), 0_u64..10_000_000), 1..500),
    ) {
        let (mut bound, mut now) = (Adaptive::new(min, max), Instant::now());
        for (took, in_flight, failed, after) in calls {
            now += Duration::from_micros(after);
            bound.observe(Duration::from_nanos(took), in_flight, failed, now);
            prop_assert!((min.max(1)..=max.max(min).max(1)).contains(&bound.limit()));
            prop_assert!(bound.admits(0) && !bound.admits(bound.limit()));
        }
    }
}
