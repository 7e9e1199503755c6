//! Answers of several frames to calls that the kernel has routed. They come on the callee's stream connection and go out on the
//! caller's, which may be another worker's. What has come and has not left is bounded by the message's window at the callee's
//! connection: its room is given back when the caller's connection says that a frame has left.

use std::time::Duration;

use agent_common::frame::{Flags, Header, Kind, Message, ReceiveWindow, Released, Violation, is_after, status};
use bytes::Bytes;
use tokio::time::Instant;

use super::{answers::error_of, conn::FrameConn, task::Incoming};
use crate::proxy::{
    dispatch::code,
    lanes::{Late, Owner, Source},
    worker::Worker,
};

/// An answer that has begun, at the connection that it comes from.
#[derive(Debug)]
pub(super) struct Begun {
    late: Late,
    window: ReceiveWindow,
    /// When something of it has come, or was taken, for the last time.
    since: Instant,
}

/// The same at the connection that it goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Relay {
    from: Source,
    stream: u32,
}

impl Begun {
    /// The header of a frame to the callee.
    fn header(&self, kind: Kind, via: u64, word: u32) -> Header {
        Header { stream: self.late.call.stream, service: self.late.call.service, via, word, ..Header::new(kind) }
    }

    fn is_of(&self, header: &Header) -> bool {
        self.late.call.stream == header.stream && self.late.call.service == header.service
    }

    /// It may stand still for as long as the call might have taken.
    fn patience(&self) -> Duration {
        Duration::from_nanos(self.late.call.deadline_ns.saturating_sub(self.late.call.started_ns))
    }
}

// Where the answer comes from.
impl Worker {
    pub(super) fn own(&self, conn: &FrameConn) -> Owner {
        Owner { worker: self.id(), conn: conn.id }
    }

    /// An answer to a routed call has come on the stream connection: it is too long for the lane, or there is none any more.
    pub(super) fn routed_answer_begins(&self, stream: &FrameConn, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = frame.header;
        let Some(lanes) = self.lanes() else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        if header.flags.has(Flags::END_STREAM) {
            self.routed_answer(stream, frame);
            return Ok(());
        }
        let mut window = ReceiveWindow::new(stream.bounds.windows.stream);
        window.receive(header.frame_len()).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
        let callee = self.own(stream);
        let Some(late) = lanes.late(callee, &header, true) else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        self.count_routed(stream, &late.call, &header);
        let begun = Begun { late, window, since: self.now() };
        if late.caller.is_none() {
            stream.control(&begun.header(Kind::Cancel, header.via, status::CANCELLED), &[]);
            return Ok(());
        }
        stream.routed.borrow_mut().insert(header.via, begun);
        let (meta, body) = frame.keep();
        lanes.pass(&late, Source { callee, via: header.via }, header, meta, body);
        Ok(())
    }

    /// A piece of such an answer.
    pub(super) fn routed_answer_goes_on(&self, stream: &FrameConn, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = frame.header;
        let mut routed = stream.routed.borrow_mut();
        let begun = routed.get_mut(&header.via).filter(|begun| begun.is_of(&header));
        let (Some(begun), Some(lanes)) = (begun, self.lanes()) else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        begun.window.receive(header.frame_len()).map_err(|_| Violation::StreamWindow { stream: header.stream })?;
        begun.since = self.now();
        let late = begun.late;
        let from = Source { callee: self.own(stream), via: header.via };
        if header.flags.has(Flags::END_STREAM) {
            routed.remove(&header.via);
            lanes.has_come(&late, from);
        }
        drop(routed);
        let (meta, body) = frame.keep();
        lanes.pass(&late, from, header, meta, body);
        Ok(())
    }

    /// A callee gives up a call that the kernel has routed to it, or does not go on with its answer.
    pub(super) fn routed_given_up(&self, stream: &FrameConn, frame: &Incoming<'_>) {
        let code = error_of(frame.header.word).unwrap_or(code::REMOTING);
        let header = Header { word: u32::from(code), ..frame.header };
        if stream.routed.borrow().get(&header.via).is_some_and(|begun| begun.is_of(&header)) {
            self.break_off(stream, header.via, code);
            return;
        }
        let Some(lanes) = self.lanes() else { return };
        let Some(late) = lanes.late(self.own(stream), &header, false) else {
            self.counters.frames_dropped.add(1);
            return;
        };
        self.count_routed(stream, &late.call, &header);
        let (meta, body) = frame.keep();
        lanes.answer(&late, Header { kind: Kind::Response as u8, ..header }, meta, body);
    }

    /// Answers that have begun do not go on, as the connection has ended.
    pub(super) fn break_off_routed(&self, stream: &FrameConn) {
        let begun: Vec<_> = stream.routed.borrow().keys().copied().collect();
        for via in begun {
            self.break_off(stream, via, code::REMOTING);
        }
    }

    /// Breaks off answers that have stood still for too long, whoever it is that does not go on.
    pub(super) fn expire_routed(&self, stream: &FrameConn) {
        let is_late = |begun: &Begun| self.now().saturating_duration_since(begun.since) > begun.patience();
        let late: Vec<_> = stream.routed.borrow().iter().filter(|(_, begun)| is_late(begun)).map(|(via, _)| *via).collect();
        for via in late {
            if let Some(begun) = self.break_off(stream, via, code::TIMEOUT) {
                stream.control(&begun.header(Kind::Cancel, via, status::TIMEOUT), &[]);
            }
        }
    }

