//! A connection that speaks frames, as its calls see it.

mod end;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, IoSlice},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use agent_common::frame::{Flags, Frame, Header, Hello, Kind, Message, Outbox, Released, Role, Windows, status};
use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::{sync::Notify, time::Instant};

use super::{
    lane::Tie,
    relay::{Begun, Relay},
};
use crate::proxy::{
    app::Shared,
    calls::CallKey,
    out::SLICES_MAX,
    place::{Place, Source},
    routes::Health,
    socket::Peer,
    stats::CloseReason,
    stream::Stream,
    turn::{Task, Waiters},
};

/// Answers to PINGs that are held back: as many as may wait for a peer that does not read.
const PONGS_MAX: usize = 1_024;

/// What a connection is for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Applications connect here.
    App,
    /// Another agent has connected here: its calls go to what is local.
    AgentIn,
    /// This worker has connected to another agent, or to another worker.
    Out,
    /// Another worker of this agent: its calls go to what is this worker's own.
    Worker,
}

/// The bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What may be on its way to the agent.
    pub(crate) windows: Windows,
    /// Calls in flight that the peer may have.
    pub(crate) calls_max: usize,
    /// Bytes that may wait for the peer.
    pub(crate) queued_bytes_max: usize,
    /// Bytes that may wait for the peer when it is given one more call: calls of many applications meet at one service.
    pub(crate) calls_bytes_max: usize,
}

/// How a connection ends.
#[derive(Debug, Clone)]
enum Ending {
    /// It does not.
    Open,
    /// No new calls from this side; it ends with the last one.
    Leaving,
    /// At once, for this reason, which the peer is told.
    Now(CloseReason, u32, Rc<str>),
}

/// One connection that speaks frames.
#[derive(Debug)]
pub(crate) struct FrameConn {
    /// Its number in the whole agent.
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) side: Side,
    /// What is known of who calls.
    pub(crate) place: Option<Rc<Place>>,
    pub(crate) bounds: Bounds,
    pub(crate) since: Instant,
    pub(crate) last_read: Cell<Instant>,
    /// PINGs that were sent since.
    pings: Cell<u32>,
    pub(crate) task: Task,
    /// The peer has begun a frame that is not whole yet.
    pub(crate) in_frame: Cell<bool>,
    /// The peer has said its last word.
    pub(super) told_final: Cell<bool>,
    /// Calls that the peer has made.
    pub(crate) calls: Cell<u64>,
    /// What the peer said of itself; none before it has.
    hello: RefCell<Option<Rc<Hello>>>,
    out: RefCell<Outbox>,
    /// Calls in flight that the peer made, by its `via`.
    incoming: RefCell<HashMap<u64, CallKey, RandomState>>,
    /// Calls in flight that the peer was given.
    outgoing: Cell<usize>,
    ending: RefCell<Ending>,
    /// An agent was asked for no more calls, and may have sent some before it knew: it ends the connection.
    peer_ends: Cell<bool>,
    /// The peer was told that the agent drains.
    asked_to_go: Cell<bool>,
    closed: Cell<bool>,
    /// Its end has taken long enough.
    killed: Cell<bool>,
    late: Cell<bool>,
    /// Told when the peer has said who it is, and when the connection leaves or ends.
    changed: Notify,
    /// Backends that hold back an answer until more of it has left.
    paused: Waiters,
    /// Calls whose room is given back when their callers have taken more.
    pub(super) owed: RefCell<Vec<CallKey>>,
    blocked_since: Cell<Option<Instant>>,
    /// Since when nothing has left, as the peer gives no credit.
    starved_since: Cell<Option<Instant>>,
    shared: Rc<Shared>,
    /// The other connection of its application.
    pub(super) tie: Cell<Tie>,
    /// Answers to routed calls that come in several frames, by their `via`.
    pub(super) routed: RefCell<HashMap<u64, Begun, RandomState>>,
    /// Such answers that go to this peer, by the `via` that it gave their calls.
    pub(super) relayed: RefCell<HashMap<u64, Relay, RandomState>>,
    /// Of the agent that it leads to.
    health: RefCell<Option<Arc<Health>>>,
    /// Answers to PINGs that wait until its lane is certainly given no more calls.
    pongs: RefCell<Option<Vec<Header>>>,
}

