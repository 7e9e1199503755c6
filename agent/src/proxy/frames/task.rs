//! The task of a connection that speaks frames: reads them, has them handled, writes what waits.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use agent_common::frame::{
    COPY_BELOW, Frame, HEADER_LEN, Header, Hello, Inbox, Kind, Message, Released, Role, Violation, id, status::reason,
};
use bytes::{Buf, Bytes, BytesMut};
use tracing::debug;

use super::conn::{FrameConn, Side};
use crate::proxy::{
    place::{Source, Whence},
    socket::{Loose, Peer},
    stats::CloseReason,
    stream::{LooseStream, Stream},
    worker::Worker,
};

/// Reads in one turn, before others have theirs.
const READS: usize = 8;
/// How much of a peer's error text is passed on.
const TEXT_MAX: usize = 1024;
/// Room for a header that is cut.
const HEADER_ROOM: usize = 4 * 1024;

/// A frame that has come.
pub(super) struct Incoming<'a> {
    pub(super) header: Header,
    /// Metadata and body.
    rest: &'a [u8],
    /// The same as a slice of the read buffer, if the frame is large.
    slice: Option<Bytes>,
}

impl Incoming<'_> {
    pub(super) fn meta(&self) -> &[u8] {
        &self.rest[..usize::from(self.header.meta_len)]
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.rest[usize::from(self.header.meta_len)..]
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.rest
    }

    /// The metadata and the body, held for longer.
    pub(super) fn keep(&self) -> (Bytes, Bytes) {
        let mut meta = self.slice.clone().unwrap_or_else(|| Bytes::copy_from_slice(self.rest));
        let body = meta.split_off(usize::from(self.header.meta_len));
        (meta, body)
    }

    /// The frame under another header of the same lengths.
    pub(super) fn frame(&self, header: Header) -> Frame {
        let (meta, body) = self.keep();
        Frame { header, meta, body }
    }
}

/// A connection on its way to another worker.
pub(crate) struct Handoff {
    stream: LooseStream,
    peer: Peer,
    side: Side,
    whence: Option<Whence>,
    /// What was read of it.
    bytes: BytesMut,
}

impl Handoff {
    /// One end of a pair, for the worker at the other one.
    pub(super) fn worker(socket: std::os::unix::net::UnixStream) -> Self {
        let stream = LooseStream::new(Loose::Unix(socket));
        Self { stream, peer: Peer::Unix, side: Side::Worker, whence: None, bytes: BytesMut::new() }
    }
}

/// Serves a connection until it ends.
struct FrameTask {
    stream: Stream,
    worker: Rc<Worker>,
    conn: Rc<FrameConn>,
    inbox: Inbox,
    /// The beginning of a frame that is not whole, with room for the rest.
    partial: BytesMut,
    /// How long it must be before it is worth looking at.
    needed: usize,
    /// What was read before the task began.
    first: BytesMut,
    released: Vec<Released>,
    /// Room of the connection's window that is given back at the end of the turn.
    credit: u32,
    /// The peer has said who it is; it is answered when what it offers can be called.
    heard: bool,
    /// The HELLO of a lane has been written.
    greeted: bool,
    /// The last frame is queued; what is left is to write it.
    ending: Option<CloseReason>,
    shut: bool,
}

/// What becomes of the connection after a frame.
enum Next {
    Frame,
    /// It ends; the connection knows why.
    End,
    /// Another worker has it.
    Given,
}

/// Serves a connection that another end has opened, of which `first` was read.
pub(crate) fn start_in(worker: &Rc<Worker>, stream: Stream, from: Source, first: BytesMut) {
    start(worker, stream, from, first);
}

/// Serves the `nth` connection that this worker has opened to the same peer.
pub(super) fn start_out(worker: &Rc<Worker>, stream: Stream, peer: Peer, nth: usize) -> Rc<FrameConn> {
    let conn = start(worker, stream, Source { peer, side: Side::Out, place: None }, BytesMut::new());
    worker.say_hello(&conn, nth);
    conn
}

