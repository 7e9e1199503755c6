//! What comes from callers: calls, what goes on of them, and that they are given up.

use std::{rc::Rc, time::Duration};

use agent_common::frame::{
    FRAME_MAX, Flags, Frame, Header, Kind, Message, ReceiveWindow, Violation, entries, find, id, service_hash, status,
};
use bytes::Bytes;

use super::{
    Scope,
    conn::{FrameConn, Side},
    streams::{Gathered, Streams},
    task::Incoming,
    tunnel::Tunnel,
    upstream::{Remote, Way},
};
use crate::proxy::{
    caller::{Caller, Failure, Framed},
    calls::CallKey,
    choice::Tried,
    dispatch::{Call, Place, UNNUMBERED, Within, code},
    govern::{Begun, Origin, Refused},
    lanes::Drawn,
    request::{Notes, Request, pieces},
    routes::service_key,
    says::FrameCall,
    service::{Aim, Service, Upstream},
    worker::Worker,
};

/// Instances that a call of many frames is offered to before it is refused.
const PICKS_MAX: usize = 16;
/// How much of a URI that is not known is repeated in the error.
const URI_EXCERPT: usize = 128;

/// Why a call is not begun.
struct Refusal {
    code: u16,
    name: String,
    reason: String,
    service: Option<Rc<Service>>,
}

impl Worker {
    /// A call has come.
    pub(super) fn requested(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        self.requested_by(conn, frame, false)
    }

    /// The same; `by_share`: the kernel has given it to the agent by chance, and could have routed it.
    pub(super) fn requested_by(
        self: &Rc<Self>,
        conn: &Rc<FrameConn>,
        frame: &Incoming<'_>,
        by_share: bool,
    ) -> Result<(), Violation> {
        let header = &frame.header;
        conn.calls.set(conn.calls.get() + 1);
        if conn.incoming(header.via).is_some() || conn.answers(header.via) {
            return Err(Violation::Via { stream: header.stream });
        }
        let framed = Framed {
            conn: conn.clone(),
            stream: header.stream,
            via: header.via,
            service: header.service,
            one_way: header.flags.has(Flags::ONE_WAY),
        };
        match self.admit(conn, frame, by_share) {
            Ok(begun) => self.begin_framed(framed, begun, frame),
            Err(refusal) => {
                let Refusal { code, name, reason, service } = refusal;
                match service {
                    // Another worker has counted the call.
                    _ if conn.side == Side::Worker => {}
                    Some(service) => service.unsent.refused(code),
                    None => {
                        self.counters.unrouted.add(code);
                        self.report_unknown(&name, &Origin::of(conn, "", Flags::NONE), (code, &reason));
                    }
                }
                let text = self.error_text(&name, None, &reason);
                framed.fail(Failure { code, text: &text, not_executed: true }, false);
            }
        }
        Ok(())
    }

    /// Finds the service, and says no where a bound is reached.
    fn admit(&self, conn: &FrameConn, frame: &Incoming<'_>, by_share: bool) -> Result<Begun, Refusal> {
        let (service, method) = self.find_service(frame)?;
        let limits = self.limits();
        let (code, reason) = if conn.incoming_len() >= conn.bounds.calls_max {
            let max = conn.bounds.calls_max;
            (code::POOL_FULL, format!("{max} calls are in flight on this connection (app.pipeline_max, tunnel.calls_max)"))
        } else if self.queued() + frame.header.frame_len() > limits.worker_queued_bytes_max {
            let max = limits.worker_queued_bytes_max;
            (code::POOL_FULL, format!("more than {max} bytes wait in this worker (agent.queued_bytes_max)"))
        } else if conn.is_crowded() {
            (code::POOL_FULL, conn.why_crowded())
        } else {
            let drawn = by_share.then(|| self.draw(&service));
            match self.govern_framed(&service, conn, (frame, method), drawn) {
                Ok(mut begun) => {
                    begun.choice.away = drawn.is_some_and(|drawn| drawn.away);
                    if conn.side == Side::Worker {
                        begun.choice.pin = frame.header.receipt;
                    }
                    return Ok(begun);
                }
                Err(Refused { code, reason }) => (code, reason),
            }
        };
        Err(Refusal { code, name: service.name().to_owned(), reason, service: Some(service) })
    }

