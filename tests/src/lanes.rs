//! An application with a lane: its stream connection and, beside it, the connection that the kernel path routes. Both are
//! under the test's control, to the byte.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, Lane, Role, service_hash};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    frames::{self, FramePeer, Got, bytes_of, meta_of},
    wait::PATIENCE,
};

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The lane.
    Lane,
    /// The stream connection.
    Stream,
}

/// An application with both connections. Its lane's socket never blocks, not even while it connects: one that does is left to
/// TCP in the usual mode.
pub struct LanePeer {
    /// The stream connection.
    pub stream: FramePeer,
    /// Whether the last receipt that came goes with each call, as it should.
    pub returns_receipts: bool,
    /// The last receipt that came.
    pub receipt: u32,
    /// What the agent gave.
    pub lane: Lane,
    socket: TcpStream,
    buffer: Vec<u8>,
    /// Frames of the stream connection that came while one of the lane was waited for, or the other way round.
    kept: Vec<(Way, Got)>,
    ended: Ended,
}

/// There is no lane.
pub struct NoLane {
    /// The connection beside which it would be, which goes on.
    pub stream: Box<FramePeer>,
    /// What the agent said of it.
    pub why: String,
}

/// Which connections have ended.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    lane: bool,
    stream: bool,
}

/// What a lane says first, for a stream connection that has said and heard these.
pub fn lane_hello(ours: &Hello, lane: Lane) -> Hello {
    let hello = Hello::new(Role::Lane, &ours.application, &ours.instance, ours.windows);
    Hello { connection: ours.connection, lane: Some(lane), ..hello }
}

/// A connection to the agent whose socket does not block.
///
/// # Panics
/// When it cannot be had.
pub fn connect(address: SocketAddr) -> TcpStream {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)).expect("a socket");
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
        connected => connected.expect("the agent listens"),
    }
    let socket = TcpStream::from(socket);
    wait(&[&socket], PollFlags::POLLOUT);
    assert!(socket.take_error().expect("a state").is_none(), "the agent listens");
    socket.set_nodelay(true).expect("no delay");
    socket
}

impl LanePeer {
    /// Connects, says HELLO, and opens the lane.
    ///
    /// # Panics
    /// If the agent gives none, or refuses it.
    pub fn open(address: SocketAddr, hello: &Hello) -> Self {
        let hello = Hello { connection: hello.connection.or(Some(0)), ..hello.clone() };
        let stream = FramePeer::connect(address, &hello);
        Self::beside(stream, address, &hello).unwrap_or_else(|no| panic!("{}", no.why))
    }

    /// Opens the lane of a stream connection that said this.
    ///
    /// # Errors
    /// If the agent gives none, or refuses it.
    pub fn beside(stream: FramePeer, address: SocketAddr, hello: &Hello) -> Result<Self, NoLane> {
        let Some(lane) = stream.hello.as_ref().and_then(|hello| hello.lane) else {
            return Err(NoLane { stream: Box::new(stream), why: "the agent gives no lanes".to_owned() });
        };
        Self::opened(stream, connect(address), &lane_hello(hello, lane), lane)
    }

    /// The same over a connection of its own, with a HELLO that may be wrong.
    ///
    /// # Errors
    /// As [`Self::beside`].
    pub fn opened(stream: FramePeer, socket: TcpStream, hello: &Hello, lane: Lane) -> Result<Self, NoLane> {
        let mut peer = Self {
            stream,
            returns_receipts: true,
            receipt: 0,
            lane,
            socket,
            buffer: Vec::new(),
            kept: Vec::new(),
            ended: Ended::default(),
        };
        peer.send_bytes(&hello.encode().expect("a HELLO that fits"));
        let first = peer.lane_frame();
        let why = match first.as_ref().map(|got| (got.kind(), Hello::decode(&got.meta))) {
            Some((Some(Kind::Hello), Ok(theirs))) if theirs.lane.is_some_and(|theirs| theirs.token == lane.token) => {
                return Ok(peer);
            }
            Some((Some(Kind::Hello), theirs)) => format!("a HELLO with another lane: {theirs:?}"),
            _ => first.map_or_else(|| "the lane was closed".to_owned(), |got| format!("{:?}: {}", got.header, got.error())),
        };
        Err(NoLane { stream: Box::new(peer.stream), why })
    }

