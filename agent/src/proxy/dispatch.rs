//! The life of a call: an instance is picked, the call is sent, and it ends exactly once: with the service's answer or
//! with the mesh's own. How long it may take is in `deadlines`; what only frames need is in `frames`.

pub(crate) mod code;

use std::{borrow::Cow, ops::Range, rc::Rc, time::Duration};

use agent_common::frame::{HEAD_MAX, Header, Kind, Message};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    account::End,
    again::More,
    app::App,
    caller::{Caller, Failure},
    calls::CallKey,
    choice::{Choice, Tried},
    frames::{FrameConn, Remote, Scope, Streams, Tunnel, Way},
    govern::Begun,
    link::{Forgotten, Link},
    pool::{Pool, Refused},
    replies::Seq,
    request::Request,
    routes::Instance,
    service::{Aim, Service, Upstream},
    stats::CallCounters,
    worker::Worker,
};
use crate::{config::traffic::RetryOn, wire::reply::error_envelope};

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
    pub(crate) caller: Caller,
    pub(crate) service: Rc<Service>,
    pub(super) started: Instant,
    /// When it was given to where it is.
    pub(super) tried_at: Instant,
    pub(super) within: Within,
    pub(super) deadline: Instant,
    /// Bytes of the answer since the deadline was last moved; none before it has begun.
    pub(super) received: Option<usize>,
    /// Since when its answer has been left in the socket, as the application takes too little.
    pub(super) paused: Option<Instant>,
    bytes: usize,
    attempts: usize,
    pub(crate) place: Place,
    /// Where it may go.
    pub(super) choice: Choice,
    /// Of the service's methods that are counted by themselves.
    pub(super) method: u16,
    /// Whether it is counted here; not so if another worker has counted it, and for copies.
    pub(super) counted: bool,
    /// Whether it counts in the bounds of its service; of its instance.
    pub(super) bounded: (bool, bool),
    /// What only calls have that are sent again, copied, held up or followed.
    pub(super) more: Option<Box<More>>,
    /// What only calls of more than one frame each way have.
    pub(crate) streams: Option<Box<Streams>>,
}

/// Where a call is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Nowhere,
    Waiting(Rc<Pool>),
    Sent(Rc<Pool>, Rc<Link>),
    /// It waits for a tunnel that is being opened.
    Queued(Rc<Remote>, Rc<Tunnel>),
    /// It was given to a connection, where it has this number as soon as it has left.
    Framed(Rc<Remote>, Rc<FrameConn>, u32),
}

/// Instances that one call is offered to before it is refused.
const TRIES_MAX: usize = 16;
/// The number of a call that has not left.
pub(super) const UNNUMBERED: u32 = 0;

impl Place {
    pub(crate) fn counters(&self) -> Option<&CallCounters> {
        match self {
            Self::Nowhere => None,
            Self::Waiting(pool) | Self::Sent(pool, _) => Some(&pool.counters),
            Self::Queued(remote, _) | Self::Framed(remote, ..) => Some(&remote.counters),
        }
    }

    pub(crate) fn instance(&self) -> Option<&Instance> {
        match self {
            Self::Nowhere => None,
            Self::Waiting(pool) | Self::Sent(pool, _) => Some(&pool.instance),
            Self::Queued(remote, _) | Self::Framed(remote, ..) => Some(&remote.instance),
        }
    }

    /// Where the instance stands among those of its service.
    pub(super) fn slot(&self) -> Option<u32> {
        match self {
            Self::Nowhere => None,
            Self::Waiting(pool) | Self::Sent(pool, _) => Some(pool.slot),
            Self::Queued(remote, _) | Self::Framed(remote, ..) => Some(remote.slot),
        }
    }

    /// Whether certainly nobody has executed a call that is here.
    pub(super) fn is_before_sending(&self) -> bool {
        matches!(self, Self::Nowhere | Self::Waiting(_) | Self::Queued(..))
    }
}

impl Call {
    /// Where it is counted.
    pub(super) fn counters(&self) -> Option<&CallCounters> {
        self.place.counters().filter(|_| self.counted)
    }

    /// The header of a frame to who was given the call.
    pub(crate) fn header_to(&self, key: CallKey, stream: u32, kind: Kind) -> Header {
        Header { stream, via: key.via(), service: self.service.hash, ..Header::new(kind) }
    }

