//! Services and their instances, as an immutable snapshot that all workers share.

mod health;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use agent_common::frame::Offer;
use tokio::sync::Notify;

pub(crate) use self::health::Health;
use super::{
    dial::Server,
    stats::{CallCounters, CallSums, MethodSet, PolicySet},
};
use crate::{
    balance::{Limiter, RateLimits, Ring},
    config::{Checked, CheckedInstance, CheckedPeer, CheckedService, ServicePolicy, Traits, traffic::BalancePolicy},
    failover::{Foreign, Siblings},
    rules::{Plan, Subset},
    trace::{Taps, Watch},
};

/// A configuration's services, with those that applications offer. What stays from one to the next is carried over: health,
/// counters.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) checked: Arc<Checked>,
    /// Sorted by key.
    pub(crate) services: Vec<Arc<ServiceRoute>>,
    /// Sorted by name.
    pub(crate) agents: Vec<Arc<AgentRoute>>,
    /// Counts whenever an instance can be used, or can't any more.
    pub(crate) changes: Changes,
    /// Whose connections come from other nodes.
    pub(crate) foreign: Arc<Foreign>,
    /// Who takes applications when this agent is gone.
    pub(crate) siblings: Arc<Siblings>,
}

/// Counts how often it changed which instances can be used: who remembers a count knows whether to look again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    count: AtomicU64,
    /// Told when an instance has failed so often in a row that somebody must look at it.
    suspects: Notify,
    /// Told when it has counted, or when there are other routes.
    changed: Notify,
}

impl Changes {
    pub(crate) fn count(&self) -> u64 {
        // Whoever sees the count sees what was changed before it.
        self.0.count.load(Acquire)
    }

    fn note(&self) {
        self.0.count.fetch_add(1, Release);
        self.tell();
    }

    /// There are other routes.
    pub(crate) fn tell(&self) {
        self.0.changed.notify_one();
    }

    /// Resolves when it has counted, or when there are other routes, since it resolved last. For one who waits.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Resolves when an instance has failed too often in a row.
    pub(crate) async fn suspects(&self) {
        self.0.suspects.notified().await;
    }
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
    /// What the policy says about calls.
    pub(crate) plan: Arc<Plan>,
    pub(crate) members: Vec<Member>,
    /// For each of the plan's subsets, if calls are picked by hash key.
    pub(crate) rings: Vec<Arc<Ring>>,
    pub(crate) limiter: Option<Arc<Limiter>>,
    /// What is under way in the whole agent.
    pub(crate) under_way: Arc<UnderWay>,
    /// Calls that reached no instance.
    pub(crate) unsent: Arc<CounterSet>,
    pub(crate) methods: Arc<MethodSet>,
    /// Whoever looks on at its calls.
    pub(crate) watch: Watch,
    pub(crate) policed: Arc<PolicySet>,
    pub(crate) changes: Changes,
}

/// What of a service is under way in the whole agent.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    /// Calls; counted only while the service has a bound on them.
    pub(crate) calls: AtomicUsize,
    /// Calls that wait for a connection.
    pub(crate) queued: AtomicUsize,
    pub(crate) connections: AtomicUsize,
}

/// An instance of a service.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) instance: Arc<Instance>,
    /// The connections by which an application offers the service.
    pub(crate) conns: Vec<ConnAt>,
    pub(crate) traits: Arc<Traits>,
    /// The environments that instances have here, if it is another agent.
    pub(crate) others: Option<Arc<BTreeSet<String>>>,
    /// How far it is: 0 on this node, 1 in this zone, 2 in this data centre, 3 elsewhere.
    pub(crate) level: u8,
}

impl Member {
    /// Whether it belongs to a subset. Another agent has what environments nobody has here, as far as is known; it is told which one
    /// a call is for.
    pub(crate) fn is_of(&self, subset: &Subset) -> bool {
        let may_have = |others: &Arc<BTreeSet<String>>| {
            subset.labels.is_empty() && subset.environment.as_deref().is_some_and(|name| !others.contains(name))
        };
        subset.fits(&self.traits) || self.others.as_ref().is_some_and(may_have)
    }
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
    /// What it says of its process, which all that it offers shares.
    pub(crate) traits: Arc<Traits>,
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
    pub(crate) record: Record,
    pub(crate) counters: CounterSet,
    /// Calls in flight in the whole agent; counted only while the service has a bound on them.
    pub(crate) in_flight: AtomicUsize,
}

/// What an instance's calls have shown of it. Workers count failures, the control task decides.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Failures in a row, over all workers.
    pub(crate) failures: AtomicU32,
    ejected: AtomicBool,
    /// How often it was taken out.
    ejections: AtomicU64,
    ejection: Mutex<Option<(Instant, String)>>,
    changes: Changes,
}

