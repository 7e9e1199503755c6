//! The connections of one worker to one instance: how many, which one a call gets, and who waits.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    backend,
    calls::CallKey,
    dial::Server,
    link::Link,
    request::Request,
    routes::{Instance, ServiceRoute, UnderWay},
    service::Upstream,
    stats::CallCounters,
    worker::Worker,
};
use crate::{
    balance::backoff,
    config::{ServicePolicy, traffic::Breaker},
    netns::Namespace,
};

/// Waits between two tries to connect to an instance that refuses: doubled each time, between these bounds, with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// The connections of one worker to one instance.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The service's key.
    pub(crate) service: Arc<str>,
    pub(crate) server: Server,
    pub(crate) instance: Arc<Instance>,
    pub(crate) counters: Arc<CallCounters>,
    /// Where the instance stands among those of its service.
    pub(crate) slot: u32,
    /// What of its service is under way in the whole agent.
    under_way: Arc<UnderWay>,
    policy: RefCell<Arc<ServicePolicy>>,
    links: RefCell<Links>,
    /// The instance was taken out of the configuration: connections end as they become free.
    retired: Cell<bool>,
}

#[derive(Debug, Default)]
struct Links {
    open: Vec<Rc<Link>>,
    /// Open ones without a call, the most recently used last. Only if calls don't share connections.
    free: Vec<Rc<Link>>,
    connecting: usize,
    waiting: VecDeque<(CallKey, Request)>,
    failures: u32,
    retry_at: Option<Instant>,
    last_failure: String,
}

/// Why a pool does not take a call.
#[derive(Debug)]
pub(crate) enum Refused {
    /// All its connections are busy and its queue is full.
    Full(Request),
    /// It could not connect a moment ago, and does not try again yet.
    BackingOff(Request),
}

impl Pool {
    pub(crate) fn new(route: &ServiceRoute, (slot, server): (u32, Server), instance: Arc<Instance>) -> Self {
        let counters = instance.counters.writer();
        Self {
            service: route.key.clone(),
            server,
            instance,
            counters,
            slot,
            under_way: route.under_way.clone(),
            policy: RefCell::new(route.policy.clone()),
            links: RefCell::default(),
            retired: Cell::new(false),
        }
    }

    pub(crate) fn policy(&self) -> Arc<ServicePolicy> {
        self.policy.borrow().clone()
    }

    /// Takes over a new configuration's policy; connections that it does not fit end as they become free.
    pub(crate) fn set_policy(&self, policy: &Arc<ServicePolicy>) {
        let former = self.policy.replace(policy.clone());
        if former.pipelined != policy.pipelined {
            self.retire_links();
        }
    }