    /// Whether the beginning of an answer was passed on.
    pub(super) fn answer_has_begun(&self) -> bool {
        self.streams.as_ref().is_some_and(|streams| streams.begun)
    }

    /// Whether its request may have more than one frame.
    pub(super) fn may_be_cut(&self) -> bool {
        self.bytes > HEAD_MAX
    }

    /// Whether it is where this connection has it: it may have been sent elsewhere since, and what comes is too late.
    pub(super) fn is_on(&self, link: &Link) -> bool {
        matches!(&self.place, Place::Sent(_, at) if std::ptr::eq(&raw const **at, link))
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Milliseconds that are left.
    pub(crate) fn left_ms(&self, now: Instant) -> u32 {
        u32::try_from(self.deadline.saturating_duration_since(now).as_millis()).unwrap_or(u32::MAX).max(1)
    }
}

impl Worker {
    /// Begins a call whose answer goes to place `seq` of an application's replies.
    pub(crate) fn begin(self: &Rc<Self>, app: &Rc<App>, seq: Seq, mut begun: Begun, request: Request, within: Within) {
        let service = begun.service.clone();
        if !begun.copies.is_empty() {
            self.copy(&mut begun, &request, within);
        }
        match self.enter(Caller::Redis(app.clone(), seq), begun, request.len(), within) {
            Ok(key) => {
                app.set_call(seq, key);
                self.launch(key, &service, request);
            }
            Err(reason) => {
                app.answer(seq, error_envelope(code::POOL_FULL, &self.error_text(service.name(), None, &reason)));
            }
        }
    }

    /// Puts a call into the table, or says why not.
    pub(super) fn enter(&self, caller: Caller, begun: Begun, bytes: usize, within: Within) -> Result<CallKey, String> {
        let started = self.now();
        let deadline = started + within.timeout;
        let Begun { service, choice, method, more, .. } = begun;
        let scope = caller.scope();
        let mut call = Call {
            counted: scope != Scope::Worker && !more.as_deref().is_some_and(More::is_shadow),
            bounded: (false, false),
            caller,
            service: service.clone(),
            started,
            tried_at: started,
            within,
            deadline,
            received: None,
            paused: None,
            bytes,
            attempts: 0,
            place: Place::Nowhere,
            choice,
            method,
            more,
            streams: None,
        };
        let mut calls = self.calls.borrow_mut();
        let full = calls.is_full();
        if !full {
            call.enters();
        }
        match calls.insert(call, self.tick_of(deadline)) {
            Ok(key) => {
                self.counters.in_flight.set(calls.len() as u64);
                drop(calls);
                self.queued_add(bytes);
                self.ensure_timer();
                Ok(key)
            }
            Err(_) => {
                service.unsent.refused(code::POOL_FULL);
                let max = self.limits().calls_in_flight_max;
                Err(format!("{max} calls are in flight in this worker (agent.calls_in_flight_max)"))
            }
        }
    }

    /// Gives a call to an instance that takes it, of those that it may go to: to one that was tried only if no other does, and
    /// never to the one that has its other copy.
    pub(super) fn send(self: &Rc<Self>, key: CallKey, service: &Rc<Service>, request: Request) {
        self.send_to(key, service, None, request);
    }

    /// As `send`, with the instance that was picked for it already, if one was.
    pub(super) fn send_to(
        self: &Rc<Self>,
        key: CallKey,
        service: &Rc<Service>,
        mut first: Option<Upstream>,
        mut request: Request,
    ) {
        let found = self.with_call(key, |call| {
            let (mut tried, mut may_again) = (Tried::new(), true);
            if let Some(more) = &mut call.more {
                tried.clone_from(&more.tried);
                may_again = !more.has_twin();
                more.keep(&request);
            }
            (call.caller.scope(), call.choice, tried, may_again)
        });
        let Some((scope, choice, mut tried, may_again)) = found else { return };
        let aim = Aim { choice: &choice, scope, now: self.now() };
        let mut full = None;
        let mut again = may_again && !tried.is_empty();
        for _ in 0..TRIES_MAX {
            let picked = first.take().or_else(|| self.dice(|dice| service.pick(aim, &tried, dice)));
            let Some(upstream) = picked else {
                if !std::mem::take(&mut again) {
                    break;
                }
                tried.clear();
                continue;
            };
            tried.push(upstream.slot());
            if let Upstream::Remote(remote) = &upstream
                && remote.is_away()
                && service.tells_others(scope)
            {
                // What that agent does not execute can go to another one.
                self.with_call(key, |call| call.more.get_or_insert_default().keep_whole(&request));
            }
            match self.submit(key, &upstream, request) {
                Ok(()) => return self.sent(key),
                Err(Refused::Full(back)) => {
                    request = back;
                    full = Some(upstream);
                }
                Err(Refused::BackingOff(back)) => request = back,
            }
        }
        if let Some((service, _)) = self.falls_back(key) {
            return self.send(key, &service, request);
        }
        match full {
            Some(upstream) => self.fail(key, code::POOL_FULL, Some(upstream.instance()), &upstream.why_full()),
            None => {
                let (code, why) = service.why_unavailable(aim);
                self.fail(key, code, None, &why);
            }
        }
    }

