use std::{
    collections::VecDeque,
    fmt,
    io::{self, ErrorKind, IoSlice},
};

use crate::frame::{FRAME_MAX, Frame, HEADER_LEN, Header, Kind, Message};

/// What a lane sends with.
pub(super) trait Wire: Send + Sync + fmt::Debug {
    /// Sends all of it as one message, as far as the socket takes it now.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// The fast lane beside a connection, as the one who sends sees it: each frame is one message, or waits whole.
#[derive(Debug)]
pub(super) struct Lane {
    wire: Box<dyn Wire>,
    /// Tells it from those before it.
    number: u32,
    body_max: usize,
    /// Of the last answer that had one: the proof that everything up to it was read.
    receipt: u32,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// Bytes of the first that waits which were sent.
    begun: usize,
    spoiled: bool,
}

/// What became of a frame.
#[derive(Debug)]
pub(super) enum Sent {
    /// The socket has it, or it is gone for a reason that is not the lane's: the agent knows of the call, and answers it.
    Taken,
    /// It waits until the socket takes more.
    Waits,
    /// The lane is to be given up, and nobody knows what became of the frame.
    Lost,
}

/// Bytes that wait for the lane's socket; whatever comes when there are more goes by the stream connection.
const WAITING_MAX: usize = FRAME_MAX;

impl Lane {
    pub(super) fn new(wire: Box<dyn Wire>, number: u32, body_max: u32) -> Self {
        let body_max = usize::try_from(body_max).unwrap_or(usize::MAX);
        let waiting = VecDeque::new();
        Self { wire, number, body_max, receipt: 0, waiting, waiting_bytes: 0, begun: 0, spoiled: false }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether a message with so many bytes can go this way, and now.
    pub(super) fn takes(&self, meta: usize, body: usize) -> bool {
        !self.spoiled && body <= self.body_max && HEADER_LEN + meta + body <= FRAME_MAX && self.waiting_bytes < WAITING_MAX
    }

    /// An answer came: what it proves is said with the next call.
    pub(super) fn read(&mut self, header: &Header) {
        if header.receipt != 0 {
            self.receipt = header.receipt;
        }
    }

    /// Sends a frame, behind those that wait.
    pub(super) fn send(&mut self, frame: Frame) -> Sent {
        let sent = if self.waiting.is_empty() { self.attempt(&frame) } else { Attempt::Full };
        match sent {
            Attempt::Taken => return Sent::Taken,
            Attempt::Lost => return Sent::Lost,
            Attempt::Part(sent) => self.spoil(sent),
            Attempt::Full => {}
        }
        self.waiting_bytes += frame.header.frame_len();
        self.waiting.push_back(frame);
        Sent::Waits
    }

    /// Sends the frame that has waited longest. None if none waits, or the socket takes no more.
    pub(super) fn send_waiting(&mut self) -> Option<(Message, Sent)> {
        let sent = loop {
            match self.attempt(self.waiting.front()?) {
                Attempt::Full => return None,
                Attempt::Part(sent) => self.spoil(sent),
                Attempt::Taken => break Sent::Taken,
                Attempt::Lost => break Sent::Lost,
            }
        };
        self.begun = 0;
        let frame = self.waiting.pop_front()?;
        self.waiting_bytes -= frame.header.frame_len();
        Some((Message::of(&frame.header), sent))
    }

    /// Whether a frame went in parts, so that all the lane's bytes go to the agent from now on.
    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    fn spoil(&mut self, sent: usize) {
        self.spoiled = true;
        self.begun += sent;
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Drops a frame that waits, and of which nothing was sent. True if it did.
    pub(super) fn cancel(&mut self, message: Message) -> bool {
        let begun = usize::from(self.begun > 0);
        let at = self.waiting.iter().skip(begun).position(|frame| Message::of(&frame.header) == message);
        let frame = at.and_then(|at| self.waiting.remove(at + begun));
        self.waiting_bytes -= frame.as_ref().map_or(0, |frame| frame.header.frame_len());
        frame.is_some()
    }

    /// The lane is over: what has waited for it.
    pub(super) fn into_waiting(self) -> VecDeque<Frame> {
        self.waiting
    }

    fn attempt(&self, frame: &Frame) -> Attempt {
        let receipt = if frame.header.kind == Kind::Request as u8 { self.receipt } else { 0 };
        let header = Header { receipt, ..frame.header }.bytes();
        let mut slices = [IoSlice::new(&header), IoSlice::new(&frame.meta), IoSlice::new(&frame.body)];
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, self.begun);
        loop {
            return match self.wire.send(rest) {
                Ok(sent) if self.begun + sent == frame.header.frame_len() => Attempt::Taken,
                Ok(0) => Attempt::Lost,
                Ok(sent) => Attempt::Part(sent),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock => Attempt::Full,
                    kind if self.begun == 0 && is_of_target(kind) => Attempt::Taken,
                    _ => Attempt::Lost,
                },
            };
        }
    }
}

/// What came of one try.
enum Attempt {
    Taken,
    Full,
    /// So many bytes of it were sent.
    Part(usize),
    Lost,
}

/// Whether an error says something of the one that the kernel gave the frame to, and nothing of the lane: EPIPE, ENOMEM,
/// EACCES and ECONNRESET. If it is the lane that has ended, reading says so.
fn is_of_target(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::OutOfMemory | ErrorKind::PermissionDenied | ErrorKind::ConnectionReset)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use super::*;
    use crate::{frame::Flags, sdk::link::lock};

