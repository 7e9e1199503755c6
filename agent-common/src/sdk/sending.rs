use std::task::Waker;

use bytes::Bytes;

use super::state::Names;
use crate::frame::{FRAME_MAX, Flags, Frame, HEADER_LEN, Header, Kind, Outbox, Released};

/// What is left to be sent of a message.
#[derive(Debug, Default)]
pub(super) struct Sending {
    pub(super) rest: Bytes,
    /// Whether the message ends behind the rest.
    pub(super) last: bool,
    pub(super) ended: bool,
    /// Where the first frame ends among the bytes of the connection, once it is on its way.
    pub(super) first_end: Option<u64>,
    /// Who waits for room, or for the call's end.
    pub(super) room: Option<Waker>,
}

impl Sending {
    /// Queues the next frames, as far as it is worth it.
    pub(super) fn refill(&mut self, outbox: &mut Outbox, names: Names, piece: usize) {
        while !self.ended && (self.last || !self.rest.is_empty()) && outbox.waiting_of(names.message()) < 2 * FRAME_MAX {
            let body = self.rest.split_to(self.rest.len().min(piece - HEADER_LEN));
            self.ended = self.last && self.rest.is_empty();
            let mut header = Header { body_len: u32::try_from(body.len()).unwrap_or(0), ..names.header(Kind::Data) };
            if self.ended {
                header.flags |= Flags::END_STREAM;
            }
            outbox.push(Frame { header, meta: Bytes::new(), body });
        }
    }

    /// A frame has left; `at` is where it ends. True if there may be more to queue.
    pub(super) fn released(&mut self, released: Released, at: u64) -> bool {
        self.first_end.get_or_insert(at);
        !released.end
    }

    pub(super) fn wake(&mut self) {
        if let Some(room) = self.room.take() {
            room.wake();
        }
    }
}