    fn submit(self: &Rc<Self>, key: CallKey, upstream: &Upstream, request: Request) -> Result<(), Refused> {
        match upstream {
            Upstream::Pool(pool) => {
                if request.body_len() > pool.policy().argument_bytes_max {
                    let max = pool.policy().argument_bytes_max;
                    let text = format!("the call has {} bytes, more than {max} (argument_bytes_max)", request.body_len());
                    self.fail(key, code::SERIALIZATION, Some(&pool.instance), &text);
                    return Ok(());
                }
                match pool.submit(self, key, request.into_command())? {
                    Some(link) => self.placed(key, Place::Sent(pool.clone(), link)),
                    None => self.placed(key, Place::Waiting(pool.clone())),
                }
            }
            Upstream::Remote(remote) => match remote.way() {
                Ok(Way::Conn(conn)) => self.send_framed(key, remote, &conn, &request),
                Ok(Way::Wait(tunnel)) => {
                    tunnel.wait(key, remote, request, self.tunnel_limits().queue_max)?;
                    self.placed(key, Place::Queued(remote.clone(), tunnel));
                }
                Err(refused) => return Err(refused(request)),
            },
        }
        Ok(())
    }

    pub(super) fn placed(&self, key: CallKey, place: Place) {
        let mut former = Place::Nowhere;
        if let Some(call) = self.calls.borrow_mut().get_mut(key) {
            former = call.moves(place, self.now());
        }
        if let Place::Framed(_, conn, _) = former {
            conn.done();
        }
    }

    /// A call that waited is given to a connection. False if it has ended meanwhile.
    pub(crate) fn on_link(&self, key: CallKey, link: &Rc<Link>) -> bool {
        match self.calls.borrow_mut().get_mut(key) {
            Some(call) => {
                if let Place::Waiting(pool) = &call.place {
                    call.place = Place::Sent(pool.clone(), link.clone());
                    if let Some(followed) = call.more.as_mut().and_then(|more| more.followed.as_mut()) {
                        followed.queued(self.now().duration_since(call.tried_at));
                    }
                }
                true
            }
            None => false,
        }
    }

    /// A call of which no byte was written goes to another instance, or once more to the only one.
    pub(crate) fn send_elsewhere(self: &Rc<Self>, key: CallKey, request: Request, failed: &Upstream, reason: &str) {
        self.placed(key, Place::Nowhere);
        let name = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            call.attempts += 1;
            let again = call.attempts < call.service.instances().max(2);
            if again {
                failed.counters().retries.add(1);
            }
            call.failed_at(failed.slot(), failed.instance(), self.now());
            again.then(|| call.service.route.key.clone())
        };
        // The configuration in force decides where to, not the one under which the call began.
        match name.map(|name| self.service(&name)) {
            Some(Some(service)) => {
                self.with_call(key, |call| {
                    call.follow(&service);
                    call.more.get_or_insert_default().tried.push(failed.slot());
                });
                self.send(key, &service, request);
            }
            Some(None) => self.fail(key, code::SERVICE_NOT_FOUND, None, "the service is no longer there"),
            None => self.fail_at(key, failed, code::REMOTING, reason),
        }
    }

    /// Whether a call is where this connection has it.
    pub(super) fn is_on(&self, key: CallKey, link: &Link) -> bool {
        self.calls.borrow().get(key).is_some_and(|call| call.is_on(link))
    }

