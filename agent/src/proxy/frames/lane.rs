//! Lanes, as their worker sees them: they are opened here, and what the kernel does not route of them comes here.
//!
//! The agent sends nothing on a lane but its HELLO and the end: what an application is told about calls that came by its lane
//! goes by its stream connection, so that only whole frames of the programs' reach the lane's other end.

use std::{os::fd::BorrowedFd, rc::Rc, time::Duration};

use agent_common::{
    frame::{
        Flags, Header, Hello, Kind, Lane, Role, Violation,
        status::{self, reason},
    },
    lane::BY_SHARE,
};
use rand::Rng as _;

use super::{
    answers::error_of,
    conn::{FrameConn, Side},
    task::Incoming,
};
use crate::{
    clock::now_ns,
    proxy::{
        dispatch::code,
        lanes::{BODY_MAX, Event, LaneId, Letter, RoutedCall},
        service::Upstream,
        stats::CloseReason,
        worker::Worker,
    },
};

/// What ties a connection of an application to its other one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tie {
    #[default]
    None,
    /// It may have a lane.
    MayHave([u8; 16]),
    /// The connection with this number is its lane.
    Has(u64),
    /// It is a lane itself, of the connection with this number.
    Is(LaneId, u64),
}

/// The worker that gave a token.
pub(super) fn worker_of(token: &[u8; 16]) -> usize {
    usize::from(u16::from_be_bytes([token[8], token[9]]))
}

impl Worker {
    /// The right to open a lane, for a stream connection; none if there are no lanes.
    pub(super) fn lane_for(&self, conn: &FrameConn) -> Option<Lane> {
        self.lanes().filter(|lanes| conn.side == Side::App && !self.is_draining() && lanes.path().is_on())?;
        let mut token = [0; 16];
        token[..8].copy_from_slice(&conn.id.to_be_bytes());
        token[8..10].copy_from_slice(&u16::try_from(self.id()).ok()?.to_be_bytes());
        // Guessed by nobody within the life of a connection.
        self.dice(|dice| dice.fill_bytes(&mut token[10..]));
        conn.tie.set(Tie::MayHave(token));
        Some(Lane { token, body_max: BODY_MAX })
    }

    /// A connection says that it is a lane. `read`: bytes that came on it.
    pub(super) fn lane_heard(&self, conn: &Rc<FrameConn>, socket: Option<BorrowedFd<'_>>, hello: Hello, read: usize) {
        let opened = self.open_lane(conn, socket, &hello, read);
        let (lane, stream) = match opened {
            Ok(opened) => opened,
            Err(why) => return conn.close(CloseReason::Protocol, reason::REFUSED, &format!("no lane: {why}")),
        };
        conn.tie.set(Tie::Is(lane, stream.id));
        stream.tie.set(Tie::Has(conn.id));
        let mut own = Hello::new(Role::Agent, self.name(), self.instance(), conn.bounds.windows);
        own.lane = hello.lane;
        conn.greeted(Rc::new(hello));
        conn.say(&own);
    }

    /// All that was to be said on a lane has been written.
    pub(super) fn lane_greeted(&self, conn: &FrameConn) {
        if let (Tie::Is(lane, _), Some(lanes)) = (conn.tie.get(), self.lanes()) {
            lanes.greeted(lane);
        }
    }

    fn open_lane(
        &self,
        conn: &FrameConn,
        socket: Option<BorrowedFd<'_>>,
        hello: &Hello,
        read: usize,
    ) -> Result<(LaneId, Rc<FrameConn>), String> {
        let lanes = self.lanes().filter(|_| conn.side == Side::App).ok_or("there are no lanes here")?;
        let token = hello.lane.map(|lane| lane.token).ok_or("it says no token")?;
        let [a, b, c, d, e, f, g, h, ..] = token;
        let id = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let stream = self.frames.borrow().get(&id).cloned().ok_or("its stream connection is not there")?;
        if stream.tie.get() != Tie::MayHave(token) || !stream.is_usable() {
            return Err("its token is not valid, or not any more".to_owned());
        }
        let socket = socket.ok_or("it is no connection of TCP")?;
        let about = stream.hello().ok_or("its stream connection has not begun")?;
        let application = stream.application(&about);
        if conn.application(hello) != application {
            return Err(format!("its stream connection is {application}'s"));
        }
        let owner = self.own(&stream);
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        let lane = lanes.open(socket, read, owner, (&application, about.calls_max))?;
        lanes.named(lane, &application, &about.instance);
        Ok((lane, stream))
    }