/// What a connection is made of.
pub(crate) struct About {
    pub(crate) id: u64,
    pub(crate) from: Source,
    pub(crate) bounds: Bounds,
    pub(crate) now: Instant,
    pub(crate) shared: Rc<Shared>,
}

impl FrameConn {
    pub(crate) fn new(about: About) -> Self {
        let About { id, from, bounds, now, shared } = about;
        let Source { peer, side, place } = from;
        Self {
            id,
            peer,
            side,
            place,
            bounds,
            since: now,
            last_read: Cell::new(now),
            pings: Cell::new(0),
            task: Task::default(),
            in_frame: Cell::new(false),
            told_final: Cell::new(false),
            calls: Cell::new(0),
            hello: RefCell::default(),
            // Until HELLO nothing is sent that needs credit.
            out: RefCell::new(Outbox::new(Windows { stream: 0, connection: 0 })),
            incoming: RefCell::default(),
            outgoing: Cell::new(0),
            ending: RefCell::new(Ending::Open),
            peer_ends: Cell::new(false),
            asked_to_go: Cell::new(false),
            closed: Cell::new(false),
            killed: Cell::new(false),
            late: Cell::new(false),
            changed: Notify::new(),
            paused: Waiters::default(),
            owed: RefCell::default(),
            blocked_since: Cell::new(None),
            starved_since: Cell::new(None),
            shared,
            tie: Cell::default(),
            routed: RefCell::default(),
            relayed: RefCell::default(),
            health: RefCell::default(),
            pongs: RefCell::default(),
        }
    }

    /// The peer has said who it is.
    pub(crate) fn greeted(&self, hello: Rc<Hello>) {
        self.change(|out| out.set_windows(hello.windows));
        self.hello.replace(Some(hello));
        self.changed();
    }

    pub(crate) fn hello(&self) -> Option<Rc<Hello>> {
        self.hello.borrow().clone()
    }

    /// Whether its application has a lane, too.
    pub(super) fn has_lane(&self) -> bool {
        matches!(self.tie.get(), Tie::Has(_))
    }

    /// Whether it is a lane.
    pub(crate) fn is_lane(&self) -> bool {
        matches!(self.tie.get(), Tie::Is(..))
    }

    /// The application at the other end: what is known of it, else what it says.
    pub(crate) fn application(&self, hello: &Hello) -> Arc<str> {
        let known = self.place.as_ref().and_then(|place| place.application());
        known.unwrap_or_else(|| hello.application.as_str().into())
    }

    /// Whether somebody offers services on it.
    pub(crate) fn is_service(&self) -> bool {
        self.side == Side::App && self.hello.borrow().as_ref().is_some_and(|hello| !hello.offers.is_empty())
    }

    /// Whether it is there for its calls, and nothing else.
    pub(crate) fn is_caller(&self) -> bool {
        self.was_accepted() && !self.is_service() && !self.is_lane()
    }

    /// Whether the other end has opened it.
    pub(crate) fn was_accepted(&self) -> bool {
        matches!(self.side, Side::App | Side::AgentIn)
    }

    /// Whether the source entries of what it sends can be believed.
    pub(crate) fn is_agent(&self) -> bool {
        self.hello.borrow().as_ref().is_some_and(|hello| hello.role == Role::Agent)
    }

    /// Whether it can be given a call.
    pub(crate) fn is_usable(&self) -> bool {
        matches!(*self.ending.borrow(), Ending::Open) && !self.closed.get() && self.hello.borrow().is_some() && !self.is_lane()
    }

    /// Whether the peer takes one more call.
    pub(crate) fn has_room(&self) -> bool {
        let calls_max = self.hello.borrow().as_ref().map_or(0, |hello| hello.calls_max);
        (calls_max == 0 || self.outgoing.get() < calls_max as usize) && self.queued_bytes() < self.bounds.calls_bytes_max
    }

    /// Whether as much waits for the peer as may.
    pub(crate) fn is_crowded(&self) -> bool {
        self.queued_bytes() >= self.bounds.queued_bytes_max
    }

