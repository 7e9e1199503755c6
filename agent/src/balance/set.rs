//! The instances that one kind of call may go to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use super::{
    Loads, Ring,
    level::{Candidate, Level, Search, permille},
    levels::{self, Count, LEVELS, Shares},
};

/// So many instances are asked one after another before a call is given up: of as many or fewer, everyone is.
const LOOKS: u32 = 64;

/// So many instances are asked along the ring before all are asked, and so many positions are looked at.
const RING_LOOKS: u32 = 32;
const RING_POSITIONS: usize = 1024;

/// What stands in the ring's table for a member that can't be used.
const UNUSED: u32 = u32::MAX;

/// How an instance is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The better of two by chance: latency times calls in flight.
    PeakEwma,
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest calls in flight.
    LeastRequest,
    /// By chance, by weight.
    Random,
    /// By the call's key; calls without one go by chance.
    Ketama,
}

/// How calls are shared with instances on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Local {
    /// They get all calls as long as they can be used.
    Always,
    /// They get this percentage.
    Weighted(u8),
    /// They are instances of this zone like others.
    Never,
}

/// How a set picks.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) policy: Policy,
    /// How long an instance that starts gets a growing share; zero is not at all.
    pub(crate) slow_start: Duration,
    /// With fewer that can be used, in percent of all, all are used; 0 is never.
    pub(crate) panic: u8,
    pub(crate) local: Local,
    /// Whether nearer instances come first; else all are one level, whatever `local` says.
    pub(crate) failover: bool,
    /// How much of its load a level can carry, in percent.
    pub(crate) overprovisioning: u16,
}

/// An instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its position in the service's list.
    pub(crate) index: u32,
    /// From 1 to 10,000.
    pub(crate) weight: u32,
    /// 0 this node, 1 this zone, 2 this data centre, 3 elsewhere.
    pub(crate) level: u8,
    /// When it began to start; what began longer ago than the slow start takes is as good as none.
    pub(crate) since: Option<Instant>,
}

/// Whether an instance can take a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// At once.
    Ready,
    /// It would have to be connected to first.
    Slow,
    /// Not now: it had the call already, backs off, is full.
    No,
}

/// A call that needs an instance.
#[derive(Debug)]
pub(crate) struct Pick<'a, R> {
    pub(crate) now: Instant,
    pub(crate) loads: &'a Loads,
    /// The hash of its key (`ketama::hash`).
    pub(crate) key: Option<u32>,
    pub(crate) dice: &'a mut R,
}

/// What a set does with one of its members, for people.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Explained {
    pub(crate) index: u32,
    pub(crate) level: u8,
    pub(crate) weight_now: f64,
    /// Of all calls, if loads are equal; for ketama of all keys.
    pub(crate) share: f64,
    pub(crate) used: bool,
    /// Whether too few can be used, so that all are.
    pub(crate) panic: bool,
}

/// The instances of a service that one kind of call may go to, as one worker sees them.
#[derive(Debug)]
pub(crate) struct Set {
    options: Options,
    members: Vec<Member>,
    /// Whether each member can be used.
    usable: Vec<bool>,
    panic: bool,
    levels: [Level; LEVELS],
    shares: Shares,
    /// The level that gets all calls, if one does.
    only: Option<usize>,
    ring: Option<Arc<Ring>>,
    /// The place of each of the ring's names.
    owners: Vec<usize>,
    /// For the ring: the index of each member, or `UNUSED`.
    indices: Vec<u32>,
}

impl Set {
    /// A set of members that can all be used; the ring's names must be in the same order.
    pub(crate) fn new(options: Options, mut members: Vec<Member>, ring: Option<Arc<Ring>>, now: Instant) -> Self {
        let given: Vec<_> = members.iter().map(|member| member.index).collect();
        members.sort_unstable_by_key(|member| member.index);
        let place = |index: &u32| members.binary_search_by_key(index, |member| member.index).unwrap_or(usize::MAX);
        let owners = if ring.is_some() { given.iter().map(place).collect() } else { Vec::new() };
        let usable = vec![true; members.len()];
        let mut set = Self {
            options,
            usable,
            panic: false,
            levels: Default::default(),
            shares: Shares::default(),
            only: None,
            ring,
            owners,
            indices: vec![UNUSED; members.len()],
            members,
        };
        set.fill(now);
        set
    }

