//! A service as one worker sees it: its instances in turn, with the ways to them.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use agent_common::frame::{MetaBuilder, id, service_hash};
use bytes::Bytes;
use foldhash::fast::RandomState;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::{
    choice::{Choice, Sets, Slot},
    dispatch::code,
    frames::{Remote, Scope},
    govern::Governed,
    overload::sheds,
    pool::Pool,
    routes::{Endpoint, Instance, Member, Routes, ServiceRoute},
    stats::CallCounters,
};
use crate::{
    balance::{Fit, Loads, Set},
    config::traffic::RetryOn,
};

/// What a call is looking for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) choice: &'a Choice,
    pub(crate) scope: Scope,
    pub(crate) now: Instant,
}

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
    /// By slot: an instance keeps its slot for as long as it is there.
    instances: Vec<Option<Entry>>,
    /// What this worker saw of them, by slot.
    pub(crate) loads: Rc<Loads>,
    sets: RefCell<Sets>,
    /// What this worker keeps of the service from one configuration to the next.
    pub(crate) governed: Rc<Governed>,
}

#[derive(Debug)]
struct Entry {
    instance: Arc<Instance>,
    upstream: OnceCell<Upstream>,
}

/// One way to an instance.
#[derive(Debug, Clone)]
pub(crate) enum Upstream {
    /// A server that speaks Redis.
    Pool(Rc<Pool>),
    /// Whoever speaks frames.
    Remote(Rc<Remote>),
}

impl Upstream {
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

    /// Where it stands among the service's instances.
    pub(crate) fn slot(&self) -> u32 {
        match self {
            Self::Pool(pool) => pool.slot,
            Self::Remote(remote) => remote.slot,
        }
    }

    /// Whether it can be tried now.
    pub(crate) fn fit(&self, now: Instant) -> Fit {
        match self {
            Self::Pool(pool) if pool.is_backing_off(now) => Fit::No,
            Self::Pool(_) => Fit::Ready,
            Self::Remote(remote) if remote.is_open() => Fit::Ready,
            Self::Remote(remote) if remote.is_there() => Fit::Slow,
            Self::Remote(_) => Fit::No,
        }
    }

    /// Why it does not take a call though it is there.
    pub(crate) fn why_full(&self) -> String {
        match self {
            Self::Pool(pool) => pool.why_full(&pool.policy()).unwrap_or_else(|| "it took no more calls".to_owned()),
            Self::Remote(_) => "it has as many calls in flight, or as many bytes to read, as it takes".to_owned(),
        }
    }

