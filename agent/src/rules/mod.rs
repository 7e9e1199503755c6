//! What a service's policy says about calls, compiled: who may call, where a call goes, which copies and faults it gets.
//!
//! A [`Plan`] knows neither time nor instances. It is asked with what a call [`Says`] of itself and with the call's dice, one
//! uniform number that is the same for all questions about that call: each rule makes its own dice of it. Nothing here
//! allocates for a call that gives out what it says without doing so.

#[cfg(test)]
mod benchmark;
mod chance;
mod explain;
mod name;
mod pattern;
mod rule;
mod shares;
mod subset;
#[cfg(test)]
mod tests;
mod when;

use std::{sync::Arc, time::Duration};

pub(crate) use name::{Name, Says, Told, environment, hash_key, is_stress, said};
pub(crate) use pattern::Pattern;
pub(crate) use subset::Subset;

use crate::config::{
    ServicePolicy,
    traffic::{self, AccessMode, Verdict},
};
use rule::{Rule, first};
use shares::Shares;

/// The position of the subset that calls go to of which nothing else is known.
pub(crate) const DEFAULT_SUBSET: usize = 0;

/// What counts if no rule about who may call fits.
const DEFAULT_RULE: &str = "default";

/// The rule, and the environment, of stress tests that are kept apart.
const STRESS: &str = "stress";

/// What a service's policy says about calls.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    subsets: Vec<Subset>,
    /// The environments that instances have, with the subset of each.
    environments: Vec<(Box<str>, usize)>,
    access: Vec<Rule<Verdict>>,
    default: Verdict,
    mode: AccessMode,
    /// The subset of stress tests, if they are kept apart.
    apart: Option<usize>,
    mesh_per_10k: u32,
    mesh_salt: u64,
    routes: Vec<Rule<Shares>>,
    faults: Vec<Rule<Fault>>,
    shadows: Vec<Rule<Shadow>>,
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access<'p> {
    /// It may.
    Allowed,
    /// It may not.
    Denied {
        /// The rule that says so.
        rule: &'p str,
        /// Whether it is only counted, and made all the same.
        dry_run: bool,
    },
}

/// Where a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Routed<'p> {
    /// The subset that it goes to.
    pub(crate) subset: usize,
    /// The subset that it goes to if none of those can take it.
    pub(crate) otherwise: Option<usize>,
    /// The subset that it goes to if none of those can either.
    pub(crate) last: Option<usize>,
    /// The rule that says so; `stress` for a stress test that is kept apart.
    pub(crate) rule: Option<&'p str>,
    /// Whether the policy is not for it: it goes to an instance by chance, once, without a fault or a copy.
    pub(crate) plain: bool,
    /// The group that `subset` is of, if it is not the call's own.
    pub(crate) group: Option<&'p Arc<str>>,
}

/// A fault that is put into calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The rule.
    pub(crate) name: Arc<str>,
    /// How long the call is held up.
    pub(crate) delay: Duration,
    /// The code that it is answered with then, instead of being sent.
    pub(crate) code: Option<u16>,
    per_10k: u32,
}

/// Copies of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shadow {
    /// The rule.
    pub(crate) name: Arc<str>,
    /// The service that they go to, if another one.
    pub(crate) service: Option<Arc<str>>,
    /// The subset that they go to, which says the group too. There is no other for them.
    pub(crate) subset: usize,
    /// Copies in flight in one worker.
    pub(crate) in_flight_max: u32,
    /// Its position among the plan's shadows.
    pub(crate) index: usize,
    per_10k: u32,
}

