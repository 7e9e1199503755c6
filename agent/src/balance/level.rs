//! The instances of one level that can be used, and how one of them is picked.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Fit, Loads, Policy, alias::Alias, dice, edf::Edf};

/// Rounds in which the policy has its way before everyone is asked.
const ROUNDS: u32 = 4;

/// Up to so many, the one with the fewest calls in flight is found among all; above, among `SAMPLES` by chance.
const SCANNED_MAX: u32 = 16;
const SAMPLES: u32 = 4;

/// An instance is better only if a call there takes less than so much of the time: equal ones get what their weights say.
const BETTER: f32 = 7.0 / 8.0;

/// With one in hand that has to be connected to first, so many are asked for one that hasn't.
const NEAR: u32 = 16;

/// A starting instance gets this much of its weight at once, in thousandths.
const START: u32 = 100;

/// Those that can be used.
#[derive(Debug, Default)]
pub(crate) struct Level {
    spots: Vec<Spot>,
    /// Empty if all weights are equal.
    alias: Alias,
    /// When each began to start; empty if nobody does.
    since: Vec<Option<Instant>>,
    /// When all will have started.
    all_started: Option<Instant>,
    slow_start: Duration,
    turns: Turns,
    /// Whether the first turn was drawn.
    begun: bool,
}

#[derive(Debug, Clone, Copy)]
struct Spot {
    index: u32,
    /// The mean weight by its own: what a call in flight counts there.
    scale: f32,
}

/// Whose turn it is, for round robin.
#[derive(Debug)]
enum Turns {
    Rotation(u32),
    Weighted(Edf),
}

impl Default for Turns {
    fn default() -> Self {
        Self::Rotation(0)
    }
}

/// What a level is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) index: u32,
    pub(crate) weight: u32,
    /// Only while it starts.
    pub(crate) since: Option<Instant>,
}

/// One search for an instance, over all levels.
pub(crate) struct Search<'a, R, F> {
    pub(crate) now: Instant,
    pub(crate) loads: &'a Loads,
    pub(crate) dice: &'a mut R,
    pub(crate) fit: F,
    /// How many may still be asked one after another.
    pub(crate) looks: u32,
    /// The first that has to be connected to.
    slow: Option<u32>,
}

impl<'a, R: Rng, F: FnMut(u32) -> Fit> Search<'a, R, F> {
    pub(crate) fn new(now: Instant, loads: &'a Loads, dice: &'a mut R, fit: F, looks: u32) -> Self {
        Self { now, loads, dice, fit, looks, slow: None }
    }

    fn ready(&mut self, index: u32) -> bool {
        match (self.fit)(index) {
            Fit::Ready => return true,
            Fit::Slow => self.slow = self.slow.or(Some(index)),
            Fit::No => {}
        }
        false
    }
}

impl Level {
    /// Follows who can be used, in the order of their indices. Those that stay keep their turns.
    pub(crate) fn fill(&mut self, candidates: &[Candidate], policy: Policy, slow_start: Duration) {
        let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        let mean = total as f32 / candidates.len().max(1) as f32;
        let equal = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let last = candidates.iter().filter_map(|candidate| candidate.since).max();
        let starting = last.is_some();
        if policy == Policy::RoundRobin {
            self.fill_turns(candidates, equal && !starting);
        }
        self.alias.clear();
        if !equal && policy != Policy::RoundRobin {
            self.alias.fill(candidates.iter().map(|candidate| candidate.weight));
        }
        let spot = |candidate: &Candidate| Spot {
            index: candidate.index,
            scale: if equal { 1.0 } else { mean / candidate.weight.max(1) as f32 },
        };
        self.spots.clear();
        self.spots.extend(candidates.iter().map(spot));
        self.slow_start = slow_start;
        self.all_started = last.map(|since| since + slow_start);
        self.since.clear();
        if starting {
            self.since.extend(candidates.iter().map(|candidate| candidate.since));
        }
    }

    fn fill_turns(&mut self, candidates: &[Candidate], plain: bool) {
        let turns = match std::mem::take(&mut self.turns) {
            Turns::Rotation(next) if plain => Turns::Rotation(next),
            Turns::Weighted(_) if plain => Turns::Rotation(0),
            Turns::Rotation(_) => Turns::Weighted(weighted(&self.spots, Edf::default(), candidates)),
            Turns::Weighted(edf) => Turns::Weighted(weighted(&self.spots, edf, candidates)),
        };
        self.turns = turns;
    }

