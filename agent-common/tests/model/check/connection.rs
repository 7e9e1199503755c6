//! Both ends, their calls, and what may be done with them.

use agent_common::frame::{FRAME_MAX, Flags, HEADER_LEN, Header, Kind, Message, ReceiveWindow, Windows, next_stream};
use bytes::Bytes;

use super::{
    message::{Piece, Sent},
    side::{Class, Side},
};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sides: [Side; 2],
    pub(super) calls: Vec<Call>,
    pub(super) messages: Vec<Sent>,
    /// Counts what happens.
    pub(super) now: u64,
    /// Whether an end had to give the connection up.
    pub(super) flooded: bool,
    /// Whether a name is used again as soon as its call has ended.
    reuses: bool,
    /// Whether room is given back for messages that have ended.
    pub(super) is_generous: bool,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) by: usize,
    pub(super) via: u64,
    pub(super) is_one_way: bool,
    /// 0 until it has left.
    pub(super) number: u32,
    pub(super) request: usize,
    pub(super) answer: Option<usize>,
    /// Whether its callee has taken it.
    pub(super) is_executed: bool,
}

/// How a message begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) size: usize,
    pub(super) meta: usize,
    /// Whether it ends with its first piece.
    pub(super) end: bool,
    /// Whether all of it is there at once.
    pub(super) at_once: bool,
}

impl Connection {
    pub(super) fn new(windows: [Windows; 2], habits: u8, numbers: u8) -> Self {
        let [first, second] = windows;
        let mut connection = Self {
            sides: [Side::new(first, second), Side::new(second, first)],
            calls: Vec::new(),
            messages: Vec::new(),
            now: 0,
            flooded: false,
            reuses: habits & 1 != 0,
            is_generous: habits & 2 != 0,
        };
        for side in 0..2 {
            if numbers >> side & 1 != 0 {
                connection.begin_late(side);
            }
        }
        connection
    }

    /// An end whose numbers have nearly gone round begins with a call that nobody answers.
    fn begin_late(&mut self, side: usize) {
        let message = self.add_call(side, 1 << 40, true);
        self.messages[message].pieces.push(Piece::new(Kind::Request, 0, 0, 0, true));
        let number = u32::MAX - 2;
        let header = Header { stream: number, ..self.frame(message, 0).header };
        assert!(self.sides[side].outbox.try_whole(&header, &[]));
        self.sides[side].last = number - 1;
        self.gone(side, message, Class::Small, number);
    }

    fn add_call(&mut self, side: usize, via: u64, is_one_way: bool) -> usize {
        let (call, request) = (self.calls.len(), self.messages.len());
        self.calls.push(Call { by: side, via, is_one_way, number: 0, request, answer: None, is_executed: false });
        self.add_message(call, side, Message { via, to_caller: false });
        self.sides[side].made.insert(via, call);
        request
    }

    fn add_message(&mut self, call: usize, from: usize, name: Message) {
        let window = self.sides[1 - from].windows.stream;
        self.messages.push(Sent {
            call,
            from,
            name,
            pieces: Vec::new(),
            behind: Vec::new(),
            left: 0,
            got: 0,
            dropped: false,
            room: window.into(),
            able: None,
            turn: 0,
            window: ReceiveWindow::new(window),
        });
    }

    /// What every frame of a message says; the number is 0 before the call has left.
    pub(super) fn header(&self, message: usize, kind: Kind) -> Header {
        let Sent { call, name, .. } = self.messages[message];
        let call = &self.calls[call];
        let to_caller = if name.to_caller { Flags::TO_CALLER } else { Flags::NONE };
        let one_way = if call.is_one_way { Flags::ONE_WAY } else { Flags::NONE };
        let service = call.via.wrapping_mul(31);
        Header { flags: to_caller | one_way, stream: call.number, via: call.via, service, ..Header::new(kind) }
    }

    /// CANCEL or CREDIT, which does not say that a call is one-way.
    pub(super) fn signal(&self, message: usize, kind: Kind, word: u32) -> Header {
        let header = self.header(message, kind);
        Header { flags: header.flags.without(Flags::ONE_WAY), word, ..header }
    }

