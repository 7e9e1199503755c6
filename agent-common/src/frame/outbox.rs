use std::{
    collections::{HashMap, VecDeque},
    io::IoSlice,
};

use bytes::{Buf, Bytes, BytesMut};

use super::{FRAME_MAX, Flags, HEADER_LEN, Header, Kind, Overrun, SendWindow, Windows, next_stream};

/// Bytes of a frame that are copied into one buffer with others: a slice of its own costs the kernel and the allocator
/// more than the copy.
pub const COPY_BELOW: usize = 4 * 1024;
/// Large frames are made ready while fewer bytes than this are, so that a small one never waits behind twice as many.
const QUANTUM: usize = FRAME_MAX;
/// Bytes of frames that need no credit, and that the peer does not take.
const RESERVE: usize = 64 * 1024;

/// A frame that is to be sent.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its header, with the lengths of the other two.
    pub header: Header,
    /// Its metadata.
    pub meta: Bytes,
    /// Its body.
    pub body: Bytes,
}

/// One direction of one call on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// The call's `via`.
    pub via: u64,
    /// Whether it goes to the call's caller.
    pub to_caller: bool,
}

/// A frame that waited for credit, or for its turn, has left the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// What it is a part of.
    pub message: Message,
    /// The number that it left with.
    pub stream: u32,
    /// Its bytes.
    pub len: usize,
    /// Whether it is the last one.
    pub end: bool,
}

/// Too many frames that need no credit wait for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flooded;

/// What waits to be sent on one connection: by credit, small messages before large ones, large ones in turns.
#[derive(Debug)]
pub struct Outbox {
    window: SendWindow,
    /// Room of the connection's window that large frames leave for small ones.
    kept: u32,
    stream_window: u32,
    /// The number of the last call that has left.
    last_stream: u32,
    ready: Ready,
    control: Control,
    /// Messages of one small frame that wait for the connection's credit.
    small: VecDeque<Frame>,
    messages: HashMap<Message, Sending>,
    /// Messages that have a frame to send, and the credit for it.
    turns: VecDeque<Message>,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Sending {
    window: SendWindow,
    waiting: VecDeque<Frame>,
    in_turn: bool,
    begun: bool,
    /// The number of the call, once its REQUEST has left.
    stream: u32,
}

/// Where in what is ready the frames are that need no credit.
#[derive(Debug, Default)]
struct Control {
    /// Their bytes that were not taken by the socket.
    waiting: usize,
    /// Bytes of other frames, and those of frames that need no credit behind them.
    runs: VecDeque<(usize, usize)>,
    /// The bytes of all runs.
    covered: usize,
}

/// Bytes in the order in which they go to the socket.
#[derive(Debug, Default)]
struct Ready {
    slices: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// How much gathered last time.
    usual: usize,
}

impl Message {
    /// What a frame is a part of.
    #[must_use]
    pub const fn of(header: &Header) -> Self {
        Self { via: header.via, to_caller: header.flags.has(Flags::TO_CALLER) }
    }
}

impl Outbox {
    /// Nothing to send, towards a peer with these windows.
    #[must_use]
    pub fn new(windows: Windows) -> Self {
        Self {
            window: SendWindow::new(windows.connection),
            kept: kept(windows),
            stream_window: windows.stream,
            last_stream: 0,
            ready: Ready::default(),
            control: Control::default(),
            small: VecDeque::new(),
            messages: HashMap::new(),
            turns: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// The peer has said its windows, before anything was sent that needs credit.
    pub fn set_windows(&mut self, windows: Windows) {
        self.window = SendWindow::new(windows.connection);
        self.kept = kept(windows);
        self.stream_window = windows.stream;
    }

    /// Sends a frame that needs no credit, with its metadata.
    ///
    /// # Errors
    /// When the peer has taken too few of those before: the connection is to be closed.
    pub fn control(&mut self, header: &Header, meta: &[u8]) -> Result<(), Flooded> {
        let len = HEADER_LEN + meta.len();
        if self.control.waiting + len > RESERVE {
            return Err(Flooded);
        }
        self.ready.copy(&header.bytes(), meta);
        self.control.push(len, self.ready.bytes);
        Ok(())
    }

    /// The number of the next call that leaves. A call that waits has none yet: whatever overtakes it has a lower one, as
    /// numbers must go forward on the wire.
    #[must_use]
    pub const fn next_stream(&self) -> u32 {
        next_stream(self.last_stream)
    }

    /// Uses up the number of the next call, for one that leaves by the lane: both ways share one sequence.
    pub const fn take_number(&mut self) -> u32 {
        self.last_stream = self.next_stream();
        self.last_stream
    }

    /// Sends a whole message of one small frame at once, if there is credit and nobody waits for it. `rest` is what stands
    /// behind the header. A REQUEST must have the number that is next.
    pub fn try_whole(&mut self, header: &Header, rest: &[u8]) -> bool {
        let len = HEADER_LEN + rest.len();
        if len > COPY_BELOW || !self.small.is_empty() || !self.window.take(len) {
            return false;
        }
        if header.kind == Kind::Request as u8 {
            self.last_stream = header.stream;
        }
        self.ready.copy(&header.bytes(), rest);
        true
    }

    /// Sends a frame of a message as soon as there is credit and it is its turn. DATA of a message that has not begun, or
    /// was dropped, is dropped. A REQUEST gets its number when it leaves, and so does the DATA that continues it.
    pub fn push(&mut self, frame: Frame) {
        let message = Message::of(&frame.header);
        let len = frame.header.frame_len();
        let first = frame.header.kind != Kind::Data as u8;
        if first && frame.header.flags.has(Flags::END_STREAM) && len <= COPY_BELOW {
            self.waiting_bytes += len;
            self.small.push_back(frame);
            return;
        }
        let sending = match self.messages.entry(message) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) if first => entry.insert(Sending {
                window: SendWindow::new(self.stream_window),
                waiting: VecDeque::new(),
                in_turn: false,
                begun: false,
                stream: 0,
            }),
            std::collections::hash_map::Entry::Vacant(_) => return,
        };
        self.waiting_bytes += len;
        sending.waiting.push_back(frame);
        if !sending.in_turn && sending.is_able() {
            sending.in_turn = true;
            self.turns.push_back(message);
        }
    }