    /// Looks again who is at the other ends of lanes: who may call is decided in the kernel by that, too.
    pub(in crate::proxy) fn renew_lanes(&self) {
        let Some(lanes) = self.lanes() else { return };
        let frames = self.frames.borrow();
        for conn in frames.values().filter(|conn| conn.place.is_some()) {
            if let Tie::Is(lane, stream) = conn.tie.get()
                && let Some(stream) = frames.get(&stream)
                && let Some(hello) = stream.hello()
            {
                lanes.renamed(lane, &stream.application(&hello));
            }
        }
    }

    /// One of the two connections has ended: the lane is over.
    pub(super) fn lane_over(&self, conn: &FrameConn) {
        let other = |id: u64| self.frames.borrow().get(&id).cloned();
        match conn.tie.replace(Tie::None) {
            Tie::Is(lane, stream) => {
                if let Some(lanes) = self.lanes() {
                    lanes.over(lane);
                }
                // It may open another one.
                if let Some(stream) = other(stream) {
                    let token = conn.hello().and_then(|hello| hello.lane).map(|lane| lane.token);
                    stream.tie.set(token.map_or(Tie::None, Tie::MayHave));
                }
            }
            Tie::Has(lane) => {
                if let Some(lane) = other(lane) {
                    self.lane_over(&lane);
                    lane.close(CloseReason::Drain, reason::DRAIN, "its stream connection has ended");
                }
            }
            Tie::None | Tie::MayHave(_) => {}
        }
    }

    /// Whether routed calls are under way that the application has made, or was given. A caller that was asked to make no more
    /// calls ends the connection itself: some may lie on its lane that nobody has looked at yet.
    pub(super) fn lane_is_busy(&self, conn: &FrameConn) -> bool {
        let Some(lanes) = self.lanes() else { return false };
        if conn.has_routed() || lanes.has_moved(conn.id) {
            return true;
        }
        if !conn.has_lane() {
            return false;
        }
        let ends_itself = conn.was_asked_to_go() && !conn.is_service();
        ends_itself || lanes.of_conn(conn.id).is_some_and(|lane| lanes.is_busy(lane))
    }

    /// A connection takes no more calls: neither does its lane.
    pub(in crate::proxy) fn pause_lane(&self, conn: &FrameConn) {
        if let Some(lanes) = self.lanes()
            && let Some(lane) = lanes.of_conn(conn.id)
        {
            lanes.path().pause(lane, true);
        }
    }

    /// A frame has come on a lane that the kernel did not route.
    pub(super) fn lane_frame(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = &frame.header;
        let Tie::Is(_, stream) = conn.tie.get() else { return Ok(()) };
        let Some(stream) = self.frames.borrow().get(&stream).cloned() else { return Ok(()) };
        let whole = header.flags.has(Flags::END_STREAM) && !header.flags.has(Flags::ONE_WAY);
        match header.kind() {
            Some(Kind::Request) if whole => self.requested_by(&stream, frame, header.receipt == BY_SHARE)?,
            Some(Kind::Response) if whole && header.is_routed() => self.routed_answer(&stream, frame),
            Some(Kind::Response) if whole => self.responded(&stream, frame)?,
            None => {}
            Some(_) => {
                conn.close(CloseReason::Protocol, reason::PROTOCOL, "a lane carries whole calls and answers, and nothing else");
            }
        }
        Ok(())
    }

    /// An answer to a call that the kernel had routed, which it did not route back: an error, or one at a bound, or one by the
    /// stream connection.
    pub(super) fn routed_answer(&self, stream: &FrameConn, frame: &Incoming<'_>) {
        let Some(lanes) = self.lanes() else { return };
        let Some(late) = lanes.late(self.own(stream), &frame.header, false) else {
            self.counters.frames_dropped.add(1);
            return;
        };
        self.count_routed(stream, &late.call, &frame.header);
        let (meta, body) = frame.keep();
        lanes.answer(&late, frame.header, meta, body);
    }

