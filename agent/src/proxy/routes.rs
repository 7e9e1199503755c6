//! Services and their instances, as an immutable snapshot that all workers share.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::stats::{CallCounters, CallSums};
use crate::config::{Checked, CheckedService, ServicePolicy};

/// A configuration's services. What stays from one configuration to the next is carried over: health, counters.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) checked: Arc<Checked>,
    /// Sorted by URI.
    pub(crate) services: Vec<Arc<ServiceRoute>>,
}

/// One service.
#[derive(Debug)]
pub(crate) struct ServiceRoute {
    pub(crate) uri: Arc<str>,
    pub(crate) policy: Arc<ServicePolicy>,
    pub(crate) instances: Vec<Arc<Instance>>,
    /// Calls that reached no instance.
    pub(crate) unsent: Arc<CounterSet>,
}

/// One instance, the same object for as long as it is configured.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    pub(crate) health: Health,
    pub(crate) counters: CounterSet,
}

/// The counters of all workers for one thing.
#[derive(Debug, Default)]
pub(crate) struct CounterSet(Mutex<Vec<Arc<CallCounters>>>);

impl CounterSet {
    /// The counters of one more writer.
    pub(crate) fn writer(&self) -> Arc<CallCounters> {
        let counters = Arc::new(CallCounters::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        counters
    }

    pub(crate) fn sums(&self) -> CallSums {
        let mut sums = CallSums::default();
        for counters in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sums.add(counters);
        }
        sums
    }
}

/// What is known of an instance's health. Its checker writes, workers read.
#[derive(Debug)]
pub(crate) struct Health {
    healthy: AtomicBool,
    reason: Mutex<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { healthy: AtomicBool::new(true), reason: Mutex::new("not checked yet".to_owned()) }
    }
}

impl Health {
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    pub(crate) fn set(&self, healthy: bool, reason: impl Into<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.into();
        self.healthy.store(healthy, Relaxed);
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Routes {
    /// The routes of a configuration; `former` gives what lives on.
    pub(crate) fn new(checked: Arc<Checked>, former: Option<&Self>) -> Self {
        let known: HashMap<&str, &Arc<ServiceRoute>> =
            former.into_iter().flat_map(|routes| &routes.services).map(|service| (&*service.uri, service)).collect();
        let mut services: Vec<_> = checked
            .services
            .iter()
            .map(|service| Arc::new(ServiceRoute::new(service, known.get(service.uri.as_str()).copied())))
            .collect();
        services.sort_by(|a, b| a.uri.cmp(&b.uri));
        Self { checked, services }
    }
}

impl Routes {
    /// What was counted for the services and instances that `next` has no more.
    pub(crate) fn sums_without(&self, next: &Self) -> CallSums {
        let mut sums = CallSums::default();
        for service in &self.services {
            let stays = next.services.binary_search_by(|other| other.uri.cmp(&service.uri)).ok().map(|at| &next.services[at]);
            if stays.is_none() {
                sums.merge(&service.unsent.sums());
            }
            let instances: HashSet<SocketAddr> =
                stays.iter().flat_map(|other| &other.instances).map(|instance| instance.address).collect();
            for gone in service.instances.iter().filter(|instance| !instances.contains(&instance.address)) {
                sums.merge(&gone.counters.sums());
            }
        }
        sums
    }
}

impl ServiceRoute {
    fn new(service: &CheckedService, former: Option<&Arc<Self>>) -> Self {
        let known: HashMap<SocketAddr, &Arc<Instance>> =
            former.into_iter().flat_map(|former| &former.instances).map(|instance| (instance.address, instance)).collect();
        let instance = |address: &SocketAddr| match known.get(address) {
            Some(instance) => (*instance).clone(),
            None => Arc::new(Instance { address: *address, health: Health::default(), counters: CounterSet::default() }),
        };
        Self {
            uri: service.uri.as_str().into(),
            policy: Arc::new(service.policy.clone()),
            instances: service.instances.iter().map(instance).collect(),
            unsent: former.map_or_else(Arc::default, |former| former.unsent.clone()),
        }
    }
}