    /// A socket that does as it is told, and takes everything when it is told nothing.
    #[derive(Debug, Default, Clone)]
    pub(in crate::sdk) struct Script(Arc<Mutex<Told>>);

    #[derive(Debug, Default)]
    struct Told {
        next: VecDeque<io::Result<usize>>,
        messages: Vec<Vec<u8>>,
    }

    impl Script {
        pub(in crate::sdk) fn then(&self, result: io::Result<usize>) -> &Self {
            lock(&self.0).next.push_back(result);
            self
        }

        /// The header and the length of each message that it was given and that begins with one.
        pub(in crate::sdk) fn headers(&self) -> Vec<(Header, usize)> {
            let header = |message: &Vec<u8>| Header::parse(message.first_chunk()?).ok();
            lock(&self.0).messages.drain(..).filter_map(|message| Some((header(&message)?, message.len()))).collect()
        }
    }

    impl Script {
        pub(in crate::sdk) fn lens(&self) -> Vec<usize> {
            lock(&self.0).messages.drain(..).map(|message| message.len()).collect()
        }
    }

    impl Wire for Script {
        fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let message: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let mut told = lock(&self.0);
            let result = told.next.pop_front().unwrap_or(Ok(message.len()));
            told.messages.push(message);
            result
        }
    }

    fn lane() -> (Lane, Script) {
        let script = Script::default();
        (Lane::new(Box::new(script.clone()), 1, 1024), script)
    }

    fn request(via: u64) -> Frame {
        let header = Header { via, stream: 1, meta_len: 3, body_len: 4, flags: Flags::END_STREAM, ..Header::new(Kind::Request) };
        Frame { header, meta: Bytes::from_static(b"abc"), body: Bytes::from_static(b"body") }
    }

    fn full() -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    #[test]
    fn a_frame_is_one_message() {
        let (mut lane, script) = lane();
        assert!(matches!(lane.send(request(7)), Sent::Taken));
        let [(header, 47)] = script.headers()[..] else { panic!("one message of one frame") };
        assert_eq!((header.via, header.receipt), (7, 0));
    }

    #[test]
    fn a_full_socket_is_tried_again_with_the_whole_frame_and_in_order() {
        let (mut lane, script) = lane();
        script.then(full()).then(full());
        assert!(matches!(lane.send(request(1)), Sent::Waits));
        assert!(matches!(lane.send(request(2)), Sent::Waits), "it may not overtake");
        assert!(lane.send_waiting().is_none() && lane.is_waiting());
        script.headers();
        for via in [1, 2] {
            let Some((message, Sent::Taken)) = lane.send_waiting() else { panic!("the socket takes it") };
            assert_eq!(message.via, via);
        }
        assert_eq!(script.headers().iter().map(|(header, len)| (header.via, *len)).collect::<Vec<_>>(), [(1, 47), (2, 47)]);
        assert!(!lane.is_waiting() && lane.send_waiting().is_none());
    }

    #[test]
    fn what_waits_is_bounded_and_can_be_taken_back() {
        let (mut lane, script) = lane();
        script.then(full());
        let mut sent = 0;
        while lane.takes(3, 4) {
            sent += 1;
            lane.send(request(sent));
        }
        assert_eq!(sent, 1395, "64 KiB of frames of 47 bytes");
        let message = Message { via: 3, to_caller: false };
        assert!(lane.cancel(message) && !lane.cancel(message));
        assert!(lane.takes(3, 4));
        let left = lane.into_waiting();
        assert_eq!((left.len(), left.front().map(|frame| frame.header.via)), (1394, Some(1)));
    }

    #[test]
    fn an_error_of_the_target_is_not_the_lanes() {
        let (mut lane, script) = lane();
        for kind in [ErrorKind::BrokenPipe, ErrorKind::OutOfMemory, ErrorKind::PermissionDenied, ErrorKind::ConnectionReset] {
            script.then(Err(kind.into()));
            assert!(matches!(lane.send(request(1)), Sent::Taken), "{kind}");
        }
        script.then(Err(ErrorKind::Interrupted.into()));
        assert!(matches!(lane.send(request(1)), Sent::Taken));
        for lost in [Ok(0), Err(ErrorKind::NotConnected.into())] {
            script.then(lost);
            assert!(matches!(lane.send(request(1)), Sent::Lost));
        }
    }

    #[test]
    fn a_frame_of_which_a_part_was_sent_is_finished_and_is_the_last() {
        let (mut lane, script) = lane();
        script.then(Ok(41));
        assert!(matches!(lane.send(request(5)), Sent::Waits));
        let message = Message { via: 5, to_caller: false };
        assert!(lane.is_spoiled() && !lane.takes(0, 0) && !lane.cancel(message));
        script.then(Ok(2)).then(full());
        assert!(lane.send_waiting().is_none());
        assert!(matches!(lane.send_waiting(), Some((sent, Sent::Taken)) if sent == message));
        assert_eq!(script.lens(), [47, 6, 4, 4]);
        script.then(Ok(41)).then(Err(ErrorKind::BrokenPipe.into()));
        lane.send(request(6));
        assert!(matches!(lane.send_waiting(), Some((_, Sent::Lost))), "its end cannot be another's");
    }

    #[test]
    fn the_last_receipt_goes_with_every_call() {
        let (mut lane, script) = lane();
        let answer = |receipt| Header { receipt, ..Header::new(Kind::Response) };
        for (came, receipt) in [(5, 5), (0, 5), (9, 9)] {
            lane.read(&answer(came));
            lane.send(request(1));
            assert_eq!(script.headers()[0].0.receipt, receipt);
        }
        let mut frame = request(1);
        frame.header = Header { kind: Kind::Response as u8, flags: Flags::TO_CALLER | Flags::END_STREAM, ..frame.header };
        lane.send(frame);
        assert_eq!(script.headers()[0].0.receipt, 0, "an answer has none");
    }

    #[test]
    fn what_is_too_large_for_it() {
        let (lane, _) = lane();
        assert!(lane.takes(0, 1024) && !lane.takes(0, 1025));
        let wide = Lane::new(Box::new(Script::default()), 1, u32::MAX);
        assert!(wide.takes(100, FRAME_MAX - 140) && !wide.takes(100, FRAME_MAX - 139));
    }
}
