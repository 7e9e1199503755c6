//! Looks after the calls that the kernel routes: what it may route, which calls are too late or lost, what was counted.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use agent_common::{
    frame::{MetaBuilder, id, service_hash, status},
    lane::MEMBERS_MAX,
};
use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use super::{
    LaneId, LaneRoute, RoutedCall, RoutedMember,
    eligible::{Eligible, eligible, pick_of},
    lacking::Lacking,
    registry::{Event, Lanes, Seen, callee, caller, refusal},
    share,
};
use crate::{
    balance::overload::Level,
    clock::now_ns,
    proxy::{
        board::Board,
        dispatch::code,
        overload::Pressure,
        routes::{Instance, Routes, ServiceRoute},
        stats::{CallCounters, Histogram},
    },
};

/// How often it is looked whose time is over.
const TICK: Duration = Duration::from_millis(20);
/// Of these ticks, how many pass until it is looked whether anything has changed of which nobody says so, and what was counted.
const TICKS: u32 = 5;
/// Bytes that the body of a frame on a lane may have.
pub(crate) const BODY_MAX: u32 = 32 * 1024;
/// How long the number of an instance that is gone is kept: calls of it may still be in flight.
const KEPT: Duration = Duration::from_mins(5);

/// What is known of routing, for those who ask, by the services' keys.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// What may be routed: nothing or why not.
    pub(crate) why_not: HashMap<Arc<str>, Option<&'static str>>,
    /// The answers of services that are or were routed.
    pub(crate) answered: HashMap<Arc<str>, Histogram>,
}

/// The same, as it is shared.
pub(crate) type Verdicts = Mutex<Known>;

/// The one who looks after routed calls.
pub(crate) struct Keeper {
    lanes: Arc<Lanes>,
    board: Arc<Board>,
    verdicts: Arc<Verdicts>,
    pressure: Arc<Pressure>,
    /// What was published last.
    published: Vec<LaneRoute>,
    /// The services of it that the kernel does not take.
    refused: Vec<u64>,
    members: HashMap<u32, Member>,
    /// By the instance's address in memory, which is nobody else's while its member holds it.
    numbers: HashMap<usize, u32>,
    free: Vec<u32>,
    lacking: Lacking<usize>,
    /// What was looked at last; none if it is to be looked whether or not that has changed.
    looked: Option<Looked>,
}

/// What decides what may be routed, but for lanes and labels, whose changes are told. It holds all instances that were looked at,
/// so that their addresses are nobody else's until it is looked again.
struct Looked {
    routes: Arc<Routes>,
    /// [`crate::proxy::routes::Changes::count`].
    changes: u64,
    /// How much the agent has to bear.
    level: Level,
    /// For each service, whether somebody looks on at its calls.
    watched: Vec<bool>,
}

/// An instance whose routed calls are counted by themselves.
struct Member {
    service: Arc<str>,
    instance: Arc<Instance>,
    counters: Arc<CallCounters>,
    /// What has been added to them already.
    counted: RoutedMember,
    /// Since when it is not routed to.
    gone: Option<Instant>,
}

/// What has ended, or was given up.
#[derive(Default)]
struct Ends {
    over: HashSet<LaneId>,
    /// Stream connections.
    gone: HashSet<u64>,
    /// By the caller's `via`, with the reason.
    cancelled: HashMap<(LaneId, u64), u32>,
}

impl Ends {
    /// Whether nobody waits for the answer to a call on the way that it came.
    fn concern(&self, call: &RoutedCall) -> bool {
        self.over.contains(&caller(call)) || self.cancelled.contains_key(&(caller(call), call.via))
    }

    /// What its callee is told.
    fn why(&self, call: &RoutedCall) -> u32 {
        self.cancelled.get(&(caller(call), call.via)).copied().unwrap_or(status::CANCELLED)
    }
}