fn start(worker: &Rc<Worker>, stream: Stream, from: Source, first: BytesMut) -> Rc<FrameConn> {
    let conn = worker.frames_opened(from);
    tokio::task::spawn_local(FrameTask {
        stream,
        worker: worker.clone(),
        inbox: Inbox::new(conn.bounds.windows.connection),
        conn: conn.clone(),
        partial: BytesMut::new(),
        needed: 0,
        first,
        released: Vec::new(),
        credit: 0,
        heard: false,
        greeted: false,
        ending: None,
        shut: false,
    });
    conn
}

impl Future for FrameTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let conn = self.conn.clone();
        conn.task.turn(cx, |cx| self.drive(cx)).map(|reason| match reason {
            Some(reason) => self.worker.frames_ended(&conn, reason),
            None => self.worker.frames_given(&conn),
        })
    }
}

impl FrameTask {
    /// Ready when the connection has ended, with the reason; without one if it was given away.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        self.worker.turn_begins();
        let mut reads = 0;
        while self.ending.is_none() && self.conn.ends_now().is_none() {
            let data = match self.poll_read(cx) {
                Poll::Ready(Ok(data)) if !data.is_empty() => data,
                Poll::Ready(Ok(_)) => return Poll::Ready(Some(self.lost("the peer closed the connection"))),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(self.lost(&format!("connection lost: {error}")))),
                Poll::Pending => break,
            };
            self.conn.has_read(self.worker.now());
            if let Next::Given = self.feed(data) {
                return Poll::Ready(None);
            }
            reads += 1;
            // What needs no credit is written before more of it is made.
            if reads == READS || self.conn.has_ready() {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.credit > 0 {
            self.conn.credit(Header::new(Kind::Credit), std::mem::take(&mut self.credit));
        }
        self.worker.give_owed(&self.conn);
        let mut flushed = self.poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) && self.conn.is_lane() && !std::mem::replace(&mut self.greeted, true) {
            self.worker.lane_greeted(&self.conn);
        }
        if self.ending.is_none()
            && let Some(reason) = self.should_end()
        {
            self.ending = Some(reason);
            if let Some((header, meta)) = self.conn.farewell(self.inbox.last_stream()) {
                self.conn.control(&header, &meta);
                flushed = self.poll_flush(cx);
            }
            // From here on housekeeping bounds how long it takes.
            self.conn.close(reason, reason::DRAIN, "the connection has ended");
        }
        match (flushed, self.ending) {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Some(self.lost(&format!("connection lost: {error}")))),
            (_, Some(reason)) if self.conn.is_killed() => Poll::Ready(Some(reason)),
            (Poll::Ready(Ok(())), Some(reason)) => self.poll_end(cx).map(|()| Some(reason)),
            _ => Poll::Pending,
        }
    }

    /// Says that nothing more comes. What the peer goes on sending is read and dropped, as closing on it would be a reset,
    /// which takes the last words with it; housekeeping bounds how long.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shut {
            ready!(self.stream.poll_shutdown(cx)).ok();
            self.shut = true;
        }
        for _ in 0..READS {
            if !ready!(self.worker.poll_read(&mut self.stream, cx)).is_ok_and(|data| !data.is_empty()) {
                return Poll::Ready(());
            }
        }
        // Whoever sends faster than this reads has no turn without an end.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let flushed = self.conn.poll_flush(&mut self.stream, cx, self.worker.now(), &mut self.released);
            let mut released = std::mem::take(&mut self.released);
            for one in released.drain(..) {
                self.worker.released(&self.conn, one);
            }
            self.released = released;
            // Room that is given back on this very connection: nobody wakes this task in its own turn.
            if !matches!(flushed, Poll::Ready(Ok(()))) || !self.conn.has_ready() {
                return flushed;
            }
        }
    }

    fn should_end(&self) -> Option<CloseReason> {
        if let Some((reason, _)) = self.conn.ends_now() {
            return Some(reason);
        }
        let is_over = self.conn.is_leaving() && self.conn.is_idle() && self.conn.queued_bytes() == 0;
        (is_over && !self.worker.lane_is_busy(&self.conn)).then_some(CloseReason::Drain)
    }

    fn lost(&self, text: &str) -> CloseReason {
        self.conn.close(CloseReason::Peer, reason::DRAIN, text);
        CloseReason::Peer
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        if !self.first.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.first)));
        }
        if self.partial.is_empty() {
            return self.worker.poll_read(&mut self.stream, cx);
        }
        while self.partial.len() < self.needed {
            if ready!(self.stream.poll_read_buf(cx, &mut self.partial))? == 0 {
                return Poll::Ready(Ok(BytesMut::new()));
            }
            self.conn.last_read.set(self.worker.now());
        }
        Poll::Ready(Ok(std::mem::take(&mut self.partial)))
    }

    /// Handles the frames that are whole, and keeps the rest.
    fn feed(&mut self, mut data: BytesMut) -> Next {
        let mut at = 0;
        while let Some(bytes) = data[at..].first_chunk::<HEADER_LEN>() {
            let header = match Header::parse(bytes) {
                Ok(header) => header,
                Err(broken) => {
                    let stranger = self.conn.side == Side::Out && self.conn.hello().is_none();
                    let whose = if stranger { "the peer is no agent: " } else { "" };
                    self.conn.close(CloseReason::Protocol, reason::PROTOCOL, &format!("{whose}{broken}"));
                    return Next::End;
                }
            };
            let len = header.frame_len();
            if data.len() - at < len {
                break;
            }
            let next = if len <= COPY_BELOW {
                let frame = Incoming { header, rest: &data[at + HEADER_LEN..at + len], slice: None };
                at += len;
                self.frame(&frame, &data[at..])
            } else {
                data.advance(at);
                at = 0;
                let mut slice = data.split_to(len).freeze();
                slice.advance(HEADER_LEN);
                self.frame(&Incoming { header, rest: &slice.clone(), slice: Some(slice) }, &data)
            };
            if !matches!(next, Next::Frame) {
                return next;
            }
        }
        data.advance(at);
        self.keep(&data);
        Next::Frame
    }

    /// Waits for the rest of a frame in a buffer of its own.
    fn keep(&mut self, data: &[u8]) {
        self.conn.in_frame.set(!data.is_empty());
        if data.is_empty() {
            return;
        }
        let whole = data.first_chunk::<HEADER_LEN>().map(|bytes| Header::read(bytes).frame_len());
        self.needed = whole.unwrap_or(HEADER_LEN);
        self.partial = BytesMut::with_capacity(whole.unwrap_or(HEADER_ROOM));
        self.partial.extend_from_slice(data);
    }

    /// `rest`: what was read behind the frame.
    fn frame(&mut self, frame: &Incoming<'_>, rest: &[u8]) -> Next {
        let header = &frame.header;
        let greeted = self.conn.hello().is_some();
        if !greeted {
            return self.greet(frame, rest);
        }
        if self.conn.is_lane() {
            return self.worker.lane_frame(&self.conn, frame).map_or_else(|violation| self.violated(violation), |()| Next::Frame);
        }
        let credit = match self.inbox.receive(header) {
            Ok(credit) => credit,
            Err(violation) => return self.violated(violation),
        };
        self.credit += credit.unwrap_or(0);
        match self.handle(frame) {
            Ok(()) => Next::Frame,
            Err(violation) => self.violated(violation),
        }
    }

    fn handle(&mut self, frame: &Incoming<'_>) -> Result<(), Violation> {
        let header = &frame.header;
        let (worker, conn) = (&self.worker, &self.conn);
        let message = Message::of(header);
        match header.kind() {
            Some(Kind::Request) => worker.requested(conn, frame)?,
            Some(Kind::Response) => worker.responded(conn, frame)?,
            Some(Kind::Data) if message.to_caller => worker.answer_goes_on(conn, frame)?,
            Some(Kind::Data) => worker.request_goes_on(conn, frame)?,
            Some(Kind::Cancel) if message.to_caller => worker.given_up(conn, frame),
            Some(Kind::Cancel) => worker.cancelled(conn, header),
            Some(Kind::Ping) => conn.pinged(header),
            Some(Kind::Credit) if !conn.credited(header) => return Err(Violation::Credit { stream: header.stream }),
            Some(Kind::GoAway) => worker.told_to_go(conn, frame),
            Some(Kind::Pong) => conn.health().into_iter().for_each(|health| health.proves()),
            None if header.kind == Kind::LOAD => conn.told_load(header),
            Some(Kind::Hello | Kind::Credit) | None => {}
        }
        Ok(())
    }

    fn violated(&self, violation: Violation) -> Next {
        self.conn.close(CloseReason::Protocol, violation.reason(), &violation.to_string());
        Next::End
    }

    /// The first frame must be HELLO.
    fn greet(&mut self, frame: &Incoming<'_>, rest: &[u8]) -> Next {
        match frame.header.kind() {
            Some(Kind::Hello) if !self.heard => {}
            Some(Kind::GoAway) => {
                let text = id_text(frame.meta());
                self.conn.close(CloseReason::Peer, reason::DRAIN, &format!("the peer refused the connection: {text}"));
                return Next::End;
            }
            _ => {
                self.conn.close(CloseReason::Protocol, reason::PROTOCOL, "a frame before HELLO was answered");
                return Next::End;
            }
        }
        let hello = match Hello::decode(frame.meta()) {
            Ok(hello) => hello,
            Err(bad) => {
                self.conn.close(CloseReason::Protocol, reason::PROTOCOL, &bad.to_string());
                return Next::End;
            }
        };
        if let Some(other) = self.worker.belongs_elsewhere(&self.conn, &hello) {
            let mut bytes = BytesMut::with_capacity(frame.header.frame_len() + rest.len());
            bytes.extend_from_slice(&frame.header.bytes());
            bytes.extend_from_slice(frame.rest());
            bytes.extend_from_slice(rest);
            return self.give(other, bytes);
        }
        self.heard = true;
        if hello.role == Role::Lane {
            let read = frame.header.frame_len() + rest.len();
            self.worker.lane_heard(&self.conn, self.stream.tcp(), hello, read);
            return Next::Frame;
        }
        self.worker.heard(&self.conn, hello);
        Next::Frame
    }

    /// Gives the connection to another worker.
    fn give(&mut self, other: usize, bytes: BytesMut) -> Next {
        let stream = match self.stream.take().loosen() {
            Ok(stream) => stream,
            Err(error) => {
                self.lost(&error.to_string());
                return Next::End;
            }
        };
        let whence = self.conn.place.as_ref().map(|place| place.whence.clone());
        let handoff = Handoff { stream, peer: self.conn.peer, side: self.conn.side, whence, bytes };
        if let Err(error) = self.worker.hand_over(other, handoff) {
            debug!(%error, "a connection could not be given to its worker");
            self.lost(&error.to_string());
            return Next::End;
        }
        Next::Given
    }
}

/// What is known of an error's text.
pub(super) fn id_text(meta: &[u8]) -> String {
    let text = agent_common::frame::find(meta, id::ERROR_TEXT).unwrap_or_default();
    String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX)]).into_owned()
}

impl Worker {
    /// Serves a connection that another worker has given.
    pub(crate) fn take_over(self: &Rc<Self>, handoff: Handoff) {
        let Handoff { stream, peer, side, whence, bytes } = handoff;
        let is_known = whence.is_some();
        let place = whence.and_then(|whence| self.place_of_whence(whence));
        if is_known && place.is_none() {
            return self.connection_gone(CloseReason::Namespace);
        }
        match stream.fasten(self.counters.clone()) {
            Ok(stream) => start_in(self, stream, Source { peer, side, place }, bytes),
            Err(error) => {
                debug!(%error, "a connection was lost on its way to its worker");
                if side != Side::Worker {
                    self.connection_gone(CloseReason::Peer);
                }
            }
        }
    }
}