    /// The reason of an error for it.
    pub(super) fn why_crowded(&self) -> String {
        format!("{} bytes wait already for this connection's peer (queued_bytes_max)", self.bounds.queued_bytes_max)
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        let out = self.out.borrow();
        out.waiting_bytes() + out.ready_bytes()
    }

    /// Whether something is to be written.
    pub(crate) fn has_ready(&self) -> bool {
        self.out.borrow().ready_bytes() > 0
    }

    /// Since when the socket has taken nothing, if it has to.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Since when answers wait that the peer gives no credit for, though no call is in flight that could end it.
    pub(crate) fn starved_since(&self) -> Option<Instant> {
        self.starved_since.get().filter(|_| self.is_idle())
    }

    /// It leads to the agent of which this is known.
    pub(super) fn leads_to(&self, health: &Arc<Health>) {
        self.health.replace(Some(health.clone()));
    }

    /// What is known of the agent that it leads to.
    pub(super) fn health(&self) -> Option<Arc<Health>> {
        self.health.borrow().clone()
    }

    // Calls.

    pub(crate) fn outgoing(&self) -> usize {
        self.outgoing.get()
    }

    /// The number of the call that leaves next.
    pub(crate) fn next_stream(&self) -> u32 {
        self.out.borrow().next_stream()
    }

    /// The peer is given a call.
    pub(crate) fn begin(&self) {
        self.outgoing.set(self.outgoing.get() + 1);
    }

    /// A call that it was given is over.
    pub(crate) fn done(&self) {
        self.outgoing.set(self.outgoing.get() - 1);
        self.look_at_end();
    }

    /// The peer has made a call, whose name no other one in flight has.
    pub(crate) fn made(&self, via: u64, key: CallKey) {
        self.incoming.borrow_mut().insert(via, key);
    }

    /// Whether the peer still waits for the rest of an answer to a call of this name.
    pub(crate) fn answers(&self, via: u64) -> bool {
        self.out.borrow().has(Message { via, to_caller: true })
    }

    pub(crate) fn incoming(&self, via: u64) -> Option<CallKey> {
        self.incoming.borrow().get(&via).copied()
    }

    pub(crate) fn incoming_len(&self) -> usize {
        self.incoming.borrow().len()
    }

    pub(crate) fn take_incoming(&self) -> Vec<CallKey> {
        std::mem::take(&mut *self.incoming.borrow_mut()).into_values().collect()
    }

    /// A call that the peer made is over.
    pub(crate) fn ended(&self, via: u64) {
        self.incoming.borrow_mut().remove(&via);
        self.look_at_end();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.outgoing.get() == 0 && self.incoming.borrow().is_empty()
    }

    // Sending.

    /// Sends what needs no credit.
    pub(crate) fn control(&self, header: &Header, meta: &[u8]) {
        if self.closed.get() {
            return;
        }
        if self.change(|out| out.control(header, meta)).is_err() {
            self.close(CloseReason::Stalled, status::reason::LIMIT, "too many frames that need no credit wait for the peer");
        }
    }

    /// Sends a frame, as soon as there is credit for it. Only a message that is whole may pass those that wait.
    pub(crate) fn send(&self, header: Header, meta: &[u8], body: &[u8]) {
        let header = sized(header, meta.len(), body.len());
        let whole = header.kind() != Some(Kind::Data) && header.flags.has(Flags::END_STREAM);
        let sent = whole && meta.is_empty() && self.change(|out| out.try_whole(&header, body));
        if !sent {
            let frame = Frame { header, meta: Bytes::copy_from_slice(meta), body: Bytes::copy_from_slice(body) };
            self.change(|out| out.push(frame));
        }
    }

    /// Sends a whole small message at once, if it can. `rest` is what stands behind the header.
    pub(crate) fn try_whole(&self, header: &Header, rest: &[u8]) -> bool {
        // However much the peer says that it takes.
        self.change(|out| out.ready_bytes() < self.bounds.queued_bytes_max && out.try_whole(header, rest))
    }

    pub(crate) fn push(&self, frame: Frame) {
        self.change(|out| out.push(frame));
    }

    /// Tells the peer that a call fails, or its answer does not go on, and sends nothing more of it.
    pub(super) fn refuse_rest(&self, answer: &Header, code: u16) {
        self.drop_message(Message { via: answer.via, to_caller: true });
        let (kind, word) = (Kind::Cancel as u8, u32::from(code));
        self.control(&Header { kind, flags: Flags::TO_CALLER, word, meta_len: 0, body_len: 0, ..*answer }, &[]);
    }

