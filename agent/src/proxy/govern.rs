//! What a service's policy says about a call before it is sent: whether it may be made, whether there is room for it, where it goes,
//! and what else is to be done with it.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::{
    account::{By, End},
    again::More,
    choice::Choice,
    dispatch::{Call, code},
    frames::Scope,
    report::Followed,
    routes::{ServiceRoute, service_key},
    service::Service,
    socket::Peer,
    stats::{METHODS_MAX, MethodCounters, PolicyCounters, Took},
    worker::Worker,
};
use crate::{
    balance::{self, Adaptive, Budget, Share},
    config::traffic::{BalancePolicy, RetryOn},
    rules::{self, Access, Name, Pattern, Plan, Routed, Says, Shadow, is_stress},
};

/// Callers of one service that a worker remembers the shares of, and for how long.
const SHARES_MAX: usize = 10_000;
const SHARES_FOR: Duration = Duration::from_secs(60);

/// What one worker keeps of a service's policy. It stays while the policy does.
#[derive(Debug)]
pub(crate) struct Governed {
    /// Nothing of a call matters but its method.
    is_simple: bool,
    budget: RefCell<Budget>,
    hedges: Option<RefCell<Budget>>,
    adaptive: Option<RefCell<Adaptive>>,
    shares: RefCell<HashMap<Box<str>, Arc<Share>, RandomState>>,
    shares_since: Cell<Instant>,
    /// Copies in flight, by the shadow's place in the plan.
    shadows: Vec<Rc<Cell<u32>>>,
    /// Methods that may be executed twice.
    idempotent: Vec<Pattern>,
    methods: Rc<Methods>,
    pub(super) counters: Arc<PolicyCounters>,
    /// Calls of this worker.
    pub(super) in_flight: Cell<u32>,
}

/// The methods that are counted by themselves; the first one stands for all others.
#[derive(Debug)]
struct Methods {
    by_name: RefCell<HashMap<Box<[u8]>, u16, RandomState>>,
    counters: RefCell<Vec<Arc<MethodCounters>>>,
}

/// Where a call comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) scope: Scope,
    /// The calling application; empty if it does not say.
    pub(super) application: &'a str,
    pub(super) peer: Peer,
    /// `redis` or `frames`.
    pub(super) protocol: &'static str,
    /// The caller says that it may be executed twice.
    pub(super) idempotent: bool,
    /// It is a copy, whose answer nobody reads.
    pub(super) shadow: bool,
    /// Whether it begins a trace, if that was decided.
    pub(super) sampled: Option<bool>,
}

/// A call that is to be made.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) service: Rc<Service>,
    pub(super) choice: Choice,
    pub(super) method: u16,
    pub(super) more: Option<Box<More>>,
    /// Copies that go elsewhere.
    pub(super) copies: Vec<Copied>,
}

/// A copy of a call, whose answer is dropped.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) service: Rc<Service>,
    pub(super) choice: Choice,
    /// It is another service than the call's.
    pub(super) moved: bool,
    /// The rule that wants it.
    pub(super) name: Arc<str>,
    /// What is told of it when it ends.
    pub(super) followed: Option<Box<Followed>>,
    pub(super) guard: Guard,
    pub(super) counters: Arc<PolicyCounters>,
}

