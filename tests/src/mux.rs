//! A peer that speaks frames as an application does: many messages at once, by credit. Single-threaded, as an agent never
//! stops reading.

use std::{collections::HashMap, io::IoSlice};

use agent_common::frame::{Flags, Frame, HEADER_LEN, Header, Kind, Message, MetaBuilder, Outbox, id};
use bytes::Bytes;

use crate::frames::{FramePeer, Got};

/// Bytes of a frame's body, unless a message is smaller.
const PIECE: usize = 40_000;

/// One connection.
pub struct Mux {
    peer: FramePeer,
    out: Outbox,
    /// Messages that have begun to come, by `via` and direction.
    coming: HashMap<Message, Got>,
    /// How calls that have left are numbered, by `via`.
    numbers: HashMap<u64, u32>,
}

/// What has come whole.
pub enum Event {
    /// A call or an answer with all its body.
    Whole(Got),
    /// A call was given up, in either direction.
    Cancelled(Got),
    /// The connection has ended.
    End,
}

impl Mux {
    /// Over a connection on which both have said HELLO.
    pub fn new(mut peer: FramePeer) -> Self {
        let windows = peer.hello.as_ref().expect("the agent's HELLO").windows;
        peer.quiet = false;
        Self { peer, out: Outbox::new(windows), coming: HashMap::new(), numbers: HashMap::new() }
    }

    /// Sends a message, in as many frames as it takes. Calls are numbered as they leave, and known by their `via`.
    pub fn send(&mut self, header: Header, mut meta: MetaBuilder, body: &[u8]) {
        if body.len() > PIECE {
            meta.put(id::BODY_LEN, &(body.len() as u64).to_be_bytes());
        }
        let mut meta = meta.finish();
        let pieces: Vec<&[u8]> = if body.is_empty() { vec![body] } else { body.chunks(PIECE).collect() };
        for (nth, piece) in pieces.iter().enumerate() {
            let end = if nth + 1 == pieces.len() { Flags::END_STREAM } else { Flags::NONE };
            let kept = Flags(header.flags.0 & (Flags::TO_CALLER | Flags::ONE_WAY).0);
            let (kind, flags) = if nth == 0 { (header.kind, header.flags) } else { (Kind::Data as u8, kept) };
            let header = Header {
                kind,
                flags: flags | end,
                meta_len: u16::try_from(meta.len()).expect("metadata that fits"),
                body_len: u32::try_from(piece.len()).expect("a piece"),
                ..header
            };
            self.out.push(Frame { header, meta: std::mem::take(&mut meta), body: Bytes::copy_from_slice(piece) });
        }
    }

    /// Gives a call up, or says that it will not be answered.
    pub fn cancel(&mut self, mut header: Header) {
        if self.out.cancel(Message::of(&header)) && !header.flags.has(Flags::TO_CALLER) {
            return;
        }
        if let Some(number) = self.numbers.get(&header.via).filter(|_| !header.flags.has(Flags::TO_CALLER)) {
            header.stream = *number;
        }
        self.coming.remove(&Message { to_caller: !header.flags.has(Flags::TO_CALLER), ..Message::of(&header) });
        self.out.control(&header, &[]).expect("an agent that reads");
    }

    /// Sends what may go, and waits for what comes.
    pub fn next_event(&mut self) -> Event {
        loop {
            self.pump();
            let Some(got) = self.peer.next_frame() else { return Event::End };
            match got.kind() {
                Some(Kind::Credit) => self.out.credit(&got.header).expect("credit within the window"),
                Some(Kind::Ping) => {
                    self.out.control(&Header { kind: Kind::Pong as u8, ..got.header }, &[]).expect("an agent that reads");
                }
                Some(Kind::Cancel) => {
                    let message = Message::of(&got.header);
                    self.coming.remove(&message);
                    self.out.cancel(Message { to_caller: !message.to_caller, ..message });
                    return Event::Cancelled(got);
                }
                Some(Kind::Request | Kind::Response | Kind::Data) => {
                    if let Some(whole) = self.take(got) {
                        return Event::Whole(whole);
                    }
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, got: Got) -> Option<Got> {
        let len = u32::try_from(HEADER_LEN + got.meta.len() + got.body.len()).expect("a frame's length");
        self.peer.credit(&got, len);
        let message = Message::of(&got.header);
        let end = got.has(Flags::END_STREAM);
        if got.kind() == Some(Kind::Data) {
            // One that was given up is not known any more.
            let whole = self.coming.get_mut(&message)?;
            whole.body.extend_from_slice(&got.body);
        } else {
            assert!(self.coming.insert(message, got).is_none(), "a message that begins twice");
        }
        if end { self.coming.remove(&message) } else { None }
    }

    fn pump(&mut self) {
        loop {
            self.out.schedule(|released| {
                if !released.message.to_caller {
                    self.numbers.insert(released.message.via, released.stream);
                }
            });
            let mut slices = [IoSlice::new(&[]); 64];
            let count = self.out.fill(&mut slices);
            if count == 0 {
                return;
            }
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            self.peer.write(&bytes);
            self.out.advance(bytes.len());
        }
    }
}
