//! Calls by method: the first that are called are counted by themselves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{BUCKETS, Counter, Histogram, Took};

/// What one worker counts for one method of a service.
#[derive(Debug)]
pub(crate) struct MethodCounters {
    calls: Counter,
    mesh_errors: Counter,
    service_errors: Counter,
    latency_ns: Counter,
    latency: Box<[Counter]>,
}

impl Default for MethodCounters {
    fn default() -> Self {
        Self {
            calls: Counter::default(),
            mesh_errors: Counter::default(),
            service_errors: Counter::default(),
            latency_ns: Counter::default(),
            latency: (0..BUCKETS).map(|_| Counter::default()).collect(),
        }
    }
}

impl MethodCounters {
    /// A call has ended.
    pub(crate) fn ended(&self, took: Took, mesh_error: bool, service_error: bool) {
        self.calls.add(1);
        self.mesh_errors.add(u64::from(mesh_error));
        self.service_errors.add(u64::from(service_error));
        self.latency_ns.add(took.ns);
        self.latency[took.bucket].add(1);
    }
}

/// The counters of all workers for a service's methods.
#[derive(Debug, Default)]
pub(crate) struct MethodSet(Mutex<ByName>);

/// The counters of each worker by the method's name.
type ByName = BTreeMap<Box<[u8]>, Vec<Arc<MethodCounters>>>;

/// Methods of one service that are counted by themselves; the rest is one more.
pub(crate) const METHODS_MAX: usize = 64;

impl MethodSet {
    /// The counters of one more writer for a method; none if there are as many methods as are counted.
    pub(crate) fn writer(&self, method: &[u8]) -> Option<Arc<MethodCounters>> {
        let mut methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !methods.contains_key(method) && methods.len() > METHODS_MAX {
            return None;
        }
        let counters = Arc::new(MethodCounters::default());
        methods.entry(method.into()).or_default().push(counters.clone());
        Some(counters)
    }

    pub(crate) fn sums(&self) -> Vec<MethodSums> {
        let methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<String, MethodSums> = BTreeMap::new();
        for (name, counters) in methods.iter() {
            let of = MethodSums::of(name, counters);
            // Two names can look the same once they are shown.
            sums.entry(of.name.clone()).and_modify(|same| same.merge(&of)).or_insert(of);
        }
        sums.into_values().collect()
    }
}

/// Sums over all workers, for one method.
#[derive(Debug, Clone, Default)]
pub struct MethodSums {
    /// Its name; empty for all those that are not counted by themselves, and for calls without one.
    pub name: String,
    /// Calls that were answered, by whomever.
    pub calls: u64,
    /// Errors that the mesh answered.
    pub mesh_errors: u64,
    /// Errors that the service answered.
    pub service_errors: u64,
    /// Times to the answer.
    pub latency: Histogram,
}

impl MethodSums {
    fn of(name: &[u8], all: &[Arc<MethodCounters>]) -> Self {
        let sum = |of: fn(&MethodCounters) -> &Counter| all.iter().map(|counters| of(counters).get()).sum();
        let mut latency = Histogram { sum: Duration::from_nanos(sum(|one| &one.latency_ns)), ..Histogram::default() };
        for counters in all {
            latency.counts.iter_mut().zip(&counters.latency).for_each(|(sum, count)| *sum += count.get());
        }
        Self {
            name: shown_method(name),
            calls: sum(|one| &one.calls),
            mesh_errors: sum(|one| &one.mesh_errors),
            service_errors: sum(|one| &one.service_errors),
            latency,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.mesh_errors += other.mesh_errors;
        self.service_errors += other.service_errors;
        self.latency.merge(&other.latency);
    }
}

/// Characters of a method's name that are shown: whoever calls chooses it.
const METHOD_SHOWN_MAX: usize = 128;

fn shown_method(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let shown = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    shown.take(METHOD_SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_look_the_same_are_one() {
        let methods = MethodSet::default();
        let long = |end: u8| [vec![b'x'; METHOD_SHOWN_MAX], vec![end]].concat();
        for name in [&[0xff][..], &[0xfe], &long(b'1'), &long(b'2'), b"get", b"get"] {
            methods.writer(name).expect("room").ended(Duration::from_millis(1).into(), false, true);
        }
        let sums: Vec<_> = methods.sums().into_iter().map(|sums| (sums.name, sums.calls, sums.latency.count())).collect();
        assert_eq!(sums, [("get".into(), 2, 2), ("x".repeat(METHOD_SHOWN_MAX), 2, 2), ("\u{fffd}".into(), 2, 2)]);
    }
}