    /// Follows which members can be used. Looks at all of them: only to be called when something changed.
    pub(crate) fn refresh(&mut self, now: Instant, usable: impl Fn(u32) -> bool) {
        for (old, member) in self.usable.iter_mut().zip(&self.members) {
            *old = usable(member.index);
        }
        self.fill(now);
    }

    /// An instance came back, and starts slowly again. `refresh` must follow, so that it has an effect.
    pub(crate) fn set_since(&mut self, index: u32, since: Option<Instant>) {
        if let Ok(place) = self.members.binary_search_by_key(&index, |member| member.index) {
            self.members[place].since = since;
        }
    }

    /// An instance for the call; none if no one can take it. `fit` is asked of one or two as a rule and of 128 at most; of up to
    /// 64 members, whoever can take the call is found.
    ///
    /// A call with a key goes where its key says even if it has to be connected to first, and however far it is.
    pub(crate) fn pick<R: Rng>(&mut self, call: Pick<'_, R>, mut fit: impl FnMut(u32) -> Fit) -> Option<u32> {
        if let (Policy::Ketama, Some(key), Some(ring)) = (self.options.policy, call.key, &self.ring) {
            let found = self.by_key(ring, key, &mut fit);
            return found.or_else(|| self.near_key(key, &mut fit));
        }
        let first = match self.only {
            Some(level) => level,
            None => levels::choose(&self.shares, f64::from(call.dice.next_u32()) / 2_f64.powi(32))?,
        };
        let policy = self.options.policy;
        let mut search = Search::new(call.now, call.loads, call.dice, fit, LOOKS);
        let found = self.levels[first].pick(policy, &mut search);
        found.or_else(|| {
            (0..LEVELS).filter(|level| *level != first).find_map(|level| self.levels[level].pick(policy, &mut search))
        })
    }

    /// What becomes of each member.
    pub(crate) fn explain(&self, now: Instant) -> Vec<Explained> {
        let weight =
            |member: &Member| f64::from(member.weight) * f64::from(permille(member.since, self.options.slow_start, now)) / 1000.0;
        let mut sums = [0.0; LEVELS];
        for (member, used) in self.members.iter().zip(self.used()) {
            sums[self.level(member)] += if used { weight(member) } else { 0.0 };
        }
        let keys = self.key_shares();
        let explain = |(place, (member, used)): (usize, (&Member, bool))| {
            let level = self.level(member);
            let share = match &keys {
                Some(keys) => keys[place],
                None if used => self.shares[level] * weight(member) / sums[level],
                None => 0.0,
            };
            Explained { index: member.index, level: member.level, weight_now: weight(member), share, used, panic: self.panic }
        };
        self.members.iter().zip(self.used()).enumerate().map(explain).collect()
    }

    /// The share of calls that those of its members get that another set has too, if loads are equal.
    pub(crate) fn share_of(&self, part: &Self, now: Instant) -> f64 {
        let has = |index: u32| part.members.binary_search_by_key(&index, |member| member.index).is_ok();
        self.explain(now).iter().filter(|member| has(member.index)).map(|member| member.share).sum()
    }

    /// Shares calls among its levels as a set does that it is a part of.
    pub(crate) fn share_as(&mut self, whole: &Self) {
        let share = |level: usize| if self.levels[level].len() > 0 { whole.shares[level] } else { 0.0 };
        let shares: Shares = std::array::from_fn(share);
        let sum: f64 = shares.iter().sum();
        if sum > 0.0 {
            self.shares = shares.map(|share| share / sum);
            self.only = self.shares.iter().position(|share| *share >= 1.0);
        }
    }

    /// Whether too few can be used, so that all are.
    pub(crate) fn is_panicking(&self) -> bool {
        self.panic
    }

    fn used(&self) -> impl Iterator<Item = bool> {
        self.usable.iter().map(|usable| *usable || self.panic)
    }