impl Plan {
    /// Compiles a policy, whatever it says, for a service whose instances have these environments.
    pub(crate) fn new(policy: &ServicePolicy, environments: &[&str]) -> Self {
        let mut subsets = vec![Subset::default()];
        let mut known: Vec<(Box<str>, usize)> = Vec::new();
        for name in environments.iter().filter(|name| !name.is_empty()) {
            let subset = subset::index(&mut subsets, Subset::of_environment(name));
            if known.iter().all(|(_, other)| *other != subset) {
                known.push(((*name).into(), subset));
            }
        }
        let apart =
            (policy.stress == traffic::Stress::Apart).then(|| subset::index(&mut subsets, Subset::of_environment(STRESS)));
        let routes = rule::all("route", &policy.routes, |route, _, _| Shares::new(route, &mut subsets));
        let shadows = rule::all("shadow", &policy.shadows, |shadow, name, index| Shadow {
            name,
            service: shadow.service.as_deref().map(Into::into),
            subset: subset::index(&mut subsets, Subset::of(&shadow.to, shadow.service.as_deref())),
            in_flight_max: shadow.in_flight_max,
            index,
            per_10k: shadow.per_10k,
        });
        let faults = rule::all("fault", &policy.faults, |fault, name, _| Fault {
            name,
            delay: Duration::from_millis(fault.delay_ms),
            code: fault.code,
            per_10k: fault.per_10k,
        });
        Self {
            subsets,
            environments: known,
            access: rule::all("access", &policy.access.rules, |rule, _, _| rule.verdict),
            default: policy.access.default,
            mode: policy.access.mode,
            apart,
            mesh_per_10k: policy.mesh_per_10k.min(chance::WHOLE),
            mesh_salt: chance::hash(&[b"mesh"]),
            routes,
            faults,
            shadows,
        }
    }

    /// The same plan with more subsets: those that rules of other services and groups send calls to.
    pub(crate) fn with_subsets(mut self, more: impl IntoIterator<Item = Subset>) -> Self {
        for subset in more {
            subset::index(&mut self.subsets, subset);
        }
        self
    }

    /// The subset of this plan that a rule of another service or group means.
    pub(crate) fn subset_meant(&self, by: &Subset) -> Option<usize> {
        let meant = by.at_home();
        self.subsets.iter().position(|subset| *subset == meant)
    }

    /// The position of a route.
    pub(crate) fn position(&self, route: &str) -> Option<usize> {
        self.routes.iter().position(|rule| &*rule.name == route)
    }

