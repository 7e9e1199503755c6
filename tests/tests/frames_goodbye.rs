//! How connections end in good order: GOAWAY of services, of callers, and of an agent that is stopped.

use agent_common::frame::{Flags, Header, Kind, status::reason};
use moa_tests::{
    Agent, DEMO, FakeMoa, Gate, PATIENCE, Reply,
    client::command,
    config, echo, envelope,
    fake::demo,
    frames::{FramePeer, caller, service},
    until_true,
};
use nix::sys::signal::Signal;

const USER: &str = "/service/user";
const WHOLE: Flags = Flags::END_STREAM;

#[test]
fn a_service_that_says_goodbye_gets_no_new_calls_and_ends_its_own() {
    let agent = Agent::start("");
    let mut leaves = FramePeer::connect(agent.address(), &service("leaves", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    client.request(USER, WHOLE, b"");
    client.request(USER, Flags::NONE, b"");
    let calls = [leaves.expect(Kind::Request), leaves.expect(Kind::Request)];
    leaves.send(Header::new(Kind::GoAway), &[], &[]);
    leaves.expect_quiet();
    until_true("the service to be gone", || client.call(USER, b"").header.word != 0);
    let mut other = FramePeer::connect(agent.address(), &service("other", &[USER]));
    for _ in 0..4 {
        client.request(USER, WHOLE, b"");
        let call = other.expect(Kind::Request);
        other.respond(&call, 0, b"");
        client.expect(Kind::Response);
    }
    for call in &calls {
        leaves.respond(call, 0, b"in the end");
        assert_eq!(client.expect(Kind::Response).body, b"in the end");
    }
    leaves.expect_goaway(reason::DRAIN);
}

#[test]
fn a_final_goodbye_says_which_calls_were_not_executed() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    for _ in 0..4 {
        client.request(USER, WHOLE, b"");
    }
    let calls: Vec<_> = (0..4).map(|_| server.expect(Kind::Request)).collect();
    server.send(Header { flags: WHOLE, stream: calls[1].header.stream, ..Header::new(Kind::GoAway) }, &[], &[]);
    for _ in 0..2 {
        let got = client.expect(Kind::Response);
        assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (303, true), "{}", got.error());
        assert!(got.header.stream > 2, "{got:?}");
    }
    for call in &calls[..2] {
        server.respond(call, 0, b"executed");
        assert_eq!(client.expect(Kind::Response).body, b"executed");
    }
    server.expect_goaway(reason::DRAIN);
    // At once, if the reason is an error.
    let mut server = FramePeer::connect(agent.address(), &service("s2", &[USER]));
    client.request(USER, WHOLE, b"");
    client.request(USER, WHOLE, b"");
    let first = server.expect(Kind::Request);
    let goaway = Header { flags: WHOLE, stream: first.header.stream, word: reason::PROTOCOL, ..Header::new(Kind::GoAway) };
    server.expect(Kind::Request);
    server.send(goaway, &[14, 0, 3, b'w', b'h', b'y'], &[]);
    let mut got = [client.expect(Kind::Response), client.expect(Kind::Response)];
    got.sort_unstable_by_key(|got| got.header.stream);
    assert_eq!(got.each_ref().map(|got| (got.header.word, got.has(Flags::NOT_EXECUTED))), [(303, false), (303, true)]);
    assert!(got[0].error().contains("why"), "{}", got[0].error());
    server.expect_end();
}

#[test]
fn a_caller_that_says_goodbye_still_gets_its_answers() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    client.send(Header { flags: WHOLE, ..Header::new(Kind::GoAway) }, &[], &[]);
    client.expect_quiet();
    server.respond(&call, 0, b"still");
    assert_eq!(client.expect(Kind::Response).body, b"still");
    client.expect_goaway(reason::DRAIN);
}

#[test]
fn an_answer_that_has_come_whole_outlives_who_gave_it() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut narrow = caller();
    narrow.windows = agent_common::frame::Windows { stream: 65_536, connection: 65_536 };
    let mut client = FramePeer::connect(agent.address(), &narrow);
    client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    let back = call.back(Kind::Response);
    server.send(back, &[], &[1; 60_000]);
    server.data(&back, Flags::TO_CALLER, &[2; 60_000]);
    server.data(&back, Flags::TO_CALLER | WHOLE, &[3; 60_000]);
    server.expect_read();
    drop(server);
    until_true("the service to be gone", || agent.json(&["services"]).as_array().is_some_and(Vec::is_empty));
    for byte in 1..=3 {
        let got = client.expect_any();
        assert_eq!((got.body.len(), got.body.first(), got.has(WHOLE)), (60_000, Some(&byte), byte == 3), "{:?}", got.header);
        client.credit(&got, 60_040);
    }
}

#[test]
fn an_agent_that_is_stopped_ends_its_calls_first() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let gate = Gate::closed();
    let held = gate.clone();
    fake.script(move |call| demo(call).at(&held));
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut redis = agent.connect();
    let mut idle = FramePeer::connect(agent.address(), &caller());
    client.request(USER, WHOLE, b"");
    let call = server.expect(Kind::Request);
    let begun = client.request(USER, Flags::NONE, b"begun");
    let streamed = server.expect(Kind::Request);
    let to_redis = client.request(DEMO, WHOLE, echo("held").as_bytes());
    redis.send(command(&["GET", &envelope(USER, "m", "")]));
    let of_redis = server.expect(Kind::Request);
    fake.await_in_flight(1);
    agent.signal(Signal::SIGTERM);
    idle.expect_any();
    let goaway = client.expect(Kind::GoAway);
    assert!(!goaway.has(WHOLE), "its calls go on");
    assert!(!server.expect(Kind::GoAway).has(WHOLE), "callers still need it");
    assert!(agent.ended().is_none());
    client.data(&Header { stream: begun, via: u64::from(begun), ..Header::new(Kind::Data) }, WHOLE, b"end");
    assert_eq!(server.expect(Kind::Data).body, b"end");
    for call in [&call, &streamed] {
        server.respond(call, 0, b"in the end");
        assert_eq!(client.expect(Kind::Response).body, b"in the end");
    }
    server.respond(&of_redis, 0, b"{\"ec\":0}");
    assert_eq!(redis.read(), Reply::Bulk(b"{\"ec\":0}".to_vec()));
    gate.open();
    let got = client.expect(Kind::Response);
    assert_eq!((got.header.stream, got.header.word), (to_redis, 0));
    client.expect_goaway(reason::DRAIN);
    // Neither of them closes its end: they are not waited for longer than a moment.
    server.expect_goaway(reason::DRAIN);
    drop(redis);
    assert!(agent.wait(PATIENCE).success());
    assert!(!agent.log().contains("drain_timeout"), "{}", agent.log());
}

#[test]
fn an_idle_agent_with_frame_connections_stops_at_once() {
    let mut agent = Agent::start("[agent]\ndrain_timeout_ms = 86400000\n");
    let mut peers = [
        FramePeer::connect(agent.address(), &caller()),
        FramePeer::connect(agent.address(), &service("s1", &[USER])),
        FramePeer::connect(agent.address(), &service("s2", &[USER])),
    ];
    let _silent = FramePeer::silent(agent.address());
    agent.signal(Signal::SIGTERM);
    for peer in &mut peers {
        let mut got = peer.expect(Kind::GoAway);
        while !got.has(WHOLE) {
            got = peer.expect(Kind::GoAway);
        }
        peer.expect_end();
        peer.finish();
    }
    assert!(agent.wait(PATIENCE).success());
}
