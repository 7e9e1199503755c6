//! One end of a connection that speaks frames, byte by byte under the test's control: an application that calls, one that
//! serves, or another agent.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, MetaBuilder, Offer, Role, Windows, find, id, service_hash};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait::PATIENCE;

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    /// Its header.
    pub header: Header,
    /// Its metadata.
    pub meta: Vec<u8>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A connection.
pub struct FramePeer {
    socket: Box<dyn Socket>,
    buffer: VecDeque<u8>,
    next_stream: u32,
    /// Bytes of answers whose room on the connection is to be given back.
    owed: u32,
    /// Takes connection credits and PINGs by itself, as most tests do not care.
    pub quiet: bool,
    /// What the other end said of itself.
    pub hello: Option<Hello>,
}

trait Socket: Read + Write + AsFd + Send {
    fn patience(&self, patience: Duration);
    fn finish(&self);
}

impl Socket for TcpStream {
    fn patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout");
        self.set_nodelay(true).expect("no delay");
    }

    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Socket for UnixStream {
    fn patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout");
    }

    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// Bytes of a piece of a large body.
const PIECE: usize = 32 * 1024;

/// Bytes of answers after which the room for them is given back.
const CREDIT: u32 = 1 << 20;

/// Windows that no test fills by accident.
pub const WIDE: Windows = Windows { stream: 1 << 24, connection: 1 << 26 };

/// What an application says that only calls.
pub fn caller() -> Hello {
    Hello::new(Role::Application, "test-caller", "test-caller-1", WIDE)
}

/// What an application says that serves these; `instance` is its process.
pub fn service(instance: &str, uris: &[&str]) -> Hello {
    let mut hello = Hello::new(Role::Application, "test-service", instance, WIDE);
    hello.offers = uris.iter().map(|uri| Offer::new(uri)).collect();
    hello
}

/// The metadata of a call.
pub fn meta_of(uri: &str) -> MetaBuilder {
    let mut meta = MetaBuilder::new();
    meta.put(id::URI, uri.as_bytes());
    meta
}

impl Got {
    /// Its kind.
    pub fn kind(&self) -> Option<Kind> {
        self.header.kind()
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: Flags) -> bool {
        self.header.flags.has(flag)
    }

    /// Its error text.
    pub fn error(&self) -> String {
        find(&self.meta, id::ERROR_TEXT).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }

    /// The header of a frame that answers it.
    pub fn back(&self, kind: Kind) -> Header {
        let Header { stream, via, service, .. } = self.header;
        Header { flags: Flags::TO_CALLER, stream, via, service, ..Header::new(kind) }
    }
}

/// The connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

impl FramePeer {
    /// Connects, and says nothing.
    pub fn silent(address: SocketAddr) -> Self {
        Self::over(Box::new(TcpStream::connect(address).expect("the agent listens")))
    }

    /// Serves a connection that was accepted.
    pub fn accepted(stream: TcpStream) -> Self {
        Self::over(Box::new(stream))
    }

    /// Connects and says HELLO, and hears the other's.
    pub fn connect(address: SocketAddr, hello: &Hello) -> Self {
        let mut peer = Self::silent(address);
        peer.greet(hello);
        peer
    }

    /// As [`FramePeer::connect`], over a unix socket.
    pub fn connect_unix(path: &Path, hello: &Hello) -> Self {
        let mut peer = Self::over(Box::new(UnixStream::connect(path).expect("the agent listens")));
        peer.greet(hello);
        peer
    }

    fn over(socket: Box<dyn Socket>) -> Self {
        socket.patience(PATIENCE);
        Self { socket, buffer: VecDeque::new(), next_stream: 1, owed: 0, quiet: true, hello: None }
    }

    /// Says HELLO and hears the other's.
    pub fn greet(&mut self, hello: &Hello) {
        self.write(&hello.encode().expect("a HELLO that fits"));
        let got = self.expect(Kind::Hello);
        self.hello = Some(Hello::decode(&got.meta).expect("a HELLO"));
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the agent takes it");
    }