    /// The peer gave back room, of the connection if the header names no call.
    ///
    /// # Errors
    /// When that makes more than a window may have.
    pub fn credit(&mut self, header: &Header) -> Result<(), Overrun> {
        if header.stream == 0 {
            return self.window.credit(header.word);
        }
        // A frame towards the caller is credited by the caller, and the other way round.
        let message = Message { via: header.via, to_caller: !header.flags.has(Flags::TO_CALLER) };
        let Some(sending) = self.messages.get_mut(&message) else { return Ok(()) };
        if !message.to_caller && sending.stream != header.stream {
            // It was on its way to a call that has ended, and whose name another one has now.
            return Ok(());
        }
        sending.window.credit(header.word)?;
        if !sending.in_turn && sending.is_able() {
            sending.in_turn = true;
            self.turns.push_back(message);
        }
        Ok(())
    }

    /// Drops what has not left of a message. True if nothing of it has.
    pub fn cancel(&mut self, message: Message) -> bool {
        if let Some(sending) = self.messages.remove(&message) {
            self.waiting_bytes -= sending.waiting.iter().map(|frame| frame.header.frame_len()).sum::<usize>();
            if sending.in_turn {
                self.turns.retain(|other| *other != message);
            }
            return !sending.begun;
        }
        let at = self.small.iter().position(|frame| Message::of(&frame.header) == message);
        let frame = at.and_then(|at| self.small.remove(at));
        self.waiting_bytes -= frame.as_ref().map_or(0, |frame| frame.header.frame_len());
        frame.is_some()
    }

