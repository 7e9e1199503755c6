//! Bytes that are sent while a connection is being enrolled, or before: a direction is redirected from its first byte, or
//! goes by TCP for life.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use agent::kernel::Pass;
use moa_tests::{
    leg::{FAMILIES, Legs, Pair, Stamps, Took, bound_socket, in_new_namespace, options::TcpFastOpen, set_sysctl, stream_socket},
    seed,
};
use nix::{
    libc::{EINPROGRESS, MSG_FASTOPEN},
    sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt::TcpFastOpenConnect},
};
use rand::RngExt;

/// An application connects and sends at once, the agent answers: so many connections, one after the other.
fn short_connections(listener: &TcpListener, connect: &str, first: u64, count: u64) -> (u64, u64) {
    let address = SocketAddr::new(connect.parse().unwrap(), listener.local_addr().unwrap().port());
    let mut rng = seed::rng("short_connections");
    let mut sums = (0, 0);
    thread::scope(|scope| {
        let serving = scope.spawn(|| (0..count).map(|_| serve(listener)).sum());
        for stream in first..first + count {
            let mut app = TcpStream::connect(address).unwrap();
            let size = rng.random_range(8..2_000);
            // The stream's number comes first, so that the other end knows what to expect.
            let bytes = [&stream.to_le_bytes()[..], &Stamps::of(stream).make(size)].concat();
            app.write_all(&bytes).unwrap();
            app.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(Stamps::of(!stream).receive_to_end(&mut app), size as u64);
            sums.0 += bytes.len() as u64;
        }
        sums.1 = serving.join().unwrap();
    });
    sums
}

/// Answers as many bytes as there were, of another stream.
fn serve(listener: &TcpListener) -> u64 {
    let (mut agent, _) = listener.accept().unwrap();
    let mut number = [0; 8];
    agent.read_exact(&mut number).unwrap();
    let stream = u64::from_le_bytes(number);
    let size = Stamps::of(stream).receive_to_end(&mut agent);
    agent.write_all(&Stamps::of(!stream).make(usize::try_from(size).unwrap())).unwrap();
    size
}

#[test]
fn bytes_at_once_after_connecting() {
    let legs = Legs::attach();
    let count = seed::count(4_000, 20_000) as u64;
    let (mut there, mut back) = (0, 0);
    for (at, (listen, connect)) in (0..).zip(FAMILIES) {
        let sums = short_connections(&legs.listen(listen), connect, at * count, count);
        (there, back) = (there + sums.0, back + sums.1);
    }
    legs.expect_redirected(3 * count, there, back);
}

#[test]
fn bytes_at_once_from_several_threads() {
    const THREADS: u64 = 4;
    let legs = Legs::attach();
    let listener = legs.listen("127.0.0.1:0");
    let count = seed::count(3_000, 10_000) as u64;
    let (there, back) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for at in 0..THREADS {
            let (listener, there, back) = (&listener, &there, &back);
            scope.spawn(move || {
                let sums = short_connections(listener, "127.0.0.1", at * count, count);
                there.fetch_add(sums.0, Ordering::Relaxed);
                back.fetch_add(sums.1, Ordering::Relaxed);
            });
        }
    });
    // The sums of counters that were added to from all sides are exact, too.
    legs.expect_redirected(THREADS * count, there.into_inner(), back.into_inner());
}

#[test]
fn the_agent_sends_at_once_after_dialling() {
    let legs = Legs::attach();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let (count, mut rng) = (seed::count(4_000, 20_000) as u64, seed::rng("the_agent_sends_at_once_after_dialling"));
    let (mut there, mut back) = (0, 0);
    for stream in 0..count {
        let mut agent = legs.dial(service.local_addr().unwrap());
        let size: usize = rng.random_range(1..2_000);
        agent.write_all(&Stamps::of(stream).make(size)).unwrap();
        let (mut app, _) = service.accept().unwrap();
        app.write_all(&Stamps::of(!stream).make(size)).unwrap();
        Stamps::of(stream).receive(&mut app, size as u64, &mut rng, |_| {});
        Stamps::of(!stream).receive(&mut agent, size as u64, &mut rng, |_| {});
        (there, back) = (there + size as u64, back + size as u64);
    }
    legs.expect_redirected(count, there, back);
}

