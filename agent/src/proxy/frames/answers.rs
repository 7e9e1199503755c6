//! What comes from callees: answers, what goes on of them, and that there will be none.

use std::rc::Rc;

use agent_common::frame::{Flags, Header, Kind, Message, ReceiveWindow, Released, Violation, find, id, is_after, status};
use bytes::{BufMut, Bytes, BytesMut};

use super::{
    conn::FrameConn,
    streams::Streams,
    task::{Incoming, id_text},
    upstream::Remote,
};
use crate::proxy::{
    account::End,
    caller::{Caller, Failure, Framed},
    calls::CallKey,
    dispatch::{Call, Place, UNNUMBERED, code},
    request::Request,
    service::Upstream,
    stats::CloseReason,
    worker::Worker,
};
use crate::{
    config::traffic::RetryOn,
    wire::reply::{bulk_header, error_envelope, whole_bulk},
};

impl Worker {
    /// An answer has come, or begins to.
    pub(super) fn responded(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = &frame.header;
        if header.is_routed() {
            return self.routed_answer_begins(conn, frame);
        }
        let key = CallKey::of_via(header.via);
        let ours = self.with_call(key, |call| {
            let first = call.streams.as_ref().is_none_or(|streams| streams.answer.is_none());
            first && is_answer(call, conn, header) && !call.caller.is_one_way()
        });
        if ours != Some(true) {
            self.counters.frames_dropped.add(1);
            return Ok(());
        }
        if !header.flags.has(Flags::END_STREAM) {
            return self.answer_begins(key, conn, frame);
        }
        let error = error_of(header.word);
        if let Some(error) = error
            && self.tries_again(key, error, frame)
        {
            return Ok(());
        }
        // Who has not executed it has not answered it either: the other copy may still be answered.
        let refused = error.is_some() && header.flags.has(Flags::NOT_EXECUTED);
        if refused && self.leaves_to_twin(key, true) {
            return Ok(());
        }
        self.wins(key);
        let end = End::service(error, frame.body().len()).refused(refused);
        let Some(call) = self.remove_ended(key, &end) else { return Ok(()) };
        stop_request(&call, key);
        match &call.caller {
            Caller::Frames(framed) => {
                framed.conn.ended(framed.via);
                if !framed.one_way {
                    self.pass_answer(&call, framed, frame);
                }
            }
            Caller::Redis(app, seq) => app.answer(*seq, reply_of(frame)),
            Caller::Nobody => {}
        }
        Ok(())
    }

    /// Whether a call that was answered with an error, or given up, is sent again.
    fn tries_again(self: &Rc<Self>, key: CallKey, error: u16, frame: &Incoming<'_>) -> bool {
        let place = self.with_call(key, |call| call.more.as_ref().map(|_| call.place.clone())).flatten();
        let Some(instance) = place.as_ref().and_then(Place::instance) else { return false };
        if frame.header.flags.has(Flags::NOT_EXECUTED) {
            return self.retry(key, RetryOn::NotExecuted, &id_text(frame.meta()));
        }
        self.retry_after_code(key, error, instance)
    }

    fn pass_answer(&self, call: &Call, framed: &Framed, frame: &Incoming<'_>) {
        let header = &frame.header;
        // Of this try, which may not have been the first one.
        let executed = call.may_have_been_executed();
        let flags = if executed { header.flags.without(Flags::NOT_EXECUTED) } else { header.flags };
        let back = Header { flags, word: header.word, ..framed.header(Kind::Response).sized_as(header) };
        if framed.conn.try_whole(&back, frame.rest()) {
            return;
        }
        if framed.conn.is_crowded() {
            return self.crowded(framed);
        }
        framed.conn.push(frame.frame(back));
    }

    /// A caller that does not read is told so, if it ever does, and gets no more of this answer.
    fn crowded(&self, framed: &Framed) {
        let text = self.error_text("-", None, &framed.conn.why_crowded());
        framed.fail(Failure { code: code::POOL_FULL, text: &text, not_executed: false }, true);
    }