    /// Sends a frame on the lane; the lengths are put in.
    pub fn send(&mut self, header: Header, meta: &[u8], body: &[u8]) {
        self.send_bytes(&bytes_of(header, meta, body));
    }

    /// Sends bytes on the lane in one message: one frame, or whatever the test wants. Of one that the socket takes a part of, as
    /// its room is nearly used up, the rest follows, and the lane is a stream from then on.
    pub fn send_bytes(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            match self.try_send(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the lane took nothing within {PATIENCE:?}");
                    wait(&[&self.socket], PollFlags::POLLOUT);
                }
                // It says something of whom the kernel gave the frame to, who has just gone: the agent ends the call. If it is
                // this lane that is over, no answer comes.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                Err(error) => panic!("the lane took nothing: {error}"),
            }
        }
    }

    /// Sends bytes on the lane in one message, as far as the socket takes them now.
    ///
    /// # Errors
    /// What the socket says.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    /// Sends bytes on the lane in messages of this length, so that the lane is none any more.
    pub fn send_in_pieces(&mut self, bytes: &[u8], step: usize) {
        bytes.chunks(step).for_each(|piece| self.send_bytes(piece));
    }

    /// The bytes of a call's frame, with the next number and, if they are returned, the last receipt.
    pub fn request_bytes(&mut self, header: Header, meta: &[u8], body: &[u8]) -> (u32, Vec<u8>) {
        let stream = self.stream.take_number();
        let receipt = if self.returns_receipts { self.receipt } else { header.receipt };
        (stream, bytes_of(Header { stream, via: u64::from(stream), receipt, ..header }, meta, body))
    }

    /// Begins a call on the lane with this header, but for its numbers. Returns its number.
    pub fn request_with(&mut self, header: Header, meta: &[u8], body: &[u8]) -> u32 {
        let (stream, bytes) = self.request_bytes(header, meta, body);
        self.send_bytes(&bytes);
        stream
    }

    /// Begins a call on the lane. Returns its number.
    pub fn request(&mut self, uri: &str, flags: Flags, body: &[u8]) -> u32 {
        self.request_with(request_header(uri, flags), meta_of(uri).as_ref(), body)
    }

    /// Makes a whole call by the lane: its answer, and the way that it came.
    pub fn call(&mut self, uri: &str, body: &[u8]) -> (Way, Got) {
        let stream = self.request(uri, Flags::END_STREAM, body);
        self.answer_to(stream)
    }

    /// The answer to a call, which has one frame. What else comes meanwhile is kept for [`Self::next_frame`].
    pub fn answer_to(&mut self, stream: u32) -> (Way, Got) {
        let is_it = |got: &Got| got.kind() == Some(Kind::Response) && got.header.stream == stream;
        self.expect_that("the answer", is_it)
    }

    /// A frame of this kind, on either connection. What else comes meanwhile is kept for [`Self::next_frame`].
    pub fn expect(&mut self, kind: Kind) -> (Way, Got) {
        self.expect_that(&format!("{kind:?}"), |got| got.kind() == Some(kind))
    }

    /// The first frame of which this is true. What else comes meanwhile is kept for [`Self::next_frame`].
    pub fn expect_that(&mut self, what: &str, is_it: impl Fn(&Got) -> bool) -> (Way, Got) {
        if let Some(at) = self.kept.iter().position(|(_, got)| is_it(got)) {
            return self.kept.remove(at);
        }
        loop {
            let Some((way, got)) = self.fresh() else { panic!("both connections have ended, without {what}") };
            if is_it(&got) {
                return (way, got);
            }
            self.kept.push((way, got));
        }
    }

    /// The next frame of either connection; none when both have ended.
    pub fn next_frame(&mut self) -> Option<(Way, Got)> {
        if self.kept.is_empty() { self.fresh() } else { Some(self.kept.remove(0)) }
    }

    /// A frame of either connection, if one comes soon enough.
    ///
    /// # Errors
    /// When both have ended.
    pub fn frame_within(&mut self, limit: Duration) -> Result<Option<(Way, Got)>, frames::Ended> {
        let is_there = !self.kept.is_empty() || self.buffer.len() >= HEADER_LEN || self.stream.has_more();
        let ended = self.ended.lane && self.ended.stream;
        if !is_there && !ended {
            let events =
                [self.ended.lane, self.ended.stream].map(|ended| if ended { PollFlags::empty() } else { PollFlags::POLLIN });
            let mut fds = [PollFd::new(self.socket.as_fd(), events[0]), PollFd::new(self.stream.fd(), events[1])];
            let ready = poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)).unwrap_or(0);
            if ready == 0 {
                return Ok(None);
            }
        }
        self.next_frame().map(Some).ok_or(frames::Ended)
    }

    /// The next frame of the lane; none at its end.
    pub fn next_of_lane(&mut self) -> Option<Got> {
        match self.kept.iter().position(|(way, _)| *way == Way::Lane) {
            Some(at) => Some(self.kept.remove(at).1),
            None => self.lane_frame(),
        }
    }

    /// Answers a call on the lane.
    pub fn respond(&mut self, call: &Got, status: u32, body: &[u8]) {
        let header = call.back(Kind::Response);
        self.send(Header { flags: header.flags | Flags::END_STREAM, word: status, ..header }, &[], body);
    }

    /// Answers a call the way that it came.
    pub fn respond_by(&mut self, way: Way, call: &Got, status: u32, body: &[u8]) {
        match way {
            Way::Lane => self.respond(call, status, body),
            Way::Stream => self.stream.respond(call, status, body),
        }
    }

    /// Says on the lane that nothing more comes.
    pub fn finish_lane(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Takes the stream connection, and ends the lane.
    pub fn leave_lane(self) -> FramePeer {
        self.stream
    }

    /// The lane's socket, for whatever is not done here.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn fresh(&mut self) -> Option<(Way, Got)> {
        loop {
            if let Some(got) = self.lane_frame_here() {
                return Some((Way::Lane, got));
            }
            if self.ended.lane && self.ended.stream {
                return None;
            }
            let wanted = [self.ended.lane, self.ended.stream].map(|ended| !ended);
            let [lane, mut stream] = if self.stream.has_more() {
                [wanted[0], true]
            } else {
                let (lane, stream) = (self.socket.as_fd(), self.stream.fd());
                ready(&[(wanted[0], &lane), (wanted[1], &stream)])
            };
            if lane && !self.stream.has_more() {
                self.fill();
            }
            stream &= !self.ended.stream;
            if stream {
                match self.stream.one() {
                    Ok(Some(got)) => return Some((Way::Stream, got)),
                    Ok(None) => {}
                    Err(frames::Ended) => self.ended.stream = true,
                }
            }
        }
    }

    fn lane_frame(&mut self) -> Option<Got> {
        loop {
            if let Some(got) = self.lane_frame_here() {
                return Some(got);
            }
            if self.ended.lane {
                return None;
            }
            wait(&[&self.socket], PollFlags::POLLIN);
            self.fill();
        }
    }

    /// Reads the lane until there is no more.
    fn fill(&mut self) {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break self.ended.lane = true,
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break self.ended.lane = true,
                Err(error) => panic!("the lane cannot be read: {error}"),
            }
        }
    }

    /// The next frame of the lane, if it is there whole.
    fn lane_frame_here(&mut self) -> Option<Got> {
        let header = Header::parse(self.buffer.first_chunk::<HEADER_LEN>()?).expect("a frame on the lane");
        if self.buffer.len() < header.frame_len() {
            assert!(!self.ended.lane, "the lane ended within a frame");
            return None;
        }
        let frame: Vec<u8> = self.buffer.drain(..header.frame_len()).collect();
        if header.kind() == Some(Kind::Response) && header.receipt != 0 {
            self.receipt = header.receipt;
        }
        let (meta, body) = frame[HEADER_LEN..].split_at(usize::from(header.meta_len));
        Some(Got { header, meta: meta.to_vec(), body: body.to_vec() })
    }
}

