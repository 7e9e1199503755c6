//! Which of a service's instances gets a call: those that its call may go to, and which of them by the service's policy.

use std::{cell::RefCell, sync::Arc, time::Duration};

use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{frames::Scope, routes::ServiceRoute, service::Service};
use crate::{
    balance::{Fit, Loads, Local, Member, Options, Pick, Policy, Ring, Set},
    config::{
        ServicePolicy,
        traffic::{BalancePolicy, LocalPreference},
    },
};

/// Instances that were tried for one call.
pub(crate) type Tried = SmallVec<[u32; 4]>;

/// What was decided about where a call may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Of the plan's subsets.
    pub(crate) subset: u16,
    /// Where it goes if none of them can take it.
    pub(crate) otherwise: Option<u16>,
    /// And if none of those can either.
    pub(crate) last: Option<u16>,
    /// What its hash key hashes to.
    pub(crate) key: Option<u32>,
    /// Another worker has picked the instance that has this connection; 0 if none has.
    pub(crate) pin: u32,
    /// It is not part of the traffic policy: any instance by chance.
    pub(crate) plain: bool,
    /// The rule that lets it go nowhere else, by its place among the routes.
    pub(crate) rule: Option<u16>,
    /// It belongs to the share of other nodes, as the kernel has given those of this one theirs.
    pub(crate) away: bool,
}

impl Choice {
    /// The subsets in the order in which they are tried.
    pub(crate) fn subsets(&self) -> impl Iterator<Item = u16> + use<> {
        [Some(self.subset), self.otherwise, self.last].into_iter().flatten()
    }
}

/// Where a slot of a service stands.
pub(super) struct Slot<'a> {
    pub(super) slot: u32,
    pub(super) member: &'a super::routes::Member,
    pub(super) is_away: bool,
    /// It was not there before.
    pub(super) is_new: bool,
}

/// What is remembered of the instance in a slot.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Whether it could be used when it was last looked.
    usable: bool,
    /// When it began to start, if it starts slowly.
    since: Option<std::time::Instant>,
}

/// The sets of instances that the calls of one service go to, as one worker sees them.
#[derive(Debug)]
pub(crate) struct Sets {
    /// The count of changes that they know of.
    seen: Option<u64>,
    /// By subset, for calls that may go anywhere.
    mesh: Vec<Set>,
    /// By subset, for calls that stay on this node; none if all instances are on it.
    node: Option<Vec<Set>>,
    /// By subset, for calls that are no part of the policy.
    plain: Vec<Set>,
    /// Those on other nodes, for calls that belong to their share, and this share of all calls; none if all instances are on the
    /// same side.
    away: Option<(Set, f64)>,
    /// By slot.
    known: Vec<Known>,
}

impl Sets {
    /// The sets of these instances. Those that were there before go on from what `former` knows of them.
    pub(super) fn new(route: &ServiceRoute, slots: &[Slot<'_>], former: Option<&Self>, now: Instant) -> RefCell<Self> {
        let options = options(&route.policy);
        let known = known(slots, former, (!options.slow_start.is_zero()).then(|| now.into_std()));
        let members = |fits: &dyn Fn(&Slot<'_>) -> bool| -> Vec<Member> {
            let chosen = slots.iter().filter(|slot| fits(slot));
            let member = |slot: &Slot<'_>| Member {
                index: slot.slot,
                weight: slot.member.traits.weight,
                level: slot.member.level,
                since: known[slot.slot as usize].since,
            };
            chosen.map(member).collect()
        };
        let subsets = route.plan.subsets();
        let mesh = subsets.iter().enumerate().map(|(nth, subset)| {
            let fits = |slot: &Slot<'_>| slot.member.is_of(subset);
            Set::new(options.clone(), members(&fits), route.rings.get(nth).cloned(), now.into_std())
        });
        let node = slots.iter().any(|slot| slot.is_away).then(|| {
            let local = |subset: &crate::rules::Subset| {
                let fits = |slot: &Slot<'_>| !slot.is_away && slot.member.is_of(subset);
                let names = slots.iter().filter(|slot| fits(slot)).map(|slot| slot.member.instance.name.clone());
                let ring = (!route.rings.is_empty()).then(|| Arc::new(Ring::new(&names.collect::<Vec<_>>())));
                Set::new(options.clone(), members(&fits), ring, now.into_std())
            };
            subsets.iter().map(local).collect()
        });
        let some_plain = route.policy.mesh_per_10k < 10_000;
        let plain = subsets.iter().filter(|_| some_plain).map(|subset| {
            let options = Options { policy: Policy::Random, slow_start: Duration::ZERO, failover: false, ..options.clone() };
            let fits = |slot: &Slot<'_>| slot.member.is_of(subset);
            Set::new(options, members(&fits), None, now.into_std())
        });
        let mesh: Vec<_> = mesh.collect();
        let away = slots.iter().any(|slot| slot.is_away) && slots.iter().any(|slot| !slot.is_away);
        let away = away.then(|| {
            let fits = |slot: &Slot<'_>| slot.is_away && subsets.first().is_some_and(|first| slot.member.is_of(first));
            // Where none of them can be used, others are.
            (Set::new(Options { panic: 0, ..options.clone() }, members(&fits), None, now.into_std()), 0.0)
        });
        RefCell::new(Self { seen: None, mesh, node, plain: plain.collect(), away, known })
    }

