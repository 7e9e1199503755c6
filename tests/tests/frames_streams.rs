//! Messages of many frames: windows, turns, and what Redis makes of them.

use std::thread;

use agent_common::frame::{FRAME_MAX, Flags, Header, Kind, MetaBuilder, WINDOW_MIN, Windows, find, id, service_hash};
use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Reply,
    client::command,
    config, echo, envelope, expect_code,
    frames::{FramePeer, Got, WIDE, caller, meta_of, service},
    judge::pattern,
    until_true,
};

const USER: &str = "/service/user";
const WHOLE: Flags = Flags::END_STREAM;
const NARROW: Windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
const PIECE: usize = 30_000;

fn begin(uri: &str, flags: Flags, timeout_ms: u32) -> Header {
    Header { flags, word: timeout_ms, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) }
}

/// Sends a message whose first frame has gone, as there is credit for it. What comes of other messages is returned.
fn send_body(peer: &mut FramePeer, numbers: &Header, to_caller: Flags, body: &[u8], used: usize) -> Vec<Got> {
    let windows = peer.hello.as_ref().expect("the agent's HELLO").windows;
    let (mut own, mut shared) = (windows.stream as usize - used, windows.connection as usize - used);
    let mut others = Vec::new();
    peer.quiet = false;
    let pieces = body.chunks(PIECE);
    let last = pieces.len() - 1;
    for (nth, piece) in pieces.enumerate() {
        let len = piece.len() + 40;
        while own < len || shared < len {
            let got = peer.expect_any();
            match got.kind() {
                Some(Kind::Credit) if got.header.stream == 0 => shared += got.header.word as usize,
                Some(Kind::Credit) => own += got.header.word as usize,
                _ => others.push(got),
            }
        }
        (own, shared) = (own - len, shared - len);
        peer.data(numbers, to_caller | if nth == last { WHOLE } else { Flags::NONE }, piece);
    }
    peer.quiet = true;
    others
}

/// Takes the rest of a message, and gives back its room frame by frame.
fn take_body(peer: &mut FramePeer, first: Got) -> Vec<u8> {
    let mut body = first.body.clone();
    let mut got = first;
    loop {
        peer.credit(&got, u32::try_from(got.header.frame_len()).expect("a length"));
        if got.has(WHOLE) {
            return body;
        }
        got = peer.expect_any();
        while got.kind() == Some(Kind::Credit) {
            got = peer.expect_any();
        }
        assert_eq!(got.kind(), Some(Kind::Data), "{:?} {}", got.header, got.error());
        body.extend_from_slice(&got.body);
    }
}

/// The body of a request in both directions, through windows as narrow as they may be.
fn both_ways(len: usize, config: &str, service_at: Option<u16>) {
    let agent = Agent::start(config);
    let mut hello = service("s1", &[USER]);
    (hello.windows, hello.connection) = (NARROW, service_at);
    let mut server = FramePeer::connect(agent.address(), &hello);
    let mut hello = caller();
    (hello.windows, hello.connection) = (NARROW, Some(0));
    let mut client = FramePeer::connect(agent.address(), &hello);
    let body = pattern(len);
    let expected = body.clone();
    let serving = thread::spawn(move || {
        let call = server.expect(Kind::Request);
        let body = take_body(&mut server, call.clone());
        assert!(body == expected, "the request came damaged: {} bytes of {}", body.len(), expected.len());
        let back = call.back(Kind::Response);
        server.send(back, &[], b"");
        send_body(&mut server, &back, Flags::TO_CALLER, &body, 40);
        server
    });
    let meta = meta_of(USER);
    let stream = client.request_with(begin(USER, Flags::NONE, 60_000), meta.as_ref(), b"");
    let numbers = Header { stream, via: u64::from(stream), ..begin(USER, Flags::NONE, 0) };
    send_body(&mut client, &numbers, Flags::NONE, &body, 40 + meta.len());
    let mut first = client.expect_any();
    while first.kind() == Some(Kind::Credit) {
        first = client.expect_any();
    }
    let back = take_body(&mut client, first);
    assert!(back == body, "the answer came damaged: {} bytes of {}", back.len(), body.len());
    let _server = serving.join().expect("the service");
    until_true("nothing to be held", || {
        let status = agent.json(&["status"]);
        status["calls"]["in_flight"] == 0 && status["app"]["queued_bytes"] == 0
    });
}