    /// Writes bytes as they are, if the agent takes them.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        self.socket.finish();
    }

    /// Sends a frame; the lengths are put in.
    pub fn send(&mut self, header: Header, meta: &[u8], body: &[u8]) {
        self.write(&bytes_of(header, meta, body));
    }

    /// Begins a call. Returns its number.
    pub fn request(&mut self, uri: &str, flags: Flags, body: &[u8]) -> u32 {
        self.request_with(
            Header { flags, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) },
            meta_of(uri).as_ref(),
            body,
        )
    }

    /// Begins a call with this header, but for its numbers. Returns its number.
    pub fn request_with(&mut self, header: Header, meta: &[u8], body: &[u8]) -> u32 {
        let stream = self.take_number();
        self.send(Header { stream, via: u64::from(stream), ..header }, meta, body);
        stream
    }

    /// Makes a whole call.
    pub fn call(&mut self, uri: &str, body: &[u8]) -> Got {
        let stream = self.request(uri, Flags::END_STREAM, body);
        self.answer_to(stream)
    }

    /// Begins a call whose body is sent in pieces, as the agent has room for them. Returns its number when all are sent.
    ///
    /// # Panics
    /// If it is answered before.
    pub fn request_in_pieces(&mut self, uri: &str, body: &[u8]) -> u32 {
        let mut room = self.hello.as_ref().expect("a HELLO").windows;
        let (service, via) = (service_hash(uri.as_bytes(), b""), u64::from(self.next_stream));
        let mut stream = 0;
        let pieces = body.chunks(PIECE).count();
        for (nth, piece) in body.chunks(PIECE).enumerate() {
            // More than the metadata of any test.
            let len = u32::try_from(piece.len() + 1024).expect("a length");
            while room.stream < len || room.connection < len {
                let got = self.next_loud().expect("a frame, not the end of the connection");
                assert_eq!(got.kind(), Some(Kind::Credit), "{got:?}: {}", got.error());
                let window = if got.header.stream == 0 { &mut room.connection } else { &mut room.stream };
                *window += got.header.word;
            }
            (room.stream, room.connection) = (room.stream - len, room.connection - len);
            let flags = if nth + 1 == pieces { Flags::END_STREAM } else { Flags::NONE };
            if nth == 0 {
                stream = self.request(uri, flags, piece);
            } else {
                self.send(Header { flags, stream, via, service, ..Header::new(Kind::Data) }, &[], piece);
            }
        }
        stream
    }

    /// The whole answer to a call, which is the only one in flight.
    pub fn answer_to(&mut self, stream: u32) -> Got {
        let mut answer = self.expect_any();
        // Room for a request that has been sent whole meanwhile.
        while answer.kind() == Some(Kind::Credit) {
            answer = self.expect_any();
        }
        assert_eq!((answer.kind(), answer.header.stream), (Some(Kind::Response), stream), "{answer:?}");
        self.owed += u32::try_from(answer.header.frame_len()).expect("a frame's length");
        if self.owed >= CREDIT {
            let credit = Header { word: self.owed, ..Header::new(Kind::Credit) };
            // In vain if the agent has ended the connection.
            let _ = self.try_write(&bytes_of(credit, &[], &[]));
            self.owed = 0;
        }
        while !answer.has(Flags::END_STREAM) {
            let more = self.expect_any();
            if more.kind() == Some(Kind::Cancel) {
                return more;
            }
            assert_eq!((more.kind(), more.header.stream), (Some(Kind::Data), stream), "{more:?}");
            let len = u32::try_from(more.header.frame_len()).expect("a frame's length");
            self.credit(&more, len);
            answer.body.extend_from_slice(&more.body);
            answer.header.flags |= Flags(more.header.flags.0 & Flags::END_STREAM.0);
        }
        answer
    }

    /// Gives back room of the message that a frame is a part of, and of the connection.
    pub fn credit(&mut self, got: &Got, bytes: u32) {
        let Header { stream, via, service, flags, .. } = got.header;
        let to_caller = if flags.has(Flags::TO_CALLER) { Flags::NONE } else { Flags::TO_CALLER };
        if !flags.has(Flags::END_STREAM) {
            self.send(Header { flags: to_caller, stream, via, service, word: bytes, ..Header::new(Kind::Credit) }, &[], &[]);
        }
        self.send(Header { word: bytes, ..Header::new(Kind::Credit) }, &[], &[]);
    }

    /// Answers a call.
    pub fn respond(&mut self, call: &Got, status: u32, body: &[u8]) {
        let header = call.back(Kind::Response);
        self.send(Header { flags: header.flags | Flags::END_STREAM, word: status, ..header }, &[], body);
    }

    /// Sends what goes on of a message, which began with a frame of `numbers`.
    pub fn data(&mut self, numbers: &Header, flags: Flags, body: &[u8]) {
        let Header { stream, via, service, .. } = *numbers;
        self.send(Header { flags, stream, via, service, ..Header::new(Kind::Data) }, &[], body);
    }

    /// Gives up a call that it has made.
    pub fn cancel(&mut self, uri: &str, stream: u32) {
        let service = service_hash(uri.as_bytes(), b"");
        self.send(Header { stream, via: u64::from(stream), service, ..Header::new(Kind::Cancel) }, &[], &[]);
    }

    /// Expects that the other end ends the connection for this reason. Returns its last frame.
    pub fn expect_goaway(&mut self, reason: u32) -> Got {
        let got = self.expect(Kind::GoAway);
        assert!(got.has(Flags::END_STREAM), "not a final one: {got:?}");
        assert_eq!(got.header.word, reason, "{}", got.error());
        self.expect_end();
        got
    }

    /// Expects the end of the connection, with no frame before it.
    pub fn expect_end(&mut self) {
        let got = self.next_frame();
        assert_eq!(got, None, "a frame where the connection should end");
    }

    /// Expects that the connection serves, and that nothing but the answer to this PING comes.
    pub fn expect_quiet(&mut self) {
        let mark = u64::from(self.next_stream) << 32 | 0xfeed;
        self.send(Header { via: mark, ..Header::new(Kind::Ping) }, &[], &[]);
        let got = self.expect(Kind::Pong);
        assert_eq!(got.header.via, mark);
    }

    /// What has come until the other end has read what was sent so far.
    pub fn so_far(&mut self) -> Vec<Got> {
        let mark = u64::from(self.next_stream) << 32 | 0xbeef;
        self.send(Header { via: mark, ..Header::new(Kind::Ping) }, &[], &[]);
        let mut came = Vec::new();
        loop {
            let got = self.expect_any();
            if got.kind() == Some(Kind::Pong) && got.header.via == mark {
                return came;
            }
            came.push(got);
        }
    }

    /// Begins a call that names its method. Returns its number.
    pub fn request_method(&mut self, uri: &str, method: &str, flags: Flags, body: &[u8]) -> u32 {
        let mut meta = meta_of(uri);
        meta.put(id::METHOD, method.as_bytes());
        let header = Header { flags, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) };
        self.request_with(header, meta.as_ref(), body)
    }

    /// Waits until the other end has read what was sent so far. The credit that it gives back meanwhile is no matter.
    pub fn expect_read(&mut self) {
        let mark = u64::from(self.next_stream) << 32 | 0xdead;
        self.send(Header { via: mark, ..Header::new(Kind::Ping) }, &[], &[]);
        loop {
            let got = self.expect_any();
            match got.kind() {
                Some(Kind::Credit) => {}
                Some(Kind::Pong) if got.header.via == mark => return,
                other => panic!("{other:?} where only credit is expected: {got:?}"),
            }
        }
    }

    /// The next frame, which must be of this kind.
    pub fn expect(&mut self, kind: Kind) -> Got {
        let got = self.expect_any();
        assert_eq!(got.kind(), Some(kind), "{got:?}: {}", got.error());
        got
    }

    /// The next frame.
    pub fn expect_any(&mut self) -> Got {
        self.next_frame().expect("a frame, not the end of the connection")
    }

    /// The next frame; none at the end of the connection.
    pub fn next_frame(&mut self) -> Option<Got> {
        loop {
            let got = self.next_loud()?;
            if let Some(got) = self.loud(got) {
                return Some(got);
            }
        }
    }

    /// The frame, unless it is one that is taken quietly.
    fn loud(&mut self, got: Got) -> Option<Got> {
        let connection_credit = got.kind() == Some(Kind::Credit) && got.header.stream == 0;
        match got.kind() {
            Some(Kind::Ping) if self.quiet => {
                self.send(Header { kind: Kind::Pong as u8, ..got.header }, &[], &[]);
                None
            }
            _ if self.quiet && connection_credit => None,
            _ => Some(got),
        }
    }

    /// Uses up the number of the next call, for one that goes another way.
    pub fn take_number(&mut self) -> u32 {
        self.next_stream += 1;
        self.next_stream - 1
    }

    /// A frame, if one comes soon enough.
    ///
    /// # Errors
    /// At the end of the connection.
    pub fn frame_within(&mut self, limit: Duration) -> Result<Option<Got>, Ended> {
        if self.buffer.is_empty() {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)).unwrap_or(0);
            if ready == 0 {
                return Ok(None);
            }
        }
        self.one()
    }

    /// Whether something is there that was read and not taken.
    pub(crate) fn has_more(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// One frame, once something is there; none if it is one that is taken quietly.
    ///
    /// # Errors
    /// At the end of the connection.
    pub(crate) fn one(&mut self) -> Result<Option<Got>, Ended> {
        let got = self.next_loud().ok_or(Ended)?;
        Ok(self.loud(got))
    }

    /// What `poll` waits for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn next_loud(&mut self) -> Option<Got> {
        if !self.fill(HEADER_LEN) {
            assert!(self.buffer.is_empty(), "the connection ended within a header");
            return None;
        }
        let head: Vec<u8> = self.buffer.iter().copied().take(HEADER_LEN).collect();
        let header = Header::parse(head.first_chunk().expect("a header")).expect("a frame of the agent");
        assert!(self.fill(header.frame_len()), "the connection ended within a frame");
        self.buffer.drain(..HEADER_LEN);
        let meta = self.buffer.drain(..usize::from(header.meta_len)).collect();
        let body_len = usize::try_from(header.body_len).expect("a length");
        Some(Got { header, meta, body: self.buffer.drain(..body_len).collect() })
    }

    /// Reads until so many bytes are there; false at the end of the connection.
    fn fill(&mut self, len: usize) -> bool {
        let mut chunk = [0; 64 * 1024];
        let deadline = Instant::now() + PATIENCE;
        while self.buffer.len() < len {
            match self.socket.read(&mut chunk) {
                Ok(0) => return false,
                Ok(read) => self.buffer.extend(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return false,
                // On the kernel path a blocking socket may say so before any time is over (docs/kernel.md).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(error) => panic!("the agent sent nothing within {PATIENCE:?}: {error}"),
            }
        }
        true
    }
}

/// The bytes of a frame; the lengths are put in.
pub fn bytes_of(header: Header, meta: &[u8], body: &[u8]) -> Vec<u8> {
    let header = Header {
        meta_len: u16::try_from(meta.len()).expect("metadata that fits"),
        body_len: u32::try_from(body.len()).expect("a body that fits"),
        ..header
    };
    [&header.bytes()[..], meta, body].concat()
}

/// Serves a connection in a thread of its own until it ends.
pub fn serve(mut peer: FramePeer, mut each: impl FnMut(&mut FramePeer, Got) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Some(got) = peer.next_frame() {
            each(&mut peer, got);
        }
    })
}
