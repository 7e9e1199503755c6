//! One application's connection, as its calls see it: the replies that it is owed.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    calls::CallKey,
    frames::Side,
    place::{Place, Source},
    replies::{Replies, Seq},
    session::Session,
    socket::Peer,
    stats::CloseReason,
    stream::Stream,
    turn::{Task, Waiters},
};

/// Replies that no application is owed any more, kept for the next one that is.
const SPARE_MAX: usize = 256;

/// What the applications of one worker share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Bytes that wait in the worker, for whomever.
    pub(crate) queued: Cell<usize>,
    #[expect(clippy::vec_box, reason = "boxes go from here to connections and back")]
    spare: RefCell<Vec<Box<Replies>>>,
}

/// One application's connection.
#[derive(Debug)]
pub(crate) struct App {
    /// Its place in the worker's list.
    pub(crate) key: usize,
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) side: Side,
    /// What is known of who calls.
    pub(crate) place: Option<Rc<Place>>,
    pub(crate) since: Instant,
    /// When it last sent something.
    pub(crate) last_read: Cell<Instant>,
    /// It has begun a command that is not whole yet.
    pub(crate) in_command: Cell<bool>,
    pub(crate) calls: Cell<u64>,
    /// What it said of itself; most say nothing.
    pub(crate) session: RefCell<Option<Box<Session>>>,
    /// Only while it is owed something: an idle connection holds no queues.
    replies: RefCell<Option<Box<Replies>>>,
    /// Where the order of its replies goes on.
    next_seq: Cell<Seq>,
    shared: Rc<Shared>,
    pub(crate) task: Task,
    close: Cell<Option<CloseReason>>,
    /// It is to go between two calls.
    to_leave: Cell<bool>,
    /// Backends that hold back answers until this application has taken some.
    paused: Waiters,
    stalled: Cell<bool>,
    /// When it last took something, if its socket takes no more for now.
    blocked_since: Cell<Option<Instant>>,
}

impl App {
    pub(crate) fn new(key: usize, id: u64, from: Source, now: Instant, shared: Rc<Shared>) -> Self {
        let Source { peer, side, place } = from;
        Self {
            key,
            id,
            peer,
            side,
            place,
            since: now,
            last_read: Cell::new(now),
            in_command: Cell::new(false),
            calls: Cell::new(0),
            session: RefCell::default(),
            replies: RefCell::default(),
            next_seq: Cell::new(0),
            shared,
            task: Task::default(),
            close: Cell::new(None),
            to_leave: Cell::new(false),
            paused: Waiters::default(),
            stalled: Cell::new(false),
            blocked_since: Cell::new(None),
        }
    }

    /// Replies that it is owed.
    pub(crate) fn owed(&self) -> usize {
        self.replies.borrow().as_ref().map_or(0, |replies| replies.owed())
    }

    /// Bytes of replies that are on their way to it.
    pub(crate) fn output_bytes(&self) -> usize {
        self.replies.borrow().as_ref().map_or(0, |replies| replies.out.bytes())
    }