#[test]
fn ten_megabytes_go_through_the_narrowest_windows_both_ways() {
    both_ways(10_000_000, "[app]\nstream_window_bytes = 65536\nconnection_window_bytes = 65536\n", None);
}

#[test]
fn and_by_way_of_another_worker() {
    both_ways(10_000_000, "[agent]\nworkers = 2\n", Some(1));
}

#[test]
fn a_sender_waits_until_the_receiver_gives_back() {
    let agent = Agent::start("");
    let mut hello = service("s1", &[USER]);
    hello.windows = NARROW;
    let mut server = FramePeer::connect(agent.address(), &hello);
    let mut client = FramePeer::connect(agent.address(), &caller());
    let stream = client.request(USER, Flags::NONE, b"");
    let numbers = Header { stream, via: u64::from(stream), ..begin(USER, Flags::NONE, 0) };
    let call = server.expect(Kind::Request);
    for byte in 1..=6 {
        client.data(&numbers, if byte == 6 { WHOLE } else { Flags::NONE }, &[byte; 32_000]);
    }
    let mut left = NARROW.stream as usize - call.header.frame_len();
    for byte in 1..=6 {
        let got = server.expect(Kind::Data);
        assert_eq!(got.body, [byte; 32_000]);
        left -= got.header.frame_len();
        if left < 32_040 && byte < 6 {
            server.expect_quiet();
            // A byte too little, and then that byte.
            let missing = u32::try_from(32_040 - left).expect("a length");
            server.credit(&got, missing - 1);
            server.expect_quiet();
            server.credit(&got, 1);
            left = 32_040;
        }
    }
    server.respond(&call, 0, b"");
    let mut got = client.expect_any();
    while got.kind() == Some(Kind::Credit) {
        got = client.expect_any();
    }
    assert_eq!(got.kind(), Some(Kind::Response));
}

/// Windows of a message that are narrow, beside those of other messages.
const ROOMY: Windows = Windows { stream: WINDOW_MIN, connection: 1 << 20 };

#[test]
fn a_small_call_overtakes_a_large_request() {
    let agent = Agent::start("");
    let mut hello = service("s1", &[USER]);
    hello.windows = ROOMY;
    let mut server = FramePeer::connect(agent.address(), &hello);
    let mut client = FramePeer::connect(agent.address(), &caller());
    let body = pattern(20_000_000);
    let meta = meta_of(USER);
    let stream = client.request_with(begin(USER, Flags::NONE, 60_000), meta.as_ref(), &body[..PIECE]);
    let numbers = Header { stream, via: u64::from(stream), ..begin(USER, Flags::NONE, 0) };
    client.data(&numbers, Flags::NONE, &body[PIECE..2 * PIECE]);
    client.data(&numbers, Flags::NONE, &body[2 * PIECE..3 * PIECE]);
    let large = server.expect(Kind::Request);
    let second = server.expect(Kind::Data);
    for _ in 0..10 {
        client.request(USER, WHOLE, &[7; 100]);
        let call = server.expect(Kind::Request);
        assert_eq!(call.body, [7; 100]);
        server.respond(&call, 0, b"overtook");
        let mut got = client.expect_any();
        while got.kind() == Some(Kind::Credit) {
            got = client.expect_any();
        }
        assert_eq!(got.body, b"overtook");
    }
    let expected = body.clone();
    let serving = thread::spawn(move || {
        server.credit(&large, u32::try_from(large.header.frame_len()).expect("a length"));
        let rest = take_body(&mut server, second);
        assert!([&large.body[..], &rest].concat() == expected, "the request came damaged");
        server.respond(&large, 0, b"all of it");
        server
    });
    send_body(&mut client, &numbers, Flags::NONE, &body[3 * PIECE..], 3 * (PIECE + 40) + meta.len());
    let mut got = client.expect_any();
    while got.kind() == Some(Kind::Credit) {
        got = client.expect_any();
    }
    assert_eq!((got.header.stream, &got.body[..]), (stream, &b"all of it"[..]));
    serving.join().expect("the service");
}

