//! Which connections are enrolled: those of the agent's listeners and its own, with both ends, and nobody else's.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    sync::Barrier,
    thread,
    time::Duration,
};

use agent::kernel::{Options, Pass, Refusal, Verdicts};
use moa_tests::{
    PATIENCE,
    leg::{FAMILIES, Legs, Pair, Stamps, Took, bound_socket, in_new_namespace, port, readable, stream_socket},
    machine::free_address,
    seed, until_true,
    wait::until_within,
};
use rand::RngExt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const BYTES: u64 = 100_000;

/// Sends both ways at once, and checks each byte. What is sent is less than the bound, and the agent's side may publish
/// nothing.
fn exchange(pair: Pair, stream: u64) {
    let Pair { mut app, mut agent } = pair;
    for end in [&app, &agent] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let (mut there, mut back) = (Stamps::of(2 * stream), Stamps::of(2 * stream + 1));
    let mut rng = seed::rng("exchange");
    let (mut to_agent, mut from_agent) = (there.clone(), back.clone());
    to_agent.send(&mut app, BYTES, 9_000, &mut rng);
    from_agent.send(&mut agent, BYTES, 9_000, &mut rng);
    there.receive(&mut agent, BYTES, &mut rng, |_| {});
    back.receive(&mut app, BYTES, &mut rng, |_| {});
    drop(app);
    assert_eq!(there.receive_to_end(&mut agent), 0);
}

#[test]
fn both_ends_of_what_the_agent_accepts() {
    let legs = Legs::attach();
    for (at, (listen, connect)) in (1..).zip(FAMILIES) {
        exchange(legs.accepted(listen, connect), at);
        legs.expect_redirected(at, at * BYTES, at * BYTES);
    }
}

#[test]
fn both_ends_of_what_the_agent_dials() {
    let legs = Legs::attach();
    for (at, (listen, connect)) in (1..).zip(FAMILIES) {
        exchange(legs.dialled(listen, connect), at);
        legs.expect_redirected(at, at * BYTES, at * BYTES);
    }
}

#[test]
fn an_ipv4_socket_at_a_listener_of_both_families() {
    let legs = Legs::attach();
    exchange(legs.accepted("[::]:0", "127.0.0.1"), 1);
    exchange(legs.dialled("[::]:0", "127.0.0.1"), 2);
    legs.expect_redirected(2, 2 * BYTES, 2 * BYTES);
}

#[test]
fn listeners_on_every_address() {
    let legs = Legs::attach();
    let (v4, all) = (legs.listen("0.0.0.0:0"), legs.listen("[::]:0"));
    let ways = [(&v4, "127.0.0.1"), (&v4, "127.9.8.7"), (&v4, "::ffff:127.0.0.1"), (&all, "127.0.0.2"), (&all, "::1")];
    for (at, (listener, connect)) in (1..).zip(ways) {
        exchange(Pair::accept(listener, connect), at);
        legs.expect_redirected(at, at * BYTES, at * BYTES);
    }
}

#[test]
fn the_other_address_of_this_machine() {
    // Connecting to an address that is not loopback's comes from that address itself, and stays here all the same.
    in_new_namespace(|| {
        add_address("10.9.8.7/32");
        let legs = Legs::attach();
        exchange(legs.accepted("10.9.8.7:0", "10.9.8.7"), 1);
        exchange(legs.accepted("0.0.0.0:0", "10.9.8.7"), 2);
        exchange(legs.dialled("10.9.8.7:0", "10.9.8.7"), 3);
        legs.expect_redirected(3, 3 * BYTES, 3 * BYTES);
    });
}

#[test]
fn a_source_address_of_its_own() {
    let from = |legs: &Legs, source: &str, listen: &str| {
        let listener = legs.listen(listen);
        let app = bound_socket(source.parse().unwrap());
        app.connect(&listener.local_addr().unwrap().into()).unwrap();
        let (agent, _) = listener.accept().unwrap();
        Pair { app: app.into(), agent }
    };
    in_new_namespace(|| {
        add_address("10.9.8.7/32");
        let legs = Legs::attach();
        exchange(from(&legs, "127.0.0.77:0", "127.0.0.1:0"), 1);
        legs.expect_redirected(1, BYTES, BYTES);
        // The application's end takes the other for one on another machine, so that the agent's end finds nobody.
        exchange(from(&legs, "127.0.0.77:0", "10.9.8.7:0"), 2);
        legs.expect(&Took {
            enrolled: 3,
            to_agent: BYTES,
            from_agent: BYTES,
            passed: BYTES,
            passes: &[(Pass::NoPeer, 1)],
            refusals: &[(Refusal::Remote, 1)],
        });
    });
}