    fn why_unavailable(&self) -> String {
        match self {
            Self::Pool(pool) => {
                let failure = pool.last_failure();
                if pool.instance.is_usable() && !failure.is_empty() { failure } else { pool.instance.reason() }
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

    /// How many instances it has.
    pub(crate) fn instances(&self) -> usize {
        self.route.members.len()
    }

    /// Whether what one instance has not executed may be sent to another: then requests are held until they are answered.
    pub(crate) fn tells_others(&self, scope: Scope) -> bool {
        let retry = &self.route.policy.retry;
        let wants = retry.tries_max > 1 && retry.on.contains(&RetryOn::NotExecuted);
        scope == Scope::Mesh && wants && self.instances() > 1
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.instances.iter().flatten()
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.instances.get(slot as usize)?.as_ref()
    }

    /// Whether calls may go to the instance in this slot.
    pub(super) fn is_usable(&self, slot: u32) -> bool {
        self.entry(slot).is_some_and(|entry| entry.instance.is_usable())
    }

    /// Picks an instance for a call, of those that were not tried and can be tried now.
    pub(crate) fn pick(&self, aim: Aim<'_>, tried: &[u32], dice: &mut SmallRng) -> Option<Upstream> {
        let Aim { choice, scope, now } = aim;
        let fit = |slot: u32| if tried.contains(&slot) { Fit::No } else { self.fit(slot, scope, now) };
        let spared = Cell::new(false);
        let spares = |slot: u32| match fit(slot) {
            Fit::No => Fit::No,
            _ if self.is_spared(slot) => {
                spared.set(true);
                Fit::No
            }
            fit => fit,
        };
        if choice.pin != 0
            && let Some(pinned) = self.pinned(choice.pin).filter(|pinned| fit(pinned.slot()) != Fit::No)
        {
            return Some(pinned);
        }
        let mut sets = self.sets.borrow_mut();
        let mut picked = sets.pick(self, (choice, scope, now), dice, spares);
        if picked.is_none() && spared.get() {
            // Where nobody else can take it, it goes there all the same.
            picked = sets.pick(self, (choice, scope, now), dice, fit);
        }
        drop(sets);
        let slot = picked?;
        self.upstream(self.entry(slot)?, slot).cloned()
    }

    /// Whether others should take a call, if others can: the instance in this slot is another agent, which has come back and is
    /// tried by one call, or which has said that it would refuse this one.
    fn is_spared(&self, slot: u32) -> bool {
        let agent = self.entry(slot).map(|entry| &entry.instance).filter(|instance| instance.is_agent());
        agent.is_some_and(|agent| agent.health.is_tried() || sheds(agent.health.load(), self.route.policy.priority))
    }

    /// The instance that another worker has picked.
    fn pinned(&self, pin: u32) -> Option<Upstream> {
        let is_pinned = |upstream: &&Upstream| matches!(upstream, Upstream::Remote(remote) if remote.is_pinned(pin));
        self.entries().filter_map(|entry| entry.upstream.get()).find(is_pinned).cloned()
    }

    /// Whether the instance in this slot can take a call now.
    fn fit(&self, slot: u32, scope: Scope, now: Instant) -> Fit {
        let Some(entry) = self.entry(slot).filter(|entry| entry.is_within(scope)) else { return Fit::No };
        // Another worker has counted the call already.
        if scope != Scope::Worker && self.is_full(entry) {
            return Fit::No;
        }
        match (entry.upstream.get(), &entry.instance.endpoint) {
            (Some(upstream), _) => upstream.fit(now),
            // Its pool is made when it is first needed.
            (None, Endpoint::Redis(_)) => Fit::Ready,
            (None, _) => Fit::No,
        }
    }

    fn is_full(&self, entry: &Entry) -> bool {
        let calls_max = self.route.policy.breaker.instance_calls_max;
        calls_max > 0 && entry.instance.in_flight.load(Relaxed) >= calls_max
    }

    /// Why the instance in this slot can't take a call now, whether it is usable or not; none if it can.
    pub(super) fn why_not(&self, slot: u32, now: Instant) -> Option<String> {
        if self.fit(slot, Scope::Mesh, now) != Fit::No {
            return None;
        }
        let entry = self.entry(slot)?;
        if self.is_full(entry) {
            let calls_max = self.route.policy.breaker.instance_calls_max;
            return Some(format!("{calls_max} calls are in flight there (breaker.instance_calls_max)"));
        }
        Some(self.upstream(entry, slot).map_or_else(|| entry.instance.reason(), Upstream::why_unavailable))
    }

    /// Its instances by slot.
    pub(super) fn placed(&self) -> impl Iterator<Item = (u32, &Arc<Instance>)> {
        self.slots().map(|(slot, entry)| (slot, &entry.instance))
    }

    /// The instance that is reached by this connection, which has dialled in.
    pub(crate) fn offered_by(&self, conn: u64) -> Option<Upstream> {
        let has = |upstream: &&Upstream| matches!(upstream, Upstream::Remote(remote) if remote.has(conn));
        self.entries().filter_map(|entry| entry.upstream.get()).find(has).cloned()
    }

    /// The share of its calls that instances on other nodes get.
    pub(crate) fn away_share(&self, now: Instant) -> f64 {
        self.sets.borrow_mut().away_share(self, now)
    }

    /// How a subset looks to the balancer.
    pub(crate) fn look<T>(&self, subset: u16, now: Instant, look: impl FnOnce(&Set) -> T) -> Option<T> {
        self.sets.borrow_mut().look(self, subset, now).map(look)
    }

    /// Why no instance could be tried: the code, and a text.
    pub(crate) fn why_unavailable(&self, aim: Aim<'_>) -> (u16, String) {
        let (code, text) = self.why_none(aim);
        let rule = aim.choice.rule.and_then(|rule| self.route.policy.routes.get(usize::from(rule)));
        (code, rule.map_or_else(|| text.clone(), |rule| format!("{text} (routes, rule {:?})", rule.name)))
    }

    fn why_none(&self, aim: Aim<'_>) -> (u16, String) {
        let Aim { choice, scope, now } = aim;
        let within: Vec<_> = self.slots().filter(|(_, entry)| entry.is_within(scope)).collect();
        if within.is_empty() {
            return (code::REMOTING, "no instance is here".to_owned());
        }
        let subsets = self.route.plan.subsets();
        let fits = |subset: u16, entry: &Entry| {
            let member = self.route.members.iter().find(|member| Arc::ptr_eq(&member.instance, &entry.instance));
            let subset = subsets.get(usize::from(subset));
            subset.zip(member).is_none_or(|(subset, member)| member.is_of(subset))
        };
        let chosen: Vec<_> = within.into_iter().filter(|(_, entry)| choice.subsets().any(|of| fits(of, entry))).collect();
        if chosen.is_empty() {
            let what = subsets.get(usize::from(choice.subset)).map(ToString::to_string).unwrap_or_default();
            return (code::REMOTING, format!("it has no {what}"));
        }
        let calls_max = self.route.policy.breaker.instance_calls_max;
        let is_fit = |slot, entry| self.upstream(entry, slot).is_some_and(|upstream| upstream.fit(now) != Fit::No);
        if chosen.iter().any(|(slot, entry)| self.is_full(entry) && is_fit(*slot, entry)) {
            let text =
                format!("{calls_max} calls are in flight at every instance that could take it (breaker.instance_calls_max)");
            return (code::POOL_FULL, text);
        }
        let why = |(slot, entry): &(u32, &Entry)| {
            let reason = self.upstream(entry, *slot).map_or_else(|| entry.instance.reason(), Upstream::why_unavailable);
            format!("{} {reason}", entry.instance.name)
        };
        let reasons: Vec<_> = chosen.iter().take(3).map(why).collect();
        let more = if chosen.len() > 3 { format!(", and {} more", chosen.len() - 3) } else { String::new() };
        (code::REMOTING, format!("no instance is available: {}{more}", reasons.join("; ")))
    }

    /// The kernel has seen an instance take so long for what it routed there.
    pub(crate) fn was_seen(&self, instance: &Arc<Instance>, took: Duration, now: std::time::Instant) {
        let Some((slot, entry)) = self.slots().find(|(_, entry)| Arc::ptr_eq(&entry.instance, instance)) else { return };
        let average = self.loads.observe(slot, took, now);
        if let Some(upstream) = entry.upstream.get() {
            upstream.counters().set_ewma(average);
        }
    }

    fn slots(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..).zip(&self.instances).filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    /// The connections to its servers, as far as there are any.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        self.entries().filter_map(|entry| match entry.upstream.get() {
            Some(Upstream::Pool(pool)) => Some(pool),
            _ => None,
        })
    }

