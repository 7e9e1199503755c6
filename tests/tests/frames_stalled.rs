//! Peers that do not read, or give nothing back: bounded, told so, and nobody else's matter.

use std::thread;

use agent_common::frame::{Flags, Header, Hello, Kind, WINDOW_MIN, Windows, service_hash};
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, config, echo,
    frames::{FramePeer, bytes_of, caller, meta_of, serve, service},
    machine::memory_kib,
    until_true,
};

const USER: &str = "/service/user";
const WHOLE: Flags = Flags::END_STREAM;
/// What an agent may come to hold beside what it is allowed to hold for one connection: buffers, tables, stacks.
const MARGIN_KIB: u64 = 48 << 10;

fn timed(uri: &str, timeout_ms: u32) -> Header {
    Header { flags: WHOLE, word: timeout_ms, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) }
}

/// A caller whose calls must all be answered while the others misbehave.
fn expect_served(agent: &Agent, uri: &str, calls: usize) {
    let mut client = FramePeer::connect(agent.address(), &caller());
    for _ in 0..calls {
        let got = client.call(uri, echo("good").as_bytes());
        assert_eq!(got.header.word, 0, "{}", got.error());
    }
}

fn expect_nothing_left(agent: &Agent) {
    until_true("nothing to be held", || {
        let status = agent.json(&["status"]);
        status["calls"]["in_flight"] == 0 && status["app"]["queued_bytes"] == 0
    });
}

/// Calls until the agent ends the connection, and reads nothing.
fn call_without_reading(mut client: FramePeer, uri: &str, most: usize) -> usize {
    let meta = meta_of(uri);
    let body = echo("x");
    for stream in 1..=most {
        let stream = u32::try_from(stream).expect("a number");
        let header = Header { stream, via: u64::from(stream), ..timed(uri, 60_000) };
        if client.try_write(&bytes_of(header, meta.as_ref(), body.as_bytes())).is_err() {
            return usize::try_from(stream).expect("a number");
        }
    }
    panic!("the agent has taken {most} calls whose answers nobody reads");
}

#[test]
fn a_caller_that_never_reads_is_bounded_and_others_go_on() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let answer = vec![7; 4_000];
    let _serving = serve(FramePeer::connect(agent.address(), &service("s1", &[USER])), move |peer, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond(&got, 0, &answer);
        }
    });
    fake.script(|_| Answer::bulk(&[7; 30_000]));
    expect_served(&agent, USER, 100);
    let before = memory_kib(agent.pid(), "VmRSS");
    for uri in [USER, DEMO, "/service/unknown"] {
        let client = FramePeer::connect(agent.address(), &caller());
        let calling = thread::spawn(move || call_without_reading(client, uri, 2_000_000));
        while !calling.is_finished() {
            expect_served(&agent, USER, 10);
        }
        calling.join().expect("the caller that never reads");
        let after = memory_kib(agent.pid(), "VmRSS");
        assert!(after < before + MARGIN_KIB, "{uri}: {before} KiB, then {after} KiB");
    }
    expect_served(&agent, USER, 100);
    expect_nothing_left(&agent);
}

#[test]
fn what_waits_for_a_caller_that_gives_nothing_back_is_bounded() {
    let agent = Agent::start("[app]\nqueued_bytes_max = 100000\n");
    let mut hello = caller();
    hello.windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
    let mut client = FramePeer::connect(agent.address(), &hello);
    let (mut answered, mut cancelled) = (0, 0);
    for _ in 0..100 {
        for _ in 0..100 {
            client.request("/service/unknown", WHOLE, b"");
        }
        // It does read, and finds no more than it has room for; what follows comes without room.
        client.send(Header::new(Kind::Ping), &[], &[]);
        loop {
            let got = client.expect_any();
            match got.kind() {
                Some(Kind::Pong) => break,
                Some(Kind::Response) => answered += 1,
                _ => cancelled += 1,
            }
            assert!(got.header.word == 501, "{got:?}");
        }
    }
    assert!(cancelled > 0, "{answered} answers");
    let queued = agent.json(&["status"])["app"]["queued_bytes"].as_u64();
    assert!(queued < Some(200_000), "{queued:?} bytes wait");
}

