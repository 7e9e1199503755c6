//! The plain list: what was sent as one message, how much of it has left, and how much has come.

use std::sync::OnceLock;

use agent_common::frame::{COPY_BELOW, FRAME_MAX, Flags, Frame, HEADER_LEN, Header, Kind, Message, ReceiveWindow};
use bytes::Bytes;

/// One frame of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) kind: Kind,
    pub(super) word: u32,
    pub(super) end: bool,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
}

/// One direction of one call.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) call: usize,
    pub(super) from: usize,
    pub(super) name: Message,
    pub(super) pieces: Vec<Piece>,
    /// What was sent behind the end, and is nothing.
    pub(super) behind: Vec<Piece>,
    /// How many of them have left, and how many have come.
    pub(super) left: usize,
    pub(super) got: usize,
    /// The sender has dropped the rest.
    pub(super) dropped: bool,
    /// What the sender may still send of it.
    pub(super) room: u64,
    /// Since when it has a piece and room for it, and when it had its turn.
    pub(super) able: Option<u64>,
    pub(super) turn: u64,
    pub(super) window: ReceiveWindow,
}

impl Piece {
    /// A piece whose bytes derive from the seed, as large as a frame allows.
    pub(super) fn new(kind: Kind, seed: usize, meta_len: usize, body_len: usize, end: bool) -> Self {
        let meta_len = if kind == Kind::Data { 0 } else { meta_len };
        let body_len = body_len.min(FRAME_MAX - HEADER_LEN - meta_len);
        let at = seed.wrapping_mul(7919) % FRAME_MAX;
        let word = if kind == Kind::Data { 0 } else { u32::try_from(seed % 1000).unwrap() };
        Self { kind, word, end, meta: noise().slice(at..at + meta_len), body: noise().slice(at + 1..at + 1 + body_len) }
    }

    pub(super) fn len(&self) -> usize {
        HEADER_LEN + self.meta.len() + self.body.len()
    }

    /// With what the call's header says.
    pub(super) fn frame(&self, call: &Header) -> Frame {
        let one_way = if self.kind == Kind::Response { Flags::NONE } else { Flags(call.flags.0 & Flags::ONE_WAY.0) };
        let end = if self.end { Flags::END_STREAM } else { Flags::NONE };
        let header = Header {
            kind: self.kind as u8,
            flags: Flags(call.flags.0 & Flags::TO_CALLER.0) | one_way | end,
            word: self.word,
            meta_len: u16::try_from(self.meta.len()).unwrap(),
            body_len: u32::try_from(self.body.len()).unwrap(),
            ..*call
        };
        Frame { header, meta: self.meta.clone(), body: self.body.clone() }
    }
}

impl Sent {
    /// Whether its last piece was sent.
    pub(super) fn is_whole(&self) -> bool {
        self.pieces.last().is_some_and(|piece| piece.end)
    }

    /// Whether all of it has left.
    pub(super) fn is_out(&self) -> bool {
        self.is_whole() && self.left == self.pieces.len()
    }

    /// Whether it goes before large ones.
    pub(super) fn is_small(&self) -> bool {
        self.pieces[0].end && self.pieces[0].len() <= COPY_BELOW
    }

    pub(super) fn waiting(&self) -> usize {
        let pieces = self.pieces[self.left..].iter().chain(&self.behind);
        if self.dropped || self.is_out() { 0 } else { pieces.map(Piece::len).sum() }
    }

    /// Whether it has a piece and the room for it, from now on if it had not.
    pub(super) fn look(&mut self, now: u64) {
        let is_able = !self.dropped && self.pieces.get(self.left).is_some_and(|piece| piece.len() as u64 <= self.room);
        self.able = is_able.then(|| self.able.unwrap_or(now));
    }

    /// Whether its receiver has got its end.
    pub(super) fn is_complete(&self) -> bool {
        self.is_whole() && self.got == self.pieces.len()
    }
}

/// Bytes that are different wherever one looks.
fn noise() -> &'static Bytes {
    static NOISE: OnceLock<Bytes> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut state = 1_u64;
        let bytes = (0..2 * FRAME_MAX + 1).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        });
        bytes.collect()
    })
}