    /// What the service's policy says about the call.
    fn govern_framed(
        &self,
        service: &Rc<Service>,
        conn: &FrameConn,
        (frame, method): (&Incoming<'_>, &[u8]),
        drawn: Option<Drawn>,
    ) -> Result<Begun, Refused> {
        let hello = conn.hello();
        let text = |number| find(frame.meta(), number).and_then(|value| std::str::from_utf8(value).ok());
        let known = conn.place.as_ref().and_then(|place| place.application());
        let own = hello.as_ref().map(|hello| (known.as_deref().unwrap_or(&hello.application), &*hello.instance));
        // Only an agent's word counts for who else is calling, and only if it gives it.
        let (application, instance) = match conn.is_agent() {
            true if !frame.header.flags.has(Flags::VERIFIED) => ("", ""),
            true => (text(id::SOURCE_APPLICATION).unwrap_or_default(), text(id::SOURCE_INSTANCE).unwrap_or_default()),
            false => own.unwrap_or_default(),
        };
        let call = FrameCall { meta: frame.meta(), method, application, instance };
        let sampled = drawn.map(|drawn| drawn.sampled);
        let origin = Origin { sampled, ..Origin::of(conn, application, frame.header.flags) };
        self.govern(service, &call, &origin)
    }

    /// What a call is for that the kernel has given to the agent by chance.
    fn draw(&self, service: &Service) -> Drawn {
        let traced = if self.spans().is_some() { self.limits().sample_per_million } else { 0 };
        Drawn::of(traced, service.away_share(self.now()), self.dice(rand::Rng::next_u32))
    }

    /// The service that a call is for, and the method.
    fn find_service<'f>(&self, frame: &'f Incoming<'_>) -> Result<(Rc<Service>, &'f [u8]), Refusal> {
        let refuse = |code, name: &str, reason: String| Refusal { code, name: name.to_owned(), reason, service: None };
        let (mut uri, mut group, mut method) = (None, &[][..], &[][..]);
        for (nth, entry) in entries(frame.meta()).enumerate() {
            match entry.map_err(|bad| refuse(code::SERIALIZATION, "-", bad.to_string()))? {
                (id::URI, value) if nth == 0 => uri = Some(value),
                // Of two with the same number the first one counts.
                (id::METHOD, value) if method.is_empty() => method = value,
                (id::GROUP, value) => group = value,
                _ => {}
            }
        }
        let uri = uri.ok_or_else(|| refuse(code::NO_URI, "-", "the call's first entry is not its service's URI".to_owned()))?;
        let services = self.services();
        let hash = frame.header.service;
        let is = |service: &&Rc<Service>| service.route.uri.as_bytes() == uri && service.route.group.as_bytes() == group;
        if let Some(service) = services.by_hash(hash).filter(is) {
            return Ok((service.clone(), method));
        }
        let excerpt: String = String::from_utf8_lossy(uri).chars().take(URI_EXCERPT).collect();
        if service_hash(uri, group) != hash {
            let reason = "the header's service is not the hash of the metadata's URI and group".to_owned();
            return Err(refuse(code::SERIALIZATION, &excerpt, reason));
        }
        // Two services with one hash: the name decides.
        let key = service_key(&String::from_utf8_lossy(uri), &String::from_utf8_lossy(group));
        let group = String::from_utf8_lossy(group);
        let of_group = if group.is_empty() { String::new() } else { format!(" of group {group:.64}") };
        services.by_key(&key).map(|service| (service.clone(), method)).ok_or_else(|| {
            refuse(code::SERVICE_NOT_FOUND, &excerpt, format!("no such service{of_group} is configured or offered"))
        })
    }

    fn begin_framed(self: &Rc<Self>, framed: Framed, mut begun: Begun, frame: &Incoming<'_>) {
        let header = frame.header;
        let service = begun.service.clone();
        let timeout = if header.word == 0 { service.route.policy.timeout_ms } else { u64::from(header.word) };
        let within = Within { timeout: Duration::from_millis(timeout), extends: header.word == 0 };
        let (conn, via) = (framed.conn.clone(), framed.via);
        let aim = Aim { choice: &begun.choice.clone(), scope: conn.side.scope(), now: self.now() };
        let is_plain = begun.more.is_none() && begun.copies.is_empty();
        let request = || {
            let (meta, body) = frame.keep();
            Request::framed(Header { flags: vouched(header.flags, &conn), ..header }, meta, body)
        };
        let whole = header.flags.has(Flags::END_STREAM);
        match begun.copies.is_empty() {
            false if whole => self.copy(&mut begun, &request(), within),
            // What comes in pieces is not held for a copy.
            false => begun.copies.drain(..).for_each(|copied| copied.counters.shadows_dropped.add(1)),
            true => {}
        }
        let is_copy = conn.side.scope() == Scope::Node && header.flags.has(Flags::SHADOW);
        if is_copy {
            begun.more.get_or_insert_default().copied = true;
        }
        let key = match self.enter(Caller::Frames(framed.clone()), begun, header.frame_len(), within) {
            Ok(key) => key,
            Err(reason) => {
                let text = self.error_text(service.name(), None, &reason);
                return framed.fail(Failure { code: code::POOL_FULL, text: &text, not_executed: true }, false);
            }
        };
        conn.made(via, key);
        if is_copy {
            service.governed.counters.shadows.add(1);
        }
        if !whole {
            return self.begin_streamed(key, &service, aim, frame);
        }
        if !is_plain {
            return self.launch(key, &service, request());
        }
        let picked = self.dice(|dice| service.pick(aim, &[], dice));
        // The usual case needs no copy of the call that outlives this moment.
        if let Some(Upstream::Remote(remote)) = &picked {
            let keeps = remote.is_away() && service.tells_others(aim.scope);
            if !keeps
                && let Ok(Way::Conn(to)) = remote.way()
                && self.give_whole(key, remote, &to, frame)
            {
                return;
            }
        }
        self.send_to(key, &service, picked, request());
    }

