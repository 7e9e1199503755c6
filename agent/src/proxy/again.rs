//! Calls that are sent more than once, or later: retries, second copies, copies that nobody waits for, calls that are held up.

use std::{rc::Rc, sync::Arc, time::Duration};

use agent_common::frame::{Message, status};
use tokio::time::Instant;

use super::{
    caller::Caller,
    calls::CallKey,
    choice::{Choice, Tried},
    dispatch::{Call, Place, Within, code},
    govern::{Begun, Copied, Guard, retries},
    link::Forgotten,
    report::Followed,
    request::Request,
    routes::Instance,
    service::Service,
    worker::Worker,
};
use crate::{balance::backoff, config::traffic::RetryOn, rules::Fault, trace::Context};

/// What only calls have that are sent again, copied, held up, marked or followed.
#[derive(Debug, Default)]
pub(crate) struct More {
    /// Whether the request is held until the call is answered.
    pub(super) keeps: bool,
    kept: Option<Request>,
    /// It may be executed twice.
    pub(super) idempotent: bool,
    /// How often it was sent again.
    again: u32,
    /// A former try of it, or its other copy, may have been executed.
    executed: bool,
    /// The instances that were tried, by slot.
    pub(super) tried: Tried,
    /// Where it goes if no instance of another group can take it, and its method's number there.
    pub(super) fallback: Option<Box<(Rc<Service>, Choice, u16)>>,
    /// How long a try may take.
    pub(super) try_timeout: Option<Duration>,
    /// After how long a second copy goes.
    pub(super) hedge_after: Option<Duration>,
    /// What holds it up.
    pub(super) fault: Option<Fault>,
    send_at: Option<Instant>,
    try_until: Option<Instant>,
    hedge_at: Option<Instant>,
    /// The other copy, of which the first answer counts.
    twin: Option<CallKey>,
    /// It is a copy whose answer is dropped, and counted for as long as it is in flight.
    pub(super) shadow: Option<Guard>,
    /// Another agent says that it is one.
    pub(super) copied: bool,
    /// What the next agent is told.
    pub(super) environment: Option<Arc<str>>,
    /// Who calls: the application, and its process.
    pub(super) source: Option<(Arc<str>, Arc<str>)>,
    /// It goes to another service, or group, than it names.
    pub(super) moved: bool,
    /// What a second copy says of its trace; the first one is told of.
    pub(super) traceparent: Option<[u8; Context::TEXT_BYTES]>,
    /// What is told of it when it ends.
    pub(super) followed: Option<Box<Followed>>,
}

/// What one copy of a call leaves to the other: when the call began, what is told of it, and whether it may have been executed.
type LeftOff = (Instant, Option<Box<Followed>>, bool);

/// What is to be done about a call at this time.
enum Due {
    Nothing,
    /// It is sent, or sent again.
    Send(Rc<Service>, Request),
    /// It is answered with a fault.
    Fault(u16, Arc<str>),
    /// A second copy goes.
    Hedge,
    /// The try has taken too long.
    Try,
}

impl More {
    /// Holds the request, if it may be needed again.
    pub(super) fn keep(&mut self, request: &Request) {
        if self.keeps && self.kept.is_none() {
            self.kept = Some(request.clone().owned());
        }
    }

    /// Holds the request, as whoever gets it may say that it has not executed it.
    pub(super) fn keep_whole(&mut self, request: &Request) {
        self.keeps = true;
        self.keep(request);
    }

    /// Nothing more is to be sent.
    pub(super) fn stop(&mut self) {
        (self.send_at, self.try_until, self.hedge_at) = (None, None, None);
        (self.try_timeout, self.hedge_after, self.keeps) = (None, None, false);
        self.kept = None;
    }

    /// Whether the call has another copy under way, of which the first answer counts.
    pub(super) fn has_twin(&self) -> bool {
        self.twin.is_some()
    }

    /// Whether it is a copy whose answer is dropped.
    pub(super) fn is_shadow(&self) -> bool {
        self.shadow.is_some() || self.copied
    }

    fn next(&self) -> Option<Instant> {
        [self.send_at, self.try_until, self.hedge_at].into_iter().flatten().min()
    }
}

impl Call {
    /// When somebody must look at it next.
    pub(super) fn alarm(&self) -> Instant {
        let next = self.more.as_deref().and_then(More::next);
        next.map_or(self.deadline, |next| next.min(self.deadline))
    }

