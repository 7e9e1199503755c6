//! Deadlines, calls that are given up, and calls that nobody answers.

use agent_common::frame::{Flags, Header, Kind, service_hash};
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate,
    client::command,
    config, echo, envelope, expect_code,
    fake::demo,
    frames::{FramePeer, Got, caller, meta_of, service},
    until_true,
};

const USER: &str = "/service/user";
const WHOLE: Flags = Flags::END_STREAM;

fn timed(uri: &str, flags: Flags, timeout_ms: u32) -> Header {
    Header { flags, word: timeout_ms, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) }
}

fn expect_304(client: &mut FramePeer, stream: u32) -> Got {
    let got = client.expect(Kind::Response);
    assert_eq!((got.header.word, got.header.stream, got.has(WHOLE)), (304, stream, true), "{}", got.error());
    got
}

#[test]
fn a_deadline_ends_a_call_here_and_there() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    for flags in [WHOLE, Flags::NONE, WHOLE | Flags::IDEMPOTENT] {
        let stream = client.request_with(timed(USER, flags, 50), meta_of(USER).as_ref(), b"");
        let call = server.expect(Kind::Request);
        assert!((1..=50).contains(&call.header.word), "{call:?}");
        let got = expect_304(&mut client, stream);
        assert!(!got.has(Flags::NOT_EXECUTED), "it was sent");
        let cancel = server.expect(Kind::Cancel);
        assert_eq!((cancel.header.via, cancel.header.word, cancel.header.stream), (call.header.via, 304, call.header.stream));
        server.respond(&call, 0, b"late");
    }
    client.expect_quiet();
    // The longest and the shortest there are.
    client.request_with(timed(USER, WHOLE, u32::MAX), meta_of(USER).as_ref(), b"");
    let call = server.expect(Kind::Request);
    assert!(call.header.word > u32::MAX - 60_000, "{call:?}");
    server.respond(&call, 0, b"");
    client.expect(Kind::Response);
    let stream = client.request_with(timed(USER, WHOLE, 1), meta_of(USER).as_ref(), b"");
    assert_eq!(server.expect(Kind::Request).header.word, 1, "at least 1 is sent on");
    expect_304(&mut client, stream);
    server.expect(Kind::Cancel);
    assert_eq!(agent.json(&["status"])["calls"]["in_flight"], 0);
}

#[test]
fn an_answer_that_stops_in_the_middle_is_cancelled() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let stream = client.request_with(timed(USER, WHOLE, 2000), meta_of(USER).as_ref(), b"");
    let call = server.expect(Kind::Request);
    server.send(call.back(Kind::Response), &[], b"begun");
    client.expect(Kind::Response);
    let got = client.expect(Kind::Cancel);
    assert_eq!((got.header.stream, got.header.word, got.has(Flags::TO_CALLER)), (stream, 304, true));
    assert_eq!(server.expect(Kind::Cancel).header.word, 304);
    // One that the service gives up is, too.
    let stream = client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    server.send(call.back(Kind::Response), &[], b"begun");
    client.expect(Kind::Response);
    let flags = Flags::TO_CALLER | Flags::NOT_EXECUTED;
    server.send(Header { flags, word: 333, ..call.back(Kind::Cancel) }, &[14, 0, 2, b'n', b'o'], &[]);
    let got = client.expect(Kind::Cancel);
    assert_eq!((got.header.stream, got.header.word, got.error().as_str()), (stream, 333, "no"));
    // And the same before it has begun.
    client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    server.send(Header { flags, word: 333, ..call.back(Kind::Cancel) }, &[14, 0, 2, b'n', b'o'], &[]);
    let got = client.expect(Kind::Response);
    assert_eq!((got.header.word, got.has(WHOLE | Flags::NOT_EXECUTED), got.error().as_str()), (333, true, "no"));
}

#[test]
fn without_a_deadline_a_call_has_its_services() {
    let fake = FakeMoa::start();
    let policy = format!("timeout_ms = 60\n{}", config::NO_HEALTH_CHECK);
    let agent =
        Agent::start(&format!("{}{}", config::service(USER, &[], &policy), config::service(DEMO, &[fake.address()], &policy)));
    fake.script(|_| Answer::silence());
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let stream = client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    assert!((1..=60).contains(&call.header.word), "{call:?}");
    expect_304(&mut client, stream);
    server.expect(Kind::Cancel);
    let mut redis = agent.connect();
    redis.send(command(&["GET", &envelope(USER, "m", "")]));
    server.expect(Kind::Request);
    expect_code(&redis.read(), 304);
    assert_eq!(server.expect(Kind::Cancel).header.word, 304);
    // To a server that speaks Redis.
    let stream = client.request(DEMO, WHOLE, echo("x").as_bytes());
    expect_304(&mut client, stream);
    fake.script(demo);
    assert_eq!(client.call(DEMO, echo("x").as_bytes()).header.word, 0);
    fake.script(|_| Answer::silence());
    let stream = client.request_with(timed(DEMO, WHOLE, 20), meta_of(DEMO).as_ref(), echo("x").as_bytes());
    expect_304(&mut client, stream);
}

