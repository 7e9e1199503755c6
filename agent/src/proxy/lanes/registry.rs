//! The lanes of one agent, as all of its threads know them: whose each one is, and who is told what becomes of its calls.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_common::frame::{Flags, Header, Kind};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{LaneId, LanePath, RoutedCall};
use crate::proxy::routes::Instance;

/// Labels that callers can have.
const LABELS_MAX: usize = 4_096;
/// The label of all others: it never has leave where leave is needed, so that the agent decides.
const NO_LEAVE: u32 = u32::MAX;
/// Calls in flight that an application may be given which does not say.
const CALLS_MAX: u32 = 1_024;

/// The lanes of all workers.
pub(crate) struct Lanes {
    path: Arc<dyn LanePath>,
    held: Mutex<Held>,
    /// One for each worker. As many letters wait as calls can be in flight at most.
    letters: Vec<mpsc::UnboundedSender<Letter>>,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Default)]
struct Held {
    owners: HashMap<LaneId, Owner>,
    by_conn: HashMap<u64, LaneId>,
    /// Calls that were claimed, whose callees have not answered yet, by the `via` that they know.
    abandoned: HashMap<u64, RoutedCall>,
    /// Calls in flight whose callees have lost their lanes, and may answer by these stream connections; by the same `via`.
    moved: HashMap<u64, (RoutedCall, Owner)>,
    /// Answers of several frames that have begun, by connection and `via` of their callers.
    begun: HashMap<(u64, u64), Source>,
    labels: HashMap<Arc<str>, u32>,
    /// Who has the lane: the application, and its process.
    names: HashMap<LaneId, (Arc<str>, Arc<str>)>,
}

/// Whose a lane is: the stream connection that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) worker: usize,
    pub(crate) conn: u64,
}

/// Where an answer of several frames comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) callee: Owner,
    /// What the callee knows the call by, which is nobody else's.
    pub(crate) via: u64,
}

/// A call whose answer has come to the agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Late {
    pub(crate) call: RoutedCall,
    /// Who waits for the answer; none if his connection has ended.
    pub(crate) caller: Option<Owner>,
}

/// What a worker sends on one of its connections for another thread.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A message of one frame.
    Message(u64, Header, Bytes, Bytes),
    /// A frame of an answer that has several.
    Piece(u64, Source, Header, Bytes, Bytes),
    /// Such an answer does not go on: this is what its caller is told.
    BrokenOff(u64, Source, Header),
    /// Nobody waits for the rest of such an answer: with this `via` of its caller's.
    Unwanted(u64, Source, u64),
    /// A caller has taken so many bytes of such an answer, which came from this connection, under this `via`.
    Taken(u64, u64, usize),
    /// A caller wants no more of it, for this reason.
    GivenUp(u64, u64, u32),
    /// A frame to a callee that needs no credit.
    Control(u64, Header),
    /// How long instances took for the calls that were routed to them.
    Seen(Arc<[Seen]>),
}

/// How long one instance took lately.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The key of its service.
    pub(crate) service: Arc<str>,
    pub(crate) instance: Arc<Instance>,
    /// The mean over its latest answers.
    pub(crate) took: Duration,
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is one more lane, or one is called otherwise.
    Opened,
    /// A lane is over.
    Over(LaneId),
    /// A stream connection is over, and so was its lane before.
    Gone(u64),
    /// A caller has given up a call of this connection that it may have sent on its lane.
    Cancelled { conn: u64, caller: Option<LaneId>, via: u64, status: u32 },
}