    /// Whether another try of it, or another copy, may have been executed.
    pub(super) fn may_have_been_executed(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.executed)
    }

    fn leaves_off(&mut self) -> LeftOff {
        let executed = self.may_have_been_executed() || !self.place.is_before_sending();
        (self.started, self.more.as_mut().and_then(|more| more.followed.take()), executed)
    }

    fn due(&mut self, now: Instant) -> Due {
        let Some(more) = &mut self.more else { return Due::Nothing };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(more.send_at) {
            more.send_at = None;
            if let Some(Fault { name, code: Some(code), .. }) = more.fault.take() {
                return Due::Fault(code, name);
            }
            return more.kept.clone().map_or(Due::Nothing, |request| Due::Send(self.service.clone(), request));
        }
        if is_due(more.try_until) {
            more.try_until = None;
            return Due::Try;
        }
        if is_due(more.hedge_at) {
            more.hedge_at = None;
            return Due::Hedge;
        }
        Due::Nothing
    }
}

impl Worker {
    /// Sends a call that has just begun, or holds it up.
    pub(super) fn launch(self: &Rc<Self>, key: CallKey, service: &Rc<Service>, request: Request) {
        let delay = self.with_call(key, |call| {
            let more = call.more.as_deref_mut()?;
            more.send_at = Some(self.now() + more.fault.as_ref()?.delay);
            more.kept = Some(request.clone().owned());
            Some(())
        });
        match delay.flatten() {
            Some(()) => self.arm(key),
            None => self.send(key, service, request),
        }
    }

    /// Where a call goes now that no instance of the group that a rule sends it to can take it, if it may go elsewhere.
    pub(super) fn falls_back(&self, key: CallKey) -> Option<(Rc<Service>, Choice)> {
        let fallback = self.with_call(key, |call| call.more.as_mut()?.fallback.take()).flatten()?;
        let (was, choice, method) = *fallback;
        let service = self.service(&was.route.key)?;
        let choice = if Rc::ptr_eq(&was, &service) { choice } else { Choice { key: choice.key, ..Choice::default() } };
        self.with_call(key, |call| {
            call.follow(&service);
            (call.choice, call.method) = (choice, method);
            if let Some(more) = &mut call.more {
                more.moved = false;
                // Those were instances of the other group.
                more.tried.clear();
            }
        });
        Some((service, choice))
    }

    /// A try of a call has begun.
    pub(super) fn sent(&self, key: CallKey) {
        let now = self.now();
        let armed = self.with_call(key, |call| {
            let Some(more) = call.more.as_deref_mut() else { return false };
            more.try_until = more.try_timeout.map(|after| now + after);
            // Once: a second copy of a second try would be a third one.
            more.hedge_at = more.hedge_after.take().map(|after| now + after);
            more.next().is_some()
        });
        if armed == Some(true) {
            self.arm(key);
        }
    }

    pub(super) fn arm(&self, key: CallKey) {
        let mut calls = self.calls.borrow_mut();
        if let Some(alarm) = calls.get_mut(key).map(|call| call.alarm()) {
            calls.rearm(key, self.tick_of(alarm));
        }
    }

    /// Does what is to be done about a call before its time is over. False if nothing was.
    pub(super) fn look_after(self: &Rc<Self>, key: CallKey) -> bool {
        let now = self.now();
        let Some((due, deadline)) = self.with_call(key, |call| (call.due(now), call.deadline)) else { return true };
        match due {
            Due::Nothing => {
                if deadline <= now {
                    return false;
                }
                // Moved meanwhile, or the tick was a little early.
                let paused = self.with_call(key, |call| call.paused.is_some()) == Some(true);
                if !paused {
                    self.arm(key);
                }
                return !paused;
            }
            Due::Send(service, request) => {
                // The configuration in force decides where to.
                let service = self.service(&service.route.key).unwrap_or(service);
                self.with_call(key, |call| call.follow(&service));
                self.send(key, &service, request);
            }
            Due::Fault(code, name) => self.fail(key, code, None, &format!("the fault {name:?} (faults)")),
            Due::Hedge => self.hedge(key),
            Due::Try => self.end_try(key),
        }
        self.arm(key);
        true
    }