fn add_address(address: &str) {
    let added = Command::new("ip").args(["address", "add", address, "dev", "lo"]).status();
    assert!(added.expect("this test needs ip: install iproute2").success());
}

#[test]
fn bystanders_are_left_alone() {
    let legs = Legs::attach();
    let ours = legs.listen("127.0.0.1:0");
    exchange(Pair::plain(), 1);
    // The same port at another address is a stranger's.
    let stranger = TcpListener::bind(("127.0.0.2", port(&ours))).unwrap();
    exchange(Pair::accept(&stranger, "127.0.0.2"), 2);
    // So is a socket that the agent has not marked.
    exchange(Pair::accept(&TcpListener::bind("[::]:0").unwrap(), "::1"), 3);
    legs.expect(&Took::default());
    exchange(Pair::accept(&ours, "127.0.0.1"), 4);
    legs.expect_redirected(1, BYTES, BYTES);
}

#[test]
fn udp_is_left_alone() {
    let legs = Legs::attach();
    let tcp = legs.listen("127.0.0.1:0");
    let receiver = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut sent, mut received) = (Stamps::of(1), Stamps::of(1));
    for _ in 0..100 {
        let datagram = sent.make(1000);
        assert_eq!(sender.send(&datagram).unwrap(), 1000);
        let mut buffer = [0; 2000];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 1000);
        received.check(&buffer[..1000]);
    }
    legs.expect(&Took::default());
}

#[test]
fn mptcp_at_the_applications_end_is_left_alone() {
    let legs = Legs::attach();
    let listener = legs.listen("127.0.0.1:0");
    let app = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("this test needs MPTCP in the kernel");
    app.connect(&listener.local_addr().unwrap().into()).unwrap();
    let (agent, _) = listener.accept().unwrap();
    exchange(Pair { app: app.into(), agent }, 1);
    // The agent's end is there, and finds no other.
    legs.expect(&Took {
        enrolled: 1,
        passed: BYTES,
        passes: &[(Pass::NoPeer, 1)],
        refusals: &[(Refusal::Special, 1)],
        ..Took::default()
    });
}

#[test]
fn a_service_that_speaks_mptcp_is_reached() {
    let legs = Legs::attach();
    let service = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("this test needs MPTCP in the kernel");
    service.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    service.listen(1).unwrap();
    let agent = legs.dial(service.local_addr().unwrap().as_socket().unwrap());
    let (app, _) = service.accept().unwrap();
    exchange(Pair { app: app.into(), agent }, 1);
    // The agent dials by plain TCP, so that what it reaches is plain TCP, too.
    legs.expect_redirected(1, BYTES, BYTES);
}

#[test]
fn excluded_namespaces_are_left_alone() {
    in_new_namespace(|| {
        // Another thread opens it.
        let here = std::fs::canonicalize("/proc/thread-self").unwrap().join("ns/net");
        let legs = Legs::with(&Options { bound: 1 << 20, exclude_namespaces: vec![here], ..Options::default() });
        exchange(legs.accepted("127.0.0.1:0", "127.0.0.1"), 1);
        legs.expect(&Took { refusals: &[(Refusal::Excluded, 2)], ..Took::default() });
        exchange(legs.dialled("127.0.0.1:0", "127.0.0.1"), 2);
        // The service's end is not even looked at, as the agent's was not enrolled.
        legs.expect(&Took { refusals: &[(Refusal::Excluded, 3)], ..Took::default() });
    });
}

#[test]
fn the_same_addresses_in_two_namespaces() {
    const SERVICE: &str = "127.0.0.1:7000";
    const CLIENT: &str = "127.0.0.1:7001";
    let legs = Legs::attach();
    let both_open = Barrier::new(2);
    let there = |stream: u64| {
        let (legs, both_open) = (&legs, &both_open);
        move || {
            in_new_namespace(|| {
                let service = TcpListener::bind(SERVICE).unwrap();
                let agent = bound_socket(CLIENT.parse().unwrap());
                legs.path().dialling(agent.as_fd()).unwrap();
                agent.connect(&service.local_addr().unwrap().into()).unwrap();
                let (app, _) = service.accept().unwrap();
                both_open.wait();
                exchange(Pair { app, agent: agent.into() }, stream);
            });
        }
    };
    thread::scope(|scope| {
        scope.spawn(there(1));
        scope.spawn(there(2));
    });
    legs.expect_redirected(2, 2 * BYTES, 2 * BYTES);
}