    /// The share of keys of each member.
    fn key_shares(&self) -> Option<Vec<f64>> {
        let ring = self.ring.as_ref().filter(|_| self.options.policy == Policy::Ketama)?;
        let mut shares = vec![0.0; self.members.len()];
        let mut carried = 0.0;
        // Twice around: what comes before the first that can be used goes to it from the other end.
        for (round, (owner, arc)) in ring.arcs().map(|arc| (0, arc)).chain(ring.arcs().map(|arc| (1, arc))) {
            let Some(&owner) = self.owners.get(owner as usize) else { continue };
            let used = self.indices.get(owner).is_some_and(|index| *index != UNUSED);
            carried += if round == 0 { arc } else { 0.0 };
            if used {
                shares[owner] += std::mem::take(&mut carried);
                if round == 1 {
                    break;
                }
            }
        }
        Some(shares)
    }

    /// The next usable member along the ring, so that the keys of others stay where they are.
    fn by_key(&self, ring: &Ring, key: u32, fit: &mut impl FnMut(u32) -> Fit) -> Option<u32> {
        let mut looks = RING_LOOKS;
        for owner in ring.from(key).take(RING_POSITIONS) {
            match self.owners.get(owner as usize).and_then(|place| self.indices.get(*place)) {
                None | Some(&UNUSED) => {}
                Some(&index) if fit(index) != Fit::No => return Some(index),
                Some(_) if looks == 1 => return None,
                Some(_) => looks -= 1,
            }
        }
        None
    }

    /// With few on the ring that can be used: all of those one after another, from a place that depends on the key only.
    fn near_key(&self, key: u32, fit: &mut impl FnMut(u32) -> Fit) -> Option<u32> {
        let total: u32 = self.levels.iter().map(Level::len).sum();
        let start = super::dice::below(super::dice::mix(u64::from(key)), total);
        let places = (start..total).chain(0..start).take(LOOKS as usize);
        places.filter_map(|place| self.at(place)).find(|index| fit(*index) != Fit::No)
    }

    /// The usable member at this place, counted over all levels.
    fn at(&self, mut place: u32) -> Option<u32> {
        for level in &self.levels {
            if let Some(index) = level.index(place) {
                return Some(index);
            }
            place -= level.len();
        }
        None
    }

    fn fill(&mut self, now: Instant) {
        let usable = self.usable.iter().filter(|usable| **usable).count();
        self.panic = usable * 100 < usize::from(self.options.panic) * self.members.len();
        let mut counts = [Count::default(); LEVELS];
        for (place, (member, index)) in self.members.iter().zip(&mut self.indices).enumerate() {
            let used = self.usable[place] || self.panic;
            *index = if used { member.index } else { UNUSED };
            let count = &mut counts[level(&self.options, member)];
            count.all += 1;
            count.usable += u32::from(used);
        }
        let slow_start = self.options.slow_start;
        let mut candidates = Vec::with_capacity(self.members.len());
        for number in 0..LEVELS {
            let here = |(member, index): &(&Member, &u32)| **index != UNUSED && level(&self.options, member) == number;
            let members = self.members.iter().zip(&self.indices).filter(here).map(|(member, _)| member);
            candidates.clear();
            candidates.extend(members.map(|&Member { index, weight, since, .. }| {
                let since = since.filter(|since| now.saturating_duration_since(*since) < slow_start);
                Candidate { index, weight, since }
            }));
            self.levels[number].fill(&candidates, self.options.policy, slow_start);
        }
        let local = match self.options.local {
            Local::Weighted(percent) if self.options.failover => Some(percent),
            _ => None,
        };
        self.shares = levels::shares(&counts, self.options.overprovisioning, local);
        self.only = self.shares.iter().position(|share| *share >= 1.0);
    }

    fn level(&self, member: &Member) -> usize {
        level(&self.options, member)
    }
}

/// The level that a member counts as.
fn level(options: &Options, member: &Member) -> usize {
    match (options.failover, options.local) {
        (false, _) => 0,
        (true, Local::Never) => usize::from(member.level).clamp(1, LEVELS - 1),
        (true, _) => usize::from(member.level).min(LEVELS - 1),
    }
}