    /// A try has taken too long: the call is sent again, or ends.
    fn end_try(self: &Rc<Self>, key: CallKey) {
        let found = self.with_call(key, |call| {
            let begun = call.answer_has_begun() || call.received.is_some();
            let after = call.more.as_ref().and_then(|more| more.try_timeout).unwrap_or_default();
            (!begun).then(|| (call.place.clone(), after))
        });
        let Some((place, after)) = found.flatten() else { return };
        let reason = format!("no answer within {} ms (try_timeout_ms)", after.as_millis());
        let forgotten = self.withdraw(key, &place, status::CANCELLED);
        if let (Forgotten::Sent, Place::Sent(_, link)) = (forgotten, &place) {
            // Before the next try, which must not go there.
            self.end_overdue(key, link, &reason);
        }
        if !self.retry(key, RetryOn::Timeout, &reason) {
            self.fail(key, code::TIMEOUT, place.instance(), &reason);
        }
    }

    /// Sends a call again after an error code of the service, if its policy wants that.
    pub(super) fn retry_after_code(self: &Rc<Self>, key: CallKey, code: u16, instance: &Instance) -> bool {
        let wanted = self.with_call(key, |call| call.more.is_some() && retries(&call.service.route, RetryOn::Code, Some(code)));
        wanted == Some(true)
            && (self.leaves_to_twin(key, false)
                || self.retry(key, RetryOn::Code, &format!("{} answered with {code}", instance.name)))
    }

    /// Sends a call again, if its policy and the budget let it: after a wait, elsewhere if there is an elsewhere.
    pub(super) fn retry(self: &Rc<Self>, key: CallKey, on: RetryOn, reason: &str) -> bool {
        let now = self.now();
        let wait = self.with_call(key, |call| {
            let begun = call.answer_has_begun() || call.received.is_some();
            let (route, governed) = (call.service.route.clone(), call.service.governed.clone());
            let (more, slot) = (call.more.as_deref_mut()?, call.place.slot());
            let retry = &route.policy.retry;
            let safe = more.idempotent || on == RetryOn::NotExecuted;
            let may = !begun && safe && more.kept.is_some() && more.twin.is_none() && more.again + 1 < retry.tries_max;
            if !may || !retries(&route, on, None) {
                return None;
            }
            let bounds = (Duration::from_millis(retry.backoff_ms), Duration::from_millis(retry.backoff_max_ms));
            let wait = self.dice(|dice| backoff(bounds, more.again, dice));
            if now + wait >= call.deadline || !governed.may_retry(now) {
                return None;
            }
            more.again += 1;
            more.executed |= on != RetryOn::NotExecuted;
            (more.try_until, more.hedge_at) = (None, None);
            more.send_at = Some(now + wait);
            more.tried.extend(slot);
            if let Some(followed) = &mut more.followed {
                followed.retried(call.place.instance(), reason);
            }
            call.streams = None;
            Some(wait)
        });
        let Some(wait) = wait.flatten() else { return false };
        self.lose_place(key, on != RetryOn::NotExecuted);
        if wait.is_zero() {
            self.look_after(key);
        } else {
            self.arm(key);
        }
        true
    }

    /// A call that was tried somewhere is nowhere again. Unless it was refused, that counts against the instance.
    fn lose_place(&self, key: CallKey, failed: bool) {
        let now = self.now();
        let former = self.with_call(key, |call| call.place.clone());
        // What has not left of it must not be taken for a part of the next try.
        if let Some(Place::Framed(_, conn, _)) = former {
            conn.drop_message(Message { via: key.via(), to_caller: false });
        }
        self.with_call(key, |call| {
            if let (Some(slot), Some(instance)) = (call.place.slot(), call.place.instance()) {
                if let Some(counters) = call.counters() {
                    counters.retries.add(1);
                    if failed {
                        counters.tried(now.duration_since(call.tried_at).into(), true);
                    }
                }
                call.not_answered_at(slot, instance, !failed, now);
            }
        });
        self.placed(key, Place::Nowhere);
    }

    // Two copies of one call.