#[test]
fn a_service_that_never_reads_is_bounded_and_others_go_on() {
    let agent = Agent::start("[tunnel]\nqueued_bytes_max = 4_194_304");
    let _stuck = FramePeer::connect(agent.address(), &service("stuck", &["/service/stuck"]));
    let _serving = serve(FramePeer::connect(agent.address(), &service("s1", &[USER])), |peer, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond(&got, 0, b"");
        }
    });
    expect_served(&agent, USER, 100);
    let before = memory_kib(agent.pid(), "VmRSS");
    let mut client = FramePeer::connect(agent.address(), &caller());
    let meta = meta_of("/service/stuck");
    let (mut sent, mut ended, mut full) = (0, 0, 0);
    while full < 10 {
        client.request_with(timed("/service/stuck", 5_000), meta.as_ref(), &[7; 30_000]);
        sent += 1;
        assert!(sent < 20_000, "nothing bounds what waits");
        client.send(Header::new(Kind::Ping), &[], &[]);
        loop {
            let got = client.expect_any();
            if got.kind() == Some(Kind::Pong) {
                break;
            }
            ended += 1;
            assert!([304, 504].contains(&got.header.word), "{}", got.error());
            full += usize::from(got.header.word == 504);
        }
    }
    expect_served(&agent, USER, 100);
    while ended < sent {
        let got = client.expect(Kind::Response);
        assert!([304, 504].contains(&got.header.word), "{}", got.error());
        ended += 1;
    }
    client.expect_quiet();
    let after = memory_kib(agent.pid(), "VmRSS");
    assert!(after < before + MARGIN_KIB, "{before} KiB, then {after} KiB");
    until_true("nothing to be in flight", || agent.json(&["status"])["calls"]["in_flight"] == 0);
}

#[test]
fn a_caller_that_gives_no_credit_holds_up_only_its_own_answer() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &Hello { connection: Some(0), ..service("s1", &[USER]) });
    // On one worker, so that no other windows are between.
    let mut hello = Hello { connection: Some(0), ..caller() };
    hello.windows = Windows { stream: WINDOW_MIN, connection: 1 << 20 };
    let mut client = FramePeer::connect(agent.address(), &hello);
    let mut other = FramePeer::connect(agent.address(), &caller());
    let mut stuck = Vec::new();
    for _ in 0..8 {
        client.request_with(timed(USER, 3_000), meta_of(USER).as_ref(), b"");
        let call = server.expect(Kind::Request);
        let back = call.back(Kind::Response);
        server.send(back, &[], &[7; 50_000]);
        // All that the agent's window of the message has room for.
        (0..4).for_each(|_| server.data(&back, Flags::TO_CALLER, &[7; 50_000]));
        stuck.push(call.header.via);
        other.request(USER, WHOLE, b"");
        let call = server.expect(Kind::Request);
        server.respond(&call, 0, b"good");
        assert_eq!(other.expect(Kind::Response).body, b"good");
    }
    for _ in 0..8 {
        assert_eq!(client.expect(Kind::Response).body.len(), 50_000);
    }
    client.expect_quiet();
    for _ in 0..8 {
        let got = client.expect(Kind::Cancel);
        assert_eq!(got.header.word, 304, "{}", got.error());
        let cancel = server.expect(Kind::Cancel);
        assert!(stuck.contains(&cancel.header.via), "{cancel:?}");
    }
    expect_nothing_left(&agent);
}

#[test]
fn whoever_floods_with_pings_and_never_reads_is_cut_off() {
    let agent = Agent::start("");
    let _serving = serve(FramePeer::connect(agent.address(), &service("s1", &[USER])), |peer, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond(&got, 0, b"");
        }
    });
    expect_served(&agent, USER, 10);
    let before = memory_kib(agent.pid(), "VmRSS");
    let mut flood = FramePeer::connect(agent.address(), &caller());
    let pings = Header::new(Kind::Ping).bytes().repeat(1_000);
    // What it sends behind the end is read and dropped for a moment, however much that is.
    until_true("the flood to be cut off", || (0..1_000).any(|_| flood.try_write(&pings).is_err()));
    expect_served(&agent, USER, 100);
    let after = memory_kib(agent.pid(), "VmRSS");
    assert!(after < before + MARGIN_KIB, "{before} KiB, then {after} KiB");
    // Whoever reads may send as many as it likes.
    let mut reader = FramePeer::connect(agent.address(), &caller());
    for _ in 0..100 {
        reader.write(&pings[..40 * 100]);
        (0..100).for_each(|_| drop(reader.expect(Kind::Pong)));
    }
    expect_nothing_left(&agent);
}