    /// Takes back the frames of a message of which nothing has left.
    pub fn take_unsent(&mut self, message: Message) -> Option<Vec<Frame>> {
        let frames = match self.messages.get_mut(&message) {
            Some(sending) if sending.begun => return None,
            Some(sending) => std::mem::take(&mut sending.waiting).into(),
            None => {
                let at = self.small.iter().position(|frame| Message::of(&frame.header) == message)?;
                return self.small.remove(at).map(|frame| {
                    self.waiting_bytes -= frame.header.frame_len();
                    vec![frame]
                });
            }
        };
        let frames: Vec<Frame> = frames;
        self.waiting_bytes -= frames.iter().map(|frame| frame.header.frame_len()).sum::<usize>();
        self.cancel(message);
        Some(frames)
    }

    /// Whether a message has frames that wait, or is not at its end.
    #[must_use]
    pub fn has(&self, message: Message) -> bool {
        self.messages.contains_key(&message)
    }

    /// Bytes of a message that wait for credit or for their turn.
    #[must_use]
    pub fn waiting_of(&self, message: Message) -> usize {
        let waiting = self.messages.get(&message).map(|sending| &sending.waiting);
        waiting.map_or(0, |waiting| waiting.iter().map(|frame| frame.header.frame_len()).sum())
    }

    /// Bytes that wait for credit or for their turn.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Bytes that wait for the socket.
    #[must_use]
    pub fn ready_bytes(&self) -> usize {
        self.ready.bytes
    }

    /// Makes ready what may go next. To be called before each write, until nothing is ready.
    pub fn schedule(&mut self, mut released: impl FnMut(Released)) {
        while let Some(frame) = self.small.front() {
            let len = frame.header.frame_len();
            if !self.window.take(len) {
                return;
            }
            let Some(mut frame) = self.small.pop_front() else { return };
            self.waiting_bytes -= len;
            if frame.header.kind == Kind::Request as u8 {
                frame.header.stream = self.take_number();
            }
            self.ready.frame(&frame);
            released(Released { message: Message::of(&frame.header), stream: frame.header.stream, len, end: true });
        }
        while self.ready.bytes < QUANTUM
            && let Some(message) = self.turns.front().copied()
        {
            let Some(sending) = self.messages.get_mut(&message) else {
                self.turns.pop_front();
                continue;
            };
            let Some(len) = sending.waiting.front().map(|frame| frame.header.frame_len()) else { return };
            if !self.window.has(len + self.kept as usize) || !self.window.take(len) {
                return;
            }
            let Some(mut frame) = sending.waiting.pop_front() else { return };
            sending.window.take(len);
            if frame.header.kind == Kind::Request as u8 {
                self.last_stream = next_stream(self.last_stream);
                sending.stream = self.last_stream;
            }
            if !message.to_caller {
                frame.header.stream = sending.stream;
            }
            sending.begun = true;
            self.waiting_bytes -= len;
            self.turns.pop_front();
            let end = frame.header.flags.has(Flags::END_STREAM);
            if end {
                // What stands behind the end is nothing.
                self.waiting_bytes -= sending.waiting.iter().map(|frame| frame.header.frame_len()).sum::<usize>();
                self.messages.remove(&message);
            } else if sending.is_able() {
                self.turns.push_back(message);
            } else {
                sending.in_turn = false;
            }
            self.ready.frame(&frame);
            released(Released { message, stream: frame.header.stream, len, end });
        }
    }

    /// The front of what is ready, for a vectored write. Returns how many slices it filled.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.ready.slices.iter().map(|slice| &slice[..]).chain(Some(&self.ready.tail[..]));
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// The first `written` bytes of what is ready have gone.
    pub fn advance(&mut self, written: usize) {
        self.ready.advance(written);
        self.control.advance(written);
    }
}

impl Control {
    /// A frame of this length is the last of so many bytes that are ready.
    fn push(&mut self, len: usize, ready: usize) {
        let others = ready - len - self.covered;
        match self.runs.back_mut() {
            Some((_, last)) if others == 0 => *last += len,
            _ => self.runs.push_back((others, len)),
        }
        self.waiting += len;
        self.covered = ready;
    }

