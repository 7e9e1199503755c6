//! Frames to a peer: what its windows let through, with turns between large bodies.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Kind, Overrun, SendWindow, Windows, next_stream};
use bytes::Bytes;

/// The longest frame that is usually sent. A quarter of the smallest window, so that there is always one on its way.
pub(super) const FRAME: usize = 16 << 10;
/// Bytes that may wait to be written before the next frame of a large body is begun.
const AHEAD: usize = 64 << 10;

/// A message that could not be written at once.
pub(super) struct Message {
    /// The header of its first frame, without lengths; a REQUEST gets its number when that is written.
    pub(super) header: Header,
    /// The metadata of its first frame.
    pub(super) meta: Bytes,
    /// All of its body.
    pub(super) body: Bytes,
}

/// What goes to the peer.
pub(super) struct Output {
    buf: Vec<u8>,
    written: usize,
    /// The connection's window.
    window: SendWindow,
    /// The size of a message's.
    message_window: u32,
    /// The last number that was given to a call.
    stream: u32,
    /// The longest frame that is sent.
    frame_max: usize,
    /// Messages that go on when it is their turn.
    waiting: VecDeque<Sending>,
    /// Messages without room in their window, by `via`.
    blocked: HashMap<u64, Sending>,
    /// All that was ever written.
    pub(super) bytes: u64,
}

struct Sending {
    header: Header,
    /// Empty once it was sent.
    meta: Bytes,
    /// What was not sent.
    body: Bytes,
    window: SendWindow,
}

impl Output {
    /// To a peer with these windows.
    pub(super) fn new(peer: Windows) -> Self {
        Self {
            buf: Vec::with_capacity(2 * AHEAD),
            written: 0,
            window: SendWindow::new(peer.connection),
            message_window: peer.stream,
            stream: 0,
            frame_max: FRAME,
            waiting: VecDeque::new(),
            blocked: HashMap::new(),
            bytes: 0,
        }
    }

    /// With longer frames, for peers with large windows.
    pub(super) fn with_frames_of(self, frame_max: usize) -> Self {
        Self { frame_max, ..self }
    }

    /// The number of a call that goes another way.
    pub(super) fn take_number(&mut self) -> u32 {
        self.stream = next_stream(self.stream);
        self.stream
    }

    /// A frame that needs no credit.
    pub(super) fn control(&mut self, header: &Header) {
        self.buf.extend_from_slice(&header.bytes());
    }

    /// A message of one frame, if it is small and there is room; a REQUEST gets its number here.
    pub(super) fn at_once(&mut self, header: Header, meta: &[u8], body: &[u8]) -> bool {
        let len = HEADER_LEN + meta.len() + body.len();
        if len > self.frame_max || !self.window.take(len) {
            return false;
        }
        let header = self.numbered(header);
        self.write(Header { flags: header.flags | Flags::END_STREAM, ..header }, meta, body);
        true
    }

    /// Any message; it is sent as the windows allow.
    pub(super) fn queue(&mut self, message: Message) {
        let Message { header, meta, body } = message;
        self.waiting.push_back(Sending { header, meta, body, window: SendWindow::new(self.message_window) });
    }

    /// Sends no more of a call's message.
    pub(super) fn forget(&mut self, via: u64) {
        self.blocked.remove(&via);
        self.waiting.retain(|sending| sending.header.via != via);
    }

    /// The peer gave back room.
    pub(super) fn credit(&mut self, credit: &Header) -> Result<(), Overrun> {
        if (credit.stream, credit.via, credit.service) == (0, 0, 0) {
            return self.window.credit(credit.word);
        }
        if let Some(mut sending) = self.blocked.remove(&credit.via) {
            sending.window.credit(credit.word)?;
            self.waiting.push_back(sending);
            return Ok(());
        }
        // Else it is for a message that was sent whole meanwhile.
        let sending = self.waiting.iter_mut().find(|sending| sending.header.via == credit.via);
        sending.map_or(Ok(()), |sending| sending.window.credit(credit.word))
    }

