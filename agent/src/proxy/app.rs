//! One application's connection, as its calls see it: the replies that it is owed.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::{net::TcpStream, time::Instant};

use super::{
    calls::CallKey,
    replies::{Replies, Seq},
    session::Session,
    stats::CloseReason,
    turn::Task,
};

/// Bytes that wait in a worker, for whomever.
pub(crate) type Queued = Rc<Cell<usize>>;

/// One application's connection.
#[derive(Debug)]
pub(crate) struct App {
    /// Its place in the worker's list.
    pub(crate) key: usize,
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) since: Instant,
    pub(crate) last_command: Cell<Instant>,
    pub(crate) calls: Cell<u64>,
    /// What it said of itself; most say nothing.
    pub(crate) session: RefCell<Option<Box<Session>>>,
    replies: RefCell<Replies>,
    queued: Queued,
    pub(crate) task: Task,
    close: Cell<Option<CloseReason>>,
    /// Backends that hold back answers until this application has taken some.
    paused: RefCell<Vec<Waker>>,
}

impl App {
    pub(crate) fn new(key: usize, id: u64, peer: SocketAddr, now: Instant, queued: Queued) -> Self {
        Self {
            key,
            id,
            peer,
            since: now,
            last_command: Cell::new(now),
            calls: Cell::new(0),
            session: RefCell::default(),
            replies: RefCell::default(),
            queued,
            task: Task::default(),
            close: Cell::new(None),
            paused: RefCell::default(),
        }
    }

    /// Replies that it is owed.
    pub(crate) fn owed(&self) -> usize {
        self.replies.borrow().owed()
    }

    /// Bytes of replies that it has not taken.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.replies.borrow().bytes()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.replies.borrow().is_idle()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.replies.borrow().out.is_empty()
    }

    /// A reply that is known at once.
    pub(crate) fn push(&self, bytes: Bytes) {
        self.change(|replies| replies.push(bytes));
    }

    /// A place for a reply that comes later.
    pub(crate) fn reserve(&self) -> Seq {
        self.replies.borrow_mut().reserve()
    }

    pub(crate) fn set_call(&self, seq: Seq, key: CallKey) {
        self.replies.borrow_mut().set_call(seq, key);
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
        self.replies.borrow().calls()
    }

    /// Whether it has taken too little to be sent more; it wakes `waker` when it has.
    pub(crate) fn pause_reader(&self, queued_bytes_max: usize, waker: Waker) -> bool {
        if self.close.get().is_some() || self.queued_bytes() < queued_bytes_max {
            return false;
        }
        let mut paused = self.paused.borrow_mut();
        if !paused.iter().any(|other| other.will_wake(&waker)) {
            paused.push(waker);
        }
        true
    }

    /// It can be sent more again.
    pub(crate) fn resume_readers(&self) {
        for waker in std::mem::take(&mut *self.paused.borrow_mut()) {
            waker.wake();
        }
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
        self.change(|replies| *replies = Replies::default());
        self.resume_readers();
    }

    pub(crate) fn poll_flush(&self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.change(|replies| {
            let flushed = replies.out.poll_flush(stream, cx);
            replies.shrink();
            flushed
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Replies) -> T) -> T {
        let mut replies = self.replies.borrow_mut();
        let before = replies.bytes();
        let result = change(&mut replies);
        self.queued.set(self.queued.get() + replies.bytes() - before);
        let ready = !replies.out.is_empty();
        drop(replies);
        if ready {
            self.task.wake();
        }
        result
    }
}