    fn advance(&mut self, mut written: usize) {
        self.covered = self.covered.saturating_sub(written);
        while let Some((others, control)) = self.runs.front_mut() {
            let skipped = written.min(*others);
            let taken = (written - skipped).min(*control);
            (*others, *control, written) = (*others - skipped, *control - taken, written - skipped - taken);
            self.waiting -= taken;
            if *control > 0 {
                return;
            }
            self.runs.pop_front();
        }
        // An idle connection holds no buffer.
        self.runs = VecDeque::new();
    }
}

/// A quarter of the connection's window is for small frames, unless a large one would never fit then.
const fn kept(windows: Windows) -> u32 {
    if windows.connection as usize >= 4 * FRAME_MAX { windows.connection / 4 } else { 0 }
}

impl Sending {
    /// Whether it has a frame and the credit for it.
    fn is_able(&self) -> bool {
        self.waiting.front().is_some_and(|frame| self.window.has(frame.header.frame_len()))
    }
}

impl Ready {
    fn copy(&mut self, header: &[u8], rest: &[u8]) {
        let len = header.len() + rest.len();
        if self.tail.capacity() - self.tail.len() < len {
            self.tail.reserve(len.max(self.usual.saturating_sub(self.tail.len())));
        }
        self.tail.extend_from_slice(header);
        self.tail.extend_from_slice(rest);
        self.bytes += len;
    }

    fn frame(&mut self, frame: &Frame) {
        let header = frame.header.bytes();
        if frame.header.frame_len() <= COPY_BELOW {
            self.copy(&header, &frame.meta);
            self.copy(&frame.body, &[]);
            return;
        }
        self.copy(&header, &frame.meta);
        if frame.body.len() <= COPY_BELOW / 2 {
            self.copy(&frame.body, &[]);
            return;
        }
        self.slices.push_back(self.tail.split().freeze());
        self.bytes += frame.body.len();
        self.slices.push_back(frame.body.clone());
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0
            && let Some(front) = self.slices.front_mut()
        {
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.slices.pop_front();
        }
        self.usual = self.usual.max(written).min(FRAME_MAX);
        self.tail.advance(written);
        if self.bytes == 0 {
            // An idle connection holds no buffer.
            self.usual = self.usual / 2 + written.min(FRAME_MAX) / 2;
            self.tail = BytesMut::new();
            self.slices = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, via: u64, len: usize, end: bool) -> Frame {
        let flags = if end { Flags::END_STREAM } else { Flags::NONE };
        let stream = u32::try_from(via).unwrap();
        let header = Header { flags, via, stream, body_len: u32::try_from(len).unwrap(), ..Header::new(kind) };
        Frame { header, meta: Bytes::new(), body: vec![u8::try_from(via).unwrap(); len].into() }
    }

    /// Sends everything that may go, and says which calls' frames went, in order.
    fn sent(outbox: &mut Outbox) -> Vec<(u64, usize)> {
        let mut bytes = Vec::new();
        loop {
            outbox.schedule(|_| {});
            let mut slices = [IoSlice::new(&[]); 8];
            let count = outbox.fill(&mut slices);
            if count == 0 {
                break;
            }
            let taken: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            bytes.extend_from_slice(&taken);
            outbox.advance(taken.len());
        }
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
            frames.push((header.via, header.frame_len()));
            bytes.drain(..header.frame_len());
        }
        frames
    }

    fn outbox(stream: u32, connection: u32) -> Outbox {
        Outbox::new(Windows { stream, connection })
    }

    fn credit(via: u64, word: u32) -> Header {
        Header { via, stream: u32::try_from(via).unwrap(), word, flags: Flags::TO_CALLER, ..Header::new(Kind::Credit) }
    }

    #[test]
    fn a_small_message_goes_before_large_ones_and_large_ones_take_turns() {
        let mut outbox = outbox(1 << 20, 1 << 22);
        for via in [1, 2] {
            outbox.push(frame(Kind::Request, via, 50_000, false));
            outbox.push(frame(Kind::Data, via, 50_000, true));
        }
        outbox.push(frame(Kind::Request, 3, 100, true));
        let order: Vec<_> = sent(&mut outbox).into_iter().map(|(via, _)| via).collect();
        assert_eq!(order, [3, 1, 2, 1, 2]);
        assert_eq!((outbox.waiting_bytes(), outbox.ready_bytes()), (0, 0));
    }

