//! One end of the connection, and what its outbox must be doing.

use std::collections::{BTreeMap, HashMap, VecDeque};

use agent_common::frame::{FRAME_MAX, HEADER_LEN, Header, Inbox, Outbox, Windows};
use bytes::{Buf, BytesMut};

/// Bytes of large frames that are made ready while fewer are.
pub(super) const QUANTUM: usize = FRAME_MAX;
/// Bytes of frames without credit that may wait for the pipe.
const RESERVE: usize = 64 * 1024;

/// What a frame that is ready is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Control,
    Small,
    Large,
}

#[derive(Debug)]
pub(super) struct Side {
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) windows: Windows,
    /// What may still be sent on the connection, and what of it large frames leave.
    pub(super) room: u64,
    pub(super) kept: u64,
    /// Frames that are ready, with their bytes that the pipe did not take.
    line: VecDeque<(Class, usize)>,
    /// The sum of those bytes, by class.
    ready: [usize; 3],
    /// Bytes on their way to the other end.
    pub(super) pipe: BytesMut,
    /// Bytes that have come and are no whole frame.
    pub(super) came: BytesMut,
    /// The number of the last call that has left, and all calls by their numbers.
    pub(super) last: u32,
    pub(super) numbers: HashMap<u32, usize>,
    /// Calls in flight, by `via`.
    pub(super) made: BTreeMap<u64, usize>,
    pub(super) taken: BTreeMap<u64, usize>,
    /// Messages that wait: small ones in their order, others in any.
    pub(super) small: VecDeque<usize>,
    pub(super) large: Vec<usize>,
    /// Credit that is left out, and whether more of it shall be.
    pub(super) owed: Vec<Header>,
    pub(super) is_lazy: bool,
    /// Whether it was asked to begin no more calls, and whether it takes none.
    pub(super) is_leaving: bool,
    pub(super) is_closed: bool,
    pub(super) next_via: u64,
}

impl Side {
    pub(super) fn new(own: Windows, peer: Windows) -> Self {
        Self {
            outbox: Outbox::new(peer),
            inbox: Inbox::new(own.connection),
            windows: own,
            room: peer.connection.into(),
            kept: if peer.connection as usize >= 4 * FRAME_MAX { u64::from(peer.connection) / 4 } else { 0 },
            line: VecDeque::new(),
            ready: [0; 3],
            pipe: BytesMut::new(),
            came: BytesMut::new(),
            last: 0,
            numbers: HashMap::new(),
            made: BTreeMap::new(),
            taken: BTreeMap::new(),
            small: VecDeque::new(),
            large: Vec::new(),
            owed: Vec::new(),
            is_lazy: false,
            is_leaving: false,
            is_closed: false,
            next_via: 1,
        }
    }

    /// A frame that needs no credit. False if too many wait.
    pub(super) fn control(&mut self, header: &Header, meta: &[u8]) -> bool {
        let len = HEADER_LEN + meta.len();
        let is_sent = self.outbox.control(header, meta).is_ok();
        assert_eq!(is_sent, self.waiting(Class::Control) + len <= RESERVE, "exactly those are refused that are too many");
        if is_sent {
            self.push(Class::Control, len);
        }
        is_sent
    }

    /// A frame that needs credit is ready.
    pub(super) fn ready(&mut self, class: Class, len: usize) {
        let ready = self.ready_bytes();
        self.room = self.room.checked_sub(len as u64).expect("there is room in the connection's window");
        if class == Class::Large {
            assert!(ready < QUANTUM, "{ready} bytes were ready before a large frame");
            assert!(self.room >= self.kept, "a large frame leaves room for small ones");
        } else {
            let large = self.waiting(Class::Large);
            assert!(large < QUANTUM + FRAME_MAX, "a small message waits behind {large} bytes of large ones");
        }
        self.push(class, len);
    }

    fn push(&mut self, class: Class, len: usize) {
        self.line.push_back((class, len));
        self.ready[class as usize] += len;
    }

    pub(super) fn waiting(&self, class: Class) -> usize {
        self.ready[class as usize]
    }

    pub(super) fn ready_bytes(&self) -> usize {
        self.ready.iter().sum()
    }

    /// The pipe takes these bytes of what is ready.
    pub(super) fn write(&mut self, max: usize, slices: usize) {
        let mut parts = [std::io::IoSlice::new(&[]); 8];
        let count = self.outbox.fill(&mut parts[..slices]);
        let before = self.pipe.len();
        for part in &parts[..count] {
            assert!(!part.is_empty());
            let room = max - (self.pipe.len() - before);
            self.pipe.extend_from_slice(&part[..part.len().min(room)]);
        }
        let mut written = self.pipe.len() - before;
        self.outbox.advance(written);
        while let Some((class, len)) = self.line.front_mut() {
            let taken = written.min(*len);
            *len -= taken;
            self.ready[*class as usize] -= taken;
            written -= taken;
            if *len > 0 {
                break;
            }
            self.line.pop_front();
        }
        assert_eq!(written, 0, "more was written than was ready");
    }

    /// The next frame that has come whole.
    pub(super) fn next_frame(&mut self) -> Option<(Header, BytesMut)> {
        let header = Header::parse(self.came.first_chunk()?).expect("what is sent can be read");
        if self.came.len() < header.frame_len() {
            return None;
        }
        let mut frame = self.came.split_to(header.frame_len());
        frame.advance(HEADER_LEN);
        Some((header, frame))
    }
}
