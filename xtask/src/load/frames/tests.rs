//! The load and the service, with nothing between them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    thread,
    time::{Duration, Instant},
};

use agent_common::frame::{
    Flags, HEADER_LEN, Header, Hello, Kind, Lane, MetaBuilder, Offer, ReceiveWindow, Role, WINDOW_MIN, Windows, id, service_hash,
};
use anyhow::Result;

use super::{
    Flow, FrameLoad, Peer, Setup, URI,
    input::Frame,
    link::{Calls, Link, Ways, message_credit},
    output::Message,
    service,
    socket::{Listener, Socket},
};

/// Windows so small that a large body fills them many times.
const WINDOWS: Windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };

fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || service::listened(&Listener::Tcp(listener), Setup::USUAL));
    address
}

#[test]
fn every_call_is_answered_with_its_body() {
    for body in [0, 64, 16 << 10, (64 << 10) + 1, 1 << 20] {
        let load = FrameLoad { connections: 3, calls: Some(60), ..FrameLoad::new(echo(), Flow { body, depth: 7 }) };
        let running = load.start().unwrap();
        let [report] = &running.end().unwrap()[..] else { panic!("one flow") };
        assert_eq!((report.answered(), report.errors), (60, 0), "{body} B: {:?}", report.last_error);
    }
}

#[test]
fn small_calls_go_beside_large_ones() {
    let flows = vec![Flow { body: 64, depth: 1 }, Flow { body: 1 << 20, depth: 2 }];
    let load = FrameLoad { flows, ..FrameLoad::new(echo(), Flow { body: 0, depth: 1 }) };
    let running = load.start().unwrap();
    thread::sleep(Duration::from_millis(200));
    let (reports, bytes) = running.stop().unwrap();
    assert!(bytes > 2 << 20);
    let [small, large] = &reports[..] else { panic!("two flows") };
    assert_eq!((small.errors, large.errors), (0, 0), "{:?} {:?}", small.last_error, large.last_error);
    assert!(small.answered() > large.answered() && large.answered() > 0);
}

#[test]
fn who_ends_the_connection_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    thread::spawn(move || drop(listener.accept()));
    assert!(FrameLoad::new(to, Flow { body: 64, depth: 1 }).start().is_err());
}

/// The answer to one call.
struct Answer {
    body: Vec<u8>,
    window: ReceiveWindow,
    ended: bool,
}

impl Calls for Answer {
    fn frame(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()> {
        self.body.extend_from_slice(frame.body);
        self.ended = frame.header.flags.has(Flags::END_STREAM);
        let credit = message_credit(&frame.header, &mut self.window, Flags::NONE)?;
        credit.iter().for_each(|credit| ways.stream.control(credit));
        Ok(())
    }
}

#[test]
fn a_service_offers_itself_on_as_many_connections_as_the_agent_wants() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = listener.local_addr().unwrap();
    thread::spawn(move || service::dialled(agent, Setup::USUAL, 0));
    let hello = Hello { connections: 2, ..Hello::new(Role::Agent, "agent", "agent-1", WINDOWS) };
    let accept = || Link::accepted(Socket::Tcp(listener.accept().unwrap().0), &hello, Setup::USUAL).unwrap();
    // It serves none before all are there, and ends with the first that ends.
    let mut links = [accept(), accept()];
    for (connection, (link, peer)) in links.iter_mut().enumerate() {
        assert_eq!((peer.offers.clone(), peer.connection.map(usize::from)), (vec![Offer::new(URI)], Some(connection)));
        let body: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
        let mut answer = Answer { body: Vec::new(), window: ReceiveWindow::new(WINDOWS.stream), ended: false };
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, URI.as_bytes());
        let header = Header { via: 9, service: service_hash(URI.as_bytes(), b""), ..Header::new(Kind::Request) };
        link.output.queue(Message { header, meta: meta.finish(), body: body.clone().into() });
        let deadline = Instant::now() + Duration::from_secs(10);
        while !answer.ended {
            assert!(Instant::now() < deadline, "no answer");
            link.take(false, &mut answer).unwrap();
            link.flush().unwrap();
        }
        assert!(answer.body == body, "the answer is the body");
    }
}