    #[test]
    fn a_message_waits_for_its_own_credit_and_holds_up_no_other() {
        let mut outbox = outbox(65_536, 1 << 22);
        outbox.push(frame(Kind::Request, 1, 40_000, false));
        outbox.push(frame(Kind::Data, 1, 40_000, true));
        outbox.push(frame(Kind::Request, 2, 40_000, true));
        assert_eq!(sent(&mut outbox), [(1, 40_040), (2, 40_040)]);
        assert_eq!(outbox.waiting_of(Message { via: 1, to_caller: false }), 40_040);
        outbox.credit(&credit(1, 14_543)).unwrap();
        assert_eq!(sent(&mut outbox), []);
        outbox.credit(&credit(1, 1)).unwrap();
        assert_eq!(sent(&mut outbox), [(1, 40_040)]);
    }

    #[test]
    fn credit_for_a_call_that_has_ended_is_not_that_of_another_with_its_name() {
        let mut outbox = outbox(65_536, 1 << 22);
        outbox.push(frame(Kind::Request, 1, 40_000, false));
        assert_eq!(sent(&mut outbox), [(1, 40_040)]);
        outbox.cancel(Message { via: 1, to_caller: false });
        outbox.push(frame(Kind::Request, 1, 40_000, false));
        outbox.push(frame(Kind::Data, 1, 40_000, true));
        outbox.credit(&credit(1, 40_040)).unwrap();
        assert_eq!(sent(&mut outbox), [(1, 40_040)]);
        outbox.credit(&credit(1, 40_040)).unwrap();
        assert_eq!(sent(&mut outbox), []);
        outbox.credit(&Header { stream: 2, ..credit(1, 40_040) }).unwrap();
        assert_eq!(sent(&mut outbox), [(1, 40_040)]);
    }

    #[test]
    fn large_frames_leave_room_in_the_connection_for_small_ones() {
        let mut outbox = outbox(1 << 20, 262_144);
        outbox.push(frame(Kind::Request, 1, 60_000, false));
        (0..5).for_each(|_| outbox.push(frame(Kind::Data, 1, 60_000, false)));
        assert_eq!(sent(&mut outbox).len(), 3);
        assert!(outbox.try_whole(&frame(Kind::Request, 2, 0, true).header, &[]));
        outbox.credit(&Header { word: 120_000, ..Header::new(Kind::Credit) }).unwrap();
        assert_eq!(sent(&mut outbox).iter().map(|(via, _)| *via).collect::<Vec<_>>(), [2, 1, 1]);
    }

    #[test]
    fn without_the_connections_credit_nothing_goes_but_what_needs_none() {
        let mut outbox = outbox(65_536, 65_536);
        outbox.push(frame(Kind::Request, 1, 65_000, true));
        sent(&mut outbox);
        let small = frame(Kind::Request, 2, 1000, true);
        assert!(!outbox.try_whole(&small.header, &small.body));
        outbox.push(small);
        outbox.control(&Header::new(Kind::Ping), &[]).unwrap();
        assert_eq!(sent(&mut outbox), [(0, 40)]);
        outbox.credit(&Header { word: 2000, ..Header::new(Kind::Credit) }).unwrap();
        assert_eq!(sent(&mut outbox), [(2, 1040)]);
    }

    #[test]
    fn what_is_cancelled_is_forgotten() {
        let mut outbox = outbox(65_536, 1 << 20);
        let (first, second) = (Message { via: 1, to_caller: false }, Message { via: 2, to_caller: false });
        outbox.push(frame(Kind::Request, 1, 40_000, false));
        outbox.push(frame(Kind::Request, 2, 40_000, false));
        assert!(outbox.cancel(first));
        sent(&mut outbox);
        outbox.push(frame(Kind::Data, 2, 40_000, false));
        assert!(!outbox.cancel(second));
        outbox.push(frame(Kind::Data, 2, 10, true));
        assert_eq!(sent(&mut outbox), []);
        assert_eq!(outbox.waiting_bytes(), 0);
    }