    /// Looks at which instances can be used, if that may have changed.
    fn follow(&mut self, service: &Service, now: Instant) {
        let count = service.route.changes.count();
        if self.seen == Some(count) {
            return;
        }
        self.seen = Some(count);
        let slow = service.route.policy.balance.slow_start_ms > 0;
        for slot in 0..self.known.len() {
            let index = u32::try_from(slot).unwrap_or(u32::MAX);
            let usable = service.is_usable(index);
            let was = std::mem::replace(&mut self.known[slot].usable, usable);
            if was || !usable {
                continue;
            }
            // What it was like before says nothing of how it is now.
            service.loads.forget(index);
            if slow {
                let since = Some(now.into_std());
                self.known[slot].since = since;
                self.all().for_each(|set| set.set_since(index, since));
            }
        }
        let known = std::mem::take(&mut self.known);
        self.all().for_each(|set| set.refresh(now.into_std(), |index| known.get(index as usize).is_some_and(|slot| slot.usable)));
        self.known = known;
        if let (Some((away, share)), Some(mesh)) = (&mut self.away, self.mesh.first()) {
            away.share_as(mesh);
            *share = mesh.share_of(away, now.into_std());
        }
    }

    /// The share of calls that instances on other nodes get, where some are on this one.
    pub(super) fn away_share(&mut self, service: &Service, now: Instant) -> f64 {
        self.follow(service, now);
        self.away.as_ref().map_or(0.0, |(_, share)| *share)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Set> {
        let away = self.away.iter_mut().map(|(set, _)| set);
        self.mesh.iter_mut().chain(self.node.iter_mut().flatten()).chain(&mut self.plain).chain(away)
    }

    fn of(&mut self, scope: Scope, (subset, plain): (u16, bool)) -> Option<&mut Set> {
        let sets = match (&mut self.node, scope) {
            (Some(node), Scope::Node | Scope::Worker) => node,
            (_, Scope::Mesh) if plain => &mut self.plain,
            _ => &mut self.mesh,
        };
        sets.get_mut(usize::from(subset))
    }

    /// Picks an instance for a call.
    pub(super) fn pick(
        &mut self,
        service: &Service,
        (choice, scope, now): (&Choice, Scope, Instant),
        dice: &mut SmallRng,
        mut fit: impl FnMut(u32) -> Fit,
    ) -> Option<u32> {
        self.follow(service, now);
        let loads: &Loads = &service.loads;
        let mut from = |set: &mut Set| set.pick(Pick { now: now.into_std(), loads, key: choice.key, dice }, &mut fit);
        if choice.away
            && scope == Scope::Mesh
            && let Some(found) = self.away.as_mut().and_then(|(set, _)| from(set))
        {
            return Some(found);
        }
        choice.subsets().find_map(|subset| from(self.of(scope, (subset, choice.plain))?))
    }

    /// The set of a subset, as calls that may go anywhere have it.
    pub(super) fn look(&mut self, service: &Service, subset: u16, now: Instant) -> Option<&Set> {
        self.follow(service, now);
        self.mesh.get(usize::from(subset))
    }
}

/// What is known of each slot when the sets are made; `slow` is now, if who is new starts slowly.
///
/// What was there is not new: if it can be used again by now, that is still to be seen.
fn known(slots: &[Slot<'_>], former: Option<&Sets>, slow: Option<std::time::Instant>) -> Vec<Known> {
    let len = slots.iter().map(|slot| slot.slot as usize + 1).max().unwrap_or(0);
    let mut known = vec![Known { usable: true, since: None }; len];
    for slot in slots {
        let before = former.and_then(|former| former.known.get(slot.slot as usize)).filter(|_| !slot.is_new);
        let (usable, since) = match before {
            Some(before) => (before.usable, before.since.filter(|_| slow.is_some())),
            None => (true, slow.filter(|_| slot.is_new)),
        };
        known[slot.slot as usize] = Known { usable, since };
    }
    known
}

/// The policy as the balancer has it.
pub(super) fn options(policy: &ServicePolicy) -> Options {
    let (balance, locality) = (&policy.balance, &policy.locality);
    Options {
        policy: match balance.policy {
            BalancePolicy::PeakEwma => Policy::PeakEwma,
            BalancePolicy::RoundRobin => Policy::RoundRobin,
            BalancePolicy::LeastRequest => Policy::LeastRequest,
            BalancePolicy::Random => Policy::Random,
            BalancePolicy::Ketama => Policy::Ketama,
        },
        slow_start: Duration::from_millis(balance.slow_start_ms),
        panic: balance.panic_percent,
        local: match locality.local {
            LocalPreference::Always => Local::Always,
            LocalPreference::Weighted => Local::Weighted(locality.local_percent),
            LocalPreference::Never => Local::Never,
        },
        failover: locality.failover,
        overprovisioning: locality.overprovisioning_percent,
    }
}
