//! How a connection that speaks frames ends, and what asks for that.

use std::rc::Rc;

use agent_common::frame::{Flags, Header, Kind, MetaBuilder, Outbox, Windows, id, status};
use bytes::Bytes;
use tokio::time::Instant;

use super::{Ending, FrameConn, Side, sized};
use crate::proxy::stats::CloseReason;

impl FrameConn {
    /// Asks the peer for no more calls, and makes none; the connection ends when all are over.
    pub(crate) fn leave(&self) {
        let mut ending = self.ending.borrow_mut();
        if let Ending::Open = *ending {
            *ending = Ending::Leaving;
            drop(ending);
            self.task.wake();
            self.changed();
        }
    }

    /// Says that no more calls are wanted.
    pub(crate) fn say_goodbye(&self) {
        self.peer_ends.set(self.side == Side::AgentIn);
        self.control(&Header::new(Kind::GoAway), &[]);
    }

    /// Says that no more calls are wanted, as the agent drains: a caller then ends the connection in its own time.
    pub(crate) fn ask_to_go(&self) {
        self.asked_to_go.set(true);
        self.say_goodbye();
    }

    /// Whether the agent drains and has said so.
    pub(in crate::proxy::frames) fn was_asked_to_go(&self) -> bool {
        self.asked_to_go.get()
    }

    /// The peer makes no more calls.
    pub(crate) fn peer_leaves(&self) {
        self.peer_ends.set(false);
        self.leave();
    }

    /// Whether it ends as soon as its calls have.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(*self.ending.borrow(), Ending::Leaving) && !self.peer_ends.get()
    }

    /// Ends it at once; the peer is told why.
    pub(crate) fn close(&self, why: CloseReason, reason: u32, text: &str) {
        let mut ending = self.ending.borrow_mut();
        if !matches!(*ending, Ending::Now(..)) {
            *ending = Ending::Now(why, reason, text.into());
        }
        drop(ending);
        self.task.wake();
        self.changed();
    }

    /// Why it is to end at once.
    pub(crate) fn ends_now(&self) -> Option<(CloseReason, Rc<str>)> {
        match &*self.ending.borrow() {
            Ending::Now(why, _, text) => Some((*why, text.clone())),
            _ => None,
        }
    }

    /// The last frame, if the peer is to be told something.
    pub(crate) fn farewell(&self, last_stream: u32) -> Option<(Header, Bytes)> {
        let ending = self.ending.borrow();
        let (reason, text) = match &*ending {
            Ending::Now(CloseReason::Peer, ..) => return None,
            Ending::Now(_, reason, text) => (*reason, &**text),
            Ending::Leaving | Ending::Open => (status::reason::DRAIN, ""),
        };
        let mut meta = MetaBuilder::new();
        if !text.is_empty() {
            meta.put(id::ERROR_TEXT, text.as_bytes());
        }
        let meta = meta.finish();
        let header = Header { flags: Flags::END_STREAM, stream: last_stream, word: reason, ..Header::new(Kind::GoAway) };
        Some((sized(header, meta.len(), 0), meta))
    }

    /// It takes no more calls, as it has ended.
    pub(crate) fn set_ended(&self) {
        self.closed.set(true);
    }

    /// It is closed, and none of its calls is left.
    pub(crate) fn set_closed(&self) {
        self.closed.set(true);
        self.change(|out| *out = Outbox::new(Windows { stream: 0, connection: 0 }));
        self.paused.wake();
        self.changed();
    }

    /// It was to end a while ago already.
    pub(crate) fn overdue(&self) {
        if self.late.replace(true) {
            self.kill();
        }
    }

    /// Something has come.
    pub(crate) fn has_read(&self, now: Instant) {
        self.last_read.set(now);
        self.pings.set(0);
    }

    /// Asks for a sign of life.
    pub(crate) fn ping(&self) {
        self.pings.set(self.pings.get() + 1);
        self.control(&Header::new(Kind::Ping), &[]);
    }

    /// How often it was asked for a sign of life since there was one.
    pub(crate) fn pings(&self) -> u32 {
        self.pings.get()
    }

    /// Has it end without waiting for the peer any more.
    pub(crate) fn kill(&self) {
        self.killed.set(true);
        self.task.wake();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.get()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Resolves when it takes no more calls.
    pub(crate) async fn until_unusable(&self) {
        self.until(|| self.closed.get() || !matches!(*self.ending.borrow(), Ending::Open)).await;
    }

    /// Resolves when it is closed.
    pub(crate) async fn until_closed(&self) {
        self.until(|| self.closed.get()).await;
    }

    /// Resolves when the peer has said who it is; false if it is to end before.
    pub(crate) async fn until_greeted(&self) -> bool {
        let ends = || self.closed.get() || matches!(*self.ending.borrow(), Ending::Now(..));
        self.until(|| ends() || self.hello.borrow().is_some()).await;
        !ends()
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if is_so() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Has the task look whether it is over.
    pub(super) fn look_at_end(&self) {
        if !matches!(*self.ending.borrow(), Ending::Open) && self.is_idle() {
            self.task.wake();
        }
    }
}
