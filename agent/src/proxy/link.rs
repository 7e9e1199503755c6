//! One connection to an instance, as its pool and its calls see it: what waits to be written, what waits for an answer.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{calls::CallKey, out::SLICES_MAX, request::Request, stream::Stream, turn::Task};
use crate::netns::Namespace;

/// What became of a call that its connection was told to forget.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// No byte of it was written.
    Unsent,
    /// The server has it, or a part of it: an answer may still come.
    Sent,
}

/// One connection to an instance.
#[derive(Debug)]
pub(crate) struct Link {
    queue: RefCell<Queue>,
    pub(crate) task: Task,
    /// Why the connection is to be dropped.
    stop: RefCell<Option<String>>,
    /// No new calls: an answer is overdue that would otherwise be taken for the next call's.
    retiring: Cell<bool>,
    idle_since: Cell<Instant>,
    /// Whether several calls may be in flight on it.
    shared: bool,
    /// The namespace that it keeps alive; none for the agent's own.
    namespace: Option<Arc<Namespace>>,
    /// Whether any answer came over it.
    proven: Cell<bool>,
}

#[derive(Debug, Default)]
struct Queue {
    unsent: VecDeque<(CallKey, Request)>,
    /// How many of them, from the front, hold no read buffer.
    owned: usize,
    /// Bytes of the first unsent request that were written.
    written: usize,
    in_flight: VecDeque<CallKey>,
}

impl Link {
    pub(crate) fn new(shared: bool, namespace: Option<Arc<Namespace>>) -> Self {
        Self {
            queue: RefCell::default(),
            task: Task::default(),
            stop: RefCell::default(),
            retiring: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            shared,
            namespace,
            proven: Cell::new(false),
        }
    }

    /// Calls that it was given and that have no answer yet.
    pub(crate) fn load(&self) -> usize {
        let queue = self.queue.borrow();
        queue.unsent.len() + queue.in_flight.len()
    }

    pub(crate) fn is_in(&self, namespace: &Arc<Namespace>) -> bool {
        self.namespace.as_ref().is_some_and(|own| Arc::ptr_eq(own, namespace))
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn set_proven(&self) {
        self.proven.set(true);
    }

    /// Whether any answer came over it, or the beginning of one: a server that only accepts is not there yet.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven.get()
    }

    /// Whether any of its calls is one that somebody still waits for.
    pub(crate) fn waits_for(&self, is_live: impl Fn(CallKey) -> bool) -> bool {
        let queue = self.queue.borrow();
        let unsent = queue.unsent.iter().map(|(key, _)| *key);
        queue.in_flight.iter().copied().chain(unsent).any(is_live)
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.retiring.get() && self.stop.borrow().is_none()
    }

    pub(crate) fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    pub(crate) fn set_idle_since(&self, now: Instant) {
        self.idle_since.set(now);
    }

    pub(crate) fn send(&self, key: CallKey, request: Request) {
        self.queue.borrow_mut().unsent.push_back((key, request));
        self.task.wake();
    }

    /// Takes no more calls, and ends when those it has are over.
    pub(crate) fn retire(&self) {
        self.retiring.set(true);
        self.task.wake();
    }

    /// Ends at once.
    pub(crate) fn stop(&self, reason: impl Into<String>) {
        self.stop.borrow_mut().get_or_insert_with(|| reason.into());
        self.task.wake();
    }

    /// Why it is to end now: it was told to, or it retires and has nothing left to do.
    pub(crate) fn stopped(&self) -> Option<String> {
        let stop = self.stop.borrow().clone();
        if stop.is_none() && self.retiring.get() && self.load() == 0 { Some("retired".to_owned()) } else { stop }
    }

    /// Drops a call that was answered otherwise.
    pub(crate) fn forget(&self, key: CallKey) -> Forgotten {
        let mut queue = self.queue.borrow_mut();
        let at = queue.unsent.iter().position(|(unsent, _)| *unsent == key);
        match at {
            Some(at) if at > 0 || queue.written == 0 => {
                queue.unsent.remove(at);
                queue.owned -= usize::from(at < queue.owned);
                Forgotten::Unsent
            }
            _ => Forgotten::Sent,
        }
    }

    /// The call whose answer comes next.
    pub(crate) fn next_answer(&self) -> Option<CallKey> {
        let queue = self.queue.borrow();
        // A server may answer before it has read the whole request.
        queue
            .in_flight
            .front()
            .copied()
            .or_else(|| if queue.written > 0 { queue.unsent.front().map(|(key, _)| *key) } else { None })
    }

    /// Its answer has come. False if the request was not even written whole: then the connection can't go on.
    pub(crate) fn answered(&self) -> bool {
        self.queue.borrow_mut().in_flight.pop_front().is_some()
    }

    /// What is left when the connection has ended: calls of which no byte was written, and the others.
    pub(crate) fn take(&self) -> (Vec<(CallKey, Request)>, Vec<CallKey>) {
        let mut queue = std::mem::take(&mut *self.queue.borrow_mut());
        let mut sent: Vec<_> = queue.in_flight.into();
        if queue.written > 0
            && let Some((key, _)) = queue.unsent.pop_front()
        {
            sent.push(key);
        }
        (queue.unsent.into(), sent)
    }

    /// Writes until nothing is left (`Ready(Ok)`) or the socket takes no more.
    pub(crate) fn poll_flush(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queue = self.queue.borrow_mut();
        while !queue.unsent.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = queue.fill(&mut slices);
                match stream.poll_write(cx, &slices[..count]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        queue.own();
                        return Poll::Pending;
                    }
                }
            };
            queue.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Queue {
    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        for part in self.unsent.iter().flat_map(|(_, request)| request.command()) {
            let seen = skip.min(part.len());
            skip -= seen;
            if seen < part.len() {
                slices[count] = IoSlice::new(&part[seen..]);
                count += 1;
                if count == SLICES_MAX {
                    break;
                }
            }
        }
        count
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
        while let Some((key, request)) = self.unsent.front()
            && self.written >= request.command_len()
        {
            self.written -= request.command_len();
            self.in_flight.push_back(*key);
            self.unsent.pop_front();
            self.owned = self.owned.saturating_sub(1);
        }
    }

    fn own(&mut self) {
        for (_, request) in self.unsent.iter_mut().skip(self.owned) {
            request.own();
        }
        self.owned = self.unsent.len();
    }
}