/// The header of a call, but for its numbers.
pub fn request_header(uri: &str, flags: Flags) -> Header {
    Header { flags, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) }
}

/// Serves both connections in a thread of its own until both end.
pub fn serve(mut peer: LanePeer, mut each: impl FnMut(&mut LanePeer, Way, Got) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Some((way, got)) = peer.next_frame() {
            each(&mut peer, way, got);
        }
    })
}

/// Offers services with a lane, and answers each call with its body, the way that it came.
pub fn echo(address: SocketAddr, hello: &Hello) -> JoinHandle<()> {
    serve(LanePeer::open(address, hello), |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond_by(way, &got, 0, &got.body);
        }
    })
}

/// Which of the wanted ones can be read, or have ended, once one can.
fn ready(wanted: &[(bool, &dyn AsFd); 2]) -> [bool; 2] {
    let mut fds =
        wanted.map(|(wanted, socket)| PollFd::new(socket.as_fd(), if wanted { PollFlags::POLLIN } else { PollFlags::empty() }));
    await_any(&mut fds);
    std::array::from_fn(|at| wanted[at].0 && fds[at].any().unwrap_or(true))
}

fn wait(sockets: &[&dyn AsFd; 1], flags: PollFlags) {
    await_any(&mut sockets.map(|socket| PollFd::new(socket.as_fd(), flags)));
}