#[test]
fn a_strangers_listener_at_the_same_address_of_another_namespace() {
    let legs = Legs::attach();
    let ours = legs.listen("127.0.0.1:0");
    let address = ours.local_addr().unwrap();
    in_new_namespace(|| exchange(Pair::accept(&TcpListener::bind(address).unwrap(), "127.0.0.1"), 1));
    legs.expect(&Took::default());
    exchange(Pair::accept(&ours, "127.0.0.1"), 2);
    legs.expect_redirected(1, BYTES, BYTES);
}

#[test]
fn addresses_that_are_used_again() {
    let legs = Legs::attach();
    let listener = legs.listen("127.0.0.1:0");
    let mut rng = seed::rng("addresses_that_are_used_again");
    let rounds = seed::count(4_000, 20_000) as u64;
    // Below the ports that the kernel gives out by itself.
    let mut from: SocketAddr = free_address();
    let (mut there, mut back) = (0, 0);
    for round in 0..rounds {
        // If both ends closed at once, the addresses rest for a while: it goes on with others.
        let app = loop {
            let app = bound_socket(from);
            match app.connect(&listener.local_addr().unwrap().into()) {
                Ok(()) => break app,
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => from = free_address(),
                Err(error) => panic!("connecting from {from}: {error}"),
            }
        };
        let (mut agent, _) = listener.accept().unwrap();
        let mut app: TcpStream = app.into();
        let sizes: [usize; 2] = [rng.random_range(1..3_000), rng.random_range(0..3_000)];
        app.write_all(&Stamps::of(round).make(sizes[0])).unwrap();
        agent.write_all(&Stamps::of(rounds + round).make(sizes[1])).unwrap();
        Stamps::of(round).receive(&mut agent, sizes[0] as u64, &mut rng, |_| {});
        // One in eight leaves what it was sent unread, which a later socket must not see.
        if rng.random_range(0..8) > 0 {
            Stamps::of(rounds + round).receive(&mut app, sizes[1] as u64, &mut rng, |_| {});
        }
        (there, back) = (there + sizes[0] as u64, back + sizes[1] as u64);
        // The end that closes first keeps the addresses (TIME_WAIT); only the agent's gives them to the next connection.
        if rng.random_range(0..2) == 0 {
            SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
            drop(app);
            let _ = agent.read(&mut [0]);
        } else {
            drop(agent);
            let _ = app.read(&mut [0; 4096]);
        }
    }
    legs.expect_redirected(rounds, there, back);
}

#[test]
fn a_socket_that_connects_again() {
    let legs = Legs::attach();
    let (ours, stranger) = (legs.listen("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0").unwrap());
    let socket = stream_socket(ours.local_addr().unwrap());
    // First to the agent, then to somebody else, then to the agent again.
    for (at, listener) in (1..).zip([&ours, &stranger, &ours]) {
        let address = listener.local_addr().unwrap();
        until_true("the socket to connect", || socket.connect(&address.into()).is_ok());
        let (agent, _) = listener.accept().unwrap();
        let app = socket.try_clone().unwrap().into();
        stay_connected(&app, &agent, at);
        rustix::net::connect_unspec(&socket).unwrap();
    }
    legs.expect_redirected(2, 2 * BYTES, 2 * BYTES);
}

/// What the first connection left unread is not read on the second, nor sent to it.
#[test]
fn a_socket_that_connects_again_with_something_unread() {
    let legs = Legs::attach();
    for again in [legs.listen("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0").unwrap()] {
        let ours = legs.listen("127.0.0.1:0");
        let socket = stream_socket(ours.local_addr().unwrap());
        socket.connect(&ours.local_addr().unwrap().into()).unwrap();
        let (mut agent, _) = ours.accept().unwrap();
        agent.write_all(&[7; 1000]).unwrap();
        until_true("the bytes", || readable(&socket) == 1000);
        rustix::net::connect_unspec(&socket).unwrap();
        socket.connect(&again.local_addr().unwrap().into()).unwrap();
        let (other, _) = again.accept().unwrap();
        assert_eq!(readable(&socket), 0, "bytes of the former connection");
        assert!(agent.write(&[7; 1000]).is_err(), "the former connection still takes bytes");
        stay_connected(&socket.try_clone().unwrap().into(), &other, 1);
    }
    // All but the one with a stranger; what was left unread had been redirected, too.
    legs.expect(&Took { enrolled: 6, to_agent: BYTES, from_agent: BYTES + 2_000, ..Took::default() });
}