    /// Makes the pools that keep connections open from the start.
    pub(crate) fn warm_pools(&self) -> impl Iterator<Item = &Rc<Pool>> {
        let warm = self.route.policy.connections_min > 0;
        self.slots().filter(move |_| warm).filter_map(|(slot, entry)| match self.upstream(entry, slot) {
            Some(Upstream::Pool(pool)) => Some(pool),
            _ => None,
        })
    }

    /// The way to an instance; a pool is made when it is first needed.
    fn upstream<'a>(&self, entry: &'a Entry, slot: u32) -> Option<&'a Upstream> {
        if let Endpoint::Redis(server) = &entry.instance.endpoint {
            let pool = || Pool::new(&self.route, (slot, server.clone()), entry.instance.clone());
            return Some(entry.upstream.get_or_init(|| Upstream::Pool(Rc::new(pool()))));
        }
        entry.upstream.get()
    }
}

impl Entry {
    fn is_away(&self) -> bool {
        matches!(self.instance.endpoint, Endpoint::Agent(_))
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
    (now, workers): (Instant, u32),
    remote: impl Fn(&Member, u32, Arc<CallCounters>) -> Option<Remote>,
) -> (Services, Vec<Rc<Pool>>) {
    let mut pools: HashMap<(Arc<str>, Endpoint), Rc<Pool>> = former
        .all()
        .flat_map(|service| service.pools())
        .map(|pool| ((pool.service.clone(), pool.instance.endpoint.clone()), pool.clone()))
        .collect();
    let mut services = Services::default();
    for route in &routes.services {
        let known = former.by_key(&route.key);
        let slots = Slots::new(route, known, now);
        let entry = |member: &Member, slot: u32| {
            let upstream = OnceCell::new();
            let place = (route.key.clone(), member.instance.endpoint.clone());
            if let Some(pool) = pools.remove(&place) {
                pool.set_policy(&route.policy);
                upstream.get_or_init(|| Upstream::Pool(pool));
            } else if !matches!(member.instance.endpoint, Endpoint::Redis(_)) {
                let counters = known.and_then(|service| service.counters(&member.instance));
                let counters = counters.unwrap_or_else(|| member.instance.counters.writer());
                if let Some(remote) = remote(member, slot, counters) {
                    upstream.get_or_init(|| Upstream::Remote(Rc::new(remote)));
                }
            }
            Entry { instance: member.instance.clone(), upstream }
        };
        let service = Rc::new(Service::new(route.clone(), known, &slots, (now, workers), entry));
        services.by_hash.insert(service.hash, service.clone());
        services.by_key.insert(Box::from(&*route.key), service);
    }
    (services, pools.into_values().collect())
}

/// Where each member of a service stands.
struct Slots {
    /// In the order of the members: the slot, and whether the instance was not there before.
    of: Vec<(u32, bool)>,
    loads: Rc<Loads>,
}

impl Slots {
    /// What stays keeps its slot; what is new gets one that nobody has, and that no call in flight counts in.
    fn new(route: &ServiceRoute, former: Option<&Rc<Service>>, now: Instant) -> Self {
        let decay = Duration::from_millis(route.policy.balance.decay_ms);
        let loads = former.map_or_else(|| Rc::new(Loads::new(0, decay, now.into_std())), |former| former.loads.clone());
        loads.set_decay(decay);
        let known: HashMap<*const Instance, u32> = former
            .into_iter()
            .flat_map(|former| former.slots().map(|(slot, entry)| (Arc::as_ptr(&entry.instance), slot)))
            .collect();
        let stays: Vec<_> = route.members.iter().map(|member| known.get(&Arc::as_ptr(&member.instance)).copied()).collect();
        let taken: HashSet<u32> = stays.iter().flatten().copied().collect();
        let mut free = (0..).filter(|slot| !taken.contains(slot) && !loads.is_busy(*slot));
        let place = |slot: Option<u32>| match slot {
            Some(slot) => (slot, false),
            None => {
                let slot = free.next().unwrap_or(0);
                loads.begin_anew(slot);
                (slot, former.is_some())
            }
        };
        let of = stays.into_iter().map(place).collect();
        Self { of, loads }
    }