    #[test]
    fn a_peer_that_takes_what_it_is_sent_is_never_flooded() {
        let mut outbox = outbox(1 << 30, 1 << 30);
        outbox.push(frame(Kind::Request, 1, 60_000, false));
        for _ in 0..10_000 {
            // There is always more to send than the socket takes.
            outbox.push(frame(Kind::Data, 1, 60_000, false));
            outbox.control(&Header::new(Kind::Pong), &[]).unwrap();
            outbox.schedule(|_| {});
            outbox.advance(60_080);
            assert!(outbox.ready_bytes() > 0);
        }
    }

    #[test]
    fn a_peer_that_takes_no_answers_to_its_pings_is_flooded() {
        let mut outbox = outbox(65_536, 65_536);
        let pings = (0..).take_while(|_| outbox.control(&Header::new(Kind::Pong), &[]).is_ok()).count();
        assert_eq!(pings, RESERVE / HEADER_LEN);
    }

    #[test]
    fn what_the_socket_took_does_not_count_as_flood() {
        let ping = |outbox: &mut Outbox, most: usize| {
            (0..most).take_while(|_| outbox.control(&Header::new(Kind::Ping), &[]).is_ok()).count()
        };
        let most = RESERVE / HEADER_LEN;
        let mut outbox = outbox(1 << 20, 1 << 20);
        assert_eq!(ping(&mut outbox, usize::MAX), most);
        outbox.push(frame(Kind::Request, 1, 60_000, true));
        outbox.schedule(|_| {});
        assert_eq!(ping(&mut outbox, 1), 0);
        outbox.advance(HEADER_LEN);
        assert_eq!(ping(&mut outbox, usize::MAX), 1);
        // All but what stands behind the large frame.
        outbox.advance((most - 1) * HEADER_LEN);
        assert_eq!(ping(&mut outbox, usize::MAX), most - 1);
        outbox.advance(outbox.ready_bytes());
        assert_eq!(ping(&mut outbox, usize::MAX), most);
        outbox.advance(outbox.ready_bytes());
        assert!(outbox.control.runs.is_empty() && outbox.control.waiting == 0 && outbox.control.covered == 0);
    }

    #[test]
    fn numbers_go_forward_on_the_wire_whatever_overtakes() {
        let mut outbox = outbox(1 << 20, 1 << 22);
        outbox.push(frame(Kind::Request, 1, 50_000, false));
        outbox.push(frame(Kind::Data, 1, 50_000, true));
        outbox.push(frame(Kind::Request, 2, 100, true));
        let mut small = frame(Kind::Request, 3, 100, true);
        outbox.schedule(|released| assert_eq!(released.stream, if released.message.via == 2 { 1 } else { 2 }));
        small.header.stream = outbox.next_stream();
        assert!(outbox.try_whole(&small.header, &small.body));
        outbox.schedule(|released| assert_eq!((released.message.via, released.stream), (1, 2)));
        assert_eq!((small.header.stream, outbox.next_stream()), (3, 4));
    }

    #[test]
    fn what_comes_behind_the_end_leaves_no_trace() {
        let mut outbox = outbox(65_536, 1 << 20);
        outbox.push(frame(Kind::Request, 1, 40_000, false));
        outbox.push(frame(Kind::Data, 1, 10, true));
        outbox.push(frame(Kind::Data, 1, 10_000, true));
        assert_eq!(sent(&mut outbox).len(), 2);
        assert_eq!((outbox.waiting_bytes(), outbox.has(Message { via: 1, to_caller: false })), (0, false));
    }

    #[test]
    fn who_takes_bytes_all_the_time_is_not_flooded() {
        let mut outbox = outbox(65_536, 65_536);
        for _ in 0..10 * RESERVE / HEADER_LEN {
            // Something is always left for the socket.
            outbox.control(&Header::new(Kind::Pong), &[]).unwrap();
            if outbox.ready_bytes() > 100 * HEADER_LEN {
                outbox.advance(50 * HEADER_LEN);
            }
        }
        assert!(outbox.ready_bytes() > 0);
    }
}
