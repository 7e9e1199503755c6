//! What is counted when a call moves and when it ends: in flight, outcomes, latencies, by service, method and instance.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    dispatch::{Call, Place, code},
    routes::Instance,
    service::Service,
    stats::{CallCounters, Took},
    worker::Worker,
};

/// Who answered a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Service,
    Mesh,
    Nobody,
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) by: By,
    /// None if it is a success.
    pub(super) code: Option<u16>,
    pub(super) text: &'a str,
    /// Bytes of the answer, as far as they are known.
    pub(super) bytes: usize,
    /// Who got the call says that it has not executed it.
    pub(super) refused: bool,
}

impl<'a> End<'a> {
    pub(super) fn service(code: Option<u16>, bytes: usize) -> Self {
        Self { by: By::Service, code, text: "", bytes, refused: false }
    }

    pub(super) fn mesh(code: u16, text: &'a str) -> Self {
        Self { by: By::Mesh, code: Some(code), text, bytes: 0, refused: false }
    }

    /// The caller wants no answer any more.
    pub(super) fn given_up() -> Self {
        Self { by: By::Nobody, code: None, text: "the caller gave up", bytes: 0, refused: false }
    }

    /// With this error, if who got the call has not executed it.
    pub(super) fn refused(self, refused: bool) -> Self {
        Self { refused, ..self }
    }

    /// Whether it speaks against the instance. A refusal does not: there may be no room, or a rule against the call.
    fn is_failure(&self, call: &Call) -> bool {
        match (self.by, self.code) {
            (_, None) | (By::Nobody, _) => false,
            _ if self.refused => false,
            (By::Mesh, Some(code)) => matches!(code, code::REMOTING | code::TIMEOUT),
            (By::Service, Some(code)) => call.service.route.policy.outlier.codes.contains(&code),
        }
    }
}

impl Call {
    /// It is in the table from now on.
    pub(super) fn enters(&mut self) {
        if !self.counted {
            return;
        }
        let governed = &self.service.governed;
        governed.in_flight.set(governed.in_flight.get() + 1);
        if self.service.route.policy.breaker.service_calls_max > 0 {
            self.service.route.under_way.calls.fetch_add(1, Relaxed);
            self.bounded.0 = true;
        }
    }

    /// It has gone to another place. Returns the former one.
    pub(super) fn moves(&mut self, place: Place, now: Instant) -> Place {
        if self.place.slot() == place.slot() {
            let former = std::mem::replace(&mut self.place, place);
            self.tries();
            return former;
        }
        self.leaves_place();
        self.bounded.1 = false;
        let former = std::mem::replace(&mut self.place, place);
        self.tried_at = now;
        if let Some(counters) = self.counters() {
            counters.in_flight.add(1);
        }
        if let Some(slot) = self.place.slot() {
            self.service.loads.begin(slot);
        }
        self.tries();
        if self.counted
            && self.service.route.policy.breaker.instance_calls_max > 0
            && let Some(instance) = self.place.instance()
        {
            instance.in_flight.fetch_add(1, Relaxed);
            self.bounded.1 = true;
        }
        former
    }

    /// It may be the one by which an agent is tried that has come back.
    fn tries(&self) {
        if let Some(agent) = self.place.instance().filter(|instance| instance.is_agent()) {
            agent.health.tries();
        }
    }

    fn leaves_place(&self) {
        if let Some(counters) = self.counters() {
            counters.in_flight.sub(1);
        }
        if let Some(slot) = self.place.slot() {
            self.service.loads.end(slot);
        }
        if self.bounded.1
            && let Some(instance) = self.place.instance()
        {
            instance.in_flight.fetch_sub(1, Relaxed);
        }
        if let Some(agent) = self.place.instance().filter(|instance| instance.is_agent()) {
            agent.health.tried();
        }
    }

    /// It is not in the table any more.
    pub(super) fn leaves(&self) {
        self.leaves_place();
        if self.counted {
            self.leaves_service();
        }
        if self.bounded.0 {
            self.service.route.under_way.calls.fetch_sub(1, Relaxed);
        }
    }

    fn leaves_service(&self) {
        let governed = &self.service.governed;
        governed.in_flight.set(governed.in_flight.get() - 1);
    }

