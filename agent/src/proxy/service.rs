//! A service as one worker sees it: its instances in turn, with the ways to them.

use std::{
    cell::{Cell, OnceCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use agent_common::frame::{MetaBuilder, id, service_hash};
use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::{
    frames::{Remote, Scope},
    pool::Pool,
    routes::{Endpoint, Instance, Member, Routes, ServiceRoute},
    stats::CallCounters,
};

/// The services of one worker.
#[derive(Debug, Default)]
pub(crate) struct Services {
    by_key: HashMap<Box<str>, Rc<Service>, RandomState>,
    by_hash: HashMap<u64, Rc<Service>, RandomState>,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) route: Arc<ServiceRoute>,
    /// Counts the calls that reached no instance.
    pub(crate) unsent: Arc<CallCounters>,
    /// What it is in the header of frames.
    pub(crate) hash: u64,
    /// What the metadata of its calls begin with.
    pub(crate) meta: Bytes,
    /// What it is called in errors.
    name: String,
    /// Those of this node, then those that other agents have.
    instances: Vec<Entry>,
    next: Cell<usize>,
}

#[derive(Debug)]
struct Entry {
    instance: Arc<Instance>,
    upstream: OnceCell<Upstream>,
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distance {
    /// On this node.
    Here,
    /// At another agent, which is connected.
    Open,
    /// At another agent, which is not.
    Opening,
}

/// One way to an instance.
#[derive(Debug, Clone)]
pub(crate) enum Upstream {
    /// A server that speaks Redis.
    Pool(Rc<Pool>),
    /// Whoever speaks frames.
    Remote(Rc<Remote>),
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn(usize);

impl Upstream {
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pool(own), Self::Pool(other)) => Rc::ptr_eq(own, other),
            (Self::Remote(own), Self::Remote(other)) => Rc::ptr_eq(own, other),
            _ => false,
        }
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        match self {
            Self::Pool(pool) => &pool.instance,
            Self::Remote(remote) => &remote.instance,
        }
    }

    pub(crate) fn counters(&self) -> &CallCounters {
        match self {
            Self::Pool(pool) => &pool.counters,
            Self::Remote(remote) => &remote.counters,
        }
    }

    /// Whether it can be tried now.
    pub(crate) fn is_available(&self, now: Instant) -> bool {
        match self {
            Self::Pool(pool) => pool.instance.health.is_healthy() && !pool.is_backing_off(now),
            Self::Remote(remote) => remote.is_there(),
        }
    }

    /// Why it does not take a call though it is there.
    pub(crate) fn why_full(&self) -> String {
        match self {
            Self::Pool(pool) => {
                let policy = pool.policy();
                format!(
                    "all {} connections of this worker are busy and {} calls wait already (connections_max, queue_max)",
                    policy.connections_max, policy.queue_max
                )
            }
            Self::Remote(_) => "it has as many calls in flight, or as many bytes to read, as it takes".to_owned(),
        }
    }

    fn why_unavailable(&self) -> String {
        match self {
            Self::Pool(pool) => {
                let failure = pool.last_failure();
                let healthy = pool.instance.health.is_healthy();
                if healthy && !failure.is_empty() { failure } else { pool.instance.health.reason() }
            }
            Self::Remote(remote) => remote.why_not(),
        }
    }
}

impl Services {
    pub(crate) fn by_key(&self, key: &str) -> Option<&Rc<Service>> {
        self.by_key.get(key)
    }

    /// The service with this hash. Two services can have the same one: whoever asks compares the name too.
    pub(crate) fn by_hash(&self, hash: u64) -> Option<&Rc<Service>> {
        self.by_hash.get(&hash)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Rc<Service>> {
        self.by_key.values()
    }
}

impl Service {
    /// What it is called in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn instances(&self) -> usize {
        self.instances.len()
    }

    /// Whose turn it is with the next call.
    pub(crate) fn turn(&self) -> Turn {
        let first = self.next.get();
        self.next.set((first + 1) % self.instances.len().max(1));
        Turn(first)
    }

    /// The instances that can be tried now, the one whose turn it is first: those of this node, then those of agents that
    /// are connected, then those of agents that may be soon.
    pub(crate) fn candidates(&self, turn: Turn, scope: Scope, now: Instant) -> impl Iterator<Item = Upstream> {
        let count = self.instances.len();
        let in_turn = move |distance: Distance| {
            let entries = (0..count).map(move |offset| &self.instances[(turn.0 + offset) % count]);
            entries.filter(move |entry| entry.distance() == distance)
        };
        let usable = in_turn(Distance::Here).chain(in_turn(Distance::Open)).chain(in_turn(Distance::Opening));
        let usable = usable.filter(move |entry| entry.is_within(scope));
        usable.filter_map(move |entry| {
            let upstream = self.upstream(entry)?;
            upstream.is_available(now).then(|| upstream.clone())
        })
    }

