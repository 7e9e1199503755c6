//! The life of a call: an instance is picked, the call is sent, and it ends exactly once: with the service's answer or
//! with the mesh's own. How long it may take is in `deadlines`.

use std::{borrow::Cow, net::SocketAddr, rc::Rc, time::Duration};

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

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Within {
    pub(crate) timeout: Duration,
    /// Whether a large answer that keeps coming may take longer. Not so for the calls of an MGET, which has one deadline.
    pub(crate) extends: bool,
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Call {
    pub(super) app: Rc<App>,
    pub(super) seq: Seq,
    service: Rc<Service>,
    started: Instant,
    pub(super) within: Within,
    pub(super) deadline: Instant,
    /// Bytes of the answer since the deadline was last moved; none before it has begun.
    pub(super) received: Option<usize>,
    /// Since when its answer has been left in the socket, as the application takes too little.
    pub(super) paused: Option<Instant>,
    bytes: usize,
    attempts: usize,
    pub(super) place: Place,
}

/// Where a call is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Nowhere,
    Waiting(Rc<Pool>),
    Sent(Rc<Pool>, Rc<Link>),
}

impl Place {
    pub(super) fn pool(&self) -> Option<&Rc<Pool>> {
        match self {
            Self::Nowhere => None,
            Self::Waiting(pool) | Self::Sent(pool, _) => Some(pool),
        }
    }
}

impl Worker {
    /// Begins a call whose answer goes to place `seq` of an application's replies.
    pub(crate) fn begin(self: &Rc<Self>, app: &Rc<App>, seq: Seq, service: &Rc<Service>, request: Request, within: Within) {
        let started = self.now();
        let call = Call {
            app: app.clone(),
            seq,
            service: service.clone(),
            started,
            within,
            deadline: started + within.timeout,
            received: None,
            paused: None,
            bytes: request.len(),
            attempts: 0,
            place: Place::Nowhere,
        };
        let inserted = self.calls.borrow_mut().insert(call, self.tick_of(started + within.timeout));
        match inserted {
            Ok(key) => {
                app.set_call(seq, key);
                self.queued_add(request.len());
                self.ensure_timer();
                self.send(key, service, request, None);
            }
            Err(call) => {
                let max = self.limits().calls_in_flight_max;
                let reason = format!("{max} calls are in flight in this worker (agent.calls_in_flight_max)");
                service.unsent.refused(code::POOL_FULL);
                call.app.answer(call.seq, error_envelope(code::POOL_FULL, &self.error_text(service.uri(), None, &reason)));
            }
        }
    }

    /// Gives a call to the next instance that takes it; to the one where it `failed` only if no other does.
    fn send(self: &Rc<Self>, key: CallKey, service: &Rc<Service>, mut request: Request, failed: Option<&Rc<Pool>>) {
        let mut full = None;
        let is_failed = |pool: &Rc<Pool>| failed.is_some_and(|failed| Rc::ptr_eq(failed, pool));
        let others = service.candidates(self.now()).filter(|pool| !is_failed(pool));
        let again = failed.filter(|failed| failed.instance.health.is_healthy() && !failed.is_backing_off(self.now()));
        for pool in others.chain(again.cloned()) {
            match pool.submit(self, key, request) {
                Ok(Some(link)) => return self.placed(key, Place::Sent(pool, link)),
                Ok(None) => return self.placed(key, Place::Waiting(pool)),
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
        let uri = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            call.attempts += 1;
            let again = call.attempts < call.service.instances().max(2);
            if again {
                call.place = Place::Nowhere;
                pool.counters.in_flight.sub(1);
                pool.counters.retries.add(1);
            }
            again.then(|| call.service.route.uri.clone())
        };
        // The configuration in force decides where to, not the one under which the call began.
        match uri.map(|uri| self.service(&uri)) {
            Some(Some(service)) => self.send(key, &service, request, Some(pool)),
            Some(None) => self.fail(key, code::SERVICE_NOT_FOUND, None, "the service is no longer configured"),
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

    /// A piece of the service's answer.
    pub(crate) fn append(&self, key: CallKey, pool: &Pool, piece: Bytes, last: bool) {
        let Some((app, seq)) = self.calls.borrow_mut().get_mut(key).map(|call| (call.app.clone(), call.seq)) else { return };
        if !last {
            self.extend(key, piece.len());
        }
        app.append(seq, key, piece);
        if last && let Some(call) = self.remove(key) {
            pool.counters.answered(self.now().duration_since(call.started), None);
            app.finish(seq);
        }
    }

    /// There will be no answer, or none that a caller could read.
    pub(crate) fn not_answered(&self, key: CallKey, pool: &Pool, reason: &str) {
        self.fail(key, code::REMOTING, Some(pool.instance.address), reason);
    }

    /// The application has gone: what was not sent need not be, and what has begun to come need not go on.
    pub(crate) fn cancel(self: &Rc<Self>, key: CallKey) {
        let found = self.calls.borrow_mut().get_mut(key).map(|call| (call.place.clone(), call.received.is_some()));
        let Some((place, begun)) = found else { return };
        match (self.withdraw(key, &place), &place) {
            (Forgotten::Unsent, _) => drop(self.remove(key)),
            (Forgotten::Sent, Place::Sent(_, link)) if begun && !link.is_shared() => {
                link.stop("the application has gone");
            }
            _ => {}
        }
    }

    pub(super) fn withdraw(self: &Rc<Self>, key: CallKey, place: &Place) -> Forgotten {
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
    pub(super) fn fail(&self, key: CallKey, code: u16, instance: Option<SocketAddr>, reason: &str) {
        let Some(call) = self.remove(key) else { return };
        match call.place.pool() {
            Some(pool) => pool.counters.failed(self.now().duration_since(call.started), code),
            None => call.service.unsent.refused(code),
        }
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