    /// It is not counted any more, as another copy of it is.
    pub(super) fn uncount(&mut self) {
        if self.counted {
            self.leaves_service();
        }
        if let Some(counters) = self.counters() {
            counters.in_flight.sub(1);
        }
        self.counted = false;
    }

    /// It goes on under another configuration of its service.
    pub(super) fn follow(&mut self, service: &Rc<Service>) {
        if Rc::ptr_eq(&self.service, service) {
            return;
        }
        let subsets = service.route.plan.subsets();
        let former = self.service.route.plan.subsets();
        let same = |subset: u16| {
            let was = former.get(usize::from(subset))?;
            subsets.iter().position(|is| is == was).and_then(|at| u16::try_from(at).ok())
        };
        // A subset that is no more has no instances.
        self.choice.subset = same(self.choice.subset).unwrap_or(u16::MAX);
        self.choice.otherwise = self.choice.otherwise.and_then(same);
        self.choice.last = self.choice.last.and_then(same);
        // It may be another one by now.
        self.choice.rule = None;
        if self.counted {
            self.leaves_service();
            service.governed.in_flight.set(service.governed.in_flight.get() + 1);
        }
        let [was, is] = [&self.service.route.under_way, &service.route.under_way];
        if self.bounded.0 && !Arc::ptr_eq(was, is) {
            was.calls.fetch_sub(1, Relaxed);
            is.calls.fetch_add(1, Relaxed);
        }
        self.service = service.clone();
    }

    /// One try of it has failed at an instance.
    pub(super) fn failed_at(&self, slot: u32, instance: &Instance, now: Instant) {
        self.passes_for_slow(slot, now);
        if self.counted {
            instance.record.failed(self.service.route.policy.outlier.consecutive);
        }
    }

    /// One try of it was not answered at an instance; if `refused`, it was not executed either.
    pub(super) fn not_answered_at(&self, slot: u32, instance: &Instance, refused: bool, now: Instant) {
        match refused {
            true => self.passes_for_slow(slot, now),
            false => self.failed_at(slot, instance, now),
        }
    }

    /// An instance that fails, or refuses, at once must not look like a quick one.
    fn passes_for_slow(&self, slot: u32, now: Instant) {
        let took = now.duration_since(self.tried_at);
        let average = self.service.loads.fail(slot, took, now.into_std());
        self.notes_average(average);
    }

    /// For those who look on.
    fn notes_average(&self, ns: f32) {
        if let Some(counters) = self.counters() {
            counters.set_ewma(ns);
        }
    }

    fn succeeded_at(&self, slot: u32, instance: &Instance, (took, late): (Duration, Duration), now: Instant) {
        let average = self.service.loads.observe_late(slot, took, late, now.into_std());
        self.notes_average(average);
        if instance.is_agent() {
            instance.health.proves();
        }
        if self.counted {
            instance.record.succeeded();
        }
    }
}

impl Worker {
    /// A call has ended: counts it, where it is unless `elsewhere` is said, and tells those who follow.
    pub(super) fn account(&self, call: &mut Call, elsewhere: Option<&CallCounters>, end: &End<'_>) {
        let now = self.now();
        let counters = elsewhere.or_else(|| call.counters());
        let took = now.duration_since(call.started);
        let counted = Took::from(took);
        match (counters, end.code) {
            (Some(counters), Some(code)) if end.by == By::Mesh => counters.failed(counted, code),
            (Some(counters), error) => counters.answered(counted, error),
            (None, Some(code)) if call.counted => call.service.unsent.refused(code),
            (None, _) => {}
        }
        let failed = end.is_failure(call);
        if let (Some(slot), Some(instance)) = (call.place.slot(), call.place.instance()) {
            let once = call.tried_at == call.started;
            let tried = if once { took } else { now.duration_since(call.tried_at) };
            if let Some(counters) = counters.filter(|_| !end.refused) {
                counters.tried(if once { counted } else { tried.into() }, failed);
            }
            match failed {
                true => call.failed_at(slot, instance, now),
                false if end.refused => call.passes_for_slow(slot, now),
                false if end.by == By::Service => call.succeeded_at(slot, instance, (tried, self.late()), now),
                false => {}
            }
        }
        if call.counted {
            call.service.governed.ended(call, (took, counted, now), end, failed || end.refused);
        }
        self.report(call, took, end);
    }
}
