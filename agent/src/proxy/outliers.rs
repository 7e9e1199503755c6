//! Takes instances out of traffic for what their calls show, and lets them back: one task for all services, away from the workers.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{
    board::Board,
    routes::{Instance, Routes, ServiceRoute},
};
use crate::{
    balance::outlier::{Change, Outliers, Policy, Sample},
    config::ServicePolicy,
};

/// How often it is looked who may come back.
const TICK: Duration = Duration::from_millis(100);
/// The least time between two looks, however many fail.
const PAUSE: Duration = Duration::from_millis(5);

/// One service.
struct Watched {
    route: Arc<ServiceRoute>,
    outliers: Outliers,
    /// What was counted when it was last looked.
    counted: Vec<Sample>,
    /// How often each instance had recovered by its health check when it was put out.
    recoveries: Vec<u32>,
    check_at: Instant,
}

/// Looks after all services until it is aborted.
pub(super) async fn watch(board: Arc<Board>) {
    let mut watched: HashMap<Arc<str>, Watched> = HashMap::new();
    let mut seen: Option<Arc<Routes>> = None;
    loop {
        let routes = board.routes();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &routes)) {
            follow(&mut watched, &routes);
            seen = Some(routes.clone());
        }
        let now = Instant::now();
        watched.values_mut().for_each(|service| service.look(now));
        sleep(PAUSE).await;
        tokio::select! {
            () = sleep(TICK) => {}
            () = routes.changes.suspects() => {}
        }
    }
}

/// Follows new routes. What stays is still out, if it was.
fn follow(watched: &mut HashMap<Arc<str>, Watched>, routes: &Routes) {
    let mut former = std::mem::take(watched);
    for route in &routes.services {
        let policy = policy(&route.policy);
        let next = match former.remove(&route.key) {
            Some(known) => known.follow(route, policy),
            None if policy.is_off() => continue,
            None => Watched::new(route, Outliers::new(policy, route.members.len())),
        };
        watched.insert(route.key.clone(), next);
    }
}

fn policy(policy: &ServicePolicy) -> Policy {
    let outlier = &policy.outlier;
    Policy {
        consecutive: outlier.consecutive,
        success_rate_deviations: outlier.success_rate_deviations,
        latency_percent: outlier.latency_percent,
        calls_min: outlier.calls_min,
        instances_min: outlier.instances_min,
        ejection: Duration::from_millis(outlier.ejection_ms),
        ejection_max: Duration::from_millis(outlier.ejection_max_ms),
        ejected_max_percent: outlier.ejected_max_percent,
    }
}

impl Watched {
    fn new(route: &Arc<ServiceRoute>, outliers: Outliers) -> Self {
        let counted = route.members.iter().map(|member| counted(&member.instance)).collect();
        let check_at = Instant::now() + Duration::from_millis(route.policy.outlier.interval_ms);
        let recoveries = route.members.iter().map(|member| member.instance.health.recoveries()).collect();
        Self { route: route.clone(), outliers, counted, recoveries, check_at }
    }

    /// The same service with other instances, or another policy.
    fn follow(self, route: &Arc<ServiceRoute>, policy: Policy) -> Self {
        let places: HashMap<*const Instance, u32> =
            (0..).zip(&self.route.members).map(|(place, member)| (Arc::as_ptr(&member.instance), place)).collect();
        let same: Vec<(u32, u32)> = (0..)
            .zip(&route.members)
            .filter_map(|(place, member)| Some((*places.get(&Arc::as_ptr(&member.instance))?, place)))
            .collect();
        let off = policy.is_off();
        let kept = if off { Vec::new() } else { same.clone() };
        let mut next = Self::new(route, self.outliers.follow(policy, route.members.len(), kept));
        next.check_at = self.check_at.min(next.check_at);
        for (before, now) in same {
            let (before, now) = (before as usize, now as usize);
            next.counted[now] = self.counted[before];
            next.recoveries[now] = self.recoveries[before];
            let instance = &next.route.members[now].instance;
            let place = u32::try_from(now).unwrap_or(u32::MAX);
            if instance.record.is_ejected() && next.outliers.out(place).is_none() {
                instance.record.set_ejection(None);
            }
        }
        next
    }

    fn look(&mut self, now: Instant) {
        let mut changes = self.outliers.release(now.into_std());
        let bound = self.route.policy.outlier.consecutive;
        for (place, member) in (0..).zip(&self.route.members) {
            let record = &member.instance.record;
            let recoveries = member.instance.health.recoveries();
            if record.is_ejected() {
                // A health check that found it down, and finds it up again, knows better.
                if recoveries != self.recoveries[place as usize] {
                    changes.extend(self.outliers.pardon(now.into_std(), place));
                }
                continue;
            }
            self.recoveries[place as usize] = recoveries;
            if bound > 0 && record.failures.load(Relaxed) >= bound {
                changes.extend(self.outliers.failed_in_a_row(now.into_std(), place));
            }
        }
        if self.check_at <= now {
            self.check_at = now + Duration::from_millis(self.route.policy.outlier.interval_ms);
            changes.extend(self.check(now));
        }
        for change in changes {
            self.apply(change, now);
        }
    }

    /// Looks at what was counted since the last time.
    fn check(&mut self, now: Instant) -> Vec<Change> {
        let counts: Vec<_> = self.route.members.iter().map(|member| counted(&member.instance)).collect();
        let since = |(now, before): (&Sample, &Sample)| Sample {
            calls: now.calls.saturating_sub(before.calls),
            failures: now.failures.saturating_sub(before.failures),
            latency_sum: now.latency_sum.saturating_sub(before.latency_sum),
        };
        let samples: Vec<_> = counts.iter().zip(&self.counted).map(since).collect();
        self.counted = counts;
        self.outliers.check(now.into_std(), &samples)
    }

    fn apply(&self, change: Change, now: Instant) {
        let (Change::Ejected { index, .. } | Change::Returned { index }) = change;
        let Some(member) = self.route.members.get(index as usize) else { return };
        let (service, instance) = (&self.route.uri, &member.instance);
        match change {
            Change::Ejected { until, reason, .. } => {
                let for_ms = until.saturating_duration_since(now.into_std()).as_millis();
                let for_ms = u64::try_from(for_ms).unwrap_or(u64::MAX);
                warn!(%service, instance = %instance.name, %reason, for_ms, "instance is taken out of traffic");
                instance.record.set_ejection(Some((until, reason)));
            }
            Change::Returned { .. } => {
                info!(%service, instance = %instance.name, "instance is back in traffic");
                instance.record.set_ejection(None);
            }
        }
    }
}

fn counted(instance: &Instance) -> Sample {
    let (calls, failures, latency_sum) = instance.counters.tries();
    Sample { calls, failures, latency_sum }
}
