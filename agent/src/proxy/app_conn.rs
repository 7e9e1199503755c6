//! The task of one application's connection: reads commands, begins calls, writes replies.

use std::{
    ops::Range,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use agent_common::frame::{MAGIC, status};
use bytes::{Buf, Bytes, BytesMut};

use super::{
    app::App,
    dispatch::{Within, code},
    govern::{Begun, Origin, Refused},
    request::Request,
    says::RedisCall,
    service::Service,
    session::{self, After, Session},
    stats::CloseReason,
    stream::Stream,
    worker::Worker,
};
use crate::wire::{
    envelope::{Envelope, JsonStr, scan_request},
    reply::{self, error_envelope},
    resp::{self, Args, Command, CommandParser, Limits, Refusal, Step},
};

/// Room that a command gets at a time while it arrives, so that a length that is only announced takes no memory.
const GROW: usize = 16 * 1024;
/// A read is not begun into less room than this: a header that is cut, or an argument that is skipped, would come in
/// steps of a byte.
const ROOM_MIN: usize = 4 * 1024;
/// How much of a URI that is not known is repeated in the error.
const URI_EXCERPT: usize = 128;

/// Serves an application until its connection ends. A future by hand, as one that the compiler makes is twice as large,
/// and there is one for each idle connection.
pub(crate) struct AppConn {
    stream: Stream,
    worker: Rc<Worker>,
    app: Rc<App>,
    partial: Option<Box<Partial>>,
    /// No more commands are read, for this reason; what is owed is still written.
    last: Option<CloseReason>,
    /// It was told that nothing more comes.
    shut: bool,
}

/// A command that has not arrived whole.
struct Partial {
    bytes: BytesMut,
    parser: CommandParser,
    needed: usize,
    /// What the worker counts for it.
    held: usize,
}

impl Partial {
    fn new(begun: &[u8], parser: CommandParser, needed: usize, worker: &Worker) -> Self {
        let mut bytes = BytesMut::with_capacity(begun.len() + (needed - begun.len()).clamp(ROOM_MIN, GROW));
        bytes.extend_from_slice(begun);
        worker.queued_add(bytes.capacity());
        Self { held: bytes.capacity(), bytes, parser, needed }
    }

    fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Makes room for more of it, unless the worker holds as much as it may.
    fn grow(&mut self, worker: &Worker) -> bool {
        if worker.queued() >= worker.limits().worker_queued_bytes_max {
            return false;
        }
        let missing = self.needed.saturating_sub(self.bytes.len());
        self.bytes.reserve(missing.clamp(ROOM_MIN, GROW.max(self.bytes.len())));
        worker.queued_add(self.bytes.capacity() - self.held);
        self.held = self.bytes.capacity();
        true
    }
}

impl Future for AppConn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let app = self.app.clone();
        app.task.turn(cx, |cx| self.drive(cx)).map(|reason| {
            if let Some(reason) = reason {
                self.end(reason);
            }
        })
    }
}

impl AppConn {
    pub(crate) fn new(worker: Rc<Worker>, app: Rc<App>, stream: Stream) -> Self {
        Self { stream, worker, app, partial: None, last: None, shut: false }
    }