    /// The instance is no longer configured.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        if self.links.borrow().waiting.is_empty() {
            self.retire_links();
        }
    }

    /// Gives connections that keep this namespace alive no more calls, and has them end.
    pub(crate) fn leave(&self, namespace: &Arc<Namespace>) {
        self.links.borrow_mut().free.retain(|link| !link.is_in(namespace));
        self.links_in(namespace).iter().for_each(|link| link.retire());
    }

    /// The connections that keep a namespace alive.
    pub(crate) fn links_in(&self, namespace: &Arc<Namespace>) -> Vec<Rc<Link>> {
        self.links.borrow().open.iter().filter(|link| link.is_in(namespace)).cloned().collect()
    }

    fn retire_links(&self) {
        let mut links = self.links.borrow_mut();
        links.free.clear();
        for link in &links.open {
            link.retire();
        }
    }

    /// Whether calls wait for a connection.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.links.borrow().waiting.is_empty()
    }

    /// Nothing is left to do for it.
    pub(crate) fn is_over(&self) -> bool {
        let links = self.links.borrow();
        self.retired.get() && links.open.is_empty() && links.connecting == 0 && links.waiting.is_empty()
    }

    pub(crate) fn is_backing_off(&self, now: Instant) -> bool {
        let links = self.links.borrow();
        links.open.is_empty() && links.connecting == 0 && links.retry_at.is_some_and(|at| now < at)
    }

    pub(crate) fn last_failure(&self) -> String {
        self.links.borrow().last_failure.clone()
    }

    /// Gives a call to a connection, or lets it wait for one. Returns the connection if it has one now.
    pub(crate) fn submit(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        key: CallKey,
        request: Request,
    ) -> Result<Option<Rc<Link>>, Refused> {
        let policy = self.policy();
        let link = if policy.pipelined { self.least_loaded(policy.pipeline_max) } else { self.links.borrow_mut().free.pop() };
        if let Some(link) = link {
            link.send(key, request);
            return Ok(Some(link));
        }
        if self.is_backing_off(worker.now()) {
            return Err(Refused::BackingOff(request));
        }
        if self.why_full(&policy).is_some() {
            return Err(Refused::Full(request));
        }
        self.links.borrow_mut().waiting.push_back((key, request.owned()));
        self.count_queued();
        self.connect_for_waiting(worker);
        Ok(None)
    }

    /// Why one more call can't wait for a connection, if it can't.
    pub(crate) fn why_full(&self, policy: &ServicePolicy) -> Option<String> {
        let links = self.links.borrow();
        let ServicePolicy { queue_max, connections_max, breaker, .. } = policy;
        let Breaker { service_queue_max, service_connections_max, .. } = *breaker;
        let open = links.open.len() + links.connecting;
        if links.waiting.len() >= *queue_max {
            return Some(if open < *connections_max && !self.may_connect(policy) {
                format!(
                    "the service has {service_connections_max} connections, and {queue_max} calls wait for one already (breaker.service_connections_max, queue_max)"
                )
            } else {
                format!(
                    "all {connections_max} connections of this worker are busy and {queue_max} calls wait already (connections_max, queue_max)"
                )
            });
        }
        if service_queue_max > 0 && self.under_way.queued.load(Relaxed) >= service_queue_max {
            return Some(format!(
                "{service_queue_max} calls of the service wait for connections already (breaker.service_queue_max)"
            ));
        }
        (open == 0 && !self.may_connect(policy)).then(|| {
            format!("the service has {service_connections_max} connections, none of them to this instance (breaker.service_connections_max)")
        })
    }

    fn may_connect(&self, policy: &ServicePolicy) -> bool {
        let max = policy.breaker.service_connections_max;
        max == 0 || self.under_way.connections.load(Relaxed) < max
    }

    /// Opens what `connections_min` asks for.
    pub(crate) fn warm_up(self: &Rc<Self>, worker: &Rc<Worker>) {
        let missing = {
            let links = self.links.borrow();
            self.policy.borrow().connections_min.saturating_sub(links.open.len() + links.connecting)
        };
        if !self.retired.get() && !self.is_backing_off(worker.now()) {
            let policy = self.policy();
            (0..missing).take_while(|_| self.may_connect(&policy)).for_each(|_| self.connect(worker));
        }
    }

    /// Closes connections above `connections_min` that nobody has used for long.
    pub(crate) fn close_idle(&self, now: Instant) {
        let policy = self.policy();
        let mut links = self.links.borrow_mut();
        let mut surplus = links.open.len().saturating_sub(policy.connections_min);
        let idle = Duration::from_millis(policy.idle_timeout_ms);
        let old = |link: &Rc<Link>| link.load() == 0 && now.duration_since(link.idle_since()) >= idle;
        let candidates = if policy.pipelined { links.open.clone() } else { links.free.clone() };
        for link in candidates.into_iter().filter(old) {
            if surplus == 0 {
                break;
            }
            surplus -= 1;
            links.free.retain(|free| !Rc::ptr_eq(free, &link));
            link.retire();
        }
    }

    /// A waiting call has ended otherwise.
    pub(crate) fn forget(&self, key: CallKey) {
        self.links.borrow_mut().waiting.retain(|(waiting, _)| *waiting != key);
        self.count_queued();
    }

    /// A connection is there.
    pub(crate) fn opened(self: &Rc<Self>, worker: &Rc<Worker>, link: &Rc<Link>) {
        {
            let mut links = self.links.borrow_mut();
            links.connecting -= 1;
            links.open.push(link.clone());
        }
        self.count_open();
        self.ready(worker, link);
    }

    /// A connection can take a call, or one more.
    pub(crate) fn ready(self: &Rc<Self>, worker: &Rc<Worker>, link: &Rc<Link>) {
        let policy = self.policy.borrow();
        let room = if link.is_shared() { policy.pipeline_max } else { 1 };
        while link.is_usable() && link.load() < room {
            let Some((key, request)) = self.links.borrow_mut().waiting.pop_front() else { break };
            self.count_queued();
            if worker.on_link(key, link) {
                link.send(key, request);
            }
        }
        if link.load() == 0 {
            link.set_idle_since(worker.now());
            if self.retired.get() {
                link.retire();
            } else if !link.is_shared() && link.is_usable() {
                self.links.borrow_mut().free.push(link.clone());
            }
        }
    }

    /// A connection has ended; its calls are the caller's business.
    pub(crate) fn closed(self: &Rc<Self>, worker: &Rc<Worker>, link: &Rc<Link>, reason: &str) {
        {
            let mut links = self.links.borrow_mut();
            if link.is_proven() {
                links.failures = 0;
                links.retry_at = None;
            } else if link.is_usable() {
                // A server that takes connections and ends them is as good as one that refuses them.
                links.failed(worker.now(), reason);
            }
            self.under_way.connections.fetch_sub(1, Relaxed);
            links.open.retain(|open| !Rc::ptr_eq(open, link));
            links.free.retain(|free| !Rc::ptr_eq(free, link));
        }
        self.count_open();
        self.connect_for_waiting(worker);
        self.send_stranded(worker, reason);
    }

    /// No connection could be opened.
    pub(crate) fn connect_failed(self: &Rc<Self>, worker: &Rc<Worker>, reason: &str) {
        {
            let mut links = self.links.borrow_mut();
            links.connecting -= 1;
            self.under_way.connections.fetch_sub(1, Relaxed);
            links.failed(worker.now(), reason);
        }
        self.send_stranded(worker, reason);
    }

    /// Calls that wait for a connection go elsewhere if there is none, and none on its way.
    fn send_stranded(self: &Rc<Self>, worker: &Rc<Worker>, reason: &str) {
        let stranded = {
            let mut links = self.links.borrow_mut();
            if links.open.is_empty() && links.connecting == 0 { std::mem::take(&mut links.waiting) } else { VecDeque::new() }
        };
        self.count_queued();
        for (key, request) in stranded {
            worker.send_elsewhere(key, request, &Upstream::Pool(self.clone()), reason);
        }
    }

    fn least_loaded(&self, pipeline_max: usize) -> Option<Rc<Link>> {
        let links = self.links.borrow();
        let usable = links.open.iter().filter(|link| link.is_usable() && link.load() < pipeline_max);
        usable.min_by_key(|link| link.load()).cloned()
    }

    /// One connection for each call that waits, within the bound; if calls share connections, one at a time.
    pub(crate) fn connect_for_waiting(self: &Rc<Self>, worker: &Rc<Worker>) {
        loop {
            let wanted = {
                let policy = self.policy.borrow();
                let links = self.links.borrow();
                let may_try = links.retry_at.is_none_or(|at| at <= worker.now());
                let enough = if policy.pipelined { links.waiting.len().min(1) } else { links.waiting.len() };
                let room = links.open.len() + links.connecting < policy.connections_max && self.may_connect(&policy);
                may_try && links.connecting < enough && room
            };
            if !wanted {
                return;
            }
            self.connect(worker);
        }
    }

    fn connect(self: &Rc<Self>, worker: &Rc<Worker>) {
        self.links.borrow_mut().connecting += 1;
        self.under_way.connections.fetch_add(1, Relaxed);
        tokio::task::spawn_local(backend::run(worker.clone(), self.clone()));
    }

    fn count_open(&self) {
        self.counters.connections.set(self.links.borrow().open.len() as u64);
    }

    fn count_queued(&self) {
        let (before, now) = (self.counters.queued.get(), self.links.borrow().waiting.len() as u64);
        self.counters.queued.set(now);
        let sum = &self.under_way.queued;
        if now > before {
            sum.fetch_add(usize::try_from(now - before).unwrap_or(0), Relaxed);
        } else {
            sum.fetch_sub(usize::try_from(before - now).unwrap_or(0), Relaxed);
        }
    }
}

impl Links {
    /// The server is not there: the next try waits.
    fn failed(&mut self, now: Instant, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + backoff(BACKOFF, self.failures, &mut rand::rng()));
        reason.clone_into(&mut self.last_failure);
    }
}
