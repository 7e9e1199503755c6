//! Which services' calls the kernel may route, and why not those of the others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{LaneId, Pick, keeper::address_of, lacking::Lacking};
use crate::{
    balance::overload::Level,
    config::traffic::{BalancePolicy, LocalPreference, RetryOn},
    proxy::{
        overload::sheds,
        routes::{Endpoint, Instance, Member, ServiceRoute},
    },
};

/// An instance that calls may be routed to.
pub(super) struct Eligible {
    pub(super) lane: LaneId,
    pub(super) weight: u32,
    pub(super) instance: Arc<Instance>,
}

/// Weights are multiplied by this, so that an instance's can be shared out among its connections.
const PARTS: u32 = 840;

/// The instances of a service that the kernel may pick from, or why it may not. An application's instance without a lane is left
/// out, unless it lacks one for too long: that is said of it by its address in memory.
pub(super) fn eligible(
    route: &ServiceRoute,
    (lanes, level): (&HashMap<u64, LaneId>, Level),
    lacking: &mut Lacking<usize>,
) -> Result<Vec<Eligible>, &'static str> {
    let is_local = |member: &&Member| !matches!(member.instance.endpoint, Endpoint::Agent(_));
    let local: Vec<_> = route.members.iter().filter(is_local).collect();
    let has_lane = |member: &Member| member.conns.iter().any(|conn| lanes.contains_key(&conn.id));
    // Before anything is decided, so that each of them is seen. A server that speaks Redis never gets a lane.
    let without = local.iter().filter(|member| !has_lane(member));
    let for_too_long = |member: &&&Member| {
        let address = address_of(&member.instance);
        !matches!(member.instance.endpoint, Endpoint::Application(..)) || lacking.lacks(address)
    };
    let too_long: HashSet<usize> = without.filter(for_too_long).map(|member| address_of(&member.instance)).collect();
    if !local.iter().any(|member| has_lane(member)) {
        return Err("no instance has a lane");
    }
    by_policy(route)?;
    if sheds(level, route.policy.priority) {
        return Err("the agent has too much to bear");
    }
    let usable: Vec<_> = local.iter().copied().filter(|member| member.instance.is_usable()).collect();
    if usable.is_empty() {
        return Err("no instance on this node can be used");
    }
    if usable.iter().any(|member| too_long.contains(&address_of(&member.instance))) {
        return Err("an instance has no lane");
    }
    if !usable.iter().any(|member| has_lane(member)) {
        return Err("no instance has a lane");
    }
    if route.policy.locality.local == LocalPreference::Never {
        return Err("locality.local");
    }
    let of = |member: &Member| {
        let conns: Vec<_> = member.conns.iter().filter_map(|conn| lanes.get(&conn.id).copied()).collect();
        let weight = member.traits.weight * PARTS / u32::try_from(conns.len()).unwrap_or(1).max(1);
        let instance = member.instance.clone();
        conns.into_iter().map(move |lane| Eligible { lane, weight, instance: instance.clone() })
    };
    Ok(usable.into_iter().flat_map(of).collect())
}

/// Whether the policy asks for anything that only the agent does.
fn by_policy(route: &ServiceRoute) -> Result<(), &'static str> {
    let policy = &route.policy;
    let retries = policy.retry.tries_max > 1;
    let why = [
        (!policy.kernel, "kernel = false"),
        (!route.plan.asks_for_applications_alone(), "access rules"),
        (!route.plan.is_plain_for_those_let_in(), "rules"),
        (route.limiter.is_some(), "rate limits"),
        (policy.breaker != Default::default(), "breakers"),
        (policy.concurrency.adaptive, "concurrency.adaptive"),
        (policy.hedge.after_ms > 0, "hedge"),
        (policy.try_timeout_ms > 0, "try_timeout_ms"),
        (retries && !policy.retry.methods.is_empty(), "retry.methods"),
        (retries && policy.retry.on.contains(&RetryOn::Code), "retry.codes"),
        (policy.balance.policy == BalancePolicy::Ketama, "balance.policy"),
        (policy.balance.slow_start_ms > 0, "balance.slow_start_ms"),
        (route.watch.is_on(), "somebody looks on at its calls"),
    ];
    why.into_iter().find(|(is_so, _)| *is_so).map_or(Ok(()), |(_, why)| Err(why))
}

/// How the kernel picks by a policy.
pub(super) fn pick_of(policy: BalancePolicy) -> Pick {
    match policy {
        BalancePolicy::PeakEwma | BalancePolicy::Ketama => Pick::Faster,
        BalancePolicy::RoundRobin => Pick::Turns,
        BalancePolicy::LeastRequest => Pick::Least,
        BalancePolicy::Random => Pick::Chance,
    }
}
