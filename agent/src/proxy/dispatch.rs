//! The life of a call: an instance is picked, the call is sent, and it ends exactly once: with the service's answer or
//! with the mesh's own.

use std::{borrow::Cow, net::SocketAddr, rc::Rc, task::Waker, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    app::App,
    calls::CallKey,
    link::{Forgotten, Link, Request},
    pool::{Pool, Refused},
    replies::Seq,
    service::Service,
    worker::Worker,
};
use crate::wire::reply::error_envelope;

/// How long one application that takes nothing may hold up others whose answers come over the same connection.
const STALL_MAX: Duration = Duration::from_secs(1);

/// MOA's error codes that the mesh itself answers with.
pub(crate) mod code {
    /// The call is not what a MOA server can read, or too large for it.
    pub(crate) const SERIALIZATION: u16 = 302;
    /// No instance could be reached, or the connection broke.
    pub(crate) const REMOTING: u16 = 303;
    /// No answer in time.
    pub(crate) const TIMEOUT: u16 = 304;
    /// The call names no service.
    pub(crate) const NO_URI: u16 = 401;
    /// The service is not known.
    pub(crate) const SERVICE_NOT_FOUND: u16 = 501;
    /// A bound was reached.
    pub(crate) const POOL_FULL: u16 = 504;
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Call {
    app: Rc<App>,
    seq: Seq,
    service: Rc<Service>,
    started: Instant,
    timeout: Duration,
    bytes: usize,
    attempts: usize,
    /// Its answer is left in the socket, as the application takes none.
    paused: bool,
    place: Place,
}

/// Where a call is.
#[derive(Debug, Clone)]
enum Place {
    Nowhere,
    Waiting(Rc<Pool>),
    Sent(Rc<Pool>, Rc<Link>),
}

impl Place {
    fn pool(&self) -> Option<&Rc<Pool>> {
        match self {
            Self::Nowhere => None,
            Self::Waiting(pool) | Self::Sent(pool, _) => Some(pool),
        }
    }
}

impl Worker {
    /// Begins a call whose answer goes to place `seq` of an application's replies.
    pub(crate) fn begin(self: &Rc<Self>, app: &Rc<App>, seq: Seq, service: &Rc<Service>, request: Request, timeout: Duration) {
        let started = self.now();
        let call = Call {
            app: app.clone(),
            seq,
            service: service.clone(),
            started,
            timeout,
            bytes: request.len(),
            attempts: 0,
            paused: false,
            place: Place::Nowhere,
        };
        let inserted = self.calls.borrow_mut().insert(call, self.tick_of(started + timeout));
        match inserted {
            Ok(key) => {
                app.set_call(seq, key);
                self.queued_add(request.len());
                self.ensure_timer();
                self.send(key, service, request);
            }
            Err(call) => {
                let max = self.limits().calls_in_flight_max;
                let text = self.error_text(
                    service.uri(),
                    None,
                    &format!("{max} calls are in flight in this worker (agent.calls_in_flight_max)"),
                );
                service.unsent.failed(Duration::ZERO, code::POOL_FULL);
                call.app.answer(call.seq, error_envelope(code::POOL_FULL, &text));
            }
        }
    }

    /// Gives a call to the next instance that takes it.
    fn send(self: &Rc<Self>, key: CallKey, service: &Rc<Service>, mut request: Request) {
        let mut full = None;
        for pool in service.candidates(self.now()) {
            match pool.submit(self, key, request) {
                Ok(link) => {
                    return self
                        .placed(key, link.map_or_else(|| Place::Waiting(pool.clone()), |link| Place::Sent(pool.clone(), link)));
                }
                Err(Refused::Full(back)) => {
                    request = back;
                    full = Some(pool);
                }
                Err(Refused::BackingOff(back)) => request = back,
            }
        }
        match full {
            Some(pool) => {
                let policy = pool.policy();
                let reason = format!(
                    "all {} connections of this worker are busy and {} calls wait already (connections_max, queue_max)",
                    policy.connections_max, policy.queue_max
                );
                self.fail(key, code::POOL_FULL, Some(pool.instance.address), &reason);
            }
            None => self.fail(key, code::REMOTING, None, &service.why_unavailable()),
        }
    }