impl Lanes {
    pub(crate) fn new(
        path: Arc<dyn LanePath>,
        letters: Vec<mpsc::UnboundedSender<Letter>>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, told) = mpsc::unbounded_channel();
        (Arc::new(Self { path, held: Mutex::default(), letters, events }), told)
    }

    pub(crate) fn path(&self) -> &dyn LanePath {
        &*self.path
    }

    /// Makes a lane of a connection. Nothing may have come on it but its HELLO, of `read` bytes. It is given no calls before
    /// [`Lanes::greeted`].
    pub(crate) fn open(
        &self,
        socket: BorrowedFd<'_>,
        read: u64,
        owner: Owner,
        (application, calls_max): (&str, u32),
    ) -> Result<LaneId, String> {
        let label = self.label(application);
        let calls_max = if calls_max == 0 { CALLS_MAX } else { calls_max };
        let lane = self.path.open(socket, read, label, calls_max)?;
        self.held().owners.insert(lane, owner);
        Ok(lane)
    }

    /// The agent's HELLO lies at the other end of a lane, which is not over: what is routed to it comes behind that.
    pub(crate) fn greeted(&self, lane: LaneId) {
        let mut held = self.held();
        let Some(conn) = held.owners.get(&lane).map(|owner| owner.conn) else { return };
        held.by_conn.insert(conn, lane);
        drop(held);
        self.tell(Event::Opened);
    }

    /// Says who has a lane, for operators.
    pub(crate) fn named(&self, lane: LaneId, application: &str, instance: &str) {
        self.held().names.insert(lane, (application.into(), instance.into()));
    }

    /// Who has a lane: the application and its process.
    pub(super) fn name(&self, lane: LaneId) -> Option<(Arc<str>, Arc<str>)> {
        self.held().names.get(&lane).cloned()
    }

    /// Somebody else is known to be at the other end.
    pub(crate) fn renamed(&self, lane: LaneId, application: &str) {
        self.path.relabel(lane, self.label(application));
        if let Some((known, _)) = self.held().names.get_mut(&lane) {
            *known = application.into();
        }
        self.tell(Event::Opened);
    }

    /// A lane is over: nothing is routed from it or to it any more.
    pub(crate) fn over(&self, lane: LaneId) {
        self.path.close(lane);
        let mut held = self.held();
        if let Some(owner) = held.owners.get(&lane).copied()
            && held.by_conn.get(&owner.conn) == Some(&lane)
        {
            held.by_conn.remove(&owner.conn);
        }
        drop(held);
        self.tell(Event::Over(lane));
    }

    /// Nobody needs to know any more whose it was.
    pub(super) fn forget(&self, lane: LaneId) {
        let mut held = self.held();
        held.owners.remove(&lane);
        held.names.remove(&lane);
        held.abandoned.retain(|_, call| callee(call) != lane);
        drop(held);
        self.path.free(lane);
    }

    /// The lane of an application, by its stream connection.
    pub(crate) fn of_conn(&self, conn: u64) -> Option<LaneId> {
        self.held().by_conn.get(&conn).copied()
    }

    /// The lanes of all stream connections.
    pub(super) fn by_conn(&self) -> HashMap<u64, LaneId> {
        self.held().by_conn.clone()
    }

    /// All lanes that are not over.
    pub(crate) fn all(&self) -> Vec<LaneId> {
        self.held().by_conn.values().copied().collect()
    }

    /// Whether calls are under way that came from a lane, or that it was given. Looks at all calls.
    pub(crate) fn is_busy(&self, lane: LaneId) -> bool {
        let mut busy = self.path.look(lane).is_some_and(|look| look.in_flight > 0);
        busy |= self.held().moved.values().any(|(call, _)| caller(call) == lane);
        if !busy {
            self.path.calls(&mut |_, call| busy |= caller(call) == lane);
        }
        busy
    }

    pub(crate) fn tell(&self, event: Event) {
        // The keeper ends with the agent.
        let _ = self.events.send(event);
    }

    /// What an application is called where callers need leave; 0 if it is nobody in particular.
    fn label(&self, application: &str) -> u32 {
        let labels = &mut self.held().labels;
        if let Some(label) = labels.get(application) {
            return *label;
        }
        let next = u32::try_from(labels.len() + 1).unwrap_or(NO_LEAVE);
        if application.is_empty() {
            return 0;
        }
        if labels.len() >= LABELS_MAX {
            return NO_LEAVE;
        }
        labels.insert(application.into(), next);
        next
    }

    /// The applications that have labels.
    pub(super) fn labels(&self) -> Vec<(Arc<str>, u32)> {
        self.held().labels.iter().map(|(application, label)| (application.clone(), *label)).collect()
    }

    // Calls that the agent ends.

    /// Tells all workers what the kernel saw of instances, as they balance the calls that it does not route.
    pub(super) fn show(&self, seen: Vec<Seen>) {
        let seen: Arc<[Seen]> = seen.into();
        (0..self.letters.len()).for_each(|worker| self.post(worker, Letter::Seen(seen.clone())));
    }

    /// Answers a call that was claimed, and whose caller's lane is not forgotten yet.
    pub(super) fn refuse(&self, call: &RoutedCall, header: Header, meta: Bytes, body: Bytes) {
        let caller = self.held().owners.get(&caller(call)).copied();
        self.answer(&Late { call: *call, caller }, header, meta, body);
    }

    /// Answers a call that was claimed, by one frame.
    pub(crate) fn answer(&self, late: &Late, header: Header, meta: Bytes, body: Bytes) {
        let Some(Owner { worker, conn }) = late.caller else { return };
        let flags = header.flags | Flags::END_STREAM;
        self.post(worker, Letter::Message(conn, back(&late.call, Header { flags, ..header }), meta, body));
    }

    /// Passes a frame of an answer on that has several.
    pub(crate) fn pass(&self, late: &Late, from: Source, header: Header, meta: Bytes, body: Bytes) {
        let Some(Owner { worker, conn }) = late.caller else { return };
        self.post(worker, Letter::Piece(conn, from, back(&late.call, header), meta, body));
    }

    /// An answer that has begun does not go on.
    pub(crate) fn break_off(&self, late: &Late, from: Source, code: u16) {
        let Some(Owner { worker, conn }) = late.caller else { return };
        let header = Header { word: u32::from(code), ..back(&late.call, Header::new(Kind::Cancel)) };
        self.post(worker, Letter::BrokenOff(conn, from, header));
    }

    /// The rest of an answer that has begun is not wanted, and does not come.
    pub(crate) fn stop(&self, late: &Late, from: Source) {
        let Some(Owner { worker, conn }) = late.caller else { return };
        self.post(worker, Letter::Unwanted(conn, from, late.call.via));
    }

    /// A caller has taken so much of an answer.
    pub(crate) fn taken(&self, from: Source, bytes: usize) {
        self.post(from.callee.worker, Letter::Taken(from.callee.conn, from.via, bytes));
    }

    /// A caller wants no more of an answer that has begun.
    pub(crate) fn give_up(&self, from: Source, status: u32) {
        self.post(from.callee.worker, Letter::GivenUp(from.callee.conn, from.via, status));
    }

    /// A caller wants no more of an answer of which it may have got nothing yet.
    pub(super) fn give_up_begun(&self, conn: u64, via: u64, status: u32) {
        let from = self.held().begun.get(&(conn, via)).copied();
        if let Some(from) = from {
            self.give_up(from, status);
        }
    }

    /// An answer of several frames begins. Before its first frame is passed on, and in the same moment in which its call is
    /// taken: so whoever looks for the call finds either it or its answer.
    fn begins(held: &mut Held, late: &Late, from: Source) {
        if let Some(caller) = late.caller {
            held.begun.insert((caller.conn, late.call.via), from);
        }
    }

    /// All frames of such an answer have come, or no more will.
    pub(crate) fn has_come(&self, late: &Late, from: Source) {
        let Some(caller) = late.caller else { return };
        let mut held = self.held();
        let key = (caller.conn, late.call.via);
        // Another call may have the name by now.
        if held.begun.get(&key) == Some(&from) {
            held.begun.remove(&key);
        }
    }

    /// Takes a call from its callee, unless it has been answered: a late answer is expected. Both at once, as the answer may
    /// come at this moment, and its room is given back only by whoever knows of the call.
    pub(super) fn take(&self, via: u64) -> Option<RoutedCall> {
        let mut held = self.held();
        let call = self.path.claim(via)?;
        if held.owners.contains_key(&callee(&call)) {
            held.abandoned.insert(via, call);
        }
        Some(call)
    }

    /// Tells the callee of a call that was taken.
    pub(super) fn abandon(&self, via: u64, call: &RoutedCall, status: u32) {
        let owner = self.held().owners.get(&callee(call)).copied();
        if let Some(owner) = owner {
            self.abandon_at(owner, via, call, status);
        }
    }

    /// The same, where its lane may be forgotten.
    pub(super) fn abandon_at(&self, Owner { worker, conn }: Owner, via: u64, call: &RoutedCall, status: u32) {
        let header = Header { stream: call.stream, via, service: call.service, word: status, ..Header::new(Kind::Cancel) };
        self.post(worker, Letter::Control(conn, header));
    }

    /// The lane of a call's callee is over: its stream connection may still answer it. Returns a call that has none.
    pub(super) fn keep(&self, via: u64) -> Option<RoutedCall> {
        let mut held = self.held();
        let call = self.path.claim(via)?;
        let Some(owner) = held.owners.get(&callee(&call)).copied() else { return Some(call) };
        held.moved.insert(via, (call, owner));
        None
    }

    /// Takes those calls whose callees have lost their lanes of which something is so.
    pub(super) fn take_moved(&self, mut is_so: impl FnMut(&RoutedCall, &Owner) -> bool) -> Vec<(u64, RoutedCall, Owner)> {
        let mut held = self.held();
        let taken = held.moved.extract_if(|_, (call, owner)| is_so(call, owner));
        taken.map(|(via, (call, owner))| (via, call, owner)).collect()
    }

    /// How many calls are in flight whose callees have lost their lanes.
    pub(crate) fn moved(&self) -> usize {
        self.held().moved.len()
    }

    /// Whether this stream connection has such calls to answer.
    pub(crate) fn has_moved(&self, conn: u64) -> bool {
        self.held().moved.values().any(|(_, owner)| owner.conn == conn)
    }

    /// An answer has come to the agent that the kernel did not route, on a lane or the stream connection that it belongs to,
    /// which is `own`; `begins`: it has more frames than this one. Returns the call, if it is in flight, was given to this
    /// callee, and is what the answer says: then the answer is the agent's to pass on.
    pub(crate) fn late(&self, own: Owner, header: &Header, begins: bool) -> Option<Late> {
        let via = header.via;
        let is_it = |call: &RoutedCall| call.stream == header.stream && call.service == header.service;
        let mut held = self.held();
        // A lane that is over is still known until its calls have been looked at.
        let is_own = |held: &Held, call: &RoutedCall| is_it(call) && held.owners.get(&callee(call)) == Some(&own);
        if held.abandoned.get(&via).is_some_and(|call| is_own(&held, call)) {
            let call = held.abandoned.remove(&via)?;
            drop(held);
            self.path.release(&call);
            return None;
        }
        let call = match held.moved.get(&via) {
            Some((call, owner)) if *owner == own && is_it(call) => held.moved.remove(&via)?.0,
            Some(_) => return None,
            None => {
                // Nobody takes another's call out of the table by naming it.
                let call = self.path.peek(via).filter(|call| is_own(&held, call))?;
                let call = self.path.claim(via).filter(|claimed| *claimed == call)?;
                self.path.release(&call);
                call
            }
        };
        let late = Late { call, caller: held.owners.get(&caller(&call)).copied() };
        if begins {
            Self::begins(&mut held, &late, Source { callee: own, via });
        }
        Some(late)
    }

    fn post(&self, worker: usize, letter: Letter) {
        if let Some(worker) = self.letters.get(worker) {
            // A worker ends with the agent.
            let _ = worker.send(letter);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lane that a call was given to.
pub(super) fn callee(call: &RoutedCall) -> LaneId {
    LaneId { index: call.callee, generation: call.callee_generation }
}

/// The lane that it came from.
pub(super) fn caller(call: &RoutedCall) -> LaneId {
    LaneId { index: call.caller, generation: call.caller_generation }
}

/// The header of a frame as its call's caller knows it.
fn back(call: &RoutedCall, header: Header) -> Header {
    let flags = header.flags | Flags::TO_CALLER;
    Header { flags, stream: call.stream, via: call.via, service: call.service, receipt: 0, ..header }
}

/// The header of an answer of the agent's own.
pub(super) fn refusal(code: u16) -> Header {
    Header { word: u32::from(code), ..Header::new(Kind::Response) }
}