impl Record {
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// A call has failed there; `bound` in a row are too many, 0 is no bound.
    pub(crate) fn failed(&self, bound: u32) {
        // At and above the bound whoever decides is told each time: it may have had reasons to wait.
        if self.failures.fetch_add(1, Relaxed) + 1 >= bound && bound > 0 && !self.is_ejected() {
            self.changes.0.suspects.notify_one();
        }
    }

    /// A call was answered there.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Until when it is out, and why.
    pub(crate) fn ejection(&self) -> Option<(Instant, String)> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was taken out of traffic.
    pub(crate) fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Takes the instance out of traffic, or lets it back.
    pub(crate) fn set_ejection(&self, ejection: Option<(Instant, String)>) {
        self.failures.store(0, Relaxed);
        if !self.ejected.swap(ejection.is_some(), Relaxed) {
            self.ejections.fetch_add(u64::from(ejection.is_some()), Relaxed);
        }
        *self.ejection.lock().unwrap_or_else(PoisonError::into_inner) = ejection;
        self.changes.note();
    }
}

/// How an instance is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    /// A server that speaks Redis.
    Redis(Server),
    /// Another agent, by its name.
    Agent(Arc<str>),
    /// An application that has dialled in: its name, and its process.
    Application(Arc<str>, Arc<str>),
}

/// A service's name in files, lists and metrics.
pub(crate) fn shown(uri: &str, group: &str) -> String {
    if group.is_empty() { uri.to_owned() } else { format!("{uri}#{group}") }
}

/// What a service is found by.
pub(crate) fn service_key(uri: &str, group: &str) -> String {
    if group.is_empty() { uri.to_owned() } else { format!("{uri}\0{group}") }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(server) => server.fmt(f),
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

    /// Tries that ended, those of them that speak against the instance, and how long all took.
    pub(crate) fn tries(&self) -> (u64, u64, Duration) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|counters| counters.tries())
            .fold(<_>::default(), |(calls, failures, took), one| (calls + one.0, failures + one.1, took + one.2))
    }

    pub(crate) fn sums(&self) -> CallSums {
        let mut sums = CallSums::default();
        for counters in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sums.add(counters);
        }
        sums
    }
}

impl Routes {
    /// The routes of a configuration and of what is offered; `former` gives what lives on.
    pub(crate) fn new(checked: Arc<Checked>, offers: &Offers, former: Option<&Self>, taps: &Taps) -> Self {
        let changes = former.map_or_else(Changes::default, |former| former.changes.clone());
        let agents: Vec<_> = checked.peers.iter().map(|peer| AgentRoute::new(peer, former, &changes)).collect();
        let known: HashMap<&str, &Arc<ServiceRoute>> =
            former.into_iter().flat_map(|routes| &routes.services).map(|service| (&*service.key, service)).collect();
        let mut drafts: BTreeMap<String, Draft> = BTreeMap::new();
        let here = Place::here(&checked);
        for service in &checked.services {
            drafts.insert(service_key(&service.uri, &service.group), Draft::of(service, &checked, &agents, &here));
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
        let mut plans = plans(&drafts);
        let services = drafts.into_iter().map(|(key, draft)| {
            let former = known.get(&*key).copied();
            let plan = plans.remove(&key).unwrap_or_else(|| draft.plan());
            Arc::new(draft.finish(key, (plan, former), &changes, taps))
        });
        // What applications offer changes nothing about them.
        let same = former.filter(|former| Arc::ptr_eq(&former.checked, &checked));
        let foreign = same.map_or_else(|| Arc::new(Foreign::new(&checked)), |former| former.foreign.clone());
        let siblings = same.map_or_else(|| Arc::new(Siblings::new(&checked)), |former| former.siblings.clone());
        Self { services: services.collect(), checked, agents, changes, foreign, siblings }
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
    fn new(peer: &CheckedPeer, former: Option<&Routes>, changes: &Changes) -> Arc<Self> {
        let (name, address) = (&peer.name, peer.address);
        let known =
            former.and_then(|routes| routes.agents.iter().find(|agent| *agent.name == **name && agent.address == address));
        let health = || Arc::new(Health::healthy("not connected yet", changes));
        known.cloned().unwrap_or_else(|| Arc::new(Self { name: name.as_str().into(), address, health: health() }))
    }
}

/// Where this node is, to tell how far others are.
struct Place<'a> {
    zone: &'a str,
    data_centre: &'a str,
}

impl<'a> Place<'a> {
    fn here(checked: &'a Checked) -> Self {
        let agent = &checked.config.agent;
        Self { zone: &agent.zone, data_centre: &agent.data_centre }
    }