    /// Ready when the connection has ended, with the reason; without one if it speaks frames.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        self.worker.turn_begins();
        let limits = self.worker.limits();
        loop {
            let flushed = self.app.poll_flush(&mut self.stream, cx, self.worker.now());
            if let Some(reason) = self.app.closed() {
                return Poll::Ready(Some(reason));
            }
            if let Poll::Ready(Err(_)) = flushed {
                return Poll::Ready(Some(CloseReason::Peer));
            }
            if self.app.output_bytes() < limits.queued_bytes_max / 2 {
                self.app.resume_readers();
            }
            if let Some(reason) = self.last {
                return if self.app.is_idle() { self.poll_end(cx, reason).map(Some) } else { Poll::Pending };
            }
            if self.app.queued_bytes() >= limits.queued_bytes_max {
                return Poll::Pending;
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(data)) if data.is_empty() => self.last = Some(CloseReason::Peer),
                Poll::Ready(Ok(data)) if self.speaks_frames(&data) => return Poll::Ready(None),
                Poll::Ready(Ok(data)) => self.feed(data),
                Poll::Ready(Err(_)) => return Poll::Ready(Some(CloseReason::Peer)),
                Poll::Pending if self.last.is_some() => {}
                Poll::Pending if self.app.is_idle() && self.is_to_leave() => self.last = Some(CloseReason::Drain),
                Poll::Pending if self.app.is_idle() && self.app.has_left() => self.last = Some(self.app.why_left()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether its connection ends between two calls.
    fn is_to_leave(&self) -> bool {
        self.worker.is_draining() || self.app.is_to_leave()
    }

    /// Says that nothing more comes. What an application goes on sending after an error is read and dropped, as closing
    /// on it would be a reset, which takes the error with it; housekeeping bounds how long.
    fn poll_end(&mut self, cx: &mut Context<'_>, reason: CloseReason) -> Poll<CloseReason> {
        if !self.shut {
            ready!(self.stream.poll_shutdown(cx)).ok();
            self.shut = true;
            self.app.in_command.set(true);
            self.drop_partial();
        }
        let error = matches!(reason, CloseReason::Protocol | CloseReason::Full);
        while error && ready!(self.worker.poll_read(&mut self.stream, cx)).is_ok_and(|data| !data.is_empty()) {}
        Poll::Ready(reason)
    }

    fn drop_partial(&mut self) {
        if let Some(partial) = self.partial.take() {
            self.worker.queued_sub(partial.held);
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<Bytes>> {
        let Some(partial) = &mut self.partial else {
            return self.worker.poll_read(&mut self.stream, cx).map_ok(BytesMut::freeze);
        };
        loop {
            if partial.room() == 0 && !partial.grow(&self.worker) {
                self.app
                    .push(reply::error("ERR the agent holds as many bytes as it may (agent.queued_bytes_max): try again later"));
                self.last = Some(CloseReason::Full);
                return Poll::Pending;
            }
            match self.stream.poll_read_buf(cx, &mut partial.bytes) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Bytes::new())),
                Poll::Ready(Ok(_)) => self.app.last_read.set(self.worker.now()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            if partial.bytes.len() >= partial.needed {
                self.worker.queued_sub(std::mem::take(&mut partial.held));
                return Poll::Ready(Ok(partial.bytes.split().freeze()));
            }
        }
    }

    /// What begins so speaks frames, which is another task's business.
    fn speaks_frames(&mut self, data: &Bytes) -> bool {
        let whole = data.first_chunk::<3>();
        let is_first = self.app.calls.get() == 0 && self.app.session.borrow().is_none() && self.app.is_idle();
        let frames = is_first && whole.is_some_and(|begun| begun[..2] == MAGIC && begun[2] < b'\t');
        if frames {
            let bytes = BytesMut::from(&data[..]);
            self.worker.becomes_frames(&self.app, self.stream.take(), bytes);
        }
        frames
    }

    fn feed(&mut self, mut data: Bytes) {
        let limits = self.worker.command_limits();
        let mut parser = self.partial.take().map(|partial| partial.parser).unwrap_or_default();
        self.app.last_read.set(self.worker.now());
        self.app.in_command.set(false);
        while self.last.is_none() && (!data.is_empty() || parser.is_skipping()) {
            match parser.parse(&data, &limits) {
                Ok(Step::Command(command)) => {
                    let raw = data.split_to(command.len);
                    self.command(&raw, &command);
                }
                Ok(Step::Skip { bytes }) => data.advance(bytes),
                Ok(Step::Refused(refused)) => self.refused(&refused, &limits),
                Ok(Step::Incomplete { need }) => {
                    self.app.in_command.set(true);
                    self.partial = Some(Box::new(Partial::new(&data, parser, need, &self.worker)));
                    return;
                }
                Err(error) => {
                    self.app.push(reply::error(&format!("ERR {error}")));
                    self.last = Some(CloseReason::Protocol);
                    return;
                }
            }
        }
    }

    fn command(&mut self, raw: &Bytes, command: &Command) {
        match &command.args {
            Args::Ranges(args) if args.len() == 2 && is(&raw[args[0].clone()], b"GET") => {
                let request = Request::command_of(raw.clone(), args[1].clone());
                self.call(&raw[args[1].clone()], request, None);
            }
            Args::Ranges(args) if args.len() > 1 && is(&raw[args[0].clone()], b"MGET") => self.mget(raw, args),
            Args::Ranges(args) => self.other(&args.iter().map(|arg| &raw[arg.clone()]).collect::<Vec<_>>()),
            Args::Owned(args) => self.inline(&args.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        }
    }

    /// An inline command. A call goes on in the array form.
    fn inline(&mut self, args: &[&[u8]]) {
        match args {
            [name, envelope] if is(name, b"GET") => {
                let bytes = Bytes::from(reply::array_of_bulks(args));
                let body = bytes.len() - 2 - envelope.len()..bytes.len() - 2;
                self.call(envelope, Request::command_of(bytes, body), None);
            }
            [name, ..] if args.len() > 1 && is(name, b"MGET") => {
                let limits = Limits { argument_bytes_max: usize::MAX, command_bytes_max: usize::MAX };
                let raw = Bytes::from(reply::array_of_bulks(args));
                if let Ok(Step::Command(command)) = CommandParser::default().parse(&raw, &limits) {
                    self.command(&raw, &command);
                }
            }
            _ => self.other(args),
        }
    }

    /// Every key is a call of its own; each reply has its place behind the array's header.
    fn mget(&mut self, raw: &Bytes, args: &[Range<usize>]) {
        let keys = args.len() - 1;
        let limits = self.worker.limits();
        if keys > limits.mget_keys_max {
            let text = format!("ERR MGET takes at most {} keys, not {keys} (app.mget_keys_max)", limits.mget_keys_max);
            return self.app.push(reply::error(&text));
        }
        self.app.push(reply::array_header(keys));
        let within = Duration::from_millis(limits.mget_timeout_ms);
        for pair in args.windows(2) {
            // From the end of the argument before it to its own: its length and the bytes, as they came.
            let bytes = raw.slice(pair[0].end + 2..pair[1].end + 2);
            let at = pair[1].start - pair[0].end - 2;
            self.call(&raw[pair[1].clone()], Request::argument_of(bytes, at), Some(within));
        }
    }

    fn call(&mut self, envelope: &[u8], request: Request, within: Option<Duration>) {
        self.app.calls.set(self.app.calls.get() + 1);
        match self.admit(envelope) {
            Ok(begun) => {
                let timeout = Duration::from_millis(begun.service.route.policy.timeout_ms);
                let within = match within {
                    Some(whole) => Within { timeout: timeout.min(whole), extends: false },
                    None => Within { timeout, extends: true },
                };
                let seq = self.app.reserve();
                self.worker.begin(&self.app, seq, begun, request, within);
            }
            Err(refused) => {
                let text = self.worker.error_text(&refused.uri, None, &refused.reason);
                match refused.service {
                    Some(service) => service.unsent.refused(refused.code),
                    None => {
                        self.worker.counters.unrouted.add(refused.code);
                        let told = |origin: &Origin<'_>| {
                            self.worker.report_unknown(&refused.uri, origin, (refused.code, &refused.reason));
                        };
                        self.with_origin(told);
                    }
                }
                self.app.push(error_envelope(refused.code, &text));
            }
        }
    }

    /// Finds the service, and says no before anything is sent that a server would answer with silence or a reset.
    fn admit(&self, envelope: &[u8]) -> Result<Begun, RefusedCall> {
        let refuse = |code, uri: &str, reason| RefusedCall { code, uri: uri.to_owned(), reason, service: None };
        let scanned = scan_request(envelope)
            .map_err(|error| refuse(code::SERIALIZATION, "-", format!("the argument of GET is not a MOA call: {error}")))?;
        let action =
            scanned.action.ok_or_else(|| refuse(code::NO_URI, "-", "the call has no `action`, the service's URI".to_owned()))?;
        let service = self.find(&action).ok_or_else(|| {
            let uri: String = action.decode().unwrap_or_default().chars().take(URI_EXCERPT).collect();
            refuse(code::SERVICE_NOT_FOUND, &uri, "no such service is configured".to_owned())
        })?;
        let policy = &service.route.policy;
        let limits = self.worker.limits();
        let (code, reason) = if envelope.len() > policy.argument_bytes_max {
            let text =
                format!("the call has {} bytes, more than {} (argument_bytes_max)", envelope.len(), policy.argument_bytes_max);
            (code::SERIALIZATION, text)
        } else if self.app.owed() >= limits.pipeline_max {
            (code::POOL_FULL, format!("{} calls are in flight on this connection (app.pipeline_max)", limits.pipeline_max))
        } else if self.worker.queued() + envelope.len() > limits.worker_queued_bytes_max {
            let max = limits.worker_queued_bytes_max;
            (code::POOL_FULL, format!("more than {max} bytes wait in this worker (agent.queued_bytes_max)"))
        } else {
            match self.govern(&service, scanned) {
                Ok(begun) => return Ok(begun),
                Err(Refused { code, reason }) => (code, reason),
            }
        };
        Err(RefusedCall { code, uri: service.name().to_owned(), reason, service: Some(service) })
    }

    /// What the service's policy says about the call.
    fn govern(&self, service: &Rc<Service>, envelope: Envelope<'_>) -> Result<Begun, Refused> {
        self.with_origin(|origin| {
            let call = RedisCall { envelope, application: origin.application };
            self.worker.govern(service, &call, origin)
        })
    }

    fn with_origin<T>(&self, with: impl FnOnce(&Origin<'_>) -> T) -> T {
        let session = self.app.session.borrow();
        // What is known counts, not what it says.
        let known = self.app.place.as_ref().and_then(|place| place.application());
        let said = || session.as_deref().and_then(Session::own_name);
        let application = known.as_deref().or_else(said).unwrap_or_default();
        let scope = self.app.side.scope();
        with(&Origin {
            scope,
            application,
            peer: self.app.peer,
            protocol: "redis",
            idempotent: false,
            shadow: false,
            sampled: None,
        })
    }

    fn find(&self, action: &JsonStr<'_>) -> Option<Rc<Service>> {
        self.worker.scratch(|scratch| self.worker.service(action.decode_with(scratch).ok()?))
    }

    fn other(&mut self, args: &[&[u8]]) {
        let mut out = Vec::new();
        let after = {
            let mut session = self.app.session.borrow_mut();
            session::execute(&mut session, &self.worker.about(&self.app), args, &mut out)
        };
        self.app.push(out.into());
        if after == After::Close {
            self.last = Some(CloseReason::Quit);
        }
    }

    fn refused(&self, refused: &resp::Refused, limits: &Limits) {
        let crowded = *limits != self.worker.limits().command;
        let reason = match refused.refusal {
            _ if crowded => {
                let max = self.worker.limits().worker_queued_bytes_max;
                format!("more than {max} bytes wait in this worker (agent.queued_bytes_max), so a command must be short")
            }
            Refusal::Argument { len } => {
                format!("an argument has {len} bytes, more than {} (app.argument_bytes_max)", limits.argument_bytes_max)
            }
            Refusal::Command => format!("a command has more than {} bytes (app.command_bytes_max)", limits.command_bytes_max),
        };
        if is(&refused.name, b"GET") {
            let code = if crowded { code::POOL_FULL } else { code::SERIALIZATION };
            self.worker.counters.unrouted.add(code);
            self.app.push(error_envelope(code, &self.worker.error_text("-", None, &reason)));
        } else {
            self.app.push(reply::error(&format!("ERR {reason}")));
        }
    }

    fn end(&mut self, reason: CloseReason) {
        self.drop_partial();
        let calls = self.app.calls_in_flight();
        self.app.clear(reason);
        for key in calls {
            self.worker.cancel(key, status::CANCELLED);
        }
        self.worker.app_ended(&self.app, reason);
    }
}

/// Why a call is not begun.
struct RefusedCall {
    code: u16,
    uri: String,
    reason: String,
    service: Option<Rc<Service>>,
}

fn is(name: &[u8], command: &[u8]) -> bool {
    name.eq_ignore_ascii_case(command)
}