impl Keeper {
    pub(crate) fn new(lanes: Arc<Lanes>, board: Arc<Board>, (verdicts, pressure): (Arc<Verdicts>, Arc<Pressure>)) -> Self {
        Self {
            lanes,
            board,
            verdicts,
            pressure,
            published: Vec::new(),
            refused: Vec::new(),
            members: HashMap::new(),
            numbers: HashMap::new(),
            free: (0..MEMBERS_MAX).rev().collect(),
            lacking: Lacking::new(Instant::now()),
            looked: None,
        }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        self.lanes.path().set_on(true);
        // They stay the same from routes to routes.
        let changes = self.board.routes().changes.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(first) = event else { return };
                    self.heard(first, &mut events);
                }
                () = changes.changed() => self.look(),
                _ = ticks.tick() => {
                    self.expire();
                    count += 1;
                    if count % TICKS == 0 {
                        self.count();
                        self.look();
                    }
                }
            }
        }
    }

    /// Takes what came at once together: one walk over the calls answers for all of it.
    fn heard(&mut self, first: Event, events: &mut mpsc::UnboundedReceiver<Event>) {
        let (mut ends, mut given_up, mut opened) = (Ends::default(), Vec::new(), false);
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                Event::Opened => opened = true,
                Event::Over(lane) => drop(ends.over.insert(lane)),
                Event::Gone(conn) => drop(ends.gone.insert(conn)),
                Event::Cancelled { conn, caller, via, status } => {
                    given_up.push((conn, via, status));
                    if let Some(caller) = caller {
                        ends.cancelled.insert((caller, via), status);
                    }
                }
            }
            next = events.try_recv().ok();
        }
        if !ends.over.is_empty() || !ends.cancelled.is_empty() {
            self.end_calls(&ends);
        }
        self.end_moved(&ends);
        // After that: a call that was not found was answered before, and perhaps not whole.
        for (conn, via, status) in given_up {
            self.lanes.give_up_begun(conn, via, status);
        }
        for lane in &ends.over {
            self.lanes.forget(*lane);
        }
        if opened || !ends.over.is_empty() {
            self.publish(Instant::now());
        }
    }

    // Calls that have no answer.

    /// Ends the calls whose callers are gone, or have given them up, and keeps those whose callees have lost their lanes.
    fn end_calls(&self, ends: &Ends) {
        for via in self.find(|call| ends.concern(call) || ends.over.contains(&callee(call))) {
            match self.lanes.path().peek(via) {
                Some(call) if !ends.concern(&call) => {
                    if let Some(call) = self.lanes.keep(via) {
                        self.fail(&call, code::REMOTING, "the connection has ended");
                    }
                }
                _ => {
                    let Some(call) = self.lanes.take(via) else { continue };
                    self.fail_if_over(ends, &call);
                    self.lanes.abandon(via, &call, ends.why(&call));
                }
            }
        }
    }

    /// The same for those that were kept, and ends them if their callees are gone altogether.
    fn end_moved(&self, ends: &Ends) {
        for (via, call, owner) in self.lanes.take_moved(|call, owner| ends.concern(call) || ends.gone.contains(&owner.conn)) {
            if ends.gone.contains(&owner.conn) {
                self.fail(&call, code::REMOTING, "the connection has ended");
                self.count_failure(&call, code::REMOTING);
            } else {
                self.fail_if_over(ends, &call);
                self.lanes.abandon_at(owner, via, &call, ends.why(&call));
            }
        }
    }

    /// The stream connection of a lane that is over may go on.
    fn fail_if_over(&self, ends: &Ends, call: &RoutedCall) {
        if ends.over.contains(&caller(call)) {
            self.fail(call, code::REMOTING, "the lane that it came by has ended");
        }
    }

    /// Ends the calls whose time is over.
    fn expire(&self) {
        let path = self.lanes.path();
        let now = now_ns();
        if self.lanes.moved() > 0 {
            for (via, call, owner) in self.lanes.take_moved(|call, _| call.deadline_ns <= now) {
                self.time_out(&call, now);
                self.lanes.abandon_at(owner, via, &call, status::TIMEOUT);
            }
        }
        if !self.lanes.all().into_iter().any(|lane| path.look(lane).is_some_and(|look| look.in_flight > 0)) {
            return;
        }
        for via in self.find(|call| call.deadline_ns <= now) {
            let Some(call) = self.lanes.take(via) else { continue };
            self.time_out(&call, now);
            self.lanes.abandon(via, &call, status::TIMEOUT);
        }
    }

    fn time_out(&self, call: &RoutedCall, now: u64) {
        let took = Duration::from_nanos(now.saturating_sub(call.started_ns));
        self.fail(call, code::TIMEOUT, &format!("no answer within {} ms", took.as_millis()));
        self.count_failure(call, code::TIMEOUT);
    }

    /// The calls in flight of which something is so, by the `via` that their callees know.
    fn find(&self, is_so: impl Fn(&RoutedCall) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        self.lanes.path().calls(&mut |via, call| {
            if is_so(call) {
                found.push(via);
            }
        });
        found
    }

    fn fail(&self, call: &RoutedCall, code: u16, reason: &str) {
        let member = self.members.get(&call.member);
        let whose = member.map_or_else(String::new, |member| format!("{} at {}: ", member.service, member.instance.name));
        let mut meta = MetaBuilder::new();
        meta.put(id::ERROR_TEXT, format!("MOA Mesh: {whose}{reason} (routed in the kernel)").as_bytes());
        self.lanes.refuse(call, refusal(code), meta.finish(), Bytes::new());
    }

    fn count_failure(&self, call: &RoutedCall, code: u16) {
        let Some(member) = self.members.get(&call.member) else { return };
        let took = Duration::from_nanos(now_ns().saturating_sub(call.started_ns));
        member.counters.failed(took.into(), code);
        member.counters.tried(took.into(), true);
        let routes = self.board.routes();
        let consecutive = routes.by_key(&member.service).map(|route| route.policy.outlier.consecutive);
        member.instance.record.failed(consecutive.unwrap_or(0));
    }

    // What is counted.

    /// Adds what the programs have counted to the counters of the instances, and shows the workers how long they took.
    fn count(&mut self) {
        let path = self.lanes.path();
        let mut seen = Vec::new();
        for (number, member) in &mut self.members {
            let Some(now) = path.member(*number) else { continue };
            if now.answered() != member.counted.answered() {
                member.counters.routed(&member.counted, &now);
                let mut known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
                known.answered.entry(member.service.clone()).or_default().add_routed(&member.counted, &now);
                drop(known);
                let took = now.mean_since(&member.counted).map(Duration::from_nanos);
                seen.extend(took.map(|took| Seen { service: member.service.clone(), instance: member.instance.clone(), took }));
                member.counted = now;
                member.instance.record.succeeded();
            }
        }
        if !seen.is_empty() {
            self.lanes.show(seen);
        }
        let had_free = self.free.len();
        let (members, numbers, free) = (&mut self.members, &mut self.numbers, &mut self.free);
        members.retain(|number, member| {
            let stays = member.gone.is_none_or(|since| since.elapsed() < KEPT);
            if !stays {
                numbers.remove(&address_of(&member.instance));
                free.push(*number);
            }
            stays
        });
        if self.free.len() > had_free {
            self.looked = None;
        }
    }

    /// The number that an instance is counted by; none if there are too many.
    fn number(&mut self, service: &Arc<str>, instance: &Arc<Instance>) -> Option<u32> {
        if let Some(number) = self.numbers.get(&address_of(instance)) {
            if let Some(member) = self.members.get_mut(number) {
                member.gone = None;
            }
            return Some(*number);
        }
        let number = self.free.pop()?;
        let counted = self.lanes.path().member(number)?;
        let counters = instance.counters.writer();
        self.numbers.insert(address_of(instance), number);
        let member = Member { service: service.clone(), instance: instance.clone(), counters, counted, gone: None };
        self.members.insert(number, member);
        Some(number)
    }

    // What may be routed.

    /// Publishes what may be routed now, if anything has changed that decides it.
    fn look(&mut self) {
        let now = Instant::now();
        let is_due = self.lacking.next().is_some_and(|due| due <= now);
        if is_due || self.looked.as_ref().is_none_or(|looked| *looked != self.at(self.board.routes())) {
            self.publish(now);
        }
    }

    fn at(&self, routes: Arc<Routes>) -> Looked {
        // First of all: what is looked at afterwards is at least as new.
        let changes = routes.changes.count();
        let watched = routes.services.iter().map(|route| route.watch.is_on()).collect();
        Looked { routes, changes, level: self.pressure.level(), watched }
    }

    /// Publishes what may be routed now, if that is not what is published.
    fn publish(&mut self, now: Instant) {
        let routes = self.board.routes();
        // What changes from here on is another change.
        let looked = self.at(routes.clone());
        self.lacking.begin(now);
        let lanes = self.lanes.by_conn();
        let mut published = Vec::new();
        let mut verdicts = HashMap::new();
        let mut used = HashSet::new();
        for route in routes.services.iter().filter(|_| !lanes.is_empty()) {
            let seen = (&lanes, looked.level);
            let route_of = eligible(route, seen, &mut self.lacking).and_then(|instances| self.route(&routes, route, instances));
            verdicts.insert(route.key.clone(), route_of.as_ref().err().copied());
            if let Ok(route_of) = route_of {
                used.extend(route_of.instances.iter().map(|(.., member)| *member));
                published.push(route_of);
            }
        }
        self.lacking.end();
        without_collisions(&mut published);
        for (number, member) in &mut self.members {
            member.gone = if used.contains(number) { None } else { member.gone.or(Some(now)) };
        }
        let is_put = published == self.published || self.put(published);
        self.looked = is_put.then_some(looked);
        for route in routes.services.iter().filter(|_| !self.refused.is_empty()) {
            if self.refused.contains(&hash_of(route)) {
                verdicts.insert(
                    route.key.clone(),
                    Some("its instances, or their weights, do not fit into 64 turns; or there are too many services"),
                );
            }
        }
        let mut known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        known.answered.retain(|key, _| routes.by_key(key).is_some());
        known.why_not = verdicts;
    }

    fn put(&mut self, published: Vec<LaneRoute>) -> bool {
        match self.lanes.path().publish(&published) {
            Ok(refused) => {
                (self.published, self.refused) = (published, refused);
                true
            }
            Err(error) => {
                warn!(%error, "the kernel does not take the routes: what was routed is routed still");
                false
            }
        }
    }

    /// The labels of those that may call; none: all may.
    fn callers(&self, route: &ServiceRoute) -> Option<Vec<u32>> {
        if route.plan.is_open() {
            return None;
        }
        let nobody = ("".into(), 0);
        let labels = self.lanes.labels().into_iter().chain([nobody]);
        Some(labels.filter(|(application, _)| route.plan.lets_in(application)).map(|(_, label)| label).collect())
    }

    fn route(&mut self, routes: &Routes, route: &ServiceRoute, instances: Vec<Eligible>) -> Result<LaneRoute, &'static str> {
        let away = share::away_share(route)?;
        let mut numbered = Vec::with_capacity(instances.len());
        for Eligible { lane, weight, instance } in instances {
            let member = self.number(&route.key, &instance).ok_or("too many instances are counted")?;
            numbered.push((lane, weight, member));
        }
        numbered.sort_unstable_by_key(|(lane, ..)| lane.index);
        Ok(LaneRoute {
            service: hash_of(route),
            pick: pick_of(route.policy.balance.policy),
            callers: self.callers(route),
            timeout_ms: u32::try_from(route.policy.timeout_ms).unwrap_or(u32::MAX),
            to_agent_per_million: share::to_agent_per_million(routes.checked.config.tracing.share_per_million(), away),
            body_max: BODY_MAX,
            instances: numbered,
        })
    }
}

impl PartialEq for Looked {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.routes, &other.routes)
            && self.changes == other.changes
            && self.level == other.level
            && self.watched == other.watched
    }
}

/// Two services with one hash: only the agent can tell them apart.
fn without_collisions(routes: &mut Vec<LaneRoute>) {
    let mut seen = HashMap::new();
    routes.iter().for_each(|route| *seen.entry(route.service).or_insert(0) += 1);
    routes.retain(|route| seen.get(&route.service) == Some(&1));
}

fn hash_of(route: &ServiceRoute) -> u64 {
    service_hash(route.uri.as_bytes(), route.group.as_bytes())
}

pub(super) fn address_of(instance: &Arc<Instance>) -> usize {
    Arc::as_ptr(instance).addr()
}
