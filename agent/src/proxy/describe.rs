//! Services, their instances and their policies, as operators and metrics see them.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    routes::{Instance, Member, Routes, ServiceRoute, service_key, shown},
    stats::{BUCKETS, CallSums, Histogram, InstanceSnapshot, MethodSums, ServiceSnapshot},
};
use crate::{
    api::{self, routes::Policy},
    config::{ServicePolicy, suggestion, traffic::BalancePolicy},
};

impl Routes {
    /// The services with this name or this URI.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Arc<ServiceRoute>> {
        self.services.iter().filter(move |service| *service.uri == *name || shown(&service.uri, &service.group) == *name)
    }

    /// The service with this key.
    pub(super) fn by_key(&self, key: &str) -> Option<&Arc<ServiceRoute>> {
        let found = self.services.binary_search_by(|service| (*service.key).cmp(key)).ok();
        found.map(|at| &self.services[at])
    }

    /// The service with this URI and group.
    pub(super) fn service(&self, uri: &str, group: &str) -> Result<&Arc<ServiceRoute>, String> {
        self.by_key(&service_key(uri, group)).ok_or_else(|| self.unknown(&shown(uri, group)))
    }

    /// What to say of a name that no service has.
    pub(super) fn unknown(&self, name: &str) -> String {
        let names: Vec<_> = self.services.iter().map(|service| shown(&service.uri, &service.group)).collect();
        let advice = suggestion(name, names.iter().map(String::as_str));
        let advice = advice.unwrap_or_else(|| "`moa services` lists those that it knows".to_owned());
        format!("the agent knows no service {name}: {advice}")
    }
}

/// A service with its instances, and if asked for with its methods.
pub(super) fn service(route: &ServiceRoute, methods: bool) -> api::Service {
    let mut all = route.unsent.sums();
    let mut instances = Vec::with_capacity(route.members.len());
    for member in &route.members {
        let sums = member.instance.counters.sums();
        all.merge(&sums);
        instances.push(instance(member, &sums));
    }
    api::Service {
        uri: shown(&route.uri, &route.group),
        timeout_ms: route.policy.timeout_ms,
        pipelined: route.policy.pipelined,
        stats: call_stats(&all),
        instances,
        balance: balance_name(route.policy.balance.policy).to_owned(),
        methods: if methods { route.methods.sums().into_iter().map(method).collect() } else { Vec::new() },
    }
}

/// How the calls of a service are routed in the kernel, by its key.
pub(super) fn routed_service(key: &str, why_not: Option<&str>, answered: &Histogram) -> api::RoutedService {
    let quantile = |q| micros(answered.quantile(q));
    let bound = |bucket: usize| u64::try_from(Histogram::upper_bound(bucket).as_nanos()).unwrap_or(u64::MAX);
    let buckets = answered.counts.iter().enumerate().filter(|(_, calls)| **calls > 0);
    api::RoutedService {
        service: key.replace('\0', "#"),
        why_not: why_not.map(str::to_owned),
        answered: answered.count(),
        p50_us: quantile(0.5),
        p90_us: quantile(0.9),
        p99_us: quantile(0.99),
        max_us: quantile(1.0),
        latency: buckets
            .map(|(at, calls)| api::LatencyBucket {
                from_ns: at.checked_sub(1).map_or(0, bound),
                below_ns: (at + 1 < BUCKETS).then(|| bound(at)),
                calls: *calls,
            })
            .collect(),
    }
}

fn instance(member: &Member, sums: &CallSums) -> api::Instance {
    let Member { instance, traits, .. } = member;
    api::Instance {
        address: instance.name.to_string(),
        healthy: instance.health.is_healthy(),
        reason: instance.health.reason(),
        connections: sums.connections,
        queued: sums.queued,
        stats: call_stats(sums),
        weight: traits.weight,
        level: level(member.level),
        zone: traits.zone.clone(),
        data_centre: traits.data_centre.clone(),
        environment: traits.environment.clone(),
        labels: traits.labels.clone(),
        ewma_us: micros(sums.ewma_mean()),
        ejected: ejected(instance),
        ejections: instance.record.ejections(),
        share: None,
    }
}

/// How long an instance is still out of traffic, and why, if it is.
pub(super) fn ejected(instance: &Instance) -> Option<api::Ejected> {
    let (until, reason) = instance.record.ejection()?;
    let left = until.saturating_duration_since(Instant::now());
    Some(api::Ejected { for_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX), reason })
}

/// How far an instance is.
pub(super) fn level(level: u8) -> Option<api::Level> {
    match level {
        0 => Some(api::Level::Node),
        1 => Some(api::Level::Zone),
        2 => Some(api::Level::DataCentre),
        _ => Some(api::Level::Elsewhere),
    }
}

