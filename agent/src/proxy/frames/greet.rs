//! Who is at the other end of a connection, what it offers, and to which worker it belongs.

use std::{io, rc::Rc, sync::Arc};

use agent_common::frame::{
    HEADER_LEN, Header, Hello, Role, Windows,
    status::{self, reason},
};
use tokio::{sync::oneshot, time::Duration};

use super::{
    conn::{About, Bounds, FrameConn, Side},
    lane::worker_of,
    task::Handoff,
};
use crate::config::{Traits, wrong_uri};
use crate::proxy::{place::Source, routes::Offered, stats::CloseReason, worker::Worker};

/// How long a peer may take nothing when the worker holds as many bytes as it may.
const CROWDED: Duration = Duration::from_secs(1);
/// PINGs without an answer after which a connection is dead.
const SIGNS_MISSED: u32 = 3;

/// What a worker tells the rest of the process.
#[derive(Debug)]
pub(crate) enum Told {
    /// An application offers services on this connection; it waits until they can be called.
    Offered(u64, Offered, oneshot::Sender<()>),
    /// It does no more.
    Gone(u64),
}

impl FrameConn {
    pub(super) fn say(&self, hello: &Hello) {
        // What the agent says of itself always fits into a frame.
        if let Some(frame) = hello.encode()
            && let Some((header, meta)) = frame.split_first_chunk::<HEADER_LEN>()
        {
            self.control(&Header::read(header), meta);
        }
    }
}

impl Worker {
    /// A connection that speaks frames, before anybody has said who it is.
    pub(super) fn frames_opened(&self, from: Source) -> Rc<FrameConn> {
        let bounds = self.bounds_of(from.side);
        let about = About { id: self.next_conn_id(), from, bounds, now: self.now(), shared: self.shared() };
        let conn = Rc::new(FrameConn::new(about));
        self.frames.borrow_mut().insert(conn.id, conn.clone());
        conn
    }

    /// The `nth` connection to the same peer says who is there.
    pub(super) fn say_hello(&self, conn: &FrameConn, nth: usize) {
        let mut hello = self.own_hello(conn.bounds);
        // So that connections spread over the other agent's workers as they do over this one's.
        hello.connection = u16::try_from(self.id() + nth * self.workers()).ok();
        conn.say(&hello);
    }

    fn own_hello(&self, bounds: Bounds) -> Hello {
        let Windows { stream, connection } = bounds.windows;
        let mut hello = Hello::new(Role::Agent, self.name(), self.instance(), Windows { stream, connection });
        hello.connections = u16::try_from(self.workers()).unwrap_or(u16::MAX);
        hello.calls_max = u32::try_from(bounds.calls_max).unwrap_or(u32::MAX);
        hello
    }

    /// The worker that a connection belongs to, if it is another one.
    pub(super) fn belongs_elsewhere(&self, conn: &FrameConn, hello: &Hello) -> Option<usize> {
        let worker = match (hello.role, hello.lane) {
            (Role::Lane, Some(lane)) => worker_of(&lane.token),
            _ => usize::from(hello.connection?),
        };
        let worker = worker % self.workers();
        (matches!(conn.side, Side::App | Side::AgentIn) && worker != self.id()).then_some(worker)
    }

    /// The peer has said who it is.
    pub(super) fn heard(self: &Rc<Self>, conn: &Rc<FrameConn>, hello: Hello) {
        let mut own = self.own_hello(conn.bounds);
        let expected = if conn.side == Side::App { Role::Application } else { Role::Agent };
        if own.common_version(&hello).is_none() {
            let (oldest, newest) = hello.versions;
            let text = format!("this agent speaks version {}, not {oldest} to {newest}", own.versions.1);
            return conn.close(CloseReason::Protocol, reason::VERSION, &text);
        }
        if hello.role != expected {
            let text = match conn.side {
                Side::App => "other agents connect to the agent port (tunnel.listen)",
                Side::AgentIn => "applications connect to the application port (app.listen)",
                Side::Out | Side::Worker => "the peer is no agent",
            };
            return conn.close(CloseReason::Protocol, reason::REFUSED, text);
        }
        if conn.side == Side::AgentIn && self.takes_no_agents() {
            // In the place of a HELLO, so that it is not taken for a way for calls.
            return conn.close(CloseReason::Drain, reason::DRAIN, "this agent drains");
        }
        let hello = Rc::new(hello);
        if conn.side == Side::Out {
            return conn.greeted(hello);
        }
        own.lane = self.lane_for(conn);
        if conn.side == Side::App {
            own.siblings = self.siblings_of(conn, &hello);
        }
        if conn.side != Side::App || hello.offers.is_empty() {
            conn.greeted(hello);
            conn.say(&own);
            self.tell_agent(conn);
            return self.part_with(conn);
        }
        if let Some(wrong) = hello.offers.iter().find_map(|offer| wrong_uri(&offer.uri)) {
            return conn.close(CloseReason::Protocol, reason::REFUSED, &format!("what is offered has {wrong}"));
        }
        let mut offers = hello.offers.clone();
        offers.sort();
        offers.dedup();
        let offered = Offered {
            worker: self.id(),
            application: conn.application(&hello),
            // Who does not say which process it is counts as one of its own.
            instance: if hello.instance.is_empty() { format!("connection {}", conn.id) } else { hello.instance.clone() }.into(),
            offers,
            traits: Arc::new(Traits::from(&hello.traits)),
        };
        let (done, registered) = oneshot::channel();
        self.tell(Told::Offered(conn.id, offered, done));
        let (conn, worker) = (conn.clone(), self.clone());
        tokio::task::spawn_local(async move {
            if registered.await.is_err() {
                return conn.close(CloseReason::Full, reason::LIMIT, "applications offer as many services as the agent takes");
            }
            if !conn.is_closed() {
                worker.turn_begins();
                conn.greeted(hello);
                conn.say(&own);
                worker.part_with(&conn);
            }
        });
    }

