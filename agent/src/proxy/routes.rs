//! Services and their instances, as an immutable snapshot that all workers share.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use agent_common::frame::Offer;

use super::stats::{CallCounters, CallSums};
use crate::config::{Checked, CheckedService, ServicePolicy};

/// A configuration's services, with those that applications offer. What stays from one to the next is carried over: health,
/// counters.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) checked: Arc<Checked>,
    /// Sorted by key.
    pub(crate) services: Vec<Arc<ServiceRoute>>,
    /// Sorted by name.
    pub(crate) agents: Vec<Arc<AgentRoute>>,
}

/// Another agent.
#[derive(Debug)]
pub(crate) struct AgentRoute {
    pub(crate) name: Arc<str>,
    pub(crate) address: SocketAddr,
    pub(crate) health: Arc<Health>,
}

/// One service.
#[derive(Debug)]
pub(crate) struct ServiceRoute {
    /// What it is found by: [`service_key`].
    pub(crate) key: Arc<str>,
    pub(crate) uri: Arc<str>,
    /// Empty for the default group.
    pub(crate) group: Arc<str>,
    pub(crate) policy: Arc<ServicePolicy>,
    pub(crate) members: Vec<Member>,
    /// Calls that reached no instance.
    pub(crate) unsent: Arc<CounterSet>,
}

/// An instance of a service.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) instance: Arc<Instance>,
    /// The connections by which an application offers the service.
    pub(crate) conns: Vec<ConnAt>,
}

/// A connection of an application that offers services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnAt {
    pub(crate) worker: usize,
    /// [`super::frames::FrameConn::id`].
    pub(crate) id: u64,
}

/// What a connection offers.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) worker: usize,
    pub(crate) application: Arc<str>,
    pub(crate) instance: Arc<str>,
    pub(crate) offers: Vec<Offer>,
}

/// What applications offer, by the connection.
pub(crate) type Offers = BTreeMap<u64, Offered>;

/// One instance, the same object for as long as it is there.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) endpoint: Endpoint,
    /// What it is called in errors and lists.
    pub(crate) name: Arc<str>,
    pub(crate) health: Arc<Health>,
    pub(crate) counters: CounterSet,
}

/// How an instance is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    /// A server that speaks Redis.
    Redis(SocketAddr),
    /// Another agent, by its name.
    Agent(Arc<str>),
    /// An application that has dialled in: its name, and its process.
    Application(Arc<str>, Arc<str>),
}

/// What a service is found by.
pub(crate) fn service_key(uri: &str, group: &str) -> String {
    if group.is_empty() { uri.to_owned() } else { format!("{uri}\0{group}") }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(address) => address.fmt(f),
            Self::Agent(name) => write!(f, "agent {name}"),
            Self::Application(application, instance) => write!(f, "{application} {instance}"),
        }
    }
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
        Self::healthy("not checked yet")
    }
}

impl Health {
    fn healthy(reason: &str) -> Self {
        Self { healthy: AtomicBool::new(true), reason: Mutex::new(reason.to_owned()) }
    }

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
    /// The routes of a configuration and of what is offered; `former` gives what lives on.
    pub(crate) fn new(checked: Arc<Checked>, offers: &Offers, former: Option<&Self>) -> Self {
        let agents: Vec<_> = checked.peers.iter().map(|peer| AgentRoute::new(&peer.name, peer.address, former)).collect();
        let known: HashMap<&str, &Arc<ServiceRoute>> =
            former.into_iter().flat_map(|routes| &routes.services).map(|service| (&*service.key, service)).collect();
        let mut drafts: BTreeMap<String, Draft> = BTreeMap::new();
        for service in &checked.services {
            drafts.insert(service_key(&service.uri, &service.group), Draft::of(service, &agents));
        }
        for (id, offered) in offers {
            for offer in &offered.offers {
                let policy = || {
                    drafts.get(&offer.uri).map_or_else(|| checked.config.defaults.clone().into(), |draft| draft.policy.clone())
                };
                let policy = policy();
                let draft = drafts.entry(service_key(&offer.uri, &offer.group)).or_insert_with(|| Draft::offered(offer, policy));
                draft.offer(offered, ConnAt { worker: offered.worker, id: *id });
            }
        }
        let services = drafts.into_iter().map(|(key, draft)| {
            let former = known.get(&*key).copied();
            Arc::new(draft.finish(key, former))
        });
        Self { services: services.collect(), checked, agents }
    }

