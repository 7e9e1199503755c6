//! What the policy of a service did.

use std::sync::{Arc, Mutex, PoisonError};

use super::Counter;

/// What one worker counts of a service's policy.
#[derive(Debug, Default)]
pub(crate) struct PolicyCounters {
    /// Calls sent again, second copies, and those that the budget had none left for.
    pub(crate) retries: Counter,
    pub(crate) hedges: Counter,
    pub(crate) budget_exhausted: Counter,
    /// What the budget has left.
    pub(crate) budget_left: Counter,
    /// Copies of calls that were sent, and that were not for a bound.
    pub(crate) shadows: Counter,
    pub(crate) shadows_dropped: Counter,
    /// Calls that got a fault.
    pub(crate) faults: Counter,
    /// Calls that were refused, and that would have been in earnest.
    pub(crate) denied: Counter,
    pub(crate) denied_dry: Counter,
    /// Calls that were refused by a rate limit, a breaker, or the adaptive limit.
    pub(crate) rate_limited: Counter,
    pub(crate) broken: Counter,
    pub(crate) shed: Counter,
    /// Calls that were refused as the agent had too much to bear.
    pub(crate) overload: Counter,
    /// What the adaptive limit is.
    pub(crate) limit: Counter,
    /// Calls with the mark of a stress test.
    pub(crate) stress: Counter,
}

impl PolicyCounters {
    /// The counters that only grow, each by its name.
    pub(crate) fn all(&self) -> [(&'static str, &Counter); 13] {
        [
            ("retries", &self.retries),
            ("hedges", &self.hedges),
            ("budget_exhausted", &self.budget_exhausted),
            ("shadows", &self.shadows),
            ("shadows_dropped", &self.shadows_dropped),
            ("faults", &self.faults),
            ("denied", &self.denied),
            ("denied_dry_run", &self.denied_dry),
            ("rate_limited", &self.rate_limited),
            ("breaker_open", &self.broken),
            ("shed", &self.shed),
            ("overload", &self.overload),
            ("stress_calls", &self.stress),
        ]
    }
}

/// The counters of all workers for a service's policy.
#[derive(Debug, Default)]
pub(crate) struct PolicySet(Mutex<Vec<Arc<PolicyCounters>>>);

impl PolicySet {
    /// The counters of one more writer.
    pub(crate) fn writer(&self) -> Arc<PolicyCounters> {
        let counters = Arc::new(PolicyCounters::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        counters
    }

    pub(crate) fn sums(&self) -> PolicySums {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums =
            PolicySums { counts: PolicyCounters::default().all().map(|(name, _)| (name, 0)).to_vec(), ..PolicySums::default() };
        for counters in all.iter() {
            for (sum, (_, counter)) in sums.counts.iter_mut().zip(counters.all()) {
                sum.1 += counter.get();
            }
            sums.budget_left += counters.budget_left.get();
            sums.limit += counters.limit.get();
        }
        sums
    }
}

/// Sums over all workers, for a service's policy.
#[derive(Debug, Clone, Default)]
pub struct PolicySums {
    /// What only grows, by name.
    pub counts: Vec<(&'static str, u64)>,
    /// Retries that the budget has left.
    pub budget_left: u64,
    /// What the adaptive limit is; 0 if there is none.
    pub limit: u64,
}
