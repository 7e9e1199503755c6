//! The lanes of one agent, as all of its threads know them: whose each one is, and who is told what becomes of its calls.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_common::frame::{Flags, Header, Kind};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{LaneId, LanePath, RoutedCall};

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
    labels: HashMap<Arc<str>, u32>,
    /// Who has the lane: the application, and its process.
    names: HashMap<LaneId, (Arc<str>, Arc<str>)>,
}

/// Whose a lane is: the stream connection that it belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) worker: usize,
    pub(crate) conn: u64,
}

/// What a worker sends on one of its connections for another thread.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A message of one frame.
    Message(u64, Header, Bytes, Bytes),
    /// A frame that needs no credit.
    Control(u64, Header),
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is one more lane, or one is called otherwise.
    Opened,
    /// A lane is over.
    Over(LaneId),
    /// A caller has given up a call that it has sent on its lane.
    Cancelled { caller: LaneId, via: u64, status: u32 },
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

    /// Answers a call that was claimed. False if its caller is gone.
    pub(crate) fn answer(&self, call: &RoutedCall, header: Header, meta: Bytes, body: Bytes) -> bool {
        let flags = header.flags | Flags::END_STREAM;
        self.pass(call, Header { flags, ..header }, meta, body)
    }

    /// Passes a frame of an answer on.
    pub(crate) fn pass(&self, call: &RoutedCall, header: Header, meta: Bytes, body: Bytes) -> bool {
        let flags = header.flags | Flags::TO_CALLER;
        let header = Header { flags, stream: call.stream, via: call.via, service: call.service, receipt: 0, ..header };
        self.post(caller(call), |conn| Letter::Message(conn, header, meta, body))
    }

    /// An answer that has begun does not go on.
    pub(crate) fn break_off(&self, call: &RoutedCall, code: u16) {
        let RoutedCall { stream, via, service, .. } = *call;
        let word = u32::from(code);
        let header = Header { flags: Flags::TO_CALLER, stream, via, service, word, ..Header::new(Kind::Cancel) };
        self.post(caller(call), |conn| Letter::Control(conn, header));
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
        let header = Header { stream: call.stream, via, service: call.service, word: status, ..Header::new(Kind::Cancel) };
        self.post(callee(call), |conn| Letter::Control(conn, header));
    }

    /// An answer has come to the agent on this lane that the kernel did not route. Returns the call, if it is in flight and was
    /// given to this lane: then the answer is the agent's to pass on.
    pub(crate) fn late(&self, lane: LaneId, via: u64) -> Option<RoutedCall> {
        let mut held = self.held();
        if held.abandoned.get(&via).is_some_and(|call| callee(call) == lane) {
            let call = held.abandoned.remove(&via)?;
            drop(held);
            self.path.release(&call);
            return None;
        }
        // Nobody takes another's call out of the table by naming it.
        let call = self.path.peek(via).filter(|call| callee(call) == lane)?;
        let call = self.path.claim(via).filter(|claimed| *claimed == call)?;
        self.path.release(&call);
        Some(call)
    }

    fn post(&self, lane: LaneId, letter: impl FnOnce(u64) -> Letter) -> bool {
        let Some(Owner { worker, conn }) = self.held().owners.get(&lane).copied() else { return false };
        self.letters.get(worker).is_some_and(|worker| worker.send(letter(conn)).is_ok())
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

/// The header of an answer of the agent's own.
pub(super) fn refusal(code: u16) -> Header {
    Header { word: u32::from(code), ..Header::new(Kind::Response) }
}