#[test]
fn a_small_answer_overtakes_a_large_one() {
    let agent = Agent::start("");
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut hello = caller();
    hello.windows = ROOMY;
    let mut client = FramePeer::connect(agent.address(), &hello);
    let body = pattern(20_000_000);
    let stream = client.request_with(begin(USER, WHOLE, 60_000), meta_of(USER).as_ref(), b"");
    let large = server.expect(Kind::Request);
    let back = large.back(Kind::Response);
    server.send(back, &[], &body[..PIECE]);
    server.data(&back, Flags::TO_CALLER, &body[PIECE..2 * PIECE]);
    server.data(&back, Flags::TO_CALLER, &body[2 * PIECE..3 * PIECE]);
    let first = client.expect(Kind::Response);
    let second = client.expect(Kind::Data);
    let mut taken = 3 * (PIECE + 40);
    for _ in 0..10 {
        client.request(USER, WHOLE, b"");
        let mut call = server.expect_any();
        while call.kind() == Some(Kind::Credit) {
            taken -= usize::try_from(call.header.word).expect("a length");
            call = server.expect_any();
        }
        assert_eq!(call.kind(), Some(Kind::Request));
        server.respond(&call, 0, &[7; 100]);
        assert_eq!(client.expect(Kind::Response).body, [7; 100]);
    }
    let rest = body[3 * PIECE..].to_vec();
    let serving = thread::spawn(move || {
        send_body(&mut server, &back, Flags::TO_CALLER, &rest, taken);
        server
    });
    client.credit(&first, u32::try_from(first.header.frame_len()).expect("a length"));
    let got = take_body(&mut client, second);
    assert!([&first.body[..], &got].concat() == body, "the answer came damaged");
    assert_eq!(first.header.stream, stream);
    serving.join().expect("the service");
}

#[test]
fn a_redis_server_gets_a_streamed_call_whole() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let json = echo(&"x".repeat(30_000));
    let stream = client.request(DEMO, Flags::NONE, b"");
    let numbers = Header { stream, via: u64::from(stream), ..begin(DEMO, Flags::NONE, 0) };
    let pieces: Vec<_> = json.as_bytes().chunks(1000).collect();
    for (nth, piece) in pieces.iter().enumerate() {
        client.data(&numbers, if nth + 1 == pieces.len() { WHOLE } else { Flags::NONE }, piece);
    }
    let mut got = client.expect_any();
    while got.kind() == Some(Kind::Credit) {
        got = client.expect_any();
    }
    assert_eq!((got.kind(), got.header.word), (Some(Kind::Response), 0), "{}", got.error());
    assert!(fake.requests() == [command(&["GET", &json])], "the call came damaged");
    // One that is too long is refused as soon as it is, and was not executed.
    let stream = client.request(DEMO, Flags::NONE, &[b' '; 30_000]);
    client.data(&Header { stream, via: u64::from(stream), ..numbers }, Flags::NONE, &[b' '; 3_000]);
    let got = client.expect(Kind::Response);
    assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED), got.header.stream), (302, true, stream), "{}", got.error());
    client.data(&Header { stream, via: u64::from(stream), ..numbers }, WHOLE, b"more");
    let whole = client.call(DEMO, &[b' '; 33_000]);
    assert_eq!(whole.header.word, 302);
    assert_eq!(fake.counts().calls, 1);
    client.expect_quiet();
}

#[test]
fn large_answers_of_a_redis_server_come_in_frames() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    for windows in [WIDE, NARROW] {
        let mut hello = caller();
        hello.windows = windows;
        let mut client = FramePeer::connect(agent.address(), &hello);
        for len in [0, 4_000, 65_000, FRAME_MAX, 70_000, 1_000_000, 20_000_000] {
            let body = pattern(len);
            let answer = body.clone();
            fake.script(move |_| Answer::bulk(&answer));
            client.request_with(begin(DEMO, WHOLE, 60_000), meta_of(DEMO).as_ref(), echo("large").as_bytes());
            let first = client.expect(Kind::Response);
            let said = find(&first.meta, id::BODY_LEN).map(|len| u64::from_be_bytes(len.try_into().expect("eight bytes")));
            if first.has(WHOLE) {
                assert!(said.is_none_or(|said| said == len as u64), "{said:?}");
            } else {
                assert_eq!(said, Some(len as u64), "a message of several frames says how long it is");
            }
            let got = take_body(&mut client, first);
            assert!(got == body, "{} bytes of {len}", got.len());
        }
    }
    until_true("nothing to be held", || agent.json(&["status"])["app"]["queued_bytes"] == 0);
}