    pub(super) fn control(&mut self, side: usize, header: &Header, meta: &[u8]) {
        self.flooded |= !self.sides[side].control(header, meta);
    }

    /// Begins a call.
    pub(super) fn begin(&mut self, side: usize, shape: Shape, a: u8) {
        if self.sides[side].is_leaving {
            return;
        }
        let end = &mut self.sides[side];
        let via = if self.reuses {
            (1..).find(|via| !end.made.contains_key(via)).unwrap()
        } else {
            end.next_via += 1;
            end.next_via
        };
        let message = self.add_call(side, via, a & 0xc0 == 0xc0);
        self.start(side, message, Kind::Request, shape);
    }

    /// Answers a call.
    pub(super) fn answer(&mut self, side: usize, shape: Shape, a: u8) {
        let open = |call: &usize| self.calls[*call].answer.is_none() && !self.calls[*call].is_one_way;
        let open: Vec<usize> = self.sides[side].taken.values().copied().filter(open).collect();
        let Some(call) = pick(&open, a) else { return };
        let message = self.messages.len();
        self.calls[call].answer = Some(message);
        self.add_message(call, side, Message { via: self.calls[call].via, to_caller: true });
        self.start(side, message, Kind::Response, shape);
    }

    fn start(&mut self, side: usize, message: usize, kind: Kind, shape: Shape) {
        let first = Piece::new(kind, message * 31, shape.meta, shape.size, shape.end);
        self.send(side, message, first, shape.at_once);
        if shape.at_once && !shape.end {
            self.add_data(side, message, shape.size, 3, true);
        }
    }

    /// Sends more of a message, or its end.
    pub(super) fn more(&mut self, side: usize, a: u8, size: usize, count: u8, end: bool) {
        let open = |message: &usize| {
            let message = &self.messages[*message];
            message.from == side && !message.dropped && !message.is_whole()
        };
        let open: Vec<usize> = (0..self.messages.len()).filter(open).collect();
        if let Some(message) = pick(&open, a) {
            self.add_data(side, message, size, count, end);
        }
    }

    fn add_data(&mut self, side: usize, message: usize, size: usize, count: u8, end: bool) {
        for at in 1..=count {
            let seed = message * 31 + self.messages[message].pieces.len();
            self.send(side, message, Piece::new(Kind::Data, seed, 0, size, end && at == count), false);
        }
        if end && count == 2 {
            self.send_behind(side, message, Piece::new(Kind::Data, 0, 0, size, message & 1 == 0));
        }
    }

    /// Gives a call up, from either end, or takes its request back.
    pub(super) fn cancel(&mut self, side: usize, a: u8, c: u8) {
        let end = &self.sides[side];
        let calls: Vec<usize> = end.made.values().chain(end.taken.values()).copied().collect();
        let Some(call) = pick(&calls, a) else { return };
        let Call { by, via, request, answer, .. } = self.calls[call];
        if by == side && c & 3 == 0 {
            if self.take_back(side, request) {
                self.sides[side].made.remove(&via);
            }
        } else if by == side {
            self.sides[side].made.remove(&via);
            if !self.drop_message(side, request) {
                let header = self.signal(request, Kind::Cancel, 305);
                self.control(side, &header, &[]);
            }
        } else {
            self.sides[side].taken.remove(&via);
            if let Some(answer) = answer {
                self.drop_message(side, answer);
            }
            let header = self.signal(request, Kind::Cancel, 300);
            let meta = Bytes::from_static(b"\x0e\x00\x02no");
            let flags = header.flags | Flags::TO_CALLER;
            self.control(side, &Header { flags, meta_len: u16::try_from(meta.len()).unwrap(), ..header }, &meta);
        }
    }