/// Counts a copy for as long as it is in flight.
#[derive(Debug)]
pub(super) struct Guard(Rc<Cell<u32>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Why a call is not made.
pub(super) struct Refused {
    pub(super) code: u16,
    pub(super) reason: String,
}

/// A bound was reached.
pub(super) fn full(reason: String) -> Refused {
    Refused { code: code::POOL_FULL, reason }
}

impl Governed {
    pub(super) fn new(route: &ServiceRoute, former: Option<(&ServiceRoute, &Rc<Self>)>, workers: u32) -> Rc<Self> {
        let same = former.filter(|(was, _)| was.policy == route.policy && Arc::ptr_eq(&was.plan, &route.plan));
        if let Some((_, same)) = same {
            return same.clone();
        }
        let policy = &route.policy;
        let former = former.map(|(_, governed)| governed);
        let plain = route.plan.is_plain()
            && route.limiter.is_none()
            && policy.breaker == Default::default()
            && !policy.concurrency.adaptive
            && policy.retry.methods.is_empty()
            && policy.hedge.after_ms == 0
            && policy.try_timeout_ms == 0
            && policy.balance.policy != BalancePolicy::Ketama;
        let shadows = route.plan.shadow_count();
        Rc::new(Self {
            is_simple: plain,
            budget: RefCell::new(Budget::shared(policy.retry.budget_percent, policy.retry.budget_per_s, workers)),
            hedges: (policy.hedge.after_ms > 0).then(|| RefCell::new(Budget::new(policy.hedge.budget_percent, 0))),
            adaptive: policy
                .concurrency
                .adaptive
                .then(|| RefCell::new(Adaptive::new(policy.concurrency.min, policy.concurrency.max))),
            shares: RefCell::default(),
            shares_since: Cell::new(Instant::now()),
            shadows: (0..shadows).map(|_| Rc::default()).collect(),
            idempotent: policy.retry.methods.iter().map(|pattern| Pattern::new(pattern)).collect(),
            methods: former.map_or_else(|| Rc::new(Methods::new(route)), |former| former.methods.clone()),
            counters: former.map_or_else(|| route.policed.writer(), |former| former.counters.clone()),
            in_flight: Cell::new(0),
        })
    }

    /// A call begins, which pays for its share of retries and second copies.
    fn deposit(&self, now: Instant) {
        self.budget.borrow_mut().deposit(now.into_std());
        if let Some(hedges) = &self.hedges {
            hedges.borrow_mut().deposit(now.into_std());
        }
    }

    /// Whether one more retry is within the budget.
    pub(super) fn may_retry(&self, now: Instant) -> bool {
        let may = self.budget.borrow_mut().take(now.into_std());
        if may {
            self.counters.retries.add(1);
        } else {
            self.counters.budget_exhausted.add(1);
        }
        may
    }

    /// Writes down what of its state is for others to see.
    pub(super) fn shows(&self, now: Instant) {
        self.counters.budget_left.set(u64::from(self.budget.borrow().left(now.into_std())));
        self.counters.limit.set(self.adaptive.as_ref().map_or(0, |adaptive| u64::from(adaptive.borrow().limit())));
    }

    /// Whether one more second copy is within the budget.
    pub(super) fn may_hedge(&self, now: Instant) -> bool {
        let may = self.hedges.as_ref().is_some_and(|hedges| hedges.borrow_mut().take(now.into_std()));
        if may {
            self.counters.hedges.add(1);
        } else {
            self.counters.budget_exhausted.add(1);
        }
        may
    }

    /// A call has ended.
    pub(super) fn ended(&self, call: &Call, (took, counted, now): (Duration, Took, Instant), end: &End<'_>, failed: bool) {
        let error = end.code.is_some();
        if let Some(counters) = self.methods.counters.borrow().get(usize::from(call.method)) {
            counters.ended(counted, error && end.by == By::Mesh, error && end.by == By::Service);
        }
        if let Some(adaptive) = &self.adaptive
            && call.place.slot().is_some()
        {
            // The call that ends counts among those in flight.
            adaptive.borrow_mut().observe(took, self.in_flight.get() + 1, failed, now.into_std());
        }
    }

    fn share(&self, application: &str, route: &ServiceRoute, now: Instant) -> Option<Arc<Share>> {
        let limiter = route.limiter.as_ref()?;
        let mut shares = self.shares.borrow_mut();
        if let Some(share) = shares.get(application) {
            return Some(share.clone());
        }
        // The limiter forgets only callers that nobody remembers.
        if shares.len() >= SHARES_MAX || now.duration_since(self.shares_since.get()) > SHARES_FOR {
            shares.clear();
            self.shares_since.set(now);
        }
        let share = limiter.caller(application, now.into_std());
        shares.insert(application.into(), share.clone());
        Some(share)
    }

    /// Whether there is room for one more call.
    fn has_room(&self, route: &ServiceRoute) -> Result<(), Refused> {
        let max = route.policy.breaker.service_calls_max;
        if max > 0 && route.under_way.calls.load(Relaxed) >= max {
            self.counters.broken.add(1);
            return Err(full(format!("{max} calls of the service are in flight (breaker.service_calls_max)")));
        }
        if let Some(adaptive) = &self.adaptive {
            let adaptive = adaptive.borrow();
            if !adaptive.admits(self.in_flight.get()) {
                self.counters.shed.add(1);
                let limit = adaptive.limit();
                return Err(full(format!(
                    "the service takes {limit} calls at once of this worker for now (concurrency.adaptive)"
                )));
            }
        }
        Ok(())
    }

    /// Whether the caller may make one more call now.
    fn is_within_rate(&self, route: &ServiceRoute, origin: &Origin<'_>, now: Instant) -> Result<(), Refused> {
        if let (Some(limiter), Some(share)) = (&route.limiter, self.share(origin.application, route, now)) {
            limiter.admit(&share, now.into_std()).map_err(|refused| {
                self.counters.rate_limited.add(1);
                full(refused.to_string())
            })?;
        }
        Ok(())
    }
}

impl Methods {
    fn new(route: &ServiceRoute) -> Self {
        let others = route.methods.writer(b"").unwrap_or_default();
        Self { by_name: RefCell::default(), counters: RefCell::new(vec![others]) }
    }

    fn number(&self, method: &[u8], route: &ServiceRoute) -> u16 {
        let mut by_name = self.by_name.borrow_mut();
        if let Some(number) = by_name.get(method) {
            return *number;
        }
        let mut counters = self.counters.borrow_mut();
        let number = u16::try_from(counters.len()).unwrap_or(0);
        if by_name.len() >= METHODS_MAX || method.is_empty() {
            return 0;
        }
        // A method that has no counters of its own is not remembered: whoever sends any names must not fill the table.
        let Some(own) = route.methods.writer(method) else { return 0 };
        counters.push(own);
        by_name.insert(method.into(), number);
        number
    }
}

impl Begun {
    /// Prepares for sending the call again, if its policy lets it be executed twice.
    fn repeats(&mut self, origin: &Origin<'_>, method: &[u8]) {
        let service = self.service.clone();
        let policy = &service.route.policy;
        let idempotent = origin.idempotent || service.governed.idempotent.iter().any(|pattern| pattern.fits(method));
        let hedge = (idempotent && policy.hedge.after_ms > 0).then(|| Duration::from_millis(policy.hedge.after_ms));
        let keeps = hedge.is_some() || (idempotent && policy.retry.tries_max > 1 && !policy.retry.on.is_empty());
        let try_timeout = (policy.try_timeout_ms > 0).then(|| Duration::from_millis(policy.try_timeout_ms));
        if keeps || try_timeout.is_some() {
            let more = self.more.get_or_insert_default();
            (more.keeps, more.idempotent, more.hedge_after, more.try_timeout) = (keeps, idempotent, hedge, try_timeout);
        }
    }
}

impl Worker {
    /// Decides about a call.
    pub(super) fn govern(&self, service: &Rc<Service>, call: &impl Says, origin: &Origin<'_>) -> Result<Begun, Refused> {
        let (governed, route) = (&service.governed, &service.route);
        if origin.scope != Scope::Worker {
            self.can_bear(service).inspect_err(|refused| self.report_refused(service, call, origin, refused))?;
        }
        let method = call.get(&Name::Method).unwrap_or_default();
        let number = governed.methods.number(&method, route);
        let mut begun =
            Begun { service: service.clone(), choice: Choice::default(), method: number, more: None, copies: Vec::new() };
        if origin.scope == Scope::Mesh {
            governed.deposit(self.now());
        }
        let mut rule = None;
        if governed.is_simple {
            if origin.idempotent && origin.scope == Scope::Mesh {
                begun.repeats(origin, &method);
            }
        } else {
            // One throw for all questions about a call, so that they agree.
            let dice = self.dice(rand::Rng::next_u32);
            let decided = self.decide(service, call, origin, dice);
            let routed = decided.inspect_err(|refused| self.report_refused(service, call, origin, refused))?;
            rule = routed.rule;
            begun.choice = Choice { key: hash_key(route, call), ..choice_of(&routed, &route.plan) };
            if origin.scope == Scope::Mesh && !routed.plain {
                let prepared = self.prepare(&mut begun, (call, origin, &method, dice), &routed);
                prepared.inspect_err(|refused| self.report_refused(service, call, origin, refused))?;
            }
        }
        if self.is_followed(service) {
            self.follow(&mut begun, call, origin, &method, rule);
        }
        for copied in &mut begun.copies {
            copied.followed = self.follow_copy(copied, call, origin, &method);
        }
        Ok(begun)
    }

    /// Whether a call may be made, and where it goes.
    fn decide<'s>(
        &self,
        service: &'s Rc<Service>,
        call: &impl Says,
        origin: &Origin<'_>,
        dice: u32,
    ) -> Result<Routed<'s>, Refused> {
        let plan = &service.route.plan;
        // Rules have their say once: at the agent that the caller is connected to.
        let routed = match origin.scope {
            Scope::Mesh => plan.route(call, dice),
            Scope::Node | Scope::Worker => plan.route_by_environment(call),
        };
        if origin.scope != Scope::Worker {
            self.may_call(service, call)?;
            if !routed.plain {
                if routed.group.is_none() {
                    service.governed.has_room(&service.route)?;
                }
                // Last: a call that is refused for something else has used up nothing.
                service.governed.is_within_rate(&service.route, origin, self.now())?;
            }
        }
        Ok(routed)
    }

    /// Decides what else is to be done with a call that is at its first agent.
    fn prepare(
        &self,
        begun: &mut Begun,
        (call, origin, method, dice): (&impl Says, &Origin<'_>, &[u8], u32),
        routed: &Routed<'_>,
    ) -> Result<(), Refused> {
        let service = begun.service.clone();
        let (governed, route) = (&service.governed, &service.route);
        if let Some(group) = routed.group {
            self.join_group(begun, group, (call, routed, method))?;
        }
        begun.repeats(origin, method);
        let subset = begun.service.route.plan.subsets().get(usize::from(begun.choice.subset));
        if let Some(environment) = subset.and_then(|subset| subset.environment.as_ref()) {
            begun.more.get_or_insert_default().environment = Some(environment.clone());
        }
        if (!route.plan.is_open() || route.limiter.is_some()) && !origin.application.is_empty() {
            let instance = call.get(&Name::Instance).unwrap_or_default();
            let source = (origin.application.into(), String::from_utf8_lossy(&instance).into());
            begun.more.get_or_insert_default().source = Some(source);
        }
        if let Some(fault) = route.plan.fault(call, dice) {
            governed.counters.faults.add(1);
            if let Some(code) = fault.code
                && fault.delay.is_zero()
            {
                return Err(Refused { code, reason: format!("the fault {:?} (faults)", fault.name) });
            }
            begun.more.get_or_insert_default().fault = Some(fault.clone());
        }
        governed.counters.stress.add(u64::from(is_stress(call)));
        if !origin.shadow {
            self.copies(begun, call, dice, &service);
        }
        Ok(())
    }

    /// A call goes to another group than its own.
    fn join_group(
        &self,
        begun: &mut Begun,
        group: &str,
        (call, routed, method): (&impl Says, &Routed<'_>, &[u8]),
    ) -> Result<(), Refused> {
        let route = begun.service.route.clone();
        let otherwise = begun.choice.otherwise.map(|subset| {
            let choice = Choice { subset, otherwise: begun.choice.last, last: None, ..begun.choice };
            (begun.service.clone(), choice, begun.method)
        });
        let other = self.service(&service_key(&route.uri, group));
        let room = other.as_ref().map_or(Ok(()), |other| {
            self.may_call(other, call)?;
            other.governed.has_room(&other.route)
        });
        match (other.filter(|_| room.is_ok()), otherwise) {
            (Some(other), otherwise) => {
                let subset = meant_by(&route, routed.subset, &other);
                // Whether its key counts is for who gets it to say.
                let key = hash_key(&other.route, call);
                begun.choice = Choice { subset, otherwise: None, last: None, key, rule: None, ..begun.choice };
                begun.method = other.governed.methods.number(method, &other.route);
                begun.more.get_or_insert_default().moved = true;
                begun.service = other;
                if let Some(otherwise) = otherwise {
                    begun.more.get_or_insert_default().fallback = Some(Box::new(otherwise));
                }
                Ok(())
            }
            (None, Some((own, choice, _))) => {
                own.governed.has_room(&own.route)?;
                begun.choice = choice;
                Ok(())
            }
            (None, None) => {
                room?;
                let rule = routed.rule.unwrap_or_default();
                let reason = format!("the rule {rule:?} sends it to the group {group:?}, which nobody serves (routes)");
                Err(Refused { code: code::SERVICE_NOT_FOUND, reason })
            }
        }
    }

    /// Whether the caller may make the call.
    fn may_call(&self, service: &Service, call: &impl Says) -> Result<(), Refused> {
        match service.route.plan.access(call) {
            Access::Allowed => Ok(()),
            Access::Denied { rule, dry_run: true } => {
                service.governed.counters.denied_dry.add(1);
                tracing::debug!(service = service.name(), rule, "would be refused");
                Ok(())
            }
            Access::Denied { rule, dry_run: false } => {
                service.governed.counters.denied.add(1);
                let application = call.get(&Name::Application).unwrap_or(Cow::Borrowed(b""));
                let application = String::from_utf8_lossy(&application);
                let who =
                    if application.is_empty() { "a caller without a name".to_owned() } else { format!("{application:.64}") };
                Err(Refused { code: code::NOT_ALLOWED, reason: format!("{who} may not make this call (access, rule {rule:?})") })
            }
        }
    }

    /// Decides about the copies of a call.
    fn copies(&self, begun: &mut Begun, call: &impl Says, dice: u32, service: &Rc<Service>) {
        let governed = &service.governed;
        let route = &service.route;
        for Shadow { name, subset, in_flight_max, index, .. } in route.plan.shadows(call, dice) {
            let elsewhere = route.plan.subsets().get(*subset).and_then(|subset| subset.elsewhere(&route.uri, &route.group));
            let to = match elsewhere {
                Some((uri, group)) => self.service(&service_key(uri, group)),
                None => Some(service.clone()),
            };
            let count = &governed.shadows[*index];
            let Some(to) = to.filter(|_| count.get() < *in_flight_max) else {
                governed.counters.shadows_dropped.add(1);
                continue;
            };
            count.set(count.get() + 1);
            let moved = !Rc::ptr_eq(&to, service);
            let subset = meant_by(route, *subset, &to);
            let choice = Choice { subset, key: hash_key(&to.route, call), ..Choice::default() };
            let (guard, counters) = (Guard(count.clone()), governed.counters.clone());
            begun.copies.push(Copied { service: to, choice, moved, name: name.clone(), followed: None, guard, counters });
        }
    }
}

fn choice_of(routed: &Routed<'_>, plan: &Plan) -> Choice {
    let last_word = routed.rule.filter(|_| routed.otherwise.is_none());
    Choice {
        rule: last_word.and_then(|rule| plan.position(rule)).map(number),
        subset: number(routed.subset),
        otherwise: routed.otherwise.map(number),
        last: routed.last.map(number),
        key: None,
        pin: 0,
        plain: routed.plain,
        away: false,
    }
}

/// The subset of another service that a rule of this one means.
pub(super) fn meant_by(route: &ServiceRoute, subset: usize, other: &Service) -> u16 {
    let meant = route.plan.subsets().get(subset).and_then(|subset| other.route.plan.subset_meant(subset));
    // One that is not there has no instances.
    meant.map_or(u16::MAX, number)
}

/// The number of a subset. There are never as many as that.
fn number(subset: usize) -> u16 {
    u16::try_from(subset).unwrap_or(u16::MAX)
}

pub(super) fn hash_key(route: &ServiceRoute, call: &impl Says) -> Option<u32> {
    if route.policy.balance.policy != BalancePolicy::Ketama {
        return None;
    }
    rules::hash_key(call).map(|key| balance::hash(&key))
}

/// Whether a failure of this kind is one after which calls are sent again.
pub(super) fn retries(route: &ServiceRoute, on: RetryOn, code: Option<u16>) -> bool {
    let retry = &route.policy.retry;
    retry.on.contains(&on) && code.is_none_or(|code| retry.codes.contains(&code))
}