    fn answer_begins(self: &Rc<Self>, key: CallKey, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        let mut window = ReceiveWindow::new(conn.bounds.windows.stream);
        let stream = frame.header.stream;
        window.receive(frame.header.frame_len()).map_err(|_| Violation::StreamWindow { stream })?;
        self.wins(key);
        let caller = self.with_call(key, |call| {
            let streams = call.streams.get_or_insert_default();
            streams.answer = Some(window);
            streams.status = frame.header.word;
            call.caller.clone()
        });
        match caller {
            Some(Caller::Frames(framed)) => {
                let header = &frame.header;
                let back = Header { flags: header.flags, word: header.word, ..framed.header(Kind::Response).sized_as(header) };
                self.with_call(key, |call| call.streams.get_or_insert_default().begun = true);
                self.pass_piece(key, &framed, frame, back);
            }
            Some(Caller::Redis(app, seq)) => {
                let len = find(frame.meta(), id::BODY_LEN).and_then(|len| len.try_into().ok()).map(u64::from_be_bytes);
                let len = len.and_then(|len| usize::try_from(len).ok());
                self.with_call(key, |call| {
                    let streams = call.streams.get_or_insert_default();
                    streams.left = len.unwrap_or(0);
                    streams.begun = len.is_some();
                    streams.held = len.is_none().then(BytesMut::new);
                });
                if let Some(len) = len {
                    app.append(seq, key, Bytes::copy_from_slice(&bulk_header(len)));
                }
                self.piece_for_redis(key, conn, frame);
            }
            Some(Caller::Nobody) | None => {}
        }
        Ok(())
    }

    /// More of an answer has come.
    pub(super) fn answer_goes_on(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = &frame.header;
        if header.is_routed() {
            return self.routed_answer_goes_on(conn, frame);
        }
        let key = CallKey::of_via(header.via);
        let stream = header.stream;
        let received = self.with_call(key, |call| {
            let streams = if is_answer(call, conn, header) { call.streams.as_deref_mut()? } else { return None };
            let window = streams.answer.as_mut().filter(|_| !streams.ended)?;
            streams.ended = header.flags.has(Flags::END_STREAM);
            Some(window.receive(header.frame_len()).map(|()| call.caller.clone()))
        });
        let Some(received) = received.flatten() else {
            self.counters.frames_dropped.add(1);
            return Ok(());
        };
        let caller = received.map_err(|_| Violation::StreamWindow { stream })?;
        self.extend(key, header.frame_len());
        match caller {
            Caller::Frames(framed) => {
                let back = Header { flags: header.flags, ..framed.header(Kind::Data).sized_as(header) };
                self.pass_piece(key, &framed, frame, back);
            }
            Caller::Redis(..) => self.piece_for_redis(key, conn, frame),
            Caller::Nobody => {
                if header.flags.has(Flags::END_STREAM) {
                    drop(self.remove_answered(key, None, 0));
                }
            }
        }
        Ok(())
    }

    fn pass_piece(self: &Rc<Self>, key: CallKey, framed: &Framed, frame: &Incoming<'_>, back: Header) {
        if !framed.conn.is_crowded() {
            return framed.conn.push(frame.frame(back));
        }
        let place = self.with_call(key, |call| call.place.clone());
        if let Some(place) = place {
            self.withdraw(key, &place, status::LIMIT);
        }
        self.fail(key, code::POOL_FULL, None, &framed.conn.why_crowded());
    }