    /// How far something in this zone and data centre is; `unknown` if it does not say.
    fn level(&self, zone: &str, data_centre: &str, unknown: u8) -> u8 {
        let known = |own: &str, other: &str| !own.is_empty() && !other.is_empty();
        if known(self.zone, zone) && self.zone == zone {
            1
        } else if known(self.data_centre, data_centre) {
            if self.data_centre == data_centre { 2 } else { 3 }
        } else if known(self.zone, zone) {
            3
        } else {
            unknown
        }
    }

    fn level_of(&self, instance: &CheckedInstance) -> u8 {
        let Traits { zone, data_centre, .. } = &instance.traits;
        // What does not say where it is counts as near: it is called directly.
        if instance.namespace.is_some() || instance.address.ip().is_loopback() { 0 } else { self.level(zone, data_centre, 0) }
    }
}

/// The plan of each service, with the subsets that rules of others mean.
fn plans(drafts: &BTreeMap<String, Draft>) -> HashMap<String, Plan> {
    let mut plans: HashMap<String, Plan> = drafts.iter().map(|(key, draft)| (key.clone(), draft.plan())).collect();
    for (key, draft) in drafts {
        let Some(plan) = plans.get(key) else { continue };
        let meant = |subset: &Subset| {
            let (uri, group) = subset.elsewhere(&draft.uri, &draft.group)?;
            Some((service_key(uri, group), subset.at_home()))
        };
        let meant: Vec<_> = plan.subsets().iter().filter_map(meant).collect();
        for (other, subset) in meant {
            if let Some(plan) = plans.remove(&other) {
                plans.insert(other, plan.with_subsets([subset]));
            }
        }
    }
    plans
}

/// Environments of a service that calls find. Applications say what theirs is, and each costs every change of routes a look
/// at all instances; those in the configuration come first.
const ENVIRONMENTS_MAX: usize = 256;

/// A service that is being put together.
struct Draft {
    uri: Arc<str>,
    group: Arc<str>,
    policy: Arc<ServicePolicy>,
    members: Vec<DraftMember>,
}

struct DraftMember {
    endpoint: Endpoint,
    /// Of an agent, which all its services share.
    health: Option<Arc<Health>>,
    conns: Vec<ConnAt>,
    traits: Arc<Traits>,
    level: u8,
}

impl Draft {
    fn of(service: &CheckedService, checked: &Checked, agents: &[Arc<AgentRoute>], here: &Place<'_>) -> Self {
        let instances = service.instances.iter().map(|one| DraftMember {
            endpoint: Endpoint::Redis(Server { address: one.address, namespace: one.namespace.as_deref().map(Arc::from) }),
            health: None,
            conns: Vec::new(),
            traits: Arc::new(one.traits.clone()),
            level: here.level_of(one),
        });
        let serves = |peer: &CheckedPeer| service.agents.contains(&peer.name);
        let agents = checked.peers.iter().zip(agents).filter(|(peer, _)| serves(peer)).map(|(peer, agent)| DraftMember {
            endpoint: Endpoint::Agent(agent.name.clone()),
            health: Some(agent.health.clone()),
            conns: Vec::new(),
            traits: Arc::new(Traits { zone: peer.zone.clone(), data_centre: peer.data_centre.clone(), ..Traits::default() }),
            level: here.level(&peer.zone, &peer.data_centre, 1),
        });
        let (uri, group) = (service.uri.as_str().into(), service.group.as_str().into());
        Self { uri, group, policy: Arc::new(service.policy.clone()), members: instances.chain(agents).collect() }
    }

    fn offered(offer: &Offer, policy: Arc<ServicePolicy>) -> Self {
        Self { uri: offer.uri.as_str().into(), group: offer.group.as_str().into(), policy, members: Vec::new() }
    }

    fn offer(&mut self, offered: &Offered, conn: ConnAt) {
        let endpoint = Endpoint::Application(offered.application.clone(), offered.instance.clone());
        let traits = offered.traits.clone();
        match self.members.iter_mut().find(|other| other.endpoint == endpoint) {
            Some(member) => {
                member.conns.push(conn);
                // All connections of a process should say the same. If not, the one with the highest number counts, of one
                // worker's the newest: a process that was replaced under the same name is what it says now.
                member.traits = traits;
            }
            None => self.members.push(DraftMember { endpoint, health: None, conns: vec![conn], traits, level: 0 }),
        }
    }

    fn plan(&self) -> Plan {
        let mut seen = BTreeSet::from([""]);
        let all = self.members.iter().map(|member| &*member.traits.environment);
        let environments: Vec<_> = all.filter(|environment| seen.insert(environment)).take(ENVIRONMENTS_MAX).collect();
        Plan::new(&self.policy, &environments)
    }