    /// Answers a PING, now or when its answer says that no more calls come.
    pub(super) fn pinged(&self, ping: &Header) {
        let pong = Header { kind: Kind::Pong as u8, flags: Flags::NONE, ..*ping };
        match &mut *self.pongs.borrow_mut() {
            Some(held) if held.len() < PONGS_MAX => held.push(pong),
            Some(_) => self.close(CloseReason::Stalled, status::reason::LIMIT, "too many PINGs"),
            None => self.control(&pong, &[]),
        }
    }

    pub(super) fn hold_pongs(&self) {
        self.pongs.borrow_mut().get_or_insert_default();
    }

    pub(super) fn let_pongs_go(&self) {
        let held = self.pongs.take();
        held.into_iter().flatten().for_each(|pong| self.control(&pong, &[]));
        self.task.wake();
    }

    /// Whether answers to routed calls come or go in several frames, or calls may still be given to its lane.
    pub(super) fn has_routed(&self) -> bool {
        !self.routed.borrow().is_empty() || !self.relayed.borrow().is_empty() || self.pongs.borrow().is_some()
    }

    /// Gives back room of a message.
    pub(crate) fn credit(&self, call: Header, bytes: u32) {
        self.control(&Header { kind: Kind::Credit as u8, word: bytes, meta_len: 0, body_len: 0, ..call }, &[]);
    }

    /// The peer gave back room.
    pub(crate) fn credited(&self, header: &Header) -> bool {
        self.change(|out| out.credit(header)).is_ok()
    }

    /// Forgets what has not left of a message. True if nothing of it has.
    pub(crate) fn drop_message(&self, message: Message) -> bool {
        let unsent = self.change(|out| out.cancel(message));
        self.paused.wake();
        unsent
    }

    /// The frames of a message, if none of them has left.
    pub(crate) fn take_unsent(&self, message: Message) -> Option<Vec<Frame>> {
        self.change(|out| out.take_unsent(message))
    }

    /// Whether so much of an answer waits that its reader must; it is woken when more has left.
    pub(crate) fn pause_reader(&self, answer: Message, max: usize, reader: &Task) -> bool {
        let is_much = || self.out.borrow().waiting_of(answer) >= max.min(self.bounds.windows.stream as usize);
        if self.closed.get() || !(is_much() || self.is_crowded()) {
            return false;
        }
        self.paused.add(reader);
        true
    }

    fn change<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let mut out = self.out.borrow_mut();
        let before = out.waiting_bytes() + out.ready_bytes();
        let result = change(&mut out);
        let after = out.waiting_bytes() + out.ready_bytes();
        drop(out);
        self.shared.queued.set(self.shared.queued.get() + after - before);
        if after > 0 {
            self.task.wake();
        }
        result
    }

    /// Writes until nothing may go, or the socket takes no more. `released` gets what left the queue.
    pub(crate) fn poll_flush(
        &self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        now: Instant,
        released: &mut Vec<Released>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = released.len();
            self.change(|out| out.schedule(|one| released.push(one)));
            if released.len() > before {
                self.starved_since.set(None);
                self.paused.wake();
            }
            let out = self.out.borrow();
            if out.ready_bytes() == 0 {
                self.blocked_since.set(None);
                let starved = out.waiting_bytes() > 0;
                self.starved_since.set(starved.then(|| self.starved_since.get().unwrap_or(now)));
                return Poll::Ready(Ok(()));
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = out.fill(&mut slices);
            let written = stream.poll_write(cx, &slices[..count]);
            drop(out);
            if written.is_pending() {
                self.blocked_since.set(self.blocked_since.get().or(Some(now)));
            }
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.blocked_since.set(None);
                    self.change(|out| out.advance(written));
                }
            }
        }
    }
}

/// The header with its lengths.
fn sized(header: Header, meta: usize, body: usize) -> Header {
    let meta_len = u16::try_from(meta).unwrap_or(u16::MAX);
    Header { meta_len, body_len: u32::try_from(body).unwrap_or(u32::MAX), ..header }
}