    fn len(&self) -> usize {
        self.of.iter().map(|(slot, _)| *slot as usize + 1).max().unwrap_or(0)
    }
}

impl Service {
    fn new(
        route: Arc<ServiceRoute>,
        former: Option<&Rc<Self>>,
        slots: &Slots,
        (now, workers): (Instant, u32),
        mut entry: impl FnMut(&Member, u32) -> Entry,
    ) -> Self {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, route.uri.as_bytes());
        if !route.group.is_empty() {
            meta.put(id::GROUP, route.group.as_bytes());
        }
        let name = if route.group.is_empty() { route.uri.to_string() } else { format!("{} of group {}", route.uri, route.group) };
        let mut instances: Vec<Option<Entry>> = (0..slots.len()).map(|_| None).collect();
        for (member, (slot, _)) in route.members.iter().zip(&slots.of) {
            instances[*slot as usize] = Some(entry(member, *slot));
        }
        let places: Vec<_> = route
            .members
            .iter()
            .zip(&slots.of)
            .map(|(member, &(slot, is_new))| Slot {
                slot,
                member,
                is_away: matches!(member.instance.endpoint, Endpoint::Agent(_)),
                is_new,
            })
            .collect();
        let sets = Sets::new(&route, &places, former.map(|former| former.sets.borrow()).as_deref(), now);
        Self {
            hash: service_hash(route.uri.as_bytes(), route.group.as_bytes()),
            meta: meta.finish(),
            name,
            unsent: former.map_or_else(|| route.unsent.writer(), |service| service.unsent.clone()),
            governed: Governed::new(&route, former.map(|former| (&*former.route, &former.governed)), workers),
            instances,
            loads: slots.loads.clone(),
            sets,
            route,
        }
    }

    /// What this worker has counted for an instance that stays.
    fn counters(&self, instance: &Arc<Instance>) -> Option<Arc<CallCounters>> {
        self.entries().find(|entry| Arc::ptr_eq(&entry.instance, instance)).and_then(|entry| match entry.upstream.get() {
            Some(Upstream::Remote(remote)) => Some(remote.counters.clone()),
            _ => None,
        })
    }
}
