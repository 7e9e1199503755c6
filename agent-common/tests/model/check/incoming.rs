//! What comes to an end.

use agent_common::frame::{FRAME_MAX, Flags, HEADER_LEN, Header, Kind, is_after};

use super::{
    connection::{Connection, pick},
    side::Class,
};

/// Credits that are given at once at most.
const AT_ONCE: usize = 500;

impl Connection {
    /// So many bytes come to this end. Returns how many did.
    pub(super) fn deliver(&mut self, side: usize, max: usize) -> usize {
        let pipe = &mut self.sides[1 - side].pipe;
        let bytes = pipe.split_to(pipe.len().min(max));
        self.sides[side].came.extend_from_slice(&bytes);
        while !self.flooded
            && let Some((header, rest)) = self.sides[side].next_frame()
        {
            self.receive(side, &header, &rest);
        }
        bytes.len()
    }

    fn receive(&mut self, side: usize, header: &Header, rest: &[u8]) {
        let credit = self.sides[side].inbox.receive(header).expect("the peer keeps the rules");
        if let Some(word) = credit {
            self.give(side, Header { word, ..Header::new(Kind::Credit) });
        }
        let to_caller = header.flags.has(Flags::TO_CALLER);
        match header.kind().unwrap() {
            Kind::Request => self.on_request(side, header, rest),
            Kind::Response | Kind::Data if to_caller => self.on_answer(side, header, rest),
            Kind::Data => self.on_request_data(side, header, rest),
            Kind::Cancel if to_caller => {
                let call = self.call(side, header);
                if self.is_made(side, call) {
                    self.end_made(side, call);
                }
            }
            Kind::Cancel => {
                let call = self.call(1 - side, header);
                if self.is_taken(side, call) {
                    self.sides[side].taken.remove(&header.via);
                    if let Some(answer) = self.calls[call].answer {
                        self.drop_message(side, answer);
                    }
                }
            }
            Kind::Credit => self.on_credit(side, header),
            Kind::Ping => {
                if self.sides[side].waiting(Class::Control) + HEADER_LEN <= FRAME_MAX / 2 {
                    self.control(side, &Header { kind: Kind::Pong as u8, ..*header }, &[]);
                }
            }
            Kind::GoAway => self.on_goaway(side, header),
            Kind::Pong => {}
            Kind::Hello | Kind::Response => unreachable!("nobody sends it"),
        }
    }

    /// The call that a frame belongs to, by its number.
    fn call(&self, caller: usize, header: &Header) -> usize {
        let call = *self.sides[caller].numbers.get(&header.stream).expect("the call has left");
        assert_eq!(self.calls[call].via, header.via);
        call
    }

    fn is_made(&self, side: usize, call: usize) -> bool {
        self.sides[side].made.get(&self.calls[call].via) == Some(&call)
    }

    fn is_taken(&self, side: usize, call: usize) -> bool {
        let taken = self.sides[side].taken.get(&self.calls[call].via);
        assert!(taken.is_none_or(|taken| *taken == call), "a callee tells calls apart by via alone");
        taken.is_some()
    }

    fn on_request(&mut self, side: usize, header: &Header, rest: &[u8]) {
        let call = self.call(1 - side, header);
        if !self.sides[side].is_closed {
            let other = self.sides[side].taken.insert(header.via, call);
            assert_eq!(other, None, "no other call in flight has the same via");
            self.calls[call].is_executed = true;
        }
        self.on_request_data(side, header, rest);
    }

    fn on_request_data(&mut self, side: usize, header: &Header, rest: &[u8]) {
        let call = self.call(1 - side, header);
        let is_taken = self.is_taken(side, call);
        self.on_piece(self.calls[call].request, header, rest, is_taken);
        if is_taken && self.calls[call].is_one_way && header.flags.has(Flags::END_STREAM) {
            self.sides[side].taken.remove(&header.via);
        }
    }

    fn on_answer(&mut self, side: usize, header: &Header, rest: &[u8]) {
        let call = self.call(side, header);
        let is_made = self.is_made(side, call);
        self.on_piece(self.calls[call].answer.expect("it was answered"), header, rest, is_made);
        if is_made && header.flags.has(Flags::END_STREAM) {
            self.end_made(side, call);
        }
    }

    /// A call has ended for its caller, who stops sending it.
    fn end_made(&mut self, side: usize, call: usize) {
        self.sides[side].made.remove(&self.calls[call].via);
        self.drop_message(side, self.calls[call].request);
    }