    pub(super) fn count_routed(&self, stream: &FrameConn, call: &RoutedCall, header: &Header) {
        let Some(service) = self.services().by_hash(call.service).cloned() else { return };
        let Some(Upstream::Remote(remote)) = service.offered_by(stream.id) else { return };
        let took = Duration::from_nanos(now_ns().saturating_sub(call.started_ns));
        let error = error_of(header.word);
        let failed = error.is_some_and(|code| service.route.policy.outlier.codes.contains(&code));
        remote.counters.answered(took.into(), error);
        remote.counters.tried(took.into(), failed);
        if failed {
            remote.instance.record.failed(service.route.policy.outlier.consecutive);
        } else {
            remote.instance.record.succeeded();
        }
    }

    /// A caller gives up a call that is not among those of the agent: the kernel may have it, or its answer has begun. False if
    /// neither can be.
    pub(super) fn cancel_routed(&self, conn: &FrameConn, header: &Header) -> bool {
        let Some(lanes) = self.lanes().filter(|_| conn.tie.get() != Tie::None) else { return false };
        let status = if header.word == status::OK { status::CANCELLED } else { header.word };
        if self.cancel_relay(conn, header.via, status) {
            return true;
        }
        let caller = lanes.of_conn(conn.id);
        lanes.tell(Event::Cancelled { conn: conn.id, caller, via: header.via, status });
        caller.is_some()
    }

    /// A connection has ended: nothing that was routed to it or from it goes on.
    pub(super) fn routed_over(&self, conn: &FrameConn) {
        let may_have_had_one = !conn.is_lane() && conn.tie.get() != Tie::None;
        self.lane_over(conn);
        self.break_off_routed(conn);
        self.give_relays_up(conn);
        // Behind the word that its lane is over.
        if may_have_had_one && let Some(lanes) = self.lanes() {
            lanes.tell(Event::Gone(conn.id));
        }
    }

    /// An application that goes away is told that no more calls come only when the programs that had not seen it have ended.
    pub(super) fn settle_lane(&self, conn: &Rc<FrameConn>) {
        let Some(lanes) = self.lanes().filter(|_| conn.has_lane()).cloned() else { return };
        let conn = conn.clone();
        conn.hold_pongs();
        tokio::task::spawn_local(async move {
            let settled = tokio::task::spawn_blocking(move || lanes.path().settle());
            // Blocking tasks end with the runtime, as this one does.
            let _ = settled.await;
            conn.let_pongs_go();
        });
    }

    /// Sends what another thread has to say on one of this worker's connections.
    pub(crate) fn deliver(&self, letter: Letter) {
        let conn = |id: u64| self.frames.borrow().get(&id).filter(|conn| !conn.is_closed()).cloned();
        match letter {
            Letter::Message(id, header, meta, body) => match conn(id) {
                Some(conn) if !self.replaces(&conn, &header) => {}
                // It is told so, if it ever reads.
                Some(conn) if conn.is_crowded() => conn.refuse_rest(&header, code::POOL_FULL),
                Some(conn) => conn.send(header, &meta, &body),
                None => {}
            },
            Letter::Piece(id, from, header, meta, body) => match conn(id) {
                Some(conn) => self.relay(&conn, from, header, &meta, &body),
                None => self.give_relay_up(from, status::CANCELLED),
            },
            Letter::BrokenOff(id, from, header) => {
                if let Some(conn) = conn(id) {
                    self.relay_ends(&conn, from, header.via, Some(&header));
                }
            }
            Letter::Unwanted(id, from, via) => {
                if let Some(conn) = conn(id) {
                    self.relay_ends(&conn, from, via, None);
                }
            }
            Letter::Taken(id, via, bytes) => {
                if let Some(conn) = conn(id) {
                    self.relayed(&conn, via, bytes);
                }
            }
            Letter::GivenUp(id, via, status) => {
                if let Some(conn) = conn(id) {
                    self.relay_given_up(&conn, via, status);
                }
            }
            Letter::Control(id, header) => {
                if let Some(conn) = conn(id) {
                    conn.control(&header, &[]);
                }
            }
            Letter::Seen(all) => {
                let (services, now) = (self.services(), self.now().into_std());
                for seen in all.iter() {
                    if let Some(service) = services.by_key(&seen.service) {
                        service.was_seen(&seen.instance, seen.took, now);
                    }
                }
            }
        }
    }
}
