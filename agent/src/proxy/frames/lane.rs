//! Lanes, as their worker sees them: they are opened here, and what the kernel does not route of them comes here.
//!
//! The agent sends nothing on a lane but its HELLO and the end: what an application is told about calls that came by its lane
//! goes by its stream connection, so that only whole frames of the programs' reach the lane's other end.

use std::{os::fd::BorrowedFd, rc::Rc, time::Duration};

use agent_common::{
    frame::{
        Flags, Header, Hello, Kind, Lane, Message, Role, Violation,
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
use crate::proxy::{
    dispatch::code,
    lanes::{BODY_MAX, Event, LaneId, Letter, Owner, RoutedCall, now_ns},
    service::Upstream,
    stats::CloseReason,
    worker::Worker,
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
        let owner = Owner { worker: self.id(), conn: stream.id };
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
        let Some(lanes) = self.lanes().filter(|_| conn.has_lane()) else { return false };
        let ends_itself = self.is_draining() && !conn.is_service();
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
        let Tie::Is(lane, stream) = conn.tie.get() else { return Ok(()) };
        let Some(stream) = self.frames.borrow().get(&stream).cloned() else { return Ok(()) };
        let whole = header.flags.has(Flags::END_STREAM) && !header.flags.has(Flags::ONE_WAY);
        match header.kind() {
            Some(Kind::Request) if whole => self.requested_by(&stream, frame, header.receipt == BY_SHARE)?,
            Some(Kind::Response) if whole && header.is_routed() => self.routed_answer(lane, &stream, frame),
            Some(Kind::Response) if whole => self.responded(&stream, frame)?,
            Some(Kind::Cancel) if !header.flags.has(Flags::TO_CALLER) => self.cancelled(&stream, header),
            None => {}
            Some(_) => {
                conn.close(CloseReason::Protocol, reason::PROTOCOL, "a lane carries whole calls and answers, and nothing else");
            }
        }
        Ok(())
    }

    /// An answer to a call that the kernel had routed, which it did not route back: an error, or one at a bound.
    pub(super) fn routed_answer(&self, lane: LaneId, stream: &FrameConn, frame: &Incoming<'_>) {
        let Some(lanes) = self.lanes() else { return };
        let Some(call) = lanes.late(lane, frame.header.via) else {
            self.counters.frames_dropped.add(1);
            return;
        };
        self.count_routed(stream, &call, &frame.header);
        let (meta, body) = frame.keep();
        lanes.answer(&call, frame.header, meta, body);
    }

    /// An answer to a routed call has come on the stream connection, as it is too long for the lane.
    pub(super) fn routed_answer_begins(&self, stream: &FrameConn, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = frame.header;
        let lane = self.lanes().and_then(|lanes| lanes.of_conn(stream.id));
        let Some(lane) = lane else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        if header.flags.has(Flags::END_STREAM) {
            self.routed_answer(lane, stream, frame);
            return Ok(());
        }
        let Some(call) = self.lanes().and_then(|lanes| lanes.late(lane, header.via)) else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        self.count_routed(stream, &call, &header);
        stream.routed.borrow_mut().insert(header.via, call);
        self.routed_answer_goes_on(stream, frame);
        Ok(())
    }

    /// A piece of such an answer. What waits for the caller is bounded there.
    pub(super) fn routed_answer_goes_on(&self, stream: &FrameConn, frame: &Incoming<'_>) {
        let header = frame.header;
        let end = header.flags.has(Flags::END_STREAM);
        let call = match end {
            true => stream.routed.borrow_mut().remove(&header.via),
            false => stream.routed.borrow().get(&header.via).copied(),
        };
        let (Some(call), Some(lanes)) = (call, self.lanes()) else {
            self.counters.frames_dropped.add(1);
            return;
        };
        let (meta, body) = frame.keep();
        let passed = lanes.pass(&call, header, meta, body);
        if !passed {
            stream.routed.borrow_mut().remove(&header.via);
            stream.control(
                &Header {
                    kind: Kind::Cancel as u8,
                    flags: Flags::NONE,
                    word: status::CANCELLED,
                    meta_len: 0,
                    body_len: 0,
                    ..header
                },
                &[],
            );
        } else if !end {
            let room = u32::try_from(header.frame_len()).unwrap_or(u32::MAX);
            stream.credit(Header { flags: Flags::NONE, ..header }, room);
        }
    }

    /// A callee gives up a call that the kernel has routed to it, or does not go on with its answer.
    pub(super) fn routed_given_up(&self, stream: &FrameConn, frame: &Incoming<'_>) {
        let code = error_of(frame.header.word).unwrap_or(code::REMOTING);
        let header = Header { word: u32::from(code), ..frame.header };
        let begun = stream.routed.borrow_mut().remove(&header.via);
        let Some(lanes) = self.lanes() else { return };
        if let Some(call) = begun {
            return lanes.break_off(&call, code);
        }
        let Some(call) = lanes.of_conn(stream.id).and_then(|lane| lanes.late(lane, header.via)) else {
            self.counters.frames_dropped.add(1);
            return;
        };
        self.count_routed(stream, &call, &header);
        let (meta, body) = frame.keep();
        let answer = Header { kind: Kind::Response as u8, ..header };
        lanes.answer(&call, answer, meta, body);
    }

    /// Answers that have begun do not go on.
    pub(super) fn break_off_routed(&self, stream: &FrameConn) {
        let begun = std::mem::take(&mut *stream.routed.borrow_mut());
        for call in begun.into_values() {
            if let Some(lanes) = self.lanes() {
                lanes.break_off(&call, code::REMOTING);
            }
        }
    }

    fn count_routed(&self, stream: &FrameConn, call: &RoutedCall, header: &Header) {
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

    /// A caller gives up a call that is not among those of the agent: the kernel may have it.
    pub(super) fn cancel_routed(&self, conn: &FrameConn, header: &Header) -> bool {
        let Some(lanes) = self.lanes() else { return false };
        let Some(caller) = lanes.of_conn(conn.id) else { return false };
        let status = if header.word == status::OK { status::CANCELLED } else { header.word };
        lanes.tell(Event::Cancelled { caller, via: header.via, status });
        true
    }

    /// Sends what another thread has to say on one of this worker's connections.
    pub(crate) fn deliver(&self, letter: Letter) {
        let conn = |id: u64| self.frames.borrow().get(&id).filter(|conn| !conn.is_closed()).cloned();
        match letter {
            Letter::Message(id, header, meta, body) => {
                let Some(conn) = conn(id) else { return };
                if conn.is_crowded() {
                    // It has been told already, or has given it up.
                    if header.kind() == Some(Kind::Data) && !conn.answers(header.via) {
                        return;
                    }
                    // It is told so, if it ever reads, and gets no more of this answer.
                    let word = u32::from(code::POOL_FULL);
                    let cancel =
                        Header { kind: Kind::Cancel as u8, flags: Flags::TO_CALLER, word, meta_len: 0, body_len: 0, ..header };
                    conn.drop_message(Message { via: header.via, to_caller: true });
                    return conn.control(&cancel, &[]);
                }
                conn.send(header, &meta, &body);
            }
            Letter::Control(id, header) => {
                if let Some(conn) = conn(id) {
                    let message = Message::of(&header);
                    if message.to_caller {
                        // Nothing of an answer comes after it was broken off.
                        conn.drop_message(message);
                    }
                    conn.control(&header, &[]);
                }
            }
        }
    }
}