/// Sends both ways, and leaves the connection as it is.
fn stay_connected(mut app: &TcpStream, mut agent: &TcpStream, stream: u64) {
    let mut rng = seed::rng("stay_connected");
    Stamps::of(stream).send(&mut app, BYTES, 9_000, &mut rng);
    Stamps::of(stream).receive(&mut agent, BYTES, &mut rng, |_| {});
    Stamps::of(!stream).send(&mut agent, BYTES, 9_000, &mut rng);
    Stamps::of(!stream).receive(&mut app, BYTES, &mut rng, |_| {});
}

#[test]
fn a_full_map() {
    let legs = Legs::with(&Options { bound: 1 << 20, sockets_max: Some(3), ..Options::default() });
    let listener = legs.listen("127.0.0.1:0");
    let held = Pair::accept(&listener, "127.0.0.1");
    legs.expect_redirected(1, 0, 0);
    // The application's end takes the last place, and finds nobody.
    exchange(Pair::accept(&listener, "127.0.0.1"), 1);
    let took =
        Took { enrolled: 3, passed: BYTES, passes: &[(Pass::NoPeer, 1)], refusals: &[(Refusal::Full, 1)], ..Took::default() };
    legs.expect(&took);
    exchange(held, 2);
    legs.expect(&Took { to_agent: BYTES, from_agent: BYTES, ..took });
    until_true("the places to be free again", || legs.enrolled().unwrap() == 0);
    exchange(Pair::accept(&listener, "127.0.0.1"), 3);
    legs.expect(&Took { enrolled: 5, to_agent: 2 * BYTES, from_agent: 2 * BYTES, ..took });
}

#[test]
fn sockets_that_are_in_somebody_elses_map() {
    let (first, second) = (Legs::attach(), Legs::attach());
    let socket = bound_socket("127.0.0.1:0".parse().unwrap());
    first.mark_listener(&socket);
    second.mark_listener(&socket);
    socket.listen(16).unwrap();
    exchange(Pair::accept(&socket.into(), "127.0.0.1"), 1);
    first.expect_redirected(1, BYTES, BYTES);
    second.expect(&Took { refusals: &[(Refusal::Busy, 2)], ..Took::default() });
}

#[test]
fn one_end_in_somebody_elses_map() {
    // The other marks only what the agent dials, so that it takes no end of the service's: both are left to TCP.
    let (other, legs) = (Legs::attach(), Legs::attach());
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = stream_socket(service.local_addr().unwrap());
    for legs in [&other, &legs] {
        legs.path().dialling(socket.as_fd()).unwrap();
    }
    socket.connect(&service.local_addr().unwrap().into()).unwrap();
    let (app, _) = service.accept().unwrap();
    exchange(Pair { app, agent: socket.into() }, 1);
    other.expect_redirected(1, BYTES, BYTES);
    // The agent's end is refused, and the service's then is none of its own.
    legs.expect(&Took { refusals: &[(Refusal::Busy, 1)], ..Took::default() });
}

#[test]
fn nothing_is_enrolled_for_an_agent_that_is_silent() {
    let legs = Legs::attach();
    let listener = legs.listen("127.0.0.1:0");
    let connect = |stream| {
        exchange(Pair::accept(&listener, "127.0.0.1"), stream);
        legs.took()
    };
    assert_eq!(connect(1).enrolled, 2);
    legs.silence();
    let took = until_within(2 * PATIENCE, "the lease to end", || Some(connect(2)).filter(refused));
    assert_eq!(connect(3).enrolled, took.enrolled);
    legs.beat();
    assert_eq!(connect(4).enrolled, took.enrolled + 2);
}

fn refused(took: &Verdicts) -> bool {
    took.refusals[Refusal::Stale as usize] > 0
}