    fn break_off(&self, stream: &FrameConn, via: u64, code: u16) -> Option<Begun> {
        let begun = stream.routed.borrow_mut().remove(&via)?;
        let from = Source { callee: self.own(stream), via };
        if let Some(lanes) = self.lanes() {
            lanes.has_come(&begun.late, from);
            lanes.break_off(&begun.late, from, code);
        }
        Some(begun)
    }

    /// The caller's connection has sent so many bytes of an answer.
    pub(super) fn relayed(&self, stream: &FrameConn, via: u64, bytes: usize) {
        let mut routed = stream.routed.borrow_mut();
        let Some(begun) = routed.get_mut(&via) else { return };
        begun.since = self.now();
        let credit = begun.window.used(bytes).map(|credit| (begun.header(Kind::Credit, via, 0), credit));
        drop(routed);
        if let Some((header, credit)) = credit {
            stream.credit(header, credit);
        }
    }

    /// The caller wants no more of an answer.
    pub(super) fn relay_given_up(&self, stream: &FrameConn, via: u64, status: u32) {
        let Some(begun) = stream.routed.borrow_mut().remove(&via) else { return };
        let from = Source { callee: self.own(stream), via };
        if let Some(lanes) = self.lanes() {
            lanes.has_come(&begun.late, from);
            // What is on its way there is not wanted either.
            lanes.stop(&begun.late, from);
        }
        stream.control(&begun.header(Kind::Cancel, via, status), &[]);
        stream.task.wake();
    }
}

// Where it goes to.
impl Worker {
    /// A frame of an answer, which goes out as the caller gives room.
    pub(super) fn relay(&self, conn: &FrameConn, from: Source, header: Header, meta: &Bytes, body: &Bytes) {
        let begins = header.kind() != Some(Kind::Data);
        if begins && !self.replaces(conn, &header) {
            return self.give_relay_up(from, status::CANCELLED);
        }
        let is_known = conn.relayed.borrow().get(&header.via).is_some_and(|relay| relay.from == from);
        // What was given up is known there, or will be soon.
        if !begins && !is_known {
            return;
        }
        if conn.is_crowded() {
            conn.relayed.borrow_mut().remove(&header.via);
            self.give_relay_up(from, status::LIMIT);
            return conn.refuse_rest(&header, code::POOL_FULL);
        }
        if begins {
            conn.relayed.borrow_mut().insert(header.via, Relay { from, stream: header.stream });
        }
        conn.send(header, meta, body);
    }

    /// Whether an answer is to the last call of this name. What is left of an answer to a former one, which was given up, goes.
    pub(super) fn replaces(&self, conn: &FrameConn, header: &Header) -> bool {
        let former = conn.relayed.borrow().get(&header.via).copied();
        let Some(former) = former else { return true };
        if !is_after(header.stream, former.stream) {
            return false;
        }
        conn.relayed.borrow_mut().remove(&header.via);
        conn.drop_message(Message { via: header.via, to_caller: true });
        self.give_relay_up(former.from, status::CANCELLED);
        true
    }

    /// Nothing more comes of an answer; `last` is what the caller is told, if he still waits for it.
    pub(super) fn relay_ends(&self, conn: &FrameConn, from: Source, via: u64, last: Option<&Header>) {
        let is_it = conn.relayed.borrow().get(&via).is_some_and(|relay| relay.from == from);
        if !is_it {
            return;
        }
        conn.relayed.borrow_mut().remove(&via);
        conn.drop_message(Message { via, to_caller: true });
        if let Some(last) = last {
            conn.control(last, &[]);
        }
        conn.task.wake();
    }

    /// A frame of an answer has left.
    pub(super) fn relay_released(&self, conn: &FrameConn, released: &Released) {
        let via = released.message.via;
        let Some(relay) = conn.relayed.borrow().get(&via).copied() else { return };
        if released.stream != relay.stream {
            return;
        }
        if released.end {
            conn.relayed.borrow_mut().remove(&via);
        } else if let Some(lanes) = self.lanes() {
            lanes.taken(relay.from, released.len);
        }
    }

    /// The caller gives up an answer of which it has got the beginning. False if there is none.
    pub(super) fn cancel_relay(&self, conn: &FrameConn, via: u64, status: u32) -> bool {
        let relay = conn.relayed.borrow_mut().remove(&via);
        relay.inspect(|relay| self.give_relay_up(relay.from, status)).is_some()
    }

    /// The caller's connection has ended.
    pub(super) fn give_relays_up(&self, conn: &FrameConn) {
        let relays = std::mem::take(&mut *conn.relayed.borrow_mut());
        for relay in relays.into_values() {
            self.give_relay_up(relay.from, status::CANCELLED);
        }
    }

    pub(super) fn give_relay_up(&self, from: Source, status: u32) {
        if let Some(lanes) = self.lanes() {
            lanes.give_up(from, status);
        }
    }
}