fn await_any(fds: &mut [PollFd<'_>]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match poll(fds, PollTimeout::from(1_000_u16)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => assert!(Instant::now() < deadline, "nothing came within {PATIENCE:?}"),
            Ok(_) => return,
            Err(error) => panic!("the sockets cannot be waited for: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use agent_common::frame::Windows;

    use super::*;

    const LANE: Lane = Lane { token: [3; 16], body_max: 1024 };

    /// An agent of two connections, each greeted with this lane.
    fn agent(of_lane: Lane) -> (SocketAddr, JoinHandle<[FramePeer; 2]>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let windows = Windows { stream: 1 << 20, connection: 1 << 20 };
        let accept = move |lane| {
            let mut peer = FramePeer::accepted(listener.accept().expect("a connection").0);
            peer.expect(Kind::Hello);
            let hello = Hello { lane: Some(lane), ..Hello::new(Role::Agent, "agent", "agent-1", windows) };
            peer.write(&hello.encode().expect("a HELLO that fits"));
            peer
        };
        (address, thread::spawn(move || [accept(LANE), accept(of_lane)]))
    }

    #[test]
    fn both_connections_are_read_and_receipts_returned() {
        let (address, agent) = agent(LANE);
        let mut peer = LanePeer::open(address, &frames::caller());
        let [mut stream, mut lane] = agent.join().expect("an agent");
        let [first, second] = [1, 2].map(|_| peer.request("/a", Flags::END_STREAM, b"body"));
        let calls = [1, 2].map(|_| lane.expect(Kind::Request));
        stream.respond(&calls[1], 0, b"by the stream");
        let header = calls[0].back(Kind::Response);
        lane.send(Header { flags: header.flags | Flags::END_STREAM, receipt: 9, ..header }, &[], b"by the lane");
        assert_eq!(peer.answer_to(first).0, Way::Lane);
        let (way, answer) = peer.answer_to(second);
        assert_eq!((way, &answer.body[..]), (Way::Stream, &b"by the stream"[..]));
        let large = peer.stream.request("/a", Flags::END_STREAM, b"");
        let small = peer.request("/a", Flags::END_STREAM, b"");
        let small_came = lane.expect(Kind::Request);
        assert_eq!((large, stream.expect(Kind::Request).header.stream), (3, 3));
        assert_eq!((small, small_came.header.stream, small_came.header.receipt), (4, 4, 9));
    }

    #[test]
    fn a_lane_that_is_another_is_none() {
        let (address, _agent) = agent(Lane { token: [4; 16], body_max: 1 });
        let hello = Hello { connection: Some(0), ..frames::caller() };
        let stream = FramePeer::connect(address, &hello);
        let why = LanePeer::beside(stream, address, &hello).err().map(|no| no.why);
        assert!(why.as_ref().is_some_and(|why| why.contains("another lane")), "{why:?}");
    }
}