    /// What was counted for the services and instances that `next` has no more.
    pub(crate) fn sums_without(&self, next: &Self) -> CallSums {
        let mut sums = CallSums::default();
        for service in &self.services {
            let stays = next.services.binary_search_by(|other| other.key.cmp(&service.key)).ok().map(|at| &next.services[at]);
            if stays.is_none() {
                sums.merge(&service.unsent.sums());
            }
            let instances: HashSet<&Endpoint> =
                stays.iter().flat_map(|other| &other.members).map(|member| &member.instance.endpoint).collect();
            for gone in service.members.iter().filter(|member| !instances.contains(&member.instance.endpoint)) {
                sums.merge(&gone.instance.counters.sums());
            }
        }
        sums
    }
}

impl AgentRoute {
    fn new(name: &str, address: SocketAddr, former: Option<&Routes>) -> Arc<Self> {
        let known = former.and_then(|routes| routes.agents.iter().find(|agent| &*agent.name == name && agent.address == address));
        known.cloned().unwrap_or_else(|| Arc::new(Self { name: name.into(), address, health: Arc::default() }))
    }
}

/// A service that is being put together.
struct Draft {
    uri: Arc<str>,
    group: Arc<str>,
    policy: Arc<ServicePolicy>,
    members: Vec<(Endpoint, Option<Arc<Health>>, Vec<ConnAt>)>,
}

impl Draft {
    fn of(service: &CheckedService, agents: &[Arc<AgentRoute>]) -> Self {
        let instances = service.instances.iter().map(|one| (Endpoint::Redis(one.address), None, Vec::new()));
        let agents = agents.iter().filter(|agent| service.agents.iter().any(|name| **name == *agent.name));
        let agents = agents.map(|agent| (Endpoint::Agent(agent.name.clone()), Some(agent.health.clone()), Vec::new()));
        let (uri, group) = (service.uri.as_str().into(), service.group.as_str().into());
        let policy = Arc::new(service.policy.clone());
        Self { uri, group, policy, members: instances.chain(agents).collect() }
    }

    fn offered(offer: &Offer, policy: Arc<ServicePolicy>) -> Self {
        Self { uri: offer.uri.as_str().into(), group: offer.group.as_str().into(), policy, members: Vec::new() }
    }

    fn offer(&mut self, offered: &Offered, conn: ConnAt) {
        let endpoint = Endpoint::Application(offered.application.clone(), offered.instance.clone());
        match self.members.iter_mut().find(|(other, ..)| *other == endpoint) {
            Some((_, _, conns)) => conns.push(conn),
            None => self.members.push((endpoint, None, vec![conn])),
        }
    }

    fn finish(self, key: String, former: Option<&Arc<ServiceRoute>>) -> ServiceRoute {
        let known: HashMap<&Endpoint, &Arc<Instance>> = former
            .into_iter()
            .flat_map(|former| &former.members)
            .map(|member| (&member.instance.endpoint, &member.instance))
            .collect();
        let member = |(endpoint, health, conns): (Endpoint, Option<Arc<Health>>, _)| {
            let same =
                known.get(&endpoint).filter(|known| health.as_ref().is_none_or(|health| Arc::ptr_eq(health, &known.health)));
            let instance = same.map_or_else(|| Instance::new(endpoint, health), |instance| (*instance).clone());
            Member { instance, conns }
        };
        ServiceRoute {
            key: key.into(),
            uri: self.uri,
            group: self.group,
            policy: self.policy,
            members: self.members.into_iter().map(member).collect(),
            unsent: former.map_or_else(Arc::default, |former| former.unsent.clone()),
        }
    }
}

impl Instance {
    fn new(endpoint: Endpoint, health: Option<Arc<Health>>) -> Arc<Self> {
        let name = endpoint.to_string().into();
        let health = health.unwrap_or_else(|| match endpoint {
            Endpoint::Application(..) => Arc::new(Health::healthy("has dialled in")),
            Endpoint::Redis(_) | Endpoint::Agent(_) => Arc::default(),
        });
        Arc::new(Self { endpoint, name, health, counters: CounterSet::default() })
    }
}