    fn placed(&self, key: CallKey, place: Place) {
        if let Some(call) = self.calls.borrow_mut().get_mut(key) {
            if let Some(pool) = place.pool() {
                pool.counters.in_flight.add(1);
            }
            call.place = place;
        }
    }

    /// A call that waited is given to a connection. False if it has ended meanwhile.
    pub(crate) fn on_link(&self, key: CallKey, link: &Rc<Link>) -> bool {
        match self.calls.borrow_mut().get_mut(key) {
            Some(call) => {
                if let Place::Waiting(pool) = &call.place {
                    call.place = Place::Sent(pool.clone(), link.clone());
                }
                true
            }
            None => false,
        }
    }

    /// A call of which no byte was written goes to another instance, or once more to the only one.
    pub(crate) fn send_elsewhere(self: &Rc<Self>, key: CallKey, request: Request, pool: &Rc<Pool>, reason: &str) {
        let service = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            call.attempts += 1;
            let again = call.attempts < call.service.instances().max(2);
            if again {
                call.place = Place::Nowhere;
                pool.counters.in_flight.sub(1);
                pool.counters.retries.add(1);
            }
            again.then(|| call.service.clone())
        };
        match service {
            Some(service) => self.send(key, &service, request),
            None => self.fail(key, code::REMOTING, Some(pool.instance.address), reason),
        }
    }

    /// The service's whole answer.
    pub(crate) fn answered(&self, key: CallKey, pool: &Pool, whole: Bytes, error: Option<u16>) {
        if let Some(call) = self.remove(key) {
            pool.counters.answered(self.now().duration_since(call.started), error);
            call.app.answer(call.seq, whole);
        }
    }

    /// The service's answer is none that a caller could read.
    pub(crate) fn not_an_answer(&self, key: CallKey, pool: &Pool, reason: &str) {
        self.fail(key, code::REMOTING, Some(pool.instance.address), reason);
    }

    /// A piece of the service's answer.
    pub(crate) fn append(&self, key: CallKey, pool: &Pool, piece: Bytes, last: bool) {
        let Some((app, seq)) = self.calls.borrow_mut().get_mut(key).map(|call| (call.app.clone(), call.seq)) else { return };
        app.append(seq, key, piece);
        if last {
            if let Some(call) = self.remove(key) {
                pool.counters.answered(self.now().duration_since(call.started), None);
                app.finish(seq);
            }
        } else {
            self.rearm(key);
        }
    }

    /// An answer that has begun has as long again for each piece.
    fn rearm(&self, key: CallKey) {
        let mut calls = self.calls.borrow_mut();
        if let Some(call) = calls.get_mut(key) {
            let deadline = self.tick_of(self.now() + call.timeout);
            calls.rearm(key, deadline);
        }
    }

    /// The connection ended before the answer, or in the middle of it.
    pub(crate) fn connection_lost(&self, key: CallKey, pool: &Pool, reason: &str) {
        self.fail(key, code::REMOTING, Some(pool.instance.address), reason);
    }