    /// Writes what may be sent, until the socket takes no more or enough is on its way for one turn.
    pub(super) fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        self.fill();
        while self.written < self.buf.len() {
            match socket.write(&self.buf[self.written..]) {
                Ok(len) => {
                    self.written += len;
                    self.bytes += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buf.drain(..self.written);
        self.written = 0;
        Ok(())
    }

    /// Whether there is something to write as soon as the socket takes it.
    pub(super) fn waits_for_socket(&self) -> bool {
        self.written < self.buf.len() || self.waiting.front().is_some_and(|next| self.window.has(next.next_len(self.frame_max)))
    }

    /// Frames of large bodies, in turns.
    fn fill(&mut self) {
        while self.buf.len() - self.written < AHEAD
            && let Some(mut sending) = self.waiting.pop_front()
        {
            let len = sending.next_len(self.frame_max);
            if !self.window.has(len) {
                return self.waiting.push_front(sending);
            }
            if !sending.window.take(len) {
                self.blocked.insert(sending.header.via, sending);
                continue;
            }
            self.window.take(len);
            sending.header = self.numbered(sending.header);
            let meta = std::mem::take(&mut sending.meta);
            let body = sending.body.split_to(len - HEADER_LEN - meta.len());
            let ends = if sending.body.is_empty() { Flags::END_STREAM } else { Flags::NONE };
            self.write(Header { flags: sending.header.flags | ends, ..sending.header }, &meta, &body);
            if !sending.body.is_empty() {
                sending.header = Header { kind: Kind::Data as u8, word: 0, ..sending.header };
                self.waiting.push_back(sending);
            }
        }
    }

    /// Numbers must go up in the order in which calls begin on the wire, so a call gets its own when it does.
    fn numbered(&mut self, header: Header) -> Header {
        if header.stream != 0 {
            return header;
        }
        Header { stream: self.take_number(), ..header }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
    fn write(&mut self, header: Header, meta: &[u8], body: &[u8]) {
        let header = Header { meta_len: meta.len() as u16, body_len: body.len() as u32, ..header };
        self.buf.extend_from_slice(&header.bytes());
        self.buf.extend_from_slice(meta);
        self.buf.extend_from_slice(body);
    }
}

impl Sending {
    /// The length of its next frame.
    fn next_len(&self, frame_max: usize) -> usize {
        (HEADER_LEN + self.meta.len() + self.body.len()).min(frame_max)
    }
}

#[cfg(test)]
mod tests {
    use agent_common::frame::WINDOW_MIN;

    use super::{super::input::Input, *};

    const WINDOWS: Windows = Windows { stream: WINDOW_MIN, connection: 4 * WINDOW_MIN };

    fn message(via: u64, len: usize) -> Message {
        let meta = Bytes::from_static(b"meta");
        Message { header: Header { via, ..Header::new(Kind::Request) }, meta, body: vec![7; len].into() }
    }

    /// What goes over the wire next: kind, `via`, `stream`, bytes of the frame, and whether the message ends.
    fn sent(output: &mut Output) -> Vec<(Kind, u64, u32, usize, bool)> {
        let (mut wire, mut found) = (Vec::new(), Vec::new());
        while output.waits_for_socket() {
            output.flush(&mut wire).unwrap();
        }
        let mut input = Input::new();
        for mut piece in wire.chunks(100_000) {
            input.read(&mut piece).unwrap();
            while let Some(frame) = input.take().unwrap() {
                let Header { via, stream, flags, .. } = frame.header;
                found.push((frame.header.kind().unwrap(), via, stream, frame.header.frame_len(), flags.has(Flags::END_STREAM)));
            }
        }
        found
    }

    fn credit(output: &mut Output, via: u64, stream: u32, bytes: u32) {
        output.credit(&Header { via, stream, word: bytes, ..Header::new(Kind::Credit) }).unwrap();
    }

    #[test]
    fn large_bodies_take_turns_and_stop_at_their_windows() {
        let mut output = Output::new(WINDOWS);
        output.queue(message(5, 1 << 20));
        output.queue(message(6, 1 << 20));
        let (first, rest) = (Kind::Request, Kind::Data);
        let turns = [first, rest, rest, rest].map(|kind| [(kind, 5, 1, FRAME, false), (kind, 6, 2, FRAME, false)]);
        assert_eq!(sent(&mut output), turns.concat());
        credit(&mut output, 6, 2, WINDOW_MIN / 4);
        assert_eq!(sent(&mut output), [(rest, 6, 2, FRAME, false)]);
    }

    #[test]
    fn small_calls_pass_while_the_connection_has_room() {
        let mut output = Output::new(Windows { connection: WINDOW_MIN, ..WINDOWS });
        output.queue(message(5, WINDOW_MIN as usize));
        let small = |output: &mut Output, via| output.at_once(Header { via, ..Header::new(Kind::Request) }, b"m", b"b");
        assert!(small(&mut output, 6));
        let found = sent(&mut output);
        assert_eq!(found[0], (Kind::Request, 6, 1, HEADER_LEN + 2, true));
        assert_eq!(found.len(), 4);
        // What is left of the window is less than a frame of the large body, but enough for small ones.
        assert!(small(&mut output, 7));
        assert_eq!(sent(&mut output).len(), 1);
        credit(&mut output, 0, 0, WINDOW_MIN / 4);
        credit(&mut output, 5, 2, WINDOW_MIN / 4);
        let found = sent(&mut output);
        assert_eq!(found.iter().map(|frame| frame.4).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_message_ends_once() {
        let mut output = Output::new(WINDOWS);
        output.queue(message(5, FRAME));
        let found = sent(&mut output);
        assert_eq!(found, [(Kind::Request, 5, 1, FRAME, false), (Kind::Data, 5, 1, 2 * HEADER_LEN + 4, true)]);
        output.queue(message(6, 1 << 20));
        sent(&mut output);
        output.forget(6);
        credit(&mut output, 6, 2, WINDOW_MIN);
        assert!(sent(&mut output).is_empty());
    }
}