    /// It is the next one of the plain list, whether anybody wants it or not.
    fn on_piece(&mut self, message: usize, header: &Header, rest: &[u8], is_wanted: bool) {
        let sent = &self.messages[message];
        assert!(sent.got < sent.left, "it has left, and has not come before");
        let expected = self.frame(message, sent.got);
        assert_eq!(*header, expected.header);
        let (meta, body) = rest.split_at(header.meta_len.into());
        assert!(expected.meta == meta && expected.body == body, "the bytes are those that were sent");
        let sent = &mut self.messages[message];
        sent.got += 1;
        if is_wanted {
            sent.window.receive(header.frame_len()).expect("there is room in the message's window");
        }
    }

    fn on_credit(&mut self, side: usize, header: &Header) {
        self.now += 1;
        if header.stream == 0 {
            self.sides[side].room += u64::from(header.word);
        } else {
            let message = if header.flags.has(Flags::TO_CALLER) {
                Some(self.calls[self.call(side, header)].request)
            } else {
                self.calls[self.call(1 - side, header)].answer
            };
            if let Some(message) = message.filter(|message| self.sides[side].large.contains(message)) {
                let sent = &mut self.messages[message];
                sent.room += u64::from(header.word);
                sent.look(self.now);
            }
        }
        self.sides[side].outbox.credit(header).expect("no window grows beyond its size");
    }

    fn on_goaway(&mut self, side: usize, header: &Header) {
        self.sides[side].is_leaving = true;
        if !header.flags.has(Flags::END_STREAM) {
            return;
        }
        let last = header.stream;
        let is_lost = |call: &usize| match self.calls[*call].number {
            0 => true,
            number => last == 0 || is_after(number, last),
        };
        let lost: Vec<usize> = self.sides[side].made.values().copied().filter(is_lost).collect();
        for call in lost {
            assert!(!self.calls[call].is_executed, "the peer says that it was not executed");
            self.end_made(side, call);
        }
    }

    /// The application takes so many bytes of one of the messages that are held.
    pub(super) fn take(&mut self, side: usize, a: u8, max: usize) {
        if let Some(message) = pick(&self.held(side), a) {
            self.use_up(side, message, max);
        }
    }

    /// It takes all that is held. Returns how many bytes that were.
    pub(super) fn take_all(&mut self, side: usize) -> usize {
        let held = self.held(side);
        held.into_iter().map(|message| self.use_up(side, message, usize::MAX)).sum()
    }

    fn held(&self, side: usize) -> Vec<usize> {
        let is_held = |message: &usize| {
            let sent = &self.messages[*message];
            let is_wanted = sent.is_complete() || self.is_in_flight(side, sent.call);
            sent.from != side && sent.window.held() > 0 && is_wanted
        };
        (0..self.messages.len()).filter(is_held).collect()
    }

    /// Whether a call is in flight, as far as this end knows.
    fn is_in_flight(&self, side: usize, call: usize) -> bool {
        let end = &self.sides[side];
        let calls = if self.calls[call].by == side { &end.made } else { &end.taken };
        calls.get(&self.calls[call].via) == Some(&call)
    }

    fn use_up(&mut self, side: usize, message: usize, max: usize) -> usize {
        let sent = &mut self.messages[message];
        let len = max.min(sent.window.held() as usize);
        let credit = sent.window.used(len);
        let is_due = self.is_generous || !sent.is_complete();
        if let Some(word) = credit.filter(|_| is_due) {
            let header = self.signal(message, Kind::Credit, word);
            self.give(side, Header { flags: Flags(header.flags.0 ^ Flags::TO_CALLER.0), ..header });
        }
        len
    }

    /// Gives room back, or leaves that for later.
    fn give(&mut self, side: usize, header: Header) {
        self.sides[side].owed.push(header);
        if !self.sides[side].is_lazy {
            self.give_back(side, false);
        }
    }

    /// Gives back what was left out, and says whether more shall be.
    pub(super) fn give_back(&mut self, side: usize, is_lazy: bool) {
        self.sides[side].is_lazy = is_lazy;
        // Few enough that they need not be written in between.
        let owed = &mut self.sides[side].owed;
        for header in owed.drain(..owed.len().min(AT_ONCE)).collect::<Vec<_>>() {
            // A call may have ended since.
            let caller = if header.flags.has(Flags::TO_CALLER) { 1 - side } else { side };
            if header.stream == 0 || self.is_in_flight(side, self.call(caller, &header)) {
                self.control(side, &header, &[]);
            }
        }
    }
}
