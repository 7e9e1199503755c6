//! What leaves an end.

use agent_common::frame::{COPY_BELOW, Flags, Frame, Kind, Released, next_stream};

use super::{
    connection::Connection,
    message::{Piece, Sent},
    side::{Class, QUANTUM},
};

impl Connection {
    /// Sends a piece: at once, if that is wanted and possible.
    pub(super) fn send(&mut self, side: usize, message: usize, piece: Piece, at_once: bool) {
        self.now += 1;
        let at = self.messages[message].pieces.len();
        self.messages[message].pieces.push(piece);
        let frame = self.frame(message, at);
        let is_small = at == 0 && self.messages[message].is_small();
        if at == 0 && at_once && frame.header.flags.has(Flags::END_STREAM) && self.try_whole(side, message, &frame) {
            return;
        }
        let end = &mut self.sides[side];
        end.outbox.push(frame);
        if is_small {
            end.small.push_back(message);
        } else {
            if at == 0 {
                end.large.push(message);
            }
            self.messages[message].look(self.now);
        }
    }

    /// Sends what its receiver must not see.
    pub(super) fn send_behind(&mut self, side: usize, message: usize, piece: Piece) {
        self.sides[side].outbox.push(piece.frame(&self.header(message, piece.kind)));
        self.messages[message].behind.push(piece);
    }

    fn try_whole(&mut self, side: usize, message: usize, frame: &Frame) -> bool {
        let end = &mut self.sides[side];
        let mut header = frame.header;
        if header.kind == Kind::Request as u8 {
            header.stream = end.outbox.next_stream();
        }
        let len = header.frame_len();
        let is_gone = end.outbox.try_whole(&header, &[&frame.meta[..], &frame.body].concat());
        assert_eq!(is_gone, len <= COPY_BELOW && end.small.is_empty() && len as u64 <= end.room);
        if is_gone {
            self.gone(side, message, Class::Small, header.stream);
        }
        is_gone
    }

    /// A piece of a message, with what the call's header says.
    pub(super) fn frame(&self, message: usize, at: usize) -> Frame {
        let piece = &self.messages[message].pieces[at];
        piece.frame(&self.header(message, piece.kind))
    }

    /// Makes ready what may go, and lets the pipe take some of it. Returns how many bytes were ready.
    pub(super) fn write(&mut self, side: usize, max: usize, slices: usize) -> usize {
        let mut released = Vec::new();
        self.sides[side].outbox.schedule(|frame| released.push(frame));
        for frame in released {
            self.released(side, frame);
        }
        self.check_nothing_waits_in_vain(side);
        let ready = self.sides[side].ready_bytes();
        self.sides[side].write(max, slices);
        ready
    }

    fn released(&mut self, side: usize, released: Released) {
        let end = &mut self.sides[side];
        let small = end.small.front().copied().filter(|message| self.messages[*message].name == released.message);
        let (message, class) = if let Some(message) = small {
            end.small.pop_front();
            (message, Class::Small)
        } else {
            assert_eq!(end.small.len(), 0, "small messages go before large ones, in their order");
            let large = end.large.iter().find(|message| self.messages[**message].name == released.message);
            let message = *large.expect("what was dropped, or has ended, does not leave");
            self.take_turn(side, message);
            (message, Class::Large)
        };
        let sent = &self.messages[message];
        let piece = sent.pieces.get(sent.left).expect("only what was sent leaves");
        assert_eq!((released.len, released.end), (piece.len(), piece.end));
        self.gone(side, message, class, released.stream);
    }

    /// The next piece of a message is ready, and cannot be taken back.
    pub(super) fn gone(&mut self, side: usize, message: usize, class: Class, stream: u32) {
        self.now += 1;
        let (end, sent) = (&mut self.sides[side], &mut self.messages[message]);
        let call = &mut self.calls[sent.call];
        let len = sent.pieces[sent.left].len();
        assert!(!sent.dropped);
        if sent.left == 0 && !sent.name.to_caller {
            end.last = next_stream(end.last);
            call.number = end.last;
            end.numbers.insert(call.number, sent.call);
        }
        assert_eq!(stream, call.number, "numbers go forward, and all frames have their call's");
        sent.left += 1;
        end.ready(class, len);
        if class == Class::Large {
            sent.room = sent.room.checked_sub(len as u64).expect("there is room in the message's window");
            sent.turn = self.now;
            sent.look(self.now);
        }
        if sent.is_out() {
            end.large.retain(|other| *other != message);
            if sent.name.to_caller {
                assert_eq!(end.taken.remove(&call.via), Some(sent.call));
            } else if call.is_one_way {
                assert_eq!(end.made.remove(&call.via), Some(sent.call));
            }
        }
    }

    /// Nobody has two turns while another could have had one.
    fn take_turn(&self, side: usize, message: usize) {
        let Sent { turn, able, left, .. } = self.messages[message];
        assert!(able.is_some(), "it has room");
        for other in self.sides[side].large.iter().filter(|other| left > 0 && **other != message) {
            let other = &self.messages[*other];
            let was_passed = other.able.is_some_and(|since| since < turn) && other.turn < turn;
            assert!(!was_passed, "{:?} was passed over", other.name);
        }
    }

    fn check_nothing_waits_in_vain(&self, side: usize) {
        let end = &self.sides[side];
        if let Some(message) = end.small.front() {
            assert!(end.room < self.messages[*message].waiting() as u64, "a small message goes as soon as there is room");
        } else if end.ready_bytes() < QUANTUM && end.room >= QUANTUM as u64 + end.kept {
            assert!(end.large.iter().all(|message| self.messages[*message].able.is_none()), "a large message could go");
        }
    }

    /// Drops the rest of a message. True if nothing of it has left.
    pub(super) fn drop_message(&mut self, side: usize, message: usize) -> bool {
        let sent = &self.messages[message];
        if sent.dropped {
            return false;
        }
        let unsent = self.sides[side].outbox.cancel(sent.name);
        assert_eq!(unsent, sent.left == 0);
        self.forget(side, message);
        unsent
    }

    /// Takes the pieces of a message back, if none has left.
    pub(super) fn take_back(&mut self, side: usize, message: usize) -> bool {
        let sent = &self.messages[message];
        let unsent = self.sides[side].outbox.take_unsent(sent.name);
        assert_eq!(unsent.is_some(), sent.left == 0);
        let Some(frames) = unsent else { return false };
        let pieces = sent.pieces.iter().chain(&sent.behind);
        assert_eq!(frames.len(), pieces.clone().count());
        for (frame, piece) in frames.iter().zip(pieces) {
            let expected = piece.frame(&self.header(message, piece.kind));
            assert_eq!((frame.header, &frame.meta, &frame.body), (expected.header, &expected.meta, &expected.body));
        }
        self.forget(side, message);
        true
    }

    fn forget(&mut self, side: usize, message: usize) {
        let sent = &mut self.messages[message];
        let (end, is_out) = (&mut self.sides[side], sent.is_out());
        sent.dropped = !is_out;
        sent.able = None;
        end.small.retain(|other| *other != message);
        end.large.retain(|other| *other != message);
        if !is_out {
            // What its application had still to say leaves no trace.
            let late = Piece::new(Kind::Data, 0, 0, 100, false).frame(&self.header(message, Kind::Data));
            self.sides[side].outbox.push(late);
        }
    }
}
