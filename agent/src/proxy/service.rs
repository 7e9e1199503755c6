//! A service as one worker sees it: its instances in turn, with the connections to them.

use std::{
    cell::{Cell, OnceCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::{
    pool::Pool,
    routes::{Instance, Routes, ServiceRoute},
    stats::CallCounters,
};

/// The services of one worker, by URI.
pub(crate) type Services = HashMap<Box<str>, Rc<Service>, RandomState>;

/// One service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) route: Arc<ServiceRoute>,
    /// Counts the calls that reached no instance.
    pub(crate) unsent: Arc<CallCounters>,
    instances: Vec<(Arc<Instance>, OnceCell<Rc<Pool>>)>,
    next: Cell<usize>,
}

impl Service {
    pub(crate) fn uri(&self) -> &str {
        &self.route.uri
    }

    pub(crate) fn instances(&self) -> usize {
        self.instances.len()
    }

    /// The instances that can be tried now, the one whose turn it is first.
    pub(crate) fn candidates(&self, now: Instant) -> impl Iterator<Item = Rc<Pool>> {
        let count = self.instances.len();
        let first = self.next.get();
        self.next.set((first + 1) % count.max(1));
        (0..count).filter_map(move |offset| {
            let (instance, pool) = &self.instances[(first + offset) % count];
            if !instance.health.is_healthy() {
                return None;
            }
            let pool =
                pool.get_or_init(|| Rc::new(Pool::new(self.route.uri.clone(), instance.clone(), self.route.policy.clone())));
            (!pool.is_backing_off(now)).then(|| pool.clone())
        })
    }

    /// Why no instance could be tried.
    pub(crate) fn why_unavailable(&self) -> String {
        let reasons: Vec<_> = self
            .instances
            .iter()
            .take(3)
            .map(|(instance, pool)| {
                let failure = pool
                    .get()
                    .map(|pool| pool.last_failure())
                    .filter(|failure| !failure.is_empty() && instance.health.is_healthy());
                format!("{} {}", instance.address, failure.unwrap_or_else(|| instance.health.reason()))
            })
            .collect();
        let more = if self.instances.len() > 3 { format!(", and {} more", self.instances.len() - 3) } else { String::new() };
        format!("no instance is available: {}{more}", reasons.join("; "))
    }

    /// The connections to its instances, as far as there are any.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        self.instances.iter().filter_map(|(_, pool)| pool.get())
    }

    /// Makes the pools that keep connections open from the start.
    pub(crate) fn warm_pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        let warm = self.route.policy.connections_min > 0;
        self.instances.iter().filter(move |_| warm).map(|(instance, pool)| self.pool(instance, pool))
    }

    fn pool<'a>(&self, instance: &Arc<Instance>, place: &'a OnceCell<Rc<Pool>>) -> &'a Rc<Pool> {
        place.get_or_init(|| Rc::new(Pool::new(self.route.uri.clone(), instance.clone(), self.route.policy.clone())))
    }
}

/// The services of a new configuration. Connections to what stays are carried over; the pools of what goes are returned.
pub(crate) fn build(routes: &Routes, former: &Services) -> (Services, Vec<Rc<Pool>>) {
    let mut kept: HashMap<(Arc<str>, SocketAddr), Rc<Pool>> = former
        .values()
        .flat_map(|service| service.pools())
        .map(|pool| ((pool.uri.clone(), pool.instance.address), pool.clone()))
        .collect();
    let services = routes
        .services
        .iter()
        .map(|route| {
            let unsent = former.get(&*route.uri).map_or_else(|| route.unsent.writer(), |service| service.unsent.clone());
            let instances = route
                .instances
                .iter()
                .map(|instance| {
                    let cell = OnceCell::new();
                    if let Some(pool) = kept.remove(&(route.uri.clone(), instance.address)) {
                        pool.set_policy(route.policy.clone());
                        cell.get_or_init(|| pool);
                    }
                    (instance.clone(), cell)
                })
                .collect();
            let service = Service { route: route.clone(), unsent, instances, next: Cell::new(0) };
            (Box::from(&*route.uri), Rc::new(service))
        })
        .collect();
    (services, kept.into_values().collect())
}
