//! Where the calls go that a route is about, by shares.

use super::{
    Ways, chance,
    name::{Says, hash_key},
    rule::Rule,
    subset::{self, Subset},
};
use crate::config::traffic;

/// The shares of a route.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    pub(super) shares: Box<[Share]>,
    pub(super) sticky: bool,
    /// So that a key's shares of two routes have nothing to do with each other.
    salt: u64,
}

/// A share of the calls.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub(super) weight: u32,
    /// Without it: as without the rule.
    pub(super) target: Option<Target>,
    /// What tells it from others, also when the route is changed.
    salt: u64,
}

/// Where a share goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    subset: usize,
    fallback: bool,
}

impl Shares {
    /// `to` is one share of all; it is stronger than `split`.
    pub(super) fn new(route: &traffic::Route, subsets: &mut Vec<Subset>) -> Self {
        let whole = route.to.as_ref().map(|to| (1, Some(to)));
        let split = route.split.iter().map(|split| (split.weight, split.to.as_ref()));
        let mut shares: Vec<Share> = Vec::new();
        for (weight, to) in whole.into_iter().chain(split).take(if route.to.is_some() { 1 } else { usize::MAX }) {
            let target = to.map(|to| (Subset::of(to, None), to.fallback));
            let mut salt = target.as_ref().map_or(0, |(subset, _)| subset.salt());
            while shares.iter().any(|share| share.salt == salt) {
                salt = chance::mix(salt);
            }
            let target = target.map(|(subset, fallback)| Target { subset: subset::index(subsets, subset), fallback });
            shares.push(Share { weight, target, salt });
        }
        Self { shares: shares.into(), sticky: route.sticky, salt: chance::hash(&[route.name.as_bytes()]) }
    }

    /// The target of a call's share; none is as without the rule.
    pub(super) fn pick(&self, rule: &Rule<Self>, call: &impl Says, dice: u32) -> Option<Target> {
        let weights = self.shares.iter().map(|share| share.weight);
        let picked = match &*self.shares {
            [] | [_] => Some(0),
            _ => self.by_key(call).unwrap_or_else(|| chance::by_dice(rule.dice(dice), weights)),
        };
        picked.and_then(|at| self.shares.get(at)).filter(|share| share.weight > 0)?.target
    }

    /// The position of a call's share, if it goes by the call's hash key.
    pub(super) fn by_key(&self, call: &impl Says) -> Option<Option<usize>> {
        let key = hash_key(call).filter(|_| self.sticky)?;
        let key = chance::hash(&[&self.salt.to_le_bytes(), &key]);
        Some(chance::by_key(key, self.shares.iter().map(|share| (share.salt, share.weight))))
    }

    /// The shares that calls have, each as its part of the whole.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, f64, Option<Target>)> {
        let sum: f64 = self.shares.iter().map(|share| f64::from(share.weight)).sum();
        let parts = self.shares.iter().enumerate().filter(|(_, share)| share.weight > 0);
        parts.map(move |(at, share)| (at, f64::from(share.weight) / sum, share.target))
    }
}

impl Target {
    /// The ways of a call that would have had those of `home` without the rule.
    pub(super) fn ways(self, home: Ways) -> Ways {
        let mut ways = [Some(self.subset), None, None];
        if self.fallback {
            let others = home.into_iter().filter(|way| way.is_some_and(|subset| subset != self.subset));
            ways[1..].iter_mut().zip(others).for_each(|(way, other)| *way = other);
        }
        ways
    }

    /// Whether others may serve the call.
    pub(super) fn has_fallback(self) -> bool {
        self.fallback
    }

    /// The subset alone.
    pub(super) fn subset(self) -> usize {
        self.subset
    }
}