    /// A piece of an answer for a Redis client: passed on if its length is known, else held until it is whole.
    fn piece_for_redis(self: &Rc<Self>, key: CallKey, conn: &Rc<FrameConn>, frame: &Incoming<'_>) {
        let max = self.limits().queued_bytes_max;
        let end = frame.header.flags.has(Flags::END_STREAM);
        let body = frame.body();
        enum Outcome {
            Go(Option<Bytes>),
            Wrong(String),
        }
        let outcome = self.with_call(key, |call| {
            let Some(streams) = call.streams.as_deref_mut() else { return Outcome::Go(None) };
            if let Some(held) = &mut streams.held {
                if held.len() + body.len() > max {
                    return Outcome::Wrong(format!(
                        "an answer without a length has more than {max} bytes (app.queued_bytes_max)"
                    ));
                }
                held.extend_from_slice(body);
                return Outcome::Go(end.then(|| whole_bulk(held)));
            }
            let fits = if end { body.len() == streams.left } else { body.len() <= streams.left };
            if !fits {
                return Outcome::Wrong("the answer is not as long as it says".to_owned());
            }
            streams.left -= body.len();
            let mut piece = BytesMut::with_capacity(body.len() + 2);
            piece.put_slice(body);
            if end {
                piece.put_slice(b"\r\n");
            }
            Outcome::Go(Some(piece.freeze()))
        });
        if matches!(outcome, Some(Outcome::Go(None)))
            && !end
            && let Err(reason) = self.hold(key, body.len())
        {
            if let Some(place) = self.with_call(key, |call| call.place.clone()) {
                self.withdraw(key, &place, status::LIMIT);
                self.fail(key, code::POOL_FULL, place.instance(), &reason);
            }
            return;
        }
        match outcome {
            Some(Outcome::Go(piece)) => self.give_redis(key, conn, piece, end, frame.header.frame_len()),
            Some(Outcome::Wrong(reason)) => {
                if let Some(place) = self.with_call(key, |call| call.place.clone()) {
                    self.withdraw(key, &place, status::CANCELLED);
                    self.fail(key, code::SERIALIZATION, place.instance(), &reason);
                }
            }
            None => {}
        }
    }

    fn give_redis(self: &Rc<Self>, key: CallKey, conn: &Rc<FrameConn>, piece: Option<Bytes>, end: bool, len: usize) {
        let Some(Caller::Redis(app, seq)) = self.with_call(key, |call| call.caller.clone()) else { return };
        if let Some(piece) = piece {
            app.append(seq, key, piece);
        }
        if end {
            let error = self.with_call(key, |call| call.streams.as_ref().and_then(|streams| error_of(streams.status)));
            if let Some(call) = self.remove_answered(key, error.flatten(), 0) {
                stop_request(&call, key);
            }
            return app.finish(seq);
        }
        self.with_call(key, |call| call.streams.as_deref_mut().map(|streams| streams.owed += len));
        conn.owed.borrow_mut().push(key);
    }

    /// Gives back the room of what Redis clients have taken.
    pub(super) fn give_owed(&self, conn: &Rc<FrameConn>) {
        let owed = std::mem::take(&mut *conn.owed.borrow_mut());
        if owed.is_empty() {
            return;
        }
        let max = self.output_max();
        let still: Vec<_> = owed.into_iter().filter(|key| self.owes(*key, conn, max)).collect();
        conn.owed.borrow_mut().extend(still);
    }

    /// Gives back the room of one call, unless its caller has taken too little.
    fn owes(&self, key: CallKey, conn: &Rc<FrameConn>, max: usize) -> bool {
        let credit = self.with_call(key, |call| {
            if call.caller.pause_reader(max, &conn.task) {
                return Err(());
            }
            let Place::Framed(_, _, stream) = call.place else { return Ok(None) };
            let header = call.header_to(key, stream, Kind::Credit);
            let credit = call.streams.as_deref_mut().and_then(Streams::take_owed);
            Ok(credit.map(|credit| (header, credit)))
        });
        match credit {
            Some(Ok(Some((header, credit)))) => conn.credit(header, credit),
            Some(Err(())) => return true,
            Some(Ok(None)) | None => {}
        }
        false
    }