fn method(sums: MethodSums) -> api::Method {
    let stats = api::CallStats {
        calls: sums.calls,
        mesh_errors: sums.mesh_errors,
        service_errors: sums.service_errors,
        p50_us: micros(sums.latency.quantile(0.5)),
        p99_us: micros(sums.latency.quantile(0.99)),
        ..api::CallStats::default()
    };
    api::Method { name: sums.name, stats }
}

/// What a service's policy says, and what it did.
pub(super) fn policy(route: &ServiceRoute) -> Policy {
    let sums = route.policed.sums();
    let records = || route.members.iter().map(|member| &member.instance.record);
    Policy {
        uri: shown(&route.uri, &route.group),
        group: route.group.to_string(),
        balance: balance_name(route.policy.balance.policy).to_owned(),
        limits: limits(&route.policy),
        events: sums.counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        budget_left: sums.budget_left,
        concurrency_limit: sums.limit,
        instances: route.members.len(),
        ejected: records().filter(|record| record.is_ejected()).count(),
        ejections: records().map(|record| record.ejections()).sum(),
        rules: route.plan.list(),
    }
}

/// The bounds that are set, by their key.
fn limits(policy: &ServicePolicy) -> BTreeMap<String, u64> {
    let ServicePolicy { breaker, rate, concurrency, .. } = policy;
    let set = [
        ("breaker.instance_calls_max", breaker.instance_calls_max as u64),
        ("breaker.service_calls_max", breaker.service_calls_max as u64),
        ("breaker.service_queue_max", breaker.service_queue_max as u64),
        ("breaker.service_connections_max", breaker.service_connections_max as u64),
        ("rate.service_per_s", rate.service_per_s.into()),
        ("rate.caller_per_s", rate.caller_per_s.into()),
        ("concurrency.max", if concurrency.adaptive { concurrency.max.into() } else { 0 }),
    ];
    let set = set.into_iter().filter(|(_, bound)| *bound > 0).map(|(key, bound)| (key.to_owned(), bound));
    // There, 0 is a bound that was taken away for one caller.
    let callers = rate.callers.iter().map(|(name, per_s)| (format!("rate.callers.{name}"), u64::from(*per_s)));
    set.chain(callers).collect()
}

/// As the configuration has it.
pub(super) fn balance_name(policy: BalancePolicy) -> &'static str {
    match policy {
        BalancePolicy::PeakEwma => "peak-ewma",
        BalancePolicy::RoundRobin => "round-robin",
        BalancePolicy::LeastRequest => "least-request",
        BalancePolicy::Random => "random",
        BalancePolicy::Ketama => "ketama",
    }
}

/// Everything that is counted for a service.
pub(super) fn snapshot(route: &ServiceRoute) -> ServiceSnapshot {
    let instances = route.members.iter().map(|Member { instance, traits, .. }| InstanceSnapshot {
        address: instance.name.to_string(),
        healthy: instance.health.is_healthy(),
        weight: traits.weight,
        ejected: instance.record.is_ejected(),
        ejections: instance.record.ejections(),
        sums: instance.counters.sums(),
    });
    ServiceSnapshot {
        uri: shown(&route.uri, &route.group),
        unsent: route.unsent.sums(),
        instances: instances.collect(),
        methods: route.methods.sums(),
        policy: route.policed.sums(),
    }
}

pub(super) fn call_stats(sums: &CallSums) -> api::CallStats {
    let total = |codes: &[(u16, u64)]| codes.iter().map(|(_, count)| count).sum();
    api::CallStats {
        calls: sums.calls,
        mesh_errors: total(&sums.mesh_errors),
        service_errors: total(&sums.service_errors),
        in_flight: sums.in_flight,
        retries: sums.retries,
        p50_us: micros(sums.latency.quantile(0.5)),
        p99_us: micros(sums.latency.quantile(0.99)),
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_called_as_in_the_configuration() {
        use BalancePolicy::{Ketama, LeastRequest, PeakEwma, Random, RoundRobin};
        for policy in [PeakEwma, RoundRobin, LeastRequest, Random, Ketama] {
            assert_eq!(serde_json::to_value(policy).expect("a word"), balance_name(policy));
        }
    }

    #[test]
    fn only_bounds_that_are_set_are_listed() {
        assert!(limits(&ServicePolicy::default()).is_empty());
        let mut policy = ServicePolicy::default();
        policy.breaker.service_calls_max = 7;
        policy.rate.callers.insert("web".into(), 0);
        policy.concurrency.adaptive = true;
        let keys = ["breaker.service_calls_max", "concurrency.max", "rate.callers.web"];
        assert_eq!(limits(&policy).into_keys().collect::<Vec<_>>(), keys);
    }
}