    /// Sends a second copy of a call, whose answer is late.
    fn hedge(self: &Rc<Self>, key: CallKey) {
        let now = self.now();
        let made = self.with_call(key, |call| {
            let begun = call.answer_has_begun() || call.received.is_some();
            // A one-way call has no answer that could be late.
            let slot = call.place.slot().filter(|_| !begun && !call.caller.is_one_way())?;
            let instances = call.service.instances();
            let more = call.more.as_deref_mut()?;
            let request = more.kept.clone().filter(|_| more.twin.is_none() && instances > 1)?;
            if !call.service.governed.may_hedge(now) {
                return None;
            }
            // Each copy knows of the other one, so that both together are not sent more often than one may be.
            more.again += 1;
            let own = More {
                keeps: true,
                idempotent: true,
                again: more.again,
                tried: Tried::from_slice(&[slot]),
                twin: Some(key),
                environment: more.environment.clone(),
                source: more.source.clone(),
                moved: more.moved,
                traceparent: more.followed.as_ref().and_then(|followed| followed.traceparent()),
                ..More::default()
            };
            let begun = Begun {
                service: call.service.clone(),
                choice: call.choice,
                method: call.method,
                more: Some(Box::new(own)),
                copies: Vec::new(),
            };
            let left = Within { timeout: call.deadline.saturating_duration_since(now), ..call.within };
            if let Some(followed) = &mut more.followed {
                followed.hedged(call.place.instance());
            }
            Some((call.caller.clone(), begun, request, (left, call.within)))
        });
        let Some((caller, begun, request, (left, within))) = made.flatten() else { return };
        let service = begun.service.clone();
        // Without a place in the table the call has one copy, as before.
        let Ok(twin) = self.enter(caller, begun, request.len(), left) else { return };
        // A large answer that keeps coming may take as long again as any other one.
        self.with_call(twin, |call| call.within = within);
        self.with_call(key, |call| call.more.get_or_insert_default().twin = Some(twin));
        self.send(twin, &service, request);
    }

    /// A copy of a call gets its answer: the other one is given up.
    pub(super) fn wins(self: &Rc<Self>, key: CallKey) {
        self.stays_alone(key, status::CANCELLED);
    }

    /// The other copy of a call is given up: this one stands for both.
    pub(super) fn stays_alone(self: &Rc<Self>, key: CallKey, why: u32) {
        let Some(twin) = self.part(key) else { return };
        let was = self.with_call(twin, |call| {
            call.caller = Caller::Nobody;
            call.uncount();
            call.leaves_off()
        });
        self.takes_over(key, was);
        self.give_up(twin, why);
    }

    /// Whether a copy of a call ends without an answer, or `refused`, as the other one may still get one.
    pub(super) fn leaves_to_twin(&self, key: CallKey, refused: bool) -> bool {
        let Some(twin) = self.part(key) else { return false };
        let was = self.with_call(key, |call| {
            if let (Some(slot), Some(instance)) = (call.place.slot(), call.place.instance()) {
                call.not_answered_at(slot, instance, refused, self.now());
            }
            call.leaves_off()
        });
        drop(self.remove(key));
        self.takes_over(twin, was);
        true
    }

    /// A copy of a call is the only one from now on.
    fn takes_over(&self, key: CallKey, was: Option<LeftOff>) {
        self.with_call(key, |call| {
            if let Some((started, followed, executed)) = was {
                call.more.get_or_insert_default().executed |= executed;
                call.started = call.started.min(started);
                if followed.is_some() {
                    call.more.get_or_insert_default().followed = followed;
                }
            }
            match &call.caller {
                Caller::Redis(app, seq) => app.set_call(*seq, key),
                Caller::Frames(framed) => framed.conn.made(framed.via, key),
                Caller::Nobody => {}
            }
        });
    }

    /// Parts a call from its other copy, which is returned if there is one.
    pub(super) fn part(&self, key: CallKey) -> Option<CallKey> {
        let twin = self.with_call(key, |call| call.more.as_mut()?.twin.take()).flatten()?;
        let other = self.with_call(twin, |call| call.more.as_mut().is_some_and(|more| more.twin.take().is_some()))?;
        other.then_some(twin)
    }

    // Copies whose answers are dropped.

    /// Sends the copies of a call that is about to begin.
    pub(super) fn copy(self: &Rc<Self>, begun: &mut Begun, request: &Request, within: Within) {
        for Copied { service, choice, moved, followed, guard, counters, .. } in std::mem::take(&mut begun.copies) {
            let more = More {
                shadow: Some(guard),
                moved,
                followed,
                environment: environment_of(&service, choice.subset),
                ..More::default()
            };
            let copy = Begun { service: service.clone(), choice, method: 0, more: Some(Box::new(more)), copies: Vec::new() };
            match self.enter(Caller::Nobody, copy, request.len(), within) {
                Ok(key) => {
                    counters.shadows.add(1);
                    self.send(key, &service, request.clone());
                }
                Err(_) => counters.shadows_dropped.add(1),
            }
        }
    }
}

/// The environment that calls for a subset go to.
fn environment_of(service: &Service, subset: u16) -> Option<Arc<str>> {
    service.route.plan.subsets().get(usize::from(subset))?.environment.clone()
}
