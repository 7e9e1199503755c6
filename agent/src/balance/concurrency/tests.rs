use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use rand::rngs::StdRng;

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

#[test]
fn converges_near_capacity() {
    let mut dice = seed::rng("converges_near_capacity");
    for (places, takes_ms) in [(4, 5), (20, 10), (100, 10), (100, 100), (1000, 20), (16, 1000)] {
        let capacity = places as f64 / (takes_ms as f64 / 1000.0);
        for load in [1.2, 3.0] {
            let fork = rand::SeedableRng::from_rng(&mut dice);
            let mut server = Server::new(places, takes_ms, capacity * load, Adaptive::new(8, 10_000), fork);
            let long = s(if takes_ms == 1000 { 400 } else { 60 });
            let mut first = server.run(long / 6);
            first.report(&format!("{places} places of {takes_ms} ms at {load} × capacity, first"));
            let mut then = server.run(long);
            then.report("  then");
            let served = then.took.len() as f64 / (capacity * long.as_secs_f64());
            println!("  {served:.3} of capacity, latency × {:.2}", then.mean().as_secs_f64() * 1000.0 / takes_ms as f64);
        }
    }
}

#[test]
fn leaves_a_service_alone_that_can_take_it() {
    let mut dice = seed::rng("leaves");
    for (places, takes_ms, load) in [(100, 10, 0.5), (100, 10, 0.8), (20, 10, 0.7), (1000, 20, 0.9)] {
        let capacity = places as f64 / (takes_ms as f64 / 1000.0);
        let fork = rand::SeedableRng::from_rng(&mut dice);
        let mut server = Server::new(places, takes_ms, capacity * load, Adaptive::new(8, 10_000), fork);
        server.run(s(5)).report("first");
        let mut then = server.run(s(120));
        then.report("then");
        println!("{:.5} refused", f64::from(then.refused) / (f64::from(then.refused) + then.took.len() as f64));
    }
}

#[test]
fn recovers_after_a_slow_phase() {
    let dice = seed::rng("recovers");
    let mut server = Server::new(100, 10, 12_000.0, Adaptive::new(8, 10_000), dice);
    server.run(s(10)).report("before");
    server.takes *= 10;
    server.run(s(5)).report("slow");
    server.run(s(20)).report("slow later");
    server.run(s(60)).report("slow later");
    server.takes /= 10;
    server.run(s(2)).report("after 2");
    server.run(s(5)).report("after 5");
    server.run(s(60)).report("after 60");
    server.fails = Some(s(1));
    server.run(s(20)).report("timeouts");
    server.fails = Some(Duration::from_micros(10));
    server.run(s(20)).report("quick failures");
    server.fails = None;
    server.run(s(5)).report("after 5");
    server.run(s(60)).report("after 60");
    server.load = 100.0;
    server.run(s(60)).report("little load");
    server.load = 20000.0;
    server.run(s(60)).report("much load");
}