#[test]
fn a_ping_is_answered() {
    let mut socket = TcpStream::connect(echo()).unwrap();
    let hello = Hello::new(Role::Application, "test", "test-1", WINDOWS).encode().unwrap();
    let ping = Header { via: 77, ..Header::new(Kind::Ping) };
    socket.write_all(&[&hello[..], &ping.bytes()].concat()).unwrap();
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).unwrap();
    socket.read_exact(&mut vec![0; usize::from(Header::parse(&header).unwrap().meta_len)]).unwrap();
    socket.read_exact(&mut header).unwrap();
    assert_eq!(Header::parse(&header), Ok(Header { via: 77, ..Header::new(Kind::Pong) }));
}

#[test]
fn what_was_not_offered_is_refused() {
    let (mut link, _) = Link::connected(
        Socket::Tcp(TcpStream::connect(echo()).unwrap()),
        &Hello::new(Role::Application, "test", "test-1", WINDOWS),
        Setup::USUAL,
    )
    .unwrap();
    let mut meta = MetaBuilder::new();
    meta.put(id::URI, b"/service/other");
    assert!(link.output.at_once(Header { via: 9, ..Header::new(Kind::Request) }, &meta.finish(), b"body"));
    link.flush().unwrap();
    link.socket.set_nonblocking(false).unwrap();
    let mut header = [0; HEADER_LEN];
    link.socket.read_exact(&mut header).unwrap();
    let header = Header::parse(&header).unwrap();
    assert_eq!((header.kind(), header.via, header.word), (Some(Kind::Response), 9, 501));
}

#[test]
fn a_unix_socket_is_called_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || service::listened(&Listener::Unix(listener), Setup::USUAL));
    let load = FrameLoad { calls: Some(20), ..FrameLoad::new(Peer::Unix(path), Flow { body: 64, depth: 1 }) };
    let reports = load.start().unwrap().end().unwrap();
    assert_eq!((reports[0].answered(), reports[0].errors), (20, 0), "{:?}", reports[0].last_error);
}

/// The next frame of a socket that blocks.
fn next(socket: &mut TcpStream) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).ok()?;
    let header = Header::parse(&header).unwrap();
    let mut rest = vec![0; header.frame_len() - HEADER_LEN];
    socket.read_exact(&mut rest).ok()?;
    Some((header, rest.split_off(usize::from(header.meta_len))))
}

/// An agent that gives a lane, takes it, and answers what comes by it. Returns how many calls that were.
fn laned(listener: &TcpListener, hello: &Hello) -> u64 {
    let accept = || {
        let mut socket = listener.accept().unwrap().0;
        assert_eq!(next(&mut socket).unwrap().0.kind(), Some(Kind::Hello));
        socket.write_all(&hello.encode().unwrap()).unwrap();
        socket
    };
    let (_stream, mut lane) = (accept(), accept());
    let (mut calls, mut last) = (0, 0);
    while let Some((header, body)) = next(&mut lane) {
        assert!(header.stream > last && header.receipt == last, "{header:?}");
        last = header.stream;
        calls += 1;
        let flags = Flags::TO_CALLER | Flags::END_STREAM;
        let answer = Header { kind: Kind::Response as u8, flags, meta_len: 0, word: 0, receipt: last, ..header };
        lane.write_all(&[&answer.bytes()[..], &body].concat()).unwrap();
    }
    calls
}

#[test]
fn calls_that_fit_go_by_the_lane() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let lane = Some(Lane { token: [5; 16], body_max: 1024 });
    let hello = Hello { lane, ..Hello::new(Role::Agent, "agent", "agent-1", WINDOWS) };
    let agent = thread::spawn(move || laned(&listener, &hello));
    let setup = Setup { lanes: true, ..Setup::USUAL };
    let load = FrameLoad { calls: Some(50), setup, ..FrameLoad::new(to, Flow { body: 1024, depth: 1 }) };
    let reports = load.start().unwrap().end().unwrap();
    assert_eq!((reports[0].answered(), reports[0].errors), (50, 0), "{:?}", reports[0].last_error);
    assert_eq!(agent.join().unwrap(), 50);
}

#[test]
fn where_there_are_no_lanes_it_says_so() {
    let load = FrameLoad { setup: Setup { lanes: true, ..Setup::USUAL }, ..FrameLoad::new(echo(), Flow { body: 64, depth: 1 }) };
    let error = load.start().err().map(|error| format!("{error:#}")).unwrap();
    assert!(error.contains("the agent gives no lanes: there is no token"), "{error}");
}