    /// Why no instance could be tried.
    pub(crate) fn why_unavailable(&self, scope: Scope) -> String {
        let usable: Vec<_> = self.instances.iter().filter(|entry| entry.is_within(scope)).collect();
        if usable.is_empty() {
            return "no instance is here".to_owned();
        }
        let why = |entry: &&Entry| {
            let reason = self.upstream(entry).map_or_else(|| entry.instance.health.reason(), Upstream::why_unavailable);
            format!("{} {reason}", entry.instance.name)
        };
        let reasons: Vec<_> = usable.iter().take(3).map(why).collect();
        let more = if usable.len() > 3 { format!(", and {} more", usable.len() - 3) } else { String::new() };
        format!("no instance is available: {}{more}", reasons.join("; "))
    }

    /// The connections to its servers, as far as there are any.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        self.instances.iter().filter_map(|entry| match entry.upstream.get() {
            Some(Upstream::Pool(pool)) => Some(pool),
            _ => None,
        })
    }

    /// Makes the pools that keep connections open from the start.
    pub(crate) fn warm_pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        let warm = self.route.policy.connections_min > 0;
        self.instances.iter().filter(move |_| warm).filter_map(|entry| match self.upstream(entry) {
            Some(Upstream::Pool(pool)) => Some(pool),
            _ => None,
        })
    }

    /// The way to an instance; a pool is made when it is first needed.
    fn upstream<'a>(&self, entry: &'a Entry) -> Option<&'a Upstream> {
        if let Endpoint::Redis(address) = entry.instance.endpoint {
            let pool = || Pool::new(self.route.key.clone(), address, entry.instance.clone(), self.route.policy.clone());
            return Some(entry.upstream.get_or_init(|| Upstream::Pool(Rc::new(pool()))));
        }
        entry.upstream.get()
    }
}

impl Entry {
    fn is_away(&self) -> bool {
        matches!(self.instance.endpoint, Endpoint::Agent(_))
    }

    fn distance(&self) -> Distance {
        match self.upstream.get() {
            _ if !self.is_away() => Distance::Here,
            Some(Upstream::Remote(remote)) if remote.is_open() => Distance::Open,
            _ => Distance::Opening,
        }
    }

    fn is_within(&self, scope: Scope) -> bool {
        match scope {
            Scope::Mesh => true,
            Scope::Node => !self.is_away(),
            Scope::Worker => match self.upstream.get() {
                Some(Upstream::Remote(remote)) => remote.is_here(),
                _ => false,
            },
        }
    }
}

/// The services of a new configuration. Connections to what stays are carried over; the pools of what goes are returned.
/// `remote` makes the way to a member that is reached in frames.
pub(crate) fn build(
    routes: &Routes,
    former: &Services,
    remote: impl Fn(&Member, Arc<CallCounters>) -> Option<Remote>,
) -> (Services, Vec<Rc<Pool>>) {
    let mut pools: HashMap<(Arc<str>, Endpoint), Rc<Pool>> = former
        .all()
        .flat_map(|service| service.pools())
        .map(|pool| ((pool.service.clone(), pool.instance.endpoint.clone()), pool.clone()))
        .collect();
    let mut services = Services::default();
    for route in &routes.services {
        let known = former.by_key(&route.key);
        let unsent = known.map_or_else(|| route.unsent.writer(), |service| service.unsent.clone());
        let entry = |member: &Member| {
            let upstream = OnceCell::new();
            let place = (route.key.clone(), member.instance.endpoint.clone());
            if let Some(pool) = pools.remove(&place) {
                pool.set_policy(route.policy.clone());
                upstream.get_or_init(|| Upstream::Pool(pool));
            } else if !matches!(member.instance.endpoint, Endpoint::Redis(_)) {
                let counters = known.and_then(|service| service.counters(&member.instance));
                let counters = counters.unwrap_or_else(|| member.instance.counters.writer());
                if let Some(remote) = remote(member, counters) {
                    upstream.get_or_init(|| Upstream::Remote(Rc::new(remote)));
                }
            }
            Entry { instance: member.instance.clone(), upstream }
        };
        let mut instances: Vec<_> = route.members.iter().map(entry).collect();
        instances.sort_by_key(Entry::is_away);
        let service = Rc::new(Service::new(route.clone(), unsent, instances));
        services.by_hash.insert(service.hash, service.clone());
        services.by_key.insert(Box::from(&*route.key), service);
    }
    (services, pools.into_values().collect())
}

impl Service {
    fn new(route: Arc<ServiceRoute>, unsent: Arc<CallCounters>, instances: Vec<Entry>) -> Self {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, route.uri.as_bytes());
        if !route.group.is_empty() {
            meta.put(id::GROUP, route.group.as_bytes());
        }
        let name = if route.group.is_empty() { route.uri.to_string() } else { format!("{} of group {}", route.uri, route.group) };
        Self {
            hash: service_hash(route.uri.as_bytes(), route.group.as_bytes()),
            meta: meta.finish(),
            name,
            route,
            unsent,
            instances,
            next: Cell::new(0),
        }
    }

    /// What this worker has counted for an instance that stays.
    fn counters(&self, instance: &Arc<Instance>) -> Option<Arc<CallCounters>> {
        self.instances.iter().find(|entry| Arc::ptr_eq(&entry.instance, instance)).and_then(|entry| match entry.upstream.get() {
            Some(Upstream::Remote(remote)) => Some(remote.counters.clone()),
            _ => None,
        })
    }
}