    /// Who comes while this worker drains is asked to go at once, as nobody asks again.
    fn part_with(&self, conn: &FrameConn) {
        if self.is_draining() && conn.was_accepted() {
            conn.ask_to_go();
            conn.leave();
        }
    }

    /// What an application offers on this connection is not to be called any more.
    pub(super) fn unregister(&self, conn: &FrameConn) {
        if conn.side == Side::App && conn.hello().is_none_or(|hello| !hello.offers.is_empty()) {
            self.tell(Told::Gone(conn.id));
        }
    }

    /// A connection has ended: so do the calls on it.
    pub(super) fn frames_ended(self: &Rc<Self>, conn: &Rc<FrameConn>, why: CloseReason) {
        self.unregister(conn);
        self.routed_over(conn);
        self.frames.borrow_mut().remove(&conn.id);
        conn.set_ended();
        let reason = conn.ends_now().map_or_else(|| "the connection has ended".to_owned(), |(_, text)| text.to_string());
        self.lose_calls(conn, &reason);
        for key in conn.take_incoming() {
            self.cancel(key, status::CANCELLED);
        }
        conn.set_closed();
        if matches!(conn.side, Side::App | Side::AgentIn) {
            self.connection_gone(why);
        }
    }

    /// Another worker has the connection.
    pub(super) fn frames_given(&self, conn: &Rc<FrameConn>) {
        self.frames.borrow_mut().remove(&conn.id);
        conn.set_closed();
    }

    /// Gives a connection to another worker.
    pub(super) fn hand_over(&self, worker: usize, handoff: Handoff) -> io::Result<()> {
        let other = self.others().get(worker).ok_or(io::ErrorKind::NotFound)?;
        other.try_send(handoff).map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "the other worker is busy"))
    }

    /// Looks after connections that speak frames: PINGs between agents, and those that take too long to end or to begin.
    pub(crate) fn look_after_frames(&self, keepalive: Duration, stall: Duration) {
        let crowded = self.queued() >= self.limits().worker_queued_bytes_max;
        let patience = if crowded { stall.min(CROWDED) } else { stall };
        let conns: Vec<_> = self.frames.borrow().values().cloned().collect();
        for conn in conns {
            let silent = self.now().saturating_duration_since(conn.last_read.get());
            let since = conn.blocked_since().or_else(|| conn.starved_since());
            let blocked = since.map(|since| self.now().saturating_duration_since(since));
            if conn.is_leaving() && conn.side == Side::App {
                // Nobody says when the last call was routed.
                conn.task.wake();
            }
            self.expire_routed(&conn);
            if conn.ends_now().is_some() {
                conn.overdue();
            } else if blocked.is_some_and(|blocked| blocked >= patience) {
                conn.close(CloseReason::Stalled, reason::LIMIT, "the peer takes nothing of what waits for it");
            } else if conn.in_frame.get() && silent >= stall {
                conn.close(CloseReason::Stalled, reason::PROTOCOL, "a frame has begun and does not go on");
            } else if conn.hello().is_none() && silent >= stall {
                conn.close(CloseReason::Stalled, reason::PROTOCOL, "no HELLO");
            } else if matches!(conn.side, Side::AgentIn | Side::Out) && conn.hello().is_some() {
                // Who stood still himself has not asked, and may find the answers in the socket.
                if silent >= keepalive * 3 && conn.pings() >= SIGNS_MISSED {
                    conn.close(CloseReason::Stalled, reason::LIMIT, "no sign of life for three keepalive intervals");
                    conn.kill();
                } else if silent >= keepalive / 2 + keepalive * conn.pings() {
                    conn.ping();
                }
            }
        }
    }
}