    /// Sends frames that need no credit: few enough that others have room beside them, or until there is none.
    pub(super) fn flood(&mut self, side: usize, count: usize, c: u8) {
        for _ in 0..count * 8 {
            let has_room = self.sides[side].waiting(Class::Control) + HEADER_LEN <= FRAME_MAX / 2;
            if self.flooded || !has_room && c > 16 {
                break;
            }
            self.control(side, &Header { via: c.into(), ..Header::new(Kind::Ping) }, &[]);
        }
    }

    /// Asks for no more calls, or takes none.
    pub(super) fn go_away(&mut self, side: usize, is_final: bool) {
        if self.sides[side].is_closed {
            return;
        }
        let stream = if is_final { self.sides[side].inbox.last_stream() } else { 0 };
        let flags = if is_final { Flags::END_STREAM } else { Flags::NONE };
        self.sides[side].is_closed = is_final;
        self.control(side, &Header { stream, flags, ..Header::new(Kind::GoAway) }, &[]);
    }

    fn write_all(&mut self, side: usize) -> usize {
        std::iter::from_fn(|| Some(self.write(side, usize::MAX, 8)).filter(|written| *written > 0)).sum()
    }

    /// Everything that can is sent, read and used up: nothing may be left.
    pub(super) fn drain(&mut self) {
        // What needs no credit must have left before there is more of it.
        let mut moved = self.write_all(0) + self.write_all(1);
        loop {
            for side in 0..2 {
                moved += self.sides[side].owed.len();
                self.give_back(side, false);
                moved += self.write_all(side);
                // As an end does that writes after each read.
                moved += self.deliver(1 - side, FRAME_MAX / 4) + self.write_all(1 - side);
                moved += self.take_all(1 - side) + self.write_all(1 - side);
            }
            assert!(!self.flooded, "everything is taken");
            self.check();
            if std::mem::take(&mut moved) == 0 {
                break;
            }
        }
        for side in &self.sides {
            let left = (side.outbox.waiting_bytes(), side.outbox.ready_bytes(), side.pipe.len(), side.came.len());
            assert_eq!(left, (0, 0, 0, 0), "all is read and all room is given back");
        }
    }

    /// Ends every message that is still open.
    pub(super) fn finish(&mut self) {
        for message in 0..self.messages.len() {
            let Sent { from, dropped, .. } = self.messages[message];
            if !dropped && !self.messages[message].is_whole() {
                self.add_data(from, message, 50_000, 2, true);
            }
        }
    }

    /// All that was sent has come, but for what was given up.
    pub(super) fn check_arrived(&self) {
        for message in &self.messages {
            assert_eq!(message.got, message.left);
            assert!(message.dropped || message.is_complete());
        }
    }

    /// Without its peer, an end can take back exactly what has not begun to leave.
    pub(super) fn break_down(&mut self) {
        for side in 0..2 {
            let waiting: Vec<usize> = self.sides[side].small.iter().chain(&self.sides[side].large).copied().collect();
            for message in waiting {
                if !self.take_back(side, message) {
                    assert!(!self.drop_message(side, message));
                }
            }
            assert_eq!(self.sides[side].outbox.waiting_bytes(), 0);
        }
    }

    /// What the outboxes say of themselves.
    pub(super) fn check(&self) {
        for side in &self.sides {
            let waiting = |messages: &mut dyn Iterator<Item = &usize>| -> usize {
                messages.map(|message| self.messages[*message].waiting()).sum()
            };
            let (small, large) = (waiting(&mut side.small.iter()), waiting(&mut side.large.iter()));
            assert_eq!(side.outbox.waiting_bytes(), small + large);
            assert_eq!(side.outbox.ready_bytes(), side.ready_bytes());
            assert_eq!(side.outbox.next_stream(), next_stream(side.last));
            for message in side.large.iter().map(|message| &self.messages[*message]) {
                assert!(side.outbox.has(message.name));
                assert_eq!(side.outbox.waiting_of(message.name), message.waiting());
            }
        }
    }
}

/// One of several, if there are any.
pub(super) fn pick(several: &[usize], a: u8) -> Option<usize> {
    several.get(usize::from(a).checked_rem(several.len())?).copied()
}