    /// Bytes of replies that it has not taken.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.replies.borrow().as_ref().map_or(0, |replies| replies.bytes())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.replies.borrow().is_none()
    }

    /// A reply that is known at once.
    pub(crate) fn push(&self, bytes: Bytes) {
        self.change(|replies| replies.push(bytes));
    }

    /// A place for a reply that comes later.
    pub(crate) fn reserve(&self) -> Seq {
        self.change(Replies::reserve)
    }

    pub(crate) fn set_call(&self, seq: Seq, key: CallKey) {
        self.change(|replies| replies.set_call(seq, key));
    }

    pub(crate) fn answer(&self, seq: Seq, bytes: Bytes) {
        self.change(|replies| replies.answer(seq, bytes));
    }

    pub(crate) fn append(&self, seq: Seq, key: CallKey, piece: Bytes) {
        self.change(|replies| replies.append(seq, key, piece));
    }

    pub(crate) fn finish(&self, seq: Seq) {
        self.change(|replies| replies.finish(seq));
    }

    /// An error in the place of an answer; if a part of the answer is out already, the connection ends instead.
    pub(crate) fn fail(&self, seq: Seq, error: Bytes) {
        let replaced = self.change(|replies| {
            let replaced = replies.take_back(seq);
            if replaced {
                replies.answer(seq, error);
            }
            replaced
        });
        if !replaced {
            self.close(CloseReason::CutAnswer);
        }
    }

    /// The calls that it waits for.
    pub(crate) fn calls_in_flight(&self) -> Vec<CallKey> {
        self.replies.borrow().as_ref().map_or_else(Vec::new, |replies| replies.calls())
    }

    /// Whether it has taken too little to be sent the answer of this place; it wakes the reader when it has.
    pub(crate) fn pause_reader(&self, seq: Seq, queued_bytes_max: usize, reader: &Task) -> bool {
        let waits = self.replies.borrow().as_ref().map_or(0, |replies| replies.before(seq));
        if self.close.get().is_some() || waits < queued_bytes_max {
            return false;
        }
        self.paused.add(reader);
        true
    }

    /// Remembers that it held up others for as long as it may.
    pub(crate) fn set_stalled(&self) {
        self.stalled.set(true);
    }

    /// Whether it has taken nothing since then.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// It can be sent more again.
    pub(crate) fn resume_readers(&self) {
        self.stalled.set(false);
        self.paused.wake();
    }

    /// Whether it comes from where nobody is served any more.
    pub(crate) fn has_left(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.has_left())
    }

    /// What its connection is closed for then.
    pub(crate) fn why_left(&self) -> CloseReason {
        if self.place.as_ref().is_some_and(|place| place.is_foreign()) { CloseReason::Drain } else { CloseReason::Namespace }
    }

    /// The application at the other end, if it is known or says so.
    pub(crate) fn name(&self) -> Option<String> {
        let known = self.place.as_ref().and_then(|place| place.application()).map(|known| known.to_string());
        known.or_else(|| self.session.borrow().as_ref().and_then(|session| session.name()))
    }

    /// Has its connection end between two calls, or not.
    pub(crate) fn set_to_leave(&self, to_leave: bool) {
        self.to_leave.set(to_leave);
        self.task.wake();
    }

    pub(crate) fn is_to_leave(&self) -> bool {
        self.to_leave.get()
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> Source {
        Source { peer: self.peer, side: self.side, place: self.place.clone() }
    }

    /// Ends the connection without waiting for anything.
    pub(crate) fn close(&self, reason: CloseReason) {
        if self.close.get().is_none() {
            self.close.set(Some(reason));
        }
        self.task.wake();
    }

    pub(crate) fn closed(&self) -> Option<CloseReason> {
        self.close.get()
    }

    /// Forgets what it is owed, as nobody will take it.
    pub(crate) fn clear(&self, reason: CloseReason) {
        self.close.set(Some(reason));
        self.change(Replies::clear);
        self.resume_readers();
    }

    /// When it last took something of what waits for it; none if nothing waits.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Writes until nothing is left (`Ready(Ok)`) or the socket takes no more.
    pub(crate) fn poll_flush(&self, stream: &mut Stream, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<()>> {
        if self.is_idle() {
            return Poll::Ready(Ok(()));
        }
        let before = self.output_bytes();
        let flushed = self.change(|replies| replies.out.poll_flush(stream, cx));
        let blocked = self.output_bytes();
        let since = self.blocked_since.get().filter(|_| blocked >= before);
        self.blocked_since.set((blocked > 0).then(|| since.unwrap_or(now)));
        flushed
    }

    fn change<T>(&self, change: impl FnOnce(&mut Replies) -> T) -> T {
        let mut place = self.replies.borrow_mut();
        let replies = place.get_or_insert_with(|| {
            let mut spare = self.shared.spare.borrow_mut().pop().unwrap_or_default();
            spare.begin(self.next_seq.get());
            spare
        });
        let (before, first) = (replies.bytes(), replies.first());
        let result = change(replies);
        let moved = replies.first() != first;
        self.shared.queued.set(self.shared.queued.get() + replies.bytes() - before);
        let ready = !replies.out.is_empty();
        if replies.is_idle() {
            self.next_seq.set(replies.next_seq());
            self.give_back(place.take());
        }
        drop(place);
        if moved && !self.paused.is_empty() {
            // What is first now may leave, whatever waits behind it.
            self.resume_readers();
        }
        if ready {
            self.task.wake();
        }
        result
    }

    fn give_back(&self, replies: Option<Box<Replies>>) {
        let mut spare = self.shared.spare.borrow_mut();
        if let Some(mut replies) = replies
            && spare.len() < SPARE_MAX
        {
            replies.shrink();
            spare.push(replies);
        }
    }
}