    /// Whether the answer of a call must be left in the socket, because the application has taken too little of what it
    /// was sent before. It wakes `waker` when it has. An application that has held up others long enough does so no more:
    /// its calls on shared connections fail, and their answers are read and dropped.
    pub(crate) fn must_pause(&self, key: CallKey, pool: &Pool, waker: Waker) -> bool {
        let shared = pool.policy().pipelined;
        let stalled = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return false };
            let pause = call.app.pause_reader(call.seq, self.limits().queued_bytes_max, waker);
            let stalled = pause && shared && call.app.is_stalled();
            if pause != call.paused && !stalled {
                call.paused = pause;
                let within = if pause && shared { STALL_MAX.min(call.timeout) } else { call.timeout };
                let deadline = self.tick_of(self.now() + within);
                calls.rearm(key, deadline);
            }
            if pause && !stalled {
                return true;
            }
            stalled
        };
        if stalled {
            self.fail(key, code::POOL_FULL, Some(pool.instance.address), &self.why_stalled());
        }
        false
    }

    fn why_stalled(&self) -> String {
        let max = self.limits().queued_bytes_max;
        format!("the application does not read its answers, and {max} bytes of them wait already (app.queued_bytes_max)")
    }

    /// Ends the calls whose time is over.
    pub(crate) fn expire(self: &Rc<Self>) {
        self.turn_begins();
        let now = self.tick_of(self.now()) - 1;
        let expired = self.calls.borrow_mut().expired(now);
        for key in expired {
            self.expire_one(key);
        }
    }

    fn expire_one(self: &Rc<Self>, key: CallKey) {
        let Some((place, timeout, app, paused)) =
            self.calls.borrow_mut().get_mut(key).map(|call| (call.place.clone(), call.timeout, call.app.clone(), call.paused))
        else {
            return;
        };
        let (code, reason) = if paused {
            app.set_stalled();
            (code::POOL_FULL, self.why_stalled())
        } else {
            (code::TIMEOUT, format!("no answer within {} ms", timeout.as_millis()))
        };
        if self.withdraw(key, &place) == Forgotten::Sent
            && let Place::Sent(pool, link) = &place
        {
            // The late answer must not be taken for another call's. Where answers come in order it can be waited for.
            if pool.policy().pipelined { link.retire() } else { link.stop(reason.clone()) }
        }
        self.fail(key, code, place.pool().map(|pool| pool.instance.address), &reason);
    }

    /// The application has gone: what was not sent need not be.
    pub(crate) fn cancel(self: &Rc<Self>, key: CallKey) {
        let Some(place) = self.calls.borrow_mut().get_mut(key).map(|call| call.place.clone()) else { return };
        if self.withdraw(key, &place) == Forgotten::Unsent {
            self.remove(key);
        }
    }

    fn withdraw(self: &Rc<Self>, key: CallKey, place: &Place) -> Forgotten {
        match place {
            Place::Nowhere => Forgotten::Unsent,
            Place::Waiting(pool) => {
                pool.forget(key);
                Forgotten::Unsent
            }
            Place::Sent(pool, link) => {
                let forgotten = link.forget(key);
                if forgotten == Forgotten::Unsent {
                    pool.ready(self, link);
                }
                forgotten
            }
        }
    }

    /// Answers a call with the mesh's own error.
    fn fail(&self, key: CallKey, code: u16, instance: Option<SocketAddr>, reason: &str) {
        let Some(call) = self.remove(key) else { return };
        let took = self.now().duration_since(call.started);
        call.place.pool().map_or(&call.service.unsent, |pool| &pool.counters).failed(took, code);
        let text = self.error_text(call.service.uri(), instance, reason);
        call.app.fail(call.seq, error_envelope(code, &text));
    }

    fn remove(&self, key: CallKey) -> Option<Call> {
        let call = self.calls.borrow_mut().remove(key)?;
        self.queued_sub(call.bytes);
        if let Some(pool) = call.place.pool() {
            pool.counters.in_flight.sub(1);
        }
        Some(call)
    }

    /// Names the agent, the service, the instance and the reason.
    pub(crate) fn error_text(&self, uri: &str, instance: Option<SocketAddr>, reason: &str) -> String {
        let instance = instance.map_or(Cow::Borrowed(""), |instance| format!(" at {instance}").into());
        format!("MOA Mesh agent {}: {uri}{instance}: {reason}", self.name())
    }
}