    /// There will be no answer, or no more of one.
    pub(super) fn given_up(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) {
        let header = &frame.header;
        if header.is_routed() {
            return self.routed_given_up(conn, frame);
        }
        let key = CallKey::of_via(header.via);
        if self.with_call(key, |call| is_answer(call, conn, header)) != Some(true) {
            return self.counters.frames_dropped.add(1);
        }
        let error = error_of(header.word).unwrap_or(code::REMOTING);
        let refused = header.flags.has(Flags::NOT_EXECUTED);
        if self.tries_again(key, error, frame) || self.leaves_to_twin(key, refused) {
            return;
        }
        let Some(call) = self.remove_ended(key, &End::service(Some(error), 0).refused(refused)) else { return };
        stop_request(&call, key);
        let text = match id_text(frame.meta()) {
            text if text.is_empty() => {
                self.error_text(call.service.name(), call.place.instance(), "the service gave the call up")
            }
            text => text,
        };
        let begun = call.streams.as_ref().is_some_and(|streams| streams.begun);
        let not_executed = refused && !call.may_have_been_executed();
        call.caller.fail(Failure { code: error, text: &text, not_executed }, begun);
    }

    /// Something of a message has left the queue of `conn`.
    pub(super) fn released(&self, conn: &Rc<FrameConn>, released: Released) {
        let Released { message, stream, len, end } = released;
        if !message.to_caller {
            let key = CallKey::of_via(message.via);
            self.with_call(key, |call| match &mut call.place {
                Place::Framed(_, to, number) if Rc::ptr_eq(to, conn) => *number = stream,
                _ => {}
            });
            return if end { self.end_one_way(key) } else { self.took_request(key, len) };
        }
        let Some(key) = conn.incoming(message.via) else { return self.relay_released(conn, &released) };
        if !end {
            // A caller that takes what it is sent is not late.
            self.extend(key, len);
        }
        let credit = self.with_call(key, |call| {
            let Place::Framed(_, to, stream) = &call.place else { return None };
            let (to, stream) = (to.clone(), *stream);
            let header = call.header_to(key, stream, Kind::Credit);
            let credit = call.streams.as_deref_mut()?.answer.as_mut()?.used(len);
            Some((to, header, credit))
        });
        match credit.flatten() {
            Some((_, _, _)) if end => {
                let error = self.with_call(key, |call| call.streams.as_ref().and_then(|streams| error_of(streams.status)));
                if let Some(call) = self.remove_answered(key, error.flatten(), 0) {
                    stop_request(&call, key);
                    conn.ended(message.via);
                }
            }
            Some((to, header, Some(credit))) => to.credit(header, credit),
            _ => {}
        }
    }

    /// The peer wants no more calls, or has not executed some.
    pub(super) fn told_to_go(self: &Rc<Self>, conn: &Rc<FrameConn>, frame: &Incoming<'_>) {
        let header = &frame.header;
        let is_final = header.flags.has(Flags::END_STREAM);
        // Each is said once: what follows is looked up in all calls.
        if conn.told_final.replace(is_final || conn.told_final.get()) || (conn.is_leaving() && !is_final) {
            return;
        }
        // Before a PING that follows is answered: the others learn of it in their own time.
        self.unregister(conn);
        self.pause_lane(conn);
        self.settle_lane(conn);
        if !header.flags.has(Flags::END_STREAM) {
            return conn.peer_leaves();
        }
        let text = match id_text(frame.meta()) {
            text if text.is_empty() => "the peer has ended the connection".to_owned(),
            text => text,
        };
        if header.word != status::reason::DRAIN {
            conn.close(CloseReason::Peer, status::reason::DRAIN, &text);
        }
        conn.peer_leaves();
        if conn.outgoing() == 0 {
            return;
        }
        let refused = self.calls.borrow().keys(|call| match &call.place {
            Place::Framed(_, to, stream) => Rc::ptr_eq(to, conn) && (*stream == UNNUMBERED || is_after(*stream, header.stream)),
            _ => false,
        });
        for key in refused {
            let reason = "it takes no more calls on this connection";
            if !self.move_unsent(key, conn, reason) && !self.retry(key, RetryOn::NotExecuted, reason) {
                conn.drop_message(Message { via: key.via(), to_caller: false });
                self.end_with(key, code::REMOTING, true, |call| {
                    self.error_text(call.service.name(), call.place.instance(), reason)
                });
            }
        }
    }

