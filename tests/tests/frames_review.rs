//! What a review of the frame protocol found: peers that are odd, slow or hostile, and what the others notice of them.

use std::time::{Duration, Instant};

use agent_common::frame::{Flags, Header, Kind, MetaBuilder, WINDOW_MIN, Windows, id, service_hash};
use moa_tests::{
    Agent, DEMO,
    frames::{FramePeer, bytes_of, caller, meta_of, service},
    until_true,
};
use nix::sys::signal::Signal;

const USER: &str = "/service/user";
const NARROW: Windows = Windows { stream: WINDOW_MIN, connection: 1 << 24 };

fn request(stream: u32, uri: &str, flags: Flags, body: &[u8]) -> Vec<u8> {
    let service = service_hash(uri.as_bytes(), b"");
    let header = Header { flags, stream, via: u64::from(stream), service, ..Header::new(Kind::Request) };
    bytes_of(header, meta_of(uri).as_ref(), body)
}

#[test]
fn calls_have_numbers_that_go_forward_whatever_overtakes() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let calls: Vec<u8> =
        (1..=20).flat_map(|n| request(n, USER, Flags::END_STREAM, &vec![7; if n % 2 == 1 { 20_000 } else { 10 }])).collect();
    client.write(&calls);
    for number in 1..=20 {
        let call = server.expect(Kind::Request);
        assert_eq!(call.header.stream, number);
        server.respond(&call, 0, b"");
    }
    (0..20).for_each(|_| drop(client.expect(Kind::Response)));
}

#[test]
fn a_large_answer_that_is_whole_outlives_the_service() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut hello = caller();
    hello.windows = NARROW;
    let mut client = FramePeer::connect(agent.address(), &hello);
    client.request(USER, Flags::END_STREAM, b"");
    let call = server.expect(Kind::Request);
    server.send(call.back(Kind::Response), &[], &[1; 40_000]);
    let data = call.back(Kind::Data);
    server.send(Header { flags: data.flags | Flags::END_STREAM, ..data }, &[], &[2; 40_000]);
    // Behind the end there is nothing.
    server.send(data, &[], &[3; 20_000]);
    let begun = client.expect(Kind::Response);
    server.send(Header::new(Kind::Ping), &[], &[]);
    while server.expect_any().kind() != Some(Kind::Pong) {}
    drop(server);
    until_true("its end to be seen", || agent.json(&["services"]).as_array().is_some_and(Vec::is_empty));
    client.credit(&begun, 40_040);
    let end = client.expect(Kind::Data);
    assert!(end.has(Flags::END_STREAM) && end.body == [2; 40_000]);
    assert_eq!(client.call("/nothing", b"").header.word, 501);
}

#[test]
fn a_long_error_text_does_no_harm_to_the_callers_connection() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut meta = MetaBuilder::new();
    meta.put(id::ERROR_TEXT, &[0xff; 32_000]);
    for _ in 0..2 {
        client.request(USER, Flags::END_STREAM, b"");
        let call = server.expect(Kind::Request);
        server.send(Header { word: 300, ..call.back(Kind::Cancel) }, meta.as_ref(), &[]);
        let answer = client.expect(Kind::Response);
        assert_eq!(answer.header.word, 300);
        assert!(answer.meta.len() < 8192, "{}", answer.meta.len());
    }
    client.request(USER, Flags::END_STREAM, b"");
    server.expect(Kind::Request);
    server.send(Header { flags: Flags::END_STREAM, word: 1, ..Header::new(Kind::GoAway) }, meta.as_ref(), &[]);
    assert_eq!(client.expect(Kind::Response).header.word, 303);
}

#[test]
fn errors_for_who_gives_no_credit_are_bounded() {
    let agent = Agent::start("[app]\nqueued_bytes_max = 262144\n");
    let mut hello = caller();
    hello.windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
    let mut client = FramePeer::connect(agent.address(), &hello);
    client.write(&(1..=6000).flat_map(|n| request(n, "/nothing", Flags::END_STREAM, b"")).collect::<Vec<u8>>());
    let mut ends = None;
    while let Some(got) = client.next_frame() {
        ends = got.kind();
        if ends != Some(Kind::Response) {
            break;
        }
    }
    assert!(matches!(ends, Some(Kind::Cancel | Kind::GoAway)), "{ends:?}");
}

#[test]
fn the_rest_of_a_large_call_goes_when_it_is_answered_early() {
    let agent = Agent::start("[defaults]\nargument_bytes_max = 1000000\n");
    let mut hello = service("s1", &[DEMO]);
    hello.windows = NARROW;
    let mut server = FramePeer::connect(agent.address(), &hello);
    let mut client = agent.connect();
    let long = "x".repeat(900_000);
    for _ in 0..10 {
        client.send(moa_tests::client::command(&["GET", &moa_tests::echo(&long)]));
        let mut call = server.expect_any();
        while call.kind() != Some(Kind::Request) {
            call = server.expect_any();
        }
        server.respond(&call, 0, br#"{"ec":0,"result":"early"}"#);
        assert_eq!(client.read(), moa_tests::Reply::Bulk(br#"{"ec":0,"result":"early"}"#.to_vec()));
    }
}

#[test]
fn who_calls_itself_over_one_connection_gets_its_room_back() {
    let agent = Agent::start("");
    let mut both = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let stream = both.request(USER, Flags::NONE, &[1; 60_000]);
    let header =
        Header { stream, via: u64::from(stream), service: service_hash(USER.as_bytes(), b""), ..Header::new(Kind::Data) };
    both.send(header, &[], &[2; 60_000]);
    let mut kinds: Vec<_> = (0..3).map(|_| both.expect_any().kind().expect("a known kind")).collect();
    kinds.sort_by_key(|kind| *kind as u8);
    assert_eq!(kinds, [Kind::Request, Kind::Data, Kind::Credit]);
}

#[test]
fn an_idle_service_does_not_hold_up_the_end() {
    let mut agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let begun = Instant::now();
    agent.signal(Signal::SIGTERM);
    assert!(!server.expect(Kind::GoAway).has(Flags::END_STREAM));
    assert!(server.expect(Kind::GoAway).has(Flags::END_STREAM));
    // It does not close.
    assert!(agent.wait(Duration::from_secs(9)).success());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn what_could_not_be_configured_can_not_be_offered() {
    let agent = Agent::start("");
    for uri in ["/", "/a b", "/a\"b"] {
        let mut server = FramePeer::silent(agent.address());
        server.write(&service("s1", &[uri]).encode().expect("a HELLO that fits"));
        let end = server.expect(Kind::GoAway);
        assert_eq!(end.header.word, 5, "{uri}");
        assert!(end.error().contains("URI"), "{}", end.error());
    }
}