/// Bytes that a thread of the application's sends before it is connected, and that the kernel takes when it is: it had
/// begun to give them to TCP before anybody could enrol the socket.
#[test]
fn a_send_that_waits_for_the_connection() {
    let legs = Legs::attach();
    // The second connection to it has to wait until the first is accepted, and the kernel has its SYN sent again.
    let socket = bound_socket("127.0.0.1:0".parse().unwrap());
    legs.mark_listener(&socket);
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let first = TcpStream::connect(address).unwrap();
    let app = stream_socket(address);
    app.set_nonblocking(true).unwrap();
    assert_eq!(app.connect(&address.into()).unwrap_err().raw_os_error(), Some(EINPROGRESS));
    app.set_nonblocking(false).unwrap();
    let app = TcpStream::from(app);
    let agent = thread::scope(|scope| {
        let sending = scope.spawn(|| (&app).write_all(&Stamps::of(1).make(500)).unwrap());
        drop((first, listener.accept().unwrap()));
        sending.join().unwrap();
        listener.accept().unwrap().0
    });
    go_on(Pair { app, agent }, 500);
    legs.expect(&Took { enrolled: 4, from_agent: ANSWER, passed: MORE, passes: &[(Pass::NotFirst, 1)], ..Took::default() });
}

/// In a namespace where both sides may send with the SYN.
fn with_fast_open(run: impl FnOnce(&Legs, &TcpListener) + Send) {
    in_new_namespace(|| {
        set_sysctl("net/ipv4/tcp_fastopen", "3");
        let legs = Legs::attach();
        let socket = bound_socket("127.0.0.1:0".parse().unwrap());
        legs.mark_listener(&socket);
        setsockopt(&socket, TcpFastOpen, &100).unwrap();
        socket.listen(100).unwrap();
        run(&legs, &socket.into());
    });
}

const MORE: u64 = 10_000;
const ANSWER: u64 = 7_000;

/// Sends more on a connection that has carried the first `began` bytes of stream 1, and an answer.
fn go_on(pair: Pair, began: u64) {
    let Pair { mut app, mut agent } = pair;
    let mut rng = seed::rng("fast open");
    let (mut sent, mut received) = (Stamps::of(1), Stamps::of(1));
    sent.make(usize::try_from(began).unwrap());
    sent.send(&mut app, MORE, 1_000, &mut rng);
    received.receive(&mut agent, began + MORE, &mut rng, |_| {});
    Stamps::of(2).send(&mut agent, ANSWER, 1_000, &mut rng);
    Stamps::of(2).receive(&mut app, ANSWER, &mut rng, |_| {});
}

/// Connections by fast open, after the first has got the cookie.
const FAST: u64 = 4;

#[test]
fn bytes_with_the_syn_keep_a_connection_to_tcp() {
    with_fast_open(|legs, listener| {
        let address = listener.local_addr().unwrap();
        for _ in 0..=FAST {
            let app = stream_socket(address);
            let (bytes, to) = (Stamps::of(1).make(500), SockaddrStorage::from(address));
            assert_eq!(sendto(app.as_raw_fd(), &bytes, &to, MsgFlags::from_bits_retain(MSG_FASTOPEN)), Ok(500));
            let (agent, _) = listener.accept().unwrap();
            go_on(Pair { app: app.into(), agent }, 500);
        }
        // The first sends as soon as it is connected, in the same call. Of the others, no end knows where the other's
        // bytes began, so that both are left to TCP.
        legs.expect(&Took {
            enrolled: 2 + 2 * FAST,
            from_agent: ANSWER,
            passed: MORE + FAST * (MORE + ANSWER),
            passes: &[(Pass::NotFirst, 1), (Pass::NoPeer, 2 * FAST)],
            ..Took::default()
        });
    });
}

#[test]
fn fast_open_with_connect_keeps_a_connection_to_tcp() {
    with_fast_open(|legs, listener| {
        let address = listener.local_addr().unwrap();
        for _ in 0..=FAST {
            let app = stream_socket(address);
            setsockopt(&app, TcpFastOpenConnect, &true).unwrap();
            app.connect(&address.into()).unwrap();
            let mut app = TcpStream::from(app);
            app.write_all(&Stamps::of(1).make(500)).unwrap();
            let (agent, _) = listener.accept().unwrap();
            go_on(Pair { app, agent }, 500);
        }
        // Without a cookie, the first connects at once, as any other.
        legs.expect(&Took {
            enrolled: 2 + 2 * FAST,
            to_agent: 500 + MORE,
            from_agent: ANSWER,
            passed: FAST * (MORE + ANSWER),
            passes: &[(Pass::NoPeer, 2 * FAST)],
            ..Took::default()
        });
    });
}