    /// The service's whole answer, as a reply of Redis with its body in it.
    pub(crate) fn answered(
        self: &Rc<Self>,
        key: CallKey,
        (pool, link): (&Pool, &Rc<Link>),
        whole: Bytes,
        body: Range<usize>,
        error: Option<u16>,
    ) {
        if !self.is_on(key, link) {
            return;
        }
        if error.is_some_and(|error| self.retry_after_code(key, error, &pool.instance)) {
            return;
        }
        self.wins(key);
        if let Some(call) = self.remove_answered(key, error, body.len()) {
            match call.caller {
                Caller::Redis(app, seq) => app.answer(seq, whole),
                Caller::Frames(framed) => framed.answer_whole(error, whole.slice(body)),
                Caller::Nobody => {}
            }
        }
    }

    /// A large answer begins: a reply of Redis whose body begins after `header` bytes.
    pub(crate) fn begins_large(&self, key: CallKey, link: &Rc<Link>, header: usize, len: usize) {
        if !self.is_on(key, link) {
            return;
        }
        if let Some(call) = self.calls.borrow_mut().get_mut(key)
            && let Caller::Frames(_) = call.caller
        {
            let streams = call.streams.get_or_insert_default();
            (streams.skip, streams.left) = (header, len);
        }
    }

    /// A piece of the service's answer.
    pub(crate) fn append(self: &Rc<Self>, key: CallKey, link: &Rc<Link>, piece: Bytes, last: bool) {
        if !self.is_on(key, link) {
            return;
        }
        self.wins(key);
        if !last {
            self.extend(key, piece.len());
        }
        let caller = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            if let (Caller::Frames(framed), Some(streams)) = (&call.caller, &mut call.streams) {
                framed.answer_large(streams, piece.clone());
            }
            call.caller.clone()
        };
        if let Caller::Redis(app, seq) = &caller {
            app.append(*seq, key, piece);
        }
        if last && self.remove_answered(key, None, 0).is_some() {
            match caller {
                Caller::Redis(app, seq) => app.finish(seq),
                // What is left of it goes without the call.
                Caller::Frames(framed) => framed.conn.ended(framed.via),
                Caller::Nobody => {}
            }
        }
    }

    /// There will be no answer, or none that a caller could read.
    pub(crate) fn not_answered(self: &Rc<Self>, key: CallKey, (pool, link): (&Pool, &Rc<Link>), reason: &str) {
        if self.is_on(key, link) && !self.retry(key, RetryOn::Connection, reason) {
            self.fail(key, code::REMOTING, Some(&pool.instance), reason);
        }
    }

    /// Nobody waits for the answer any more: what was not sent need not be, and what has begun to come need not go on.
    pub(crate) fn cancel(self: &Rc<Self>, key: CallKey, why: u32) {
        self.stays_alone(key, why);
        let now = self.now();
        self.with_call(key, |call| {
            let took = now.duration_since(call.started);
            self.report(call, took, &End::given_up());
        });
        self.give_up(key, why);
    }

    /// Gives up one copy of a call.
    pub(super) fn give_up(self: &Rc<Self>, key: CallKey, why: u32) {
        let found = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            if let Some(more) = &mut call.more {
                more.stop();
            }
            if let Caller::Frames(framed) = std::mem::replace(&mut call.caller, Caller::Nobody) {
                framed.conn.ended(framed.via);
                framed.conn.drop_message(framed.answer());
            }
            (call.place.clone(), call.received.is_some())
        };
        let (place, begun) = found;
        match (self.withdraw(key, &place, why), &place) {
            (Forgotten::Unsent, _) => drop(self.remove(key)),
            (Forgotten::Sent, Place::Sent(_, link)) if begun && !link.is_shared() => {
                link.stop("the application has gone");
            }
            _ => {}
        }
    }

    /// Takes a call back from where it is. A call that was sent in frames is cancelled there, and needs no more care.
    pub(super) fn withdraw(self: &Rc<Self>, key: CallKey, place: &Place, why: u32) -> Forgotten {
        match place {
            Place::Nowhere => Forgotten::Unsent,
            Place::Waiting(pool) => {
                pool.forget(key);
                Forgotten::Unsent
            }
            Place::Queued(_, tunnel) => {
                tunnel.forget(key);
                Forgotten::Unsent
            }
            Place::Sent(pool, link) => {
                let forgotten = link.forget(key);
                if forgotten == Forgotten::Unsent {
                    pool.ready(self, link);
                }
                forgotten
            }
            Place::Framed(_, conn, stream) => {
                let unsent = conn.drop_message(Message { via: key.via(), to_caller: false });
                let header = self.calls.borrow_mut().get_mut(key).map(|call| call.header_to(key, *stream, Kind::Cancel));
                if let Some(header) = header.filter(|_| !unsent) {
                    conn.control(&Header { word: why, ..header }, &[]);
                }
                Forgotten::Unsent
            }
        }
    }

    /// Answers a call with the mesh's own error.
    pub(super) fn fail(&self, key: CallKey, code: u16, instance: Option<&Instance>, reason: &str) {
        let not_executed = self.calls.borrow_mut().get_mut(key).is_some_and(|call| call.place.is_before_sending());
        self.end_with(key, code, not_executed, |call| self.error_text(call.service.name(), instance, reason));
    }

    /// As `fail`, counted for an instance that the call did not reach.
    fn fail_at(&self, key: CallKey, failed: &Upstream, code: u16, reason: &str) {
        if self.leaves_to_twin(key, false) {
            return;
        }
        let Some(mut call) = self.remove(key) else { return };
        let text = self.error_text(call.service.name(), Some(failed.instance()), reason);
        if call.counted {
            self.account(&mut call, Some(failed.counters()), &End::mesh(code, &text));
        }
        let begun = call.answer_has_begun();
        let not_executed = !call.may_have_been_executed();
        call.caller.fail(Failure { code, text: &text, not_executed }, begun);
    }

    /// Ends a call with an error.
    pub(super) fn end_with(&self, key: CallKey, code: u16, not_executed: bool, text: impl FnOnce(&Call) -> String) {
        if self.leaves_to_twin(key, false) {
            return;
        }
        let Some(mut call) = self.remove(key) else { return };
        let text = text(&call);
        self.account(&mut call, None, &End::mesh(code, &text));
        let begun = call.answer_has_begun();
        let not_executed = not_executed && !call.may_have_been_executed();
        call.caller.fail(Failure { code, text: &text, not_executed }, begun);
    }

    /// Takes a call out of the table, as an answer to it has come.
    pub(super) fn remove_answered(&self, key: CallKey, error: Option<u16>, bytes: usize) -> Option<Call> {
        self.remove_ended(key, &End::service(error, bytes))
    }

    /// Takes a call out of the table, as it has ended like this.
    pub(super) fn remove_ended(&self, key: CallKey, end: &End<'_>) -> Option<Call> {
        let mut call = self.remove(key)?;
        self.account(&mut call, None, end);
        Some(call)
    }

    pub(super) fn remove(&self, key: CallKey) -> Option<Call> {
        let call = {
            let mut calls = self.calls.borrow_mut();
            let call = calls.remove(key)?;
            self.counters.in_flight.set(calls.len() as u64);
            call
        };
        self.queued_sub(call.bytes);
        call.leaves();
        if let Place::Framed(_, conn, _) = &call.place {
            conn.done();
        }
        Some(call)
    }

    pub(super) fn with_call<T>(&self, key: CallKey, with: impl FnOnce(&mut Call) -> T) -> Option<T> {
        self.calls.borrow_mut().get_mut(key).map(with)
    }

    /// A call holds so many bytes more until it ends, unless the worker holds as much as it may.
    pub(super) fn hold(&self, key: CallKey, bytes: usize) -> Result<(), String> {
        let max = self.limits().worker_queued_bytes_max;
        if self.queued() + bytes > max {
            return Err(format!("more than {max} bytes wait in this worker (agent.queued_bytes_max)"));
        }
        if let Some(call) = self.calls.borrow_mut().get_mut(key) {
            call.bytes += bytes;
            self.queued_add(bytes);
        }
        Ok(())
    }

    /// Names the agent, the service, the instance and the reason.
    pub(crate) fn error_text(&self, service: &str, instance: Option<&Instance>, reason: &str) -> String {
        let instance = instance.map_or(Cow::Borrowed(""), |instance| format!(" at {}", instance.name).into());
        format!("MOA Mesh agent {}: {service}{instance}: {reason}", self.name())
    }
}