/// The next call. Of the one before it, the service may have been told that it was given up.
fn next_call(server: &mut FramePeer) -> Got {
    let mut got = server.expect_any();
    while matches!(got.kind(), Some(Kind::Cancel | Kind::Credit)) {
        got = server.expect_any();
    }
    assert_eq!(got.kind(), Some(Kind::Request), "{got:?}");
    got
}

fn answer_redis(server: &mut FramePeer, said: Option<u64>, pieces: &[&[u8]]) {
    let call = next_call(server);
    let back = call.back(Kind::Response);
    let mut meta = MetaBuilder::new();
    if let Some(said) = said {
        meta.put(id::BODY_LEN, &said.to_be_bytes());
    }
    server.send(back, meta.as_ref(), pieces[0]);
    for (nth, piece) in pieces[1..].iter().enumerate() {
        server.data(&back, Flags::TO_CALLER | if nth + 2 == pieces.len() { WHOLE } else { Flags::NONE }, piece);
    }
}

fn redis_scene() -> (Agent, FramePeer, Client) {
    let agent = Agent::start("[app]\nqueued_bytes_max = 100000\n");
    let server = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let mut client = agent.connect();
    client.send(command(&["GET", &envelope(USER, "m", "")]));
    (agent, server, client)
}

#[test]
fn a_redis_client_gets_answers_of_many_frames_whole() {
    let (_agent, mut server, mut client) = redis_scene();
    let again = |client: &mut Client| client.send(command(&["GET", &envelope(USER, "m", "")]));
    answer_redis(&mut server, Some(9), &[b"abc", b"", b"def", b"ghi"]);
    assert_eq!(client.read(), Reply::Bulk(b"abcdefghi".to_vec()));
    again(&mut client);
    answer_redis(&mut server, None, &[b"", b"abc", b"def", b""]);
    assert_eq!(client.read(), Reply::Bulk(b"abcdef".to_vec()));
    again(&mut client);
    answer_redis(&mut server, None, &[&[b'x'; 50_000], &[b'x'; 50_001]]);
    expect_code(&client.read(), 302);
    again(&mut client);
    answer_redis(&mut server, None, &[&[b'x'; 50_000], &[b'x'; 50_000]]);
    assert_eq!(client.read().bulk().len(), 100_000);
    // A large one is sent on as it comes, however little is held.
    again(&mut client);
    let call = next_call(&mut server);
    let back = call.back(Kind::Response);
    let body = pattern(3_000_000);
    server.send(back, MetaBuilder::new().put(id::BODY_LEN, &(body.len() as u64).to_be_bytes()).as_ref(), b"");
    let sent = body.clone();
    let serving = thread::spawn(move || {
        send_body(&mut server, &back, Flags::TO_CALLER, &sent, 51);
        server
    });
    let reply = client.read();
    assert!(reply.bulk() == body, "damaged: {}", reply.brief());
    serving.join().expect("the service");
}

#[test]
fn an_answer_that_is_not_as_long_as_it_says_ends_the_redis_clients_connection() {
    for pieces in [&[&b"abc"[..], b"d"][..], &[b"abc", b"def", b"g"], &[b"abcdefgh", b""], &[b"", b""]] {
        let (agent, mut server, mut client) = redis_scene();
        answer_redis(&mut server, Some(6), pieces);
        // Nothing of it may have left yet.
        if let Ok(reply) = client.try_read() {
            expect_code(&reply, 302);
        }
        until_true("nothing to be held", || agent.json(&["status"])["app"]["queued_bytes"] == 0);
    }
}