    /// Whether there is nothing to ask it: every call is allowed, and goes to the default subset without a fault or a copy.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_open() && self.is_plain_for_those_let_in()
    }

    /// As [`Plan::is_plain`], for calls that may be made.
    pub(crate) fn is_plain_for_those_let_in(&self) -> bool {
        self.environments.is_empty()
            && self.apart.is_none()
            && self.mesh_per_10k == chance::WHOLE
            && self.routes.is_empty()
            && self.faults.is_empty()
            && self.shadows.is_empty()
    }

    /// The subsets that calls can go to. The first is the default one: instances without an environment.
    pub(crate) fn subsets(&self) -> &[Subset] {
        &self.subsets
    }

    /// Whether a call may be made. Holds for all calls, also for those that the policy is not for otherwise.
    pub(crate) fn access(&self, call: &impl Says) -> Access<'_> {
        let (rule, verdict) = self.verdict(call);
        match verdict {
            Verdict::Allow => Access::Allowed,
            Verdict::Deny => Access::Denied { rule, dry_run: self.mode == AccessMode::DryRun },
        }
    }

    /// Whether it is only the calling application that decides whether a call may be made, and nobody has to be told of those
    /// that would be refused.
    pub(crate) fn asks_for_applications_alone(&self) -> bool {
        let alone = |rule: &Rule<Verdict>| rule.when.names().all(|name| *name == Name::Application);
        self.access.iter().all(alone) && (self.mode == AccessMode::Enforce || self.is_open())
    }

    /// Whether an application may call, of a plan that asks for nothing else; without a name: who says none.
    pub(crate) fn lets_in(&self, application: &str) -> bool {
        let told: Told = [("application", application)].into_iter().collect();
        self.access(&told) == Access::Allowed
    }

    /// Where a call goes.
    pub(crate) fn route(&self, call: &impl Says, dice: u32) -> Routed<'_> {
        if let Some(subset) = self.apart_for(call) {
            return self.routed([Some(subset), None, None], Some(STRESS));
        }
        let home = self.home(call);
        if !self.is_meant(dice) {
            return Routed { plain: true, ..self.routed(home, None) };
        }
        let Some(rule) = first(&self.routes, call) else { return self.routed(home, None) };
        let ways = rule.does.pick(rule, call, dice).map_or(home, |target| target.ways(home));
        self.routed(ways, Some(&rule.name))
    }

    /// Where a call goes by its environment and its stress mark alone: rules had their say at the call's first agent.
    pub(crate) fn route_by_environment(&self, call: &impl Says) -> Routed<'_> {
        match self.apart_for(call) {
            Some(subset) => self.routed([Some(subset), None, None], Some(STRESS)),
            None => self.routed(self.home(call), None),
        }
    }

    /// The fault that is put into a call.
    pub(crate) fn fault(&self, call: &impl Says, dice: u32) -> Option<&Fault> {
        if self.faults.is_empty() || !self.is_meant(dice) {
            return None;
        }
        let rule = first(&self.faults, call)?;
        rule.hits(dice, rule.does.per_10k).then_some(&rule.does)
    }

    /// The copies that are made of a call. None of a stress test that is kept apart: they could go anywhere.
    pub(crate) fn shadows<'p>(&'p self, call: &impl Says, dice: u32) -> impl Iterator<Item = &'p Shadow> {
        let rules = if self.is_meant(dice) { self.shadows_of(call) } else { &[] };
        let copied = rules.iter().filter(move |rule| rule.hits(dice, rule.does.per_10k) && rule.when.fits(call));
        copied.map(|rule| &rule.does)
    }

    /// How many shadows there are: their indices are below it.
    pub(crate) fn shadow_count(&self) -> usize {
        self.shadows.len()
    }

    /// The shadows that are asked about a call.
    fn shadows_of(&self, call: &impl Says) -> &[Rule<Shadow>] {
        if self.shadows.is_empty() || self.apart_for(call).is_some() { &[] } else { &self.shadows }
    }

    /// Whether anybody may call, whatever the call says.
    pub(crate) fn is_open(&self) -> bool {
        self.access.is_empty() && self.default == Verdict::Allow
    }

    fn verdict(&self, call: &impl Says) -> (&str, Verdict) {
        first(&self.access, call).map_or((DEFAULT_RULE, self.default), |rule| (&*rule.name, rule.does))
    }

    /// Where a call goes that may go nowhere else, as it belongs to a stress test.
    fn apart_for(&self, call: &impl Says) -> Option<usize> {
        self.apart.filter(|_| is_stress(call))
    }

    /// Where a call goes without a rule: its environment first.
    fn home(&self, call: &impl Says) -> Ways {
        match self.environment_of(call) {
            Some(subset) => [Some(subset), Some(DEFAULT_SUBSET), None],
            None => [Some(DEFAULT_SUBSET), None, None],
        }
    }

    /// The subset of a call's environment, if instances have it.
    fn environment_of(&self, call: &impl Says) -> Option<usize> {
        if self.environments.is_empty() {
            return None;
        }
        let wanted = environment(call)?;
        let found = self.environments.iter().find(|(name, _)| name.as_bytes() == &*wanted);
        found.map(|(_, subset)| *subset)
    }

    /// Whether the policy is for a call with these dice.
    fn is_meant(&self, dice: u32) -> bool {
        self.mesh_per_10k == chance::WHOLE || chance::hits(chance::own(dice, self.mesh_salt), self.mesh_per_10k)
    }

    fn routed<'p>(&'p self, [subset, otherwise, last]: Ways, rule: Option<&'p str>) -> Routed<'p> {
        let subset = subset.unwrap_or(DEFAULT_SUBSET);
        let group = self.subsets.get(subset).and_then(|subset| subset.group.as_ref());
        Routed { subset, otherwise, last, rule, plain: false, group }
    }
}

/// Subsets in the order in which a call tries them, none twice.
type Ways = [Option<usize>; 3];

#[cfg(test)]
impl Routed<'_> {
    /// The subsets in the order in which a call tries them.
    pub(crate) fn subsets(&self) -> impl Iterator<Item = usize> {
        [Some(self.subset), self.otherwise, self.last].into_iter().flatten()
    }
}