    /// Passes a call of one small frame on at once, if it can.
    fn give_whole(&self, key: CallKey, remote: &Rc<Remote>, to: &Rc<FrameConn>, frame: &Incoming<'_>) -> bool {
        let header = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return true };
            let Caller::Frames(framed) = &call.caller else { return false };
            let numbers = call.header_to(key, to.next_stream(), Kind::Request);
            let flags = vouched(frame.header.flags, &framed.conn);
            Header { flags, word: call.left_ms(self.now()), receipt: remote.pin, ..numbers.sized_as(&frame.header) }
        };
        if !to.try_whole(&header, frame.rest()) {
            return false;
        }
        to.begin();
        self.placed(key, Place::Framed(remote.clone(), to.clone(), header.stream));
        self.end_one_way(key);
        true
    }

    /// A call whose first frame is not its last one.
    fn begin_streamed(self: &Rc<Self>, key: CallKey, service: &Rc<Service>, aim: Aim<'_>, frame: &Incoming<'_>) {
        let found = self.with_call(key, |call| match &call.caller {
            Caller::Frames(framed) => Some((
                framed.conn.bounds.windows.stream,
                vouched(frame.header.flags, &framed.conn),
                call.more.as_ref().is_some_and(|more| more.fault.is_some()),
            )),
            _ => None,
        });
        let Some((window, flags, held_up)) = found.flatten() else { return };
        let mut request = ReceiveWindow::new(window);
        // A fresh window has room for any frame.
        let _ = request.receive(frame.header.frame_len());
        let streams = Box::new(Streams { request: Some(request), ..Streams::default() });
        let mut tried = Tried::new();
        let mut full = None;
        loop {
            let picked = self.dice(|dice| service.pick(aim, &tried, dice)).filter(|_| tried.len() < PICKS_MAX);
            let Some(upstream) = picked else { break };
            tried.push(upstream.slot());
            match &upstream {
                // A server of Redis takes it whole; so does a fault, which holds it up first.
                _ if held_up => return self.gather(key, streams, flags, frame),
                Upstream::Pool(_) => return self.gather(key, streams, flags, frame),
                Upstream::Remote(remote) => match remote.way() {
                    Ok(Way::Conn(to)) => return self.stream_to(key, remote, &to, streams, (flags, frame)),
                    Ok(Way::Wait(tunnel)) if self.wait_streamed(key, remote, &tunnel, flags, frame) => {
                        let gathered = Some(Gathered::of(frame, flags));
                        self.with_call(key, |call| call.streams = Some(Box::new(Streams { gathered, ..*streams })));
                        return;
                    }
                    _ if remote.is_full() => full = Some(upstream),
                    _ => {}
                },
            }
        }
        if let Some((service, choice)) = self.falls_back(key) {
            return self.begin_streamed(key, &service, Aim { choice: &choice, ..aim }, frame);
        }
        match full {
            Some(upstream) => self.fail(key, code::POOL_FULL, Some(upstream.instance()), &upstream.why_full()),
            None => {
                let (code, why) = service.why_unavailable(aim);
                self.fail(key, code, None, &why);
            }
        }
    }

    /// Holds a call until it is whole.
    fn gather(&self, key: CallKey, streams: Box<Streams>, flags: Flags, frame: &Incoming<'_>) {
        let gathered = Some(Gathered::of(frame, flags));
        self.with_call(key, |call| call.streams = Some(Box::new(Streams { gathered, ..*streams })));
        self.took_request(key, frame.header.frame_len());
    }

    /// Passes a call on whose first frame is not its last one.
    fn stream_to(
        &self,
        key: CallKey,
        remote: &Rc<Remote>,
        to: &Rc<FrameConn>,
        streams: Box<Streams>,
        (flags, frame): (Flags, &Incoming<'_>),
    ) {
        to.begin();
        let first = self.with_call(key, |call| {
            call.streams = Some(streams);
            let numbers = call.header_to(key, UNNUMBERED, Kind::Request).sized_as(&frame.header);
            let header = Header { flags, word: call.left_ms(self.now()), receipt: remote.pin, ..numbers };
            call.noted(frame.frame(header))
        });
        self.placed(key, Place::Framed(remote.clone(), to.clone(), UNNUMBERED));
        first.into_iter().for_each(|first| to.push(first));
    }

    /// Lets a call wait for a tunnel that is being opened; what comes of it meanwhile is bounded by its window.
    fn wait_streamed(&self, key: CallKey, remote: &Rc<Remote>, tunnel: &Rc<Tunnel>, flags: Flags, frame: &Incoming<'_>) -> bool {
        let request = Request::framed(Header { flags, ..frame.header }, Bytes::new(), Bytes::new());
        let waits = tunnel.wait(key, remote, request, self.tunnel_limits().queue_max).is_ok();
        if waits {
            self.placed(key, Place::Queued(remote.clone(), tunnel.clone()));
        }
        waits
    }

    /// A call that waited for a tunnel can go.
    pub(super) fn send_waiting(&self, key: CallKey, remote: &Rc<Remote>, to: &Rc<FrameConn>, request: &Request) {
        let streamed = self.with_call(key, |call| {
            let streams = call.streams.as_deref_mut()?;
            let (gathered, ends) = (streams.gathered.take()?, streams.request.is_none());
            let numbers = call.header_to(key, UNNUMBERED, Kind::Request);
            let numbers = Header { word: call.left_ms(self.now()), receipt: remote.pin, ..numbers };
            Some((gathered, ends, numbers))
        });
        let Some((gathered, ends, numbers)) = streamed.flatten() else {
            return self.send_framed(key, remote, to, request);
        };
        to.begin();
        let Gathered { header, meta, body } = gathered;
        let noted = self.with_call(key, |call| (call.notes().added_to(&meta), call.notes().flags()));
        let (meta, more) = noted.unwrap_or((meta, Flags::NONE));
        pieces(Header { flags: header.flags | more, ..numbers }, meta, body.freeze(), ends, &mut |frame| to.push(frame));
        self.placed(key, Place::Framed(remote.clone(), to.clone(), UNNUMBERED));
    }

    /// More of a request has come.
    pub(super) fn request_goes_on(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        let key = conn.incoming(frame.header.via);
        let went = key.and_then(|key| Some((key, self.with_call(key, |call| call.request_goes_on(key, frame))?)));
        let Some((key, went)) = went else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        match went? {
            Went::On => {}
            Went::Nowhere => self.counters.frames_dropped.add(1),
            Went::Held => {
                let len = frame.header.frame_len();
                match self.hold(key, len) {
                    Ok(()) => self.took_request(key, len),
                    Err(reason) => self.fail(key, code::POOL_FULL, None, &reason),
                }
            }
            Went::Waits => {
                if let Err(reason) = self.hold(key, frame.header.frame_len()) {
                    self.fail(key, code::POOL_FULL, None, &reason);
                }
            }
            Went::Whole(service, gathered) => self.launch(key, &service, gathered.finish()),
            Went::TooLong(text) => self.fail(key, code::SERIALIZATION, None, &text),
        }
        Ok(())
    }

    /// So many bytes of a request were passed on, or are held for as long as it takes: there is room for more.
    pub(super) fn took_request(&self, key: CallKey, bytes: usize) {
        let credit = self.with_call(key, |call| {
            let credit = call.streams.as_mut()?.request.as_mut()?.used(bytes)?;
            let Caller::Frames(framed) = &call.caller else { return None };
            Some((framed.clone(), credit))
        });
        if let Some((framed, credit)) = credit.flatten() {
            framed.conn.credit(framed.header(Kind::Credit), credit);
        }
    }

    /// The caller has given up.
    pub(super) fn cancelled(self: &Rc<Self>, conn: &Rc<FrameConn>, header: &Header) {
        match conn.incoming(header.via) {
            Some(key) if header.word == status::OK => self.cancel(key, status::CANCELLED),
            Some(key) => self.cancel(key, header.word),
            None => {
                if !self.cancel_routed(conn, header) {
                    self.counters.frames_dropped.add(1);
                }
                // What is left of an answer, at most.
                conn.drop_message(Message { via: header.via, to_caller: true });
            }
        }
    }

    /// Gives a whole call to a connection.
    pub(crate) fn send_framed(&self, key: CallKey, remote: &Rc<Remote>, to: &Rc<FrameConn>, request: &Request) {
        to.begin();
        let given = self.with_call(key, |call| {
            let header = call.header_to(key, UNNUMBERED, Kind::Request);
            let header = Header { word: call.left_ms(self.now()), receipt: remote.pin, ..header };
            request.frames(header, &call.service.meta, &call.notes(), |frame| to.push(frame));
        });
        if given.is_none() {
            return to.done();
        }
        self.placed(key, Place::Framed(remote.clone(), to.clone(), UNNUMBERED));
        self.end_one_way(key);
    }

    /// A one-way call is over once it was passed on.
    pub(super) fn end_one_way(&self, key: CallKey) {
        let over = self.with_call(key, |call| call.caller.is_one_way());
        if over == Some(true)
            && let Some(Call { caller: Caller::Frames(framed), .. }) = self.remove_answered(key, None, 0)
        {
            framed.conn.ended(framed.via);
        }
    }
}