#[test]
fn a_call_is_given_up_at_the_service_too() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    for flags in [WHOLE, Flags::NONE] {
        let stream = client.request(USER, flags, b"");
        let call = server.expect(Kind::Request);
        client.cancel(USER, stream);
        let cancel = server.expect(Kind::Cancel);
        assert_eq!((cancel.header.via, cancel.header.word, cancel.has(Flags::TO_CALLER)), (call.header.via, 305, false));
    }
    // The end of a caller's connection gives its calls up, in either protocol.
    let mut second = FramePeer::connect(agent.address(), &caller());
    second.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    drop(second);
    assert_eq!(server.expect(Kind::Cancel).header.via, call.header.via);
    let mut redis = agent.connect();
    redis.send(command(&["GET", &envelope(USER, "m", "")]));
    let call = server.expect(Kind::Request);
    drop(redis);
    assert_eq!(server.expect(Kind::Cancel).header.via, call.header.via);
    // A server of Redis can't be told; its answer is dropped, and nobody else gets it.
    let gate = Gate::closed();
    let held = gate.clone();
    fake.script(move |call| demo(call).at(&held));
    let stream = client.request(DEMO, WHOLE, echo("given up").as_bytes());
    fake.await_in_flight(1);
    client.cancel(DEMO, stream);
    let kept = client.request(DEMO, WHOLE, echo("kept").as_bytes());
    fake.await_in_flight(2);
    gate.open();
    let got = client.expect(Kind::Response);
    assert_eq!((got.header.stream, String::from_utf8_lossy(&got.body).contains("kept")), (kept, true), "{got:?}");
    client.expect_quiet();
    until_true("nothing to be in flight", || agent.json(&["status"])["calls"]["in_flight"] == 0);
}

#[test]
fn a_one_way_call_is_delivered_and_not_answered() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let until = |calls: u64| {
        until_true(&format!("{calls} calls to be counted, as in {}", agent.json(&["status"])["calls"]), || {
            agent.json(&["status"])["calls"]["calls"] == calls
        });
    };
    client.request(USER, WHOLE | Flags::ONE_WAY, b"once");
    let call = server.expect(Kind::Request);
    assert_eq!((call.header.flags, &call.body[..]), (WHOLE | Flags::ONE_WAY, &b"once"[..]));
    server.respond(&call, 0, b"nobody asked");
    // Streamed, too.
    let stream = client.request(USER, Flags::ONE_WAY, b"begun");
    let header = Header { stream, via: u64::from(stream), ..timed(USER, Flags::NONE, 0) };
    client.data(&header, WHOLE | Flags::ONE_WAY, &[7; 50_000]);
    let call = server.expect(Kind::Request);
    assert_eq!((call.header.flags, call.body.len()), (Flags::ONE_WAY, 5));
    let data = server.expect(Kind::Data);
    assert_eq!((data.header.flags, data.body.len()), (WHOLE | Flags::ONE_WAY, 50_000));
    server.send(call.back(Kind::Response), &[], b"begun");
    // To a server of Redis, whose answer is read and dropped.
    client.request(DEMO, WHOLE | Flags::ONE_WAY, echo("quietly").as_bytes());
    client.request(DEMO, WHOLE | Flags::ONE_WAY, envelope(DEMO, "big", "1000000").as_bytes());
    fake.await_counts("both calls", |counts| counts.calls == 2);
    assert_eq!(client.call(DEMO, echo("aloud").as_bytes()).header.word, 0);
    // What can't be delivered is counted, and no more.
    until(5);
    client.request("/service/unknown", WHOLE | Flags::ONE_WAY, b"");
    client.request_with(Header { service: 1, ..timed(USER, WHOLE | Flags::ONE_WAY, 0) }, meta_of(USER).as_ref(), b"");
    drop(server);
    until(7);
    client.expect_quiet();
    until_true("nothing to be in flight", || agent.json(&["status"])["calls"]["in_flight"] == 0);
    assert_eq!(agent.json(&["status"])["app"]["queued_bytes"], 0);
}