    fn finish(
        self,
        key: String,
        (plan, former): (Plan, Option<&Arc<ServiceRoute>>),
        changes: &Changes,
        taps: &Taps,
    ) -> ServiceRoute {
        let known: HashMap<&Endpoint, &Member> =
            former.into_iter().flat_map(|former| &former.members).map(|member| (&member.instance.endpoint, member)).collect();
        let named = self.members.iter().map(|member| &member.traits.environment).filter(|name| !name.is_empty());
        let named: Arc<BTreeSet<String>> = Arc::new(named.cloned().collect());
        let member = |draft: DraftMember| {
            let DraftMember { endpoint, health, conns, traits, level } = draft;
            let others = matches!(endpoint, Endpoint::Agent(_)).then(|| named.clone());
            let same = known
                .get(&endpoint)
                .filter(|known| health.as_ref().is_none_or(|health| Arc::ptr_eq(health, &known.instance.health)));
            let instance = same.map_or_else(|| Instance::new(endpoint, health, changes), |known| known.instance.clone());
            Member { instance, conns, traits, others, level }
        };
        let members: Vec<_> = self.members.into_iter().map(member).collect();
        let plan = Arc::new(plan);
        let same_policy = former.filter(|former| former.policy.rate == self.policy.rate);
        let limiter = same_policy.map_or_else(|| limiter(&self.policy), |former| former.limiter.clone());
        ServiceRoute {
            watch: former.map_or_else(|| taps.watch(&shown(&self.uri, &self.group)), |former| former.watch.clone()),
            key: key.into(),
            rings: rings(&self.policy, &plan, &members, former),
            plan,
            limiter,
            under_way: former.map_or_else(Arc::default, |former| former.under_way.clone()),
            uri: self.uri,
            group: self.group,
            policy: self.policy,
            members,
            unsent: former.map_or_else(Arc::default, |former| former.unsent.clone()),
            methods: former.map_or_else(Arc::default, |former| former.methods.clone()),
            policed: former.map_or_else(Arc::default, |former| former.policed.clone()),
            changes: changes.clone(),
        }
    }
}

fn limiter(policy: &ServicePolicy) -> Option<Arc<Limiter>> {
    let rate = &policy.rate;
    let (service_per_s, caller_per_s, callers) = (rate.service_per_s, rate.caller_per_s, rate.callers.clone());
    let options = RateLimits { service_per_s, caller_per_s, callers, burst: Duration::from_millis(rate.burst_ms) };
    (!options.is_off()).then(|| Arc::new(Limiter::new(&options, Instant::now())))
}

/// A ring for each subset. One that has the same instances as before is the same.
fn rings(policy: &ServicePolicy, plan: &Plan, members: &[Member], former: Option<&Arc<ServiceRoute>>) -> Vec<Arc<Ring>> {
    if policy.balance.policy != BalancePolicy::Ketama {
        return Vec::new();
    }
    let names = |subset: &Subset, members: &[Member]| -> Vec<Arc<str>> {
        members.iter().filter(|member| member.is_of(subset)).map(|member| member.instance.name.clone()).collect()
    };
    let known: Vec<_> = former
        .into_iter()
        .flat_map(|former| {
            former.plan.subsets().iter().zip(&former.rings).map(|(subset, ring)| (names(subset, &former.members), ring))
        })
        .collect();
    let ring = |subset: &Subset| {
        let own = names(subset, members);
        let same = known.iter().find(|(names, _)| *names == own).map(|(_, ring)| Arc::clone(ring));
        same.unwrap_or_else(|| Arc::new(Ring::new(&own)))
    };
    plan.subsets().iter().map(ring).collect()
}

impl Instance {
    fn new(endpoint: Endpoint, health: Option<Arc<Health>>, changes: &Changes) -> Arc<Self> {
        let name = endpoint.to_string().into();
        let health = health.unwrap_or_else(|| {
            let known = if matches!(endpoint, Endpoint::Application(..)) { "has dialled in" } else { "not checked yet" };
            Arc::new(Health::healthy(known, changes))
        });
        let record = Record { changes: changes.clone(), ..Record::default() };
        Arc::new(Self { endpoint, name, health, record, counters: CounterSet::default(), in_flight: AtomicUsize::new(0) })
    }

    /// Whether it is another agent.
    pub(crate) fn is_agent(&self) -> bool {
        matches!(self.endpoint, Endpoint::Agent(_))
    }

    /// Whether calls may go to it.
    pub(crate) fn is_usable(&self) -> bool {
        self.health.is_healthy() && !self.record.is_ejected()
    }

    /// Why it gets calls or not.
    pub(crate) fn reason(&self) -> String {
        match self.record.ejection() {
            Some((_, reason)) if self.health.is_healthy() => format!("taken out of traffic: {reason}"),
            _ => self.health.reason(),
        }
    }
}