/// What became of a piece of a request.
enum Went {
    /// It was passed on, and says itself when it has left.
    On,
    /// Nobody waits for it.
    Nowhere,
    /// It waits for a tunnel, and no more than its window comes meanwhile.
    Waits,
    /// It is held until the rest is there.
    Held,
    /// The rest is there.
    Whole(Rc<Service>, Gathered),
    /// More has come than whom it is for takes.
    TooLong(String),
}

impl<'a> Origin<'a> {
    fn of(conn: &FrameConn, application: &'a str, flags: Flags) -> Self {
        let (idempotent, shadow) = (flags.has(Flags::IDEMPOTENT), flags.has(Flags::SHADOW));
        let scope = conn.side.scope();
        Self { scope, application, peer: conn.peer, protocol: "frames", idempotent, shadow, sampled: None }
    }
}

impl Call {
    /// What the next agent is told about it.
    pub(super) fn notes(&self) -> Notes<'_> {
        let Some(more) = self.more.as_deref() else { return Notes::default() };
        Notes {
            environment: more.environment.as_deref(),
            source: more.source.as_ref().map(|(application, instance)| (&**application, &**instance)),
            service: more.moved.then(|| &*self.service.meta),
            traceparent: more.followed.as_ref().and_then(|followed| followed.traceparent()).or(more.traceparent),
            shadow: more.is_shadow(),
        }
    }

    /// A call's first frame with what the next agent is told about it.
    fn noted(&self, frame: Frame) -> Frame {
        let notes = self.notes();
        let meta = notes.added_to(&frame.meta);
        let meta_len = u16::try_from(meta.len()).unwrap_or(u16::MAX);
        let header = Header { meta_len, flags: frame.header.flags | notes.flags(), ..frame.header };
        // Without room for it, it goes as it came.
        if header.frame_len() > FRAME_MAX { frame } else { Frame { header, meta, body: frame.body } }
    }

    fn request_goes_on(&mut self, key: CallKey, frame: &Incoming<'_>) -> Result<Went, Violation> {
        let header = &frame.header;
        let place = match &self.place {
            Place::Framed(_, to, stream) => Some((to.clone(), self.header_to(key, *stream, Kind::Data))),
            _ => None,
        };
        let max = self.service.route.policy.argument_bytes_max;
        let Some(streams) = &mut self.streams else { return Ok(Went::Nowhere) };
        let Some(window) = &mut streams.request else { return Ok(Went::Nowhere) };
        window.receive(header.frame_len()).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
        let end = header.flags.has(Flags::END_STREAM);
        if end {
            streams.request = None;
        }
        if let Some((to, numbers)) = place {
            to.push(frame.frame(Header { flags: header.flags, ..numbers.sized_as(header) }));
            return Ok(Went::On);
        }
        let Some(gathered) = &mut streams.gathered else { return Ok(Went::Nowhere) };
        gathered.body.extend_from_slice(frame.body());
        if let Place::Queued(..) = self.place {
            return Ok(Went::Waits);
        }
        if gathered.body.len() > max {
            return Ok(Went::TooLong(format!("the call has more than {max} bytes (argument_bytes_max)")));
        }
        let whole = if end { streams.gathered.take() } else { None };
        Ok(whole.map_or(Went::Held, |gathered| Went::Whole(self.service.clone(), gathered)))
    }
}

/// Only an agent's word counts for who is calling.
fn vouched(flags: Flags, conn: &FrameConn) -> Flags {
    if conn.is_agent() { flags } else { flags.without(Flags::VERIFIED) }
}