    /// How many can be used.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.spots.len()).unwrap_or(u32::MAX)
    }

    /// The index at this place.
    pub(crate) fn index(&self, place: u32) -> Option<u32> {
        self.spots.get(place as usize).map(|spot| spot.index)
    }

    /// One that is ready, or one that has to be connected to if there is no other near; none if nobody was found.
    pub(crate) fn pick<R: Rng, F: FnMut(u32) -> Fit>(&mut self, policy: Policy, search: &mut Search<'_, R, F>) -> Option<u32> {
        if self.all_started.is_some_and(|at| at <= search.now) {
            self.all_started = None;
            self.since.clear();
        }
        let ready = match self.spots.len() {
            0 => None,
            1 => self.walk(search),
            _ => self.by_policy(policy, search).or_else(|| self.walk(search)),
        };
        ready.or_else(|| search.slow.take())
    }

    fn by_policy<R: Rng, F: FnMut(u32) -> Fit>(&mut self, policy: Policy, search: &mut Search<'_, R, F>) -> Option<u32> {
        if policy == Policy::RoundRobin {
            self.begin(search.dice);
        }
        // The first round of this has asked everyone.
        let rounds = if policy == Policy::LeastRequest && self.len() <= SCANNED_MAX { 1 } else { ROUNDS };
        for _ in 0..rounds {
            let found = match policy {
                Policy::PeakEwma => self.better_of_two(search),
                Policy::LeastRequest => self.least(search),
                Policy::RoundRobin => self.in_turn(search),
                Policy::Random | Policy::Ketama => {
                    let place = self.draw(search);
                    self.ready(place, search).then_some(place)
                }
            };
            if let Some(place) = found {
                return self.index(place);
            }
        }
        None
    }

    /// Two by chance, and the one where a call should be over first.
    fn better_of_two<R: Rng, F: FnMut(u32) -> Fit>(&self, search: &mut Search<'_, R, F>) -> Option<u32> {
        let (first, second) = self.pair(search);
        let stamp = search.loads.stamp(search.now);
        let cost = |place: u32, challenger: bool, search: &Search<'_, R, F>| {
            let (index, scale) = self.scaled(place, search.now);
            // A light one must be better even with the call that it would get: else it would always have one.
            let extra = if challenger { (scale - 1.0).max(0.0) } else { 0.0 };
            search.loads.cost(index, stamp, scale, extra)
        };
        if first == second {
            return self.ready(first, search).then_some(first);
        }
        let switch = cost(second, true, search) < cost(first, false, search) * BETTER;
        let (best, other) = if switch { (second, first) } else { (first, second) };
        [best, other].into_iter().find(|place| self.ready(*place, search))
    }

    /// The one with the fewest calls in flight, by weight.
    fn least<R: Rng, F: FnMut(u32) -> Fit>(&self, search: &mut Search<'_, R, F>) -> Option<u32> {
        let n = self.len();
        let mut best: Option<(u32, f32)> = None;
        let others = if n <= SCANNED_MAX { n - 1 } else { SAMPLES - 1 };
        let mut place = self.draw(search);
        for i in 0..=others {
            let (index, scale) = self.scaled(place, search.now);
            let in_flight = search.loads.in_flight(index) as f32;
            // Only who has less even with the call: so weights hold while nobody has many.
            let better = best.is_none_or(|(_, least)| (in_flight + 1.0) * scale <= least);
            if better && self.ready(place, search) {
                best = Some((place, in_flight * scale));
            }
            place = match () {
                () if i == others => place,
                () if n > SCANNED_MAX => self.draw(search),
                () if place + 1 == n => 0,
                () => place + 1,
            };
        }
        best.map(|(place, _)| place)
    }

    fn in_turn<R: Rng, F: FnMut(u32) -> Fit>(&mut self, search: &mut Search<'_, R, F>) -> Option<u32> {
        let n = self.len();
        let place = match &mut self.turns {
            Turns::Rotation(next) => {
                let place = if *next < n { *next } else { 0 };
                *next = place + 1;
                place
            }
            Turns::Weighted(edf) => {
                let (since, slow_start) = (&self.since, self.slow_start);
                edf.next(|place| permille(since.get(place as usize).copied().flatten(), slow_start, search.now))?
            }
        };
        self.ready(place, search).then_some(place)
    }

    fn begin(&mut self, dice: &mut impl Rng) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let n = self.len();
        match &mut self.turns {
            Turns::Rotation(next) => *next = dice::below(dice.next_u32(), n),
            Turns::Weighted(edf) => edf.scatter(dice),
        }
    }

    /// One after another from anywhere on.
    fn walk<R: Rng, F: FnMut(u32) -> Fit>(&self, search: &mut Search<'_, R, F>) -> Option<u32> {
        let n = self.len();
        let start = if n == 1 { 0 } else { dice::below(search.dice.next_u32(), n) };
        for asked in 0..n {
            if search.looks == 0 || (search.slow.is_some() && asked >= NEAR) {
                return None;
            }
            search.looks -= 1;
            let place = if asked < n - start { start + asked } else { asked - (n - start) };
            if self.ready(place, search) {
                return self.index(place);
            }
        }
        None
    }

    /// By chance, by weight; one that starts is passed over in the measure that it isn't there yet.
    fn draw<R: Rng, F>(&self, search: &mut Search<'_, R, F>) -> u32 {
        let mut place = self.draw_any(search.dice);
        if !self.since.is_empty() {
            for _ in 0..8 {
                if dice::below(search.dice.next_u32(), 1000) < self.permille(place, search.now) {
                    break;
                }
                place = self.draw_any(search.dice);
            }
        }
        place
    }

    fn draw_any(&self, dice: &mut impl Rng) -> u32 {
        if self.alias.is_empty() { dice::below(dice.next_u32(), self.len()) } else { self.alias.draw(dice) }
    }

    /// Two by chance: different ones if all have the same weight. Else they may be the same, so that nobody gets more than twice
    /// what its weight says.
    fn pair<R: Rng, F>(&self, search: &mut Search<'_, R, F>) -> (u32, u32) {
        if self.alias.is_empty() && self.since.is_empty() {
            let (n, (one, two)) = (self.len(), dice::two(search.dice));
            let first = dice::below(one, n);
            let second = dice::below(two, n - 1);
            return (first, if second < first { second } else { second + 1 });
        }
        (self.draw(search), self.draw(search))
    }

    fn scaled(&self, place: u32, now: Instant) -> (u32, f32) {
        let Spot { index, scale } = self.spots[place as usize];
        if self.since.is_empty() {
            return (index, scale);
        }
        (index, scale * 1000.0 / self.permille(place, now) as f32)
    }

    fn ready<R: Rng, F: FnMut(u32) -> Fit>(&self, place: u32, search: &mut Search<'_, R, F>) -> bool {
        search.ready(self.spots[place as usize].index)
    }

    fn permille(&self, place: u32, now: Instant) -> u32 {
        permille(self.since.get(place as usize).copied().flatten(), self.slow_start, now)
    }
}

/// How much of its weight one counts that began to start then, in thousandths.
pub(crate) fn permille(since: Option<Instant>, slow_start: Duration, now: Instant) -> u32 {
    let Some(since) = since.filter(|_| !slow_start.is_zero()) else { return 1000 };
    let part = now.saturating_duration_since(since).as_nanos() * 1000 / slow_start.as_nanos();
    u32::try_from(part).unwrap_or(1000).clamp(START, 1000)
}

/// Deadlines of the candidates; those that had a turn keep it.
fn weighted(before: &[Spot], mut edf: Edf, candidates: &[Candidate]) -> Edf {
    let mut turns: Vec<_> = edf.drain().collect();
    turns.sort_unstable_by_key(|turn| turn.place);
    for (place, candidate) in (0_u32..).zip(candidates) {
        let old = before.binary_search_by_key(&candidate.index, |spot| spot.index).ok();
        let turn = old.and_then(|old| turns.get(old)).copied();
        edf.push(place, candidate.weight, turn, dice::mix(u64::from(candidate.index)));
    }
    edf.build();
    edf
}