    /// Ends or moves the calls that a connection was given, as it has ended.
    pub(super) fn lose_calls(self: &Rc<Self>, conn: &Rc<FrameConn>, reason: &str) {
        if conn.outgoing() == 0 {
            return;
        }
        // Whose answer is whole does not need the connection any more.
        let ended = |call: &Call| call.streams.as_ref().is_some_and(|streams| streams.ended);
        let placed = self.calls.borrow().keys(|call| is_at(call, conn) && !ended(call));
        for key in placed {
            if !self.move_unsent(key, conn, reason) && !self.retry(key, RetryOn::Connection, reason) {
                let place = self.with_call(key, |call| call.place.clone());
                self.fail(key, code::REMOTING, place.as_ref().and_then(Place::instance), reason);
            }
        }
    }

    /// Sends a call elsewhere that is whole and of which nothing has left.
    fn move_unsent(self: &Rc<Self>, key: CallKey, conn: &Rc<FrameConn>, reason: &str) -> bool {
        let unsent = conn.take_unsent(Message { via: key.via(), to_caller: false });
        let Some(request) = unsent.and_then(whole) else { return false };
        let place = self.with_call(key, |call| call.place.clone());
        if let Some(Place::Framed(remote, ..)) = place {
            self.send_elsewhere_from(key, request, &remote, reason);
        }
        true
    }

    pub(super) fn send_elsewhere_from(self: &Rc<Self>, key: CallKey, request: Request, remote: &Rc<Remote>, reason: &str) {
        let is_streamed = self.with_call(key, |call| call.streams.as_ref().is_some_and(|streams| streams.gathered.is_some()));
        if is_streamed == Some(true) {
            return self.fail(key, code::REMOTING, Some(&remote.instance), reason);
        }
        self.send_elsewhere(key, request, &Upstream::Remote(remote.clone()), reason);
    }
}

impl Streams {
    /// What to give back of what was owed, once there is enough.
    fn take_owed(&mut self) -> Option<u32> {
        let owed = std::mem::take(&mut self.owed);
        self.answer.as_mut()?.used(owed)
    }
}

/// Whether a call was given to this connection.
fn is_at(call: &Call, conn: &Rc<FrameConn>) -> bool {
    matches!(&call.place, Place::Framed(_, to, _) if Rc::ptr_eq(to, conn))
}

/// Whether a frame from this connection is of the call's answer, and not of the answer to a former try of it.
fn is_answer(call: &Call, conn: &Rc<FrameConn>, header: &Header) -> bool {
    matches!(&call.place, Place::Framed(_, to, stream) if Rc::ptr_eq(to, conn) && *stream == header.stream)
}

/// The call has ended: what waits of its request is not sent any more.
fn stop_request(call: &Call, key: CallKey) {
    if let Place::Framed(_, to, _) = &call.place
        && (call.streams.is_some() || call.may_be_cut())
    {
        to.drop_message(Message { via: key.via(), to_caller: false });
    }
}

/// A request of which all frames are here.
fn whole(frames: Vec<agent_common::frame::Frame>) -> Option<Request> {
    let (first, last) = (frames.first()?, frames.last()?);
    if !last.header.flags.has(Flags::END_STREAM) {
        return None;
    }
    let (header, meta) = (first.header, first.meta.clone());
    let body = match &frames[..] {
        [one] => one.body.clone(),
        frames => frames.iter().flat_map(|frame| frame.body.iter().copied()).collect(),
    };
    Some(Request::framed(header, meta, body))
}

/// The error code of a status; none if it is a success.
pub(super) fn error_of(word: u32) -> Option<u16> {
    // A code that only frames have room for is a failure all the same.
    (word != status::OK).then(|| u16::try_from(word).unwrap_or(code::FAILED))
}

/// An answer of one frame as a reply of Redis.
fn reply_of(frame: &Incoming<'_>) -> Bytes {
    match error_of(frame.header.word) {
        Some(code) if frame.body().is_empty() => error_envelope(code, &id_text(frame.meta())),
        _ => whole_bulk(frame.body()),
    }
}
