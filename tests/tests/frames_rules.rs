//! The rules of the frame protocol, broken one by one: what ends a connection, what is refused, what is dropped.

use agent_common::frame::{Flags, Header, Hello, Kind, WINDOW_MAX, WINDOW_MIN, Windows, id, service_hash, status::reason};
use moa_tests::{
    Agent,
    frames::{FramePeer, Got, caller, meta_of, service},
    machine::http,
    until_true,
};

const USER: &str = "/service/user";

struct Scene {
    agent: Agent,
    server: FramePeer,
    client: FramePeer,
}

fn scene() -> Scene {
    let agent = Agent::start("");
    // On one worker: what goes by way of another has the windows of that way, too.
    let server = FramePeer::connect(agent.address(), &Hello { connection: Some(0), ..service("s1", &[USER]) });
    let client = FramePeer::connect(agent.address(), &Hello { connection: Some(0), ..caller() });
    Scene { agent, server, client }
}

impl Scene {
    /// Begins a call, and sees it at the service.
    fn call(&mut self, flags: Flags, body: &[u8]) -> (u32, Got) {
        let stream = self.client.request(USER, flags, body);
        (stream, self.server.expect(Kind::Request))
    }

    /// Calls once more, to see that everybody is still there and nothing else comes.
    fn expect_fine(&mut self) {
        let (stream, call) = self.call(Flags::END_STREAM, b"");
        self.server.respond(&call, 0, b"fine");
        let got = self.client.expect(Kind::Response);
        assert_eq!((got.header.stream, &got.body[..]), (stream, &b"fine"[..]));
        self.client.expect_quiet();
        self.server.expect_quiet();
    }

    fn expect_goaway_naming(&mut self, reason: u32, stream: u32) {
        let text = self.client.expect_goaway(reason).error();
        assert!(text.contains(&format!("stream {stream} ")), "{text}");
    }
}

fn begin(uri: &str, flags: Flags) -> Header {
    Header { flags, service: service_hash(uri.as_bytes(), b""), ..Header::new(Kind::Request) }
}

#[test]
fn a_call_must_say_what_it_calls() {
    let Scene { agent: _agent, mut server, mut client } = scene();
    let whole = Flags::END_STREAM;
    let refused = |client: &mut FramePeer, status: u32| {
        let got = client.expect(Kind::Response);
        assert_eq!((got.header.word, got.has(whole | Flags::NOT_EXECUTED | Flags::TO_CALLER)), (status, true), "{got:?}");
        assert!(!got.error().is_empty(), "it says why");
    };
    client.request_with(Header { service: 7, ..begin(USER, whole) }, meta_of(USER).as_ref(), b"");
    refused(&mut client, 302);
    client.request_with(begin(USER, whole), meta_of(USER).put(id::GROUP, b"blue").as_ref(), b"");
    refused(&mut client, 302);
    client.request_with(begin(USER, whole), &[], b"");
    refused(&mut client, 401);
    let mut late = agent_common::frame::MetaBuilder::new();
    late.put(id::METHOD, b"get").put(id::URI, USER.as_bytes());
    client.request_with(begin(USER, whole), late.as_ref(), b"");
    refused(&mut client, 401);
    client.request_with(begin(USER, whole), &[1, 0, 200, b'/'], b"");
    refused(&mut client, 302);
    let unknown = client.request("/service/unknown", whole, b"");
    refused(&mut client, 501);
    // What goes on of a refused call is dropped, and so is its cancelling.
    let streamed = client.request("/service/unknown", Flags::NONE, b"");
    refused(&mut client, 501);
    client.data(&Header { stream: streamed, via: u64::from(streamed), ..Header::new(Kind::Data) }, whole, b"more");
    client.cancel("/service/unknown", unknown);
    client.expect_quiet();
    server.expect_quiet();
}

#[test]
fn a_stream_that_does_not_come_after_the_last_one_ends_the_connection() {
    for next in [5, 4, 1, 5 + (1 << 31)] {
        let mut scene = scene();
        scene.client.send(Header { stream: 5, via: 5, ..begin(USER, Flags::END_STREAM) }, meta_of(USER).as_ref(), b"");
        let call = scene.server.expect(Kind::Request);
        scene.client.send(Header { stream: next, via: 99, ..begin(USER, Flags::END_STREAM) }, meta_of(USER).as_ref(), b"");
        let goaway = scene.client.expect_goaway(reason::PROTOCOL);
        assert_eq!(goaway.header.stream, 5, "the last one that was taken");
        assert!(goaway.error().contains(&format!("stream {next} ")), "{}", goaway.error());
        assert_eq!(scene.server.expect(Kind::Cancel).header.via, call.header.via);
    }
}

#[test]
fn streams_may_leave_gaps_and_go_round() {
    let mut scene = scene();
    for stream in [7, 1 << 30, (1 << 31) - 1, u32::MAX - 1, u32::MAX, 1, 2] {
        scene.client.send(Header { stream, via: 3, ..begin(USER, Flags::END_STREAM) }, meta_of(USER).as_ref(), b"");
        let call = scene.server.expect(Kind::Request);
        scene.server.respond(&call, 0, b"");
        let got = scene.client.expect(Kind::Response);
        assert_eq!((got.header.stream, got.header.via), (stream, 3));
    }
}

#[test]
fn a_via_in_flight_may_not_be_used_again() {
    let mut scene = scene();
    scene.call(Flags::END_STREAM, b"");
    scene.client.send(Header { stream: 2, via: 1, ..begin(USER, Flags::END_STREAM) }, meta_of(USER).as_ref(), b"");
    scene.expect_goaway_naming(reason::PROTOCOL, 2);
    scene.server.expect(Kind::Cancel);
}

#[test]
fn a_via_may_be_anything() {
    let mut scene = scene();
    for (stream, via) in [(1, 0), (2, u64::MAX), (3, 1 << 63), (4, 4)] {
        scene.client.send(Header { stream, via, ..begin(USER, Flags::NONE) }, meta_of(USER).as_ref(), b"a");
        let call = scene.server.expect(Kind::Request);
        scene.client.data(&Header { stream, via, ..begin(USER, Flags::NONE) }, Flags::END_STREAM, b"b");
        assert_eq!(scene.server.expect(Kind::Data).header.via, call.header.via);
        scene.server.respond(&call, 0, b"");
        let got = scene.client.expect(Kind::Response);
        assert_eq!((got.header.stream, got.header.via), (stream, via));
    }
}

#[test]
fn what_belongs_to_no_call_is_dropped() {
    let mut scene = scene();
    let stray = |kind, flags| Header { flags, stream: 77, via: 77, service: 77, word: 1, ..Header::new(kind) };
    for peer in [&mut scene.client, &mut scene.server] {
        for flags in [Flags::NONE, Flags::TO_CALLER, Flags::END_STREAM, Flags::END_STREAM | Flags::TO_CALLER] {
            peer.send(stray(Kind::Data, flags), &[], b"stray");
            peer.send(stray(Kind::Cancel, flags), &[], &[]);
            peer.send(stray(Kind::Credit, flags), &[], &[]);
            peer.send(stray(Kind::Response, flags | Flags::TO_CALLER), &[], b"stray");
        }
    }
    scene.expect_fine();
    // All but the credits.
    let (_, metrics) = http(scene.agent.metrics_address(), "/metrics");
    assert!(metrics.contains("\nmoa_frames_dropped_total 24\n"), "{metrics}");
}

#[test]
fn data_behind_a_cancel_is_dropped() {
    let mut scene = scene();
    let (stream, call) = scene.call(Flags::NONE, b"begun");
    scene.client.cancel(USER, stream);
    let header = Header { stream, via: u64::from(stream), ..begin(USER, Flags::NONE) };
    scene.client.data(&header, Flags::END_STREAM, b"late");
    assert_eq!(scene.server.expect(Kind::Cancel).header.via, call.header.via);
    scene.client.cancel(USER, stream);
    scene.expect_fine();
}

#[test]
fn data_behind_the_end_of_a_message_is_dropped() {
    let mut scene = scene();
    let (stream, call) = scene.call(Flags::NONE, b"begun");
    let header = Header { stream, via: u64::from(stream), ..begin(USER, Flags::NONE) };
    scene.client.data(&header, Flags::END_STREAM, b"end");
    scene.client.data(&header, Flags::END_STREAM, b"behind");
    scene.client.data(&header, Flags::NONE, b"behind");
    assert_eq!(scene.server.expect(Kind::Data).body, b"end");
    let back = call.back(Kind::Response);
    scene.server.send(back, &[], b"begun");
    scene.server.data(&back, Flags::TO_CALLER | Flags::END_STREAM, b"end");
    scene.server.data(&back, Flags::TO_CALLER, b"behind");
    scene.server.data(&back, Flags::TO_CALLER | Flags::END_STREAM, b"behind");
    scene.client.expect(Kind::Response);
    assert_eq!(scene.client.expect(Kind::Data).body, b"end");
    scene.expect_fine();
}

#[test]
fn a_cancel_and_an_answer_may_cross() {
    let mut scene = scene();
    for _ in 0..50 {
        let (stream, call) = scene.call(Flags::END_STREAM, b"");
        scene.server.respond(&call, 0, b"crossed");
        scene.client.cancel(USER, stream);
        let mark = scene.client.request(USER, Flags::END_STREAM, b"mark");
        let mut next = scene.server.expect_any();
        if next.kind() == Some(Kind::Cancel) {
            assert_eq!(next.header.via, call.header.via);
            next = scene.server.expect_any();
        }
        scene.server.respond(&next, 0, b"");
        let mut got = scene.client.expect(Kind::Response);
        if got.header.stream == stream {
            got = scene.client.expect(Kind::Response);
        }
        assert_eq!(got.header.stream, mark);
    }
    scene.expect_fine();
}

#[test]
fn a_second_response_is_dropped() {
    let mut scene = scene();
    let (_, call) = scene.call(Flags::END_STREAM, b"");
    scene.server.respond(&call, 0, b"first");
    scene.server.respond(&call, 0, b"second");
    assert_eq!(scene.client.expect(Kind::Response).body, b"first");
    let (_, call) = scene.call(Flags::END_STREAM, b"");
    let back = call.back(Kind::Response);
    scene.server.send(back, &[], b"begun");
    scene.server.respond(&call, 0, b"second");
    scene.server.data(&back, Flags::TO_CALLER | Flags::END_STREAM, b"end");
    assert_eq!(scene.client.expect(Kind::Response).body, b"begun");
    assert_eq!(scene.client.expect(Kind::Data).body, b"end");
    scene.expect_fine();
}

#[test]
fn only_who_was_given_a_call_can_answer_it() {
    let mut scene = scene();
    let mut forger = FramePeer::connect(scene.agent.address(), &service("s2", &["/service/other"]));
    let (stream, call) = scene.call(Flags::END_STREAM, b"");
    let back = call.back(Kind::Response);
    for peer in [&mut forger, &mut scene.client] {
        peer.respond(&call, 0, b"forged");
        peer.send(back, &[], b"forged");
        peer.data(&back, Flags::TO_CALLER | Flags::END_STREAM, b"forged");
        peer.send(call.back(Kind::Cancel), &[], &[]);
        peer.send(Header { flags: Flags::NONE, ..call.back(Kind::Cancel) }, &[], &[]);
    }
    forger.expect_quiet();
    // The caller's last one is no forgery if its via is that of its own call, which it is not.
    scene.server.respond(&call, 0, b"true");
    let got = scene.client.expect(Kind::Response);
    assert_eq!((got.header.stream, &got.body[..]), (stream, &b"true"[..]));
    scene.expect_fine();
}

#[test]
fn a_status_and_flags_and_entries_that_are_not_known_are_carried() {
    let mut scene = scene();
    let odd = Flags(1 << 12 | 1 << 15);
    let mut meta = meta_of(USER);
    meta.put(99, b"unknown").put(id::URI, b"/again").put(255, b"").put(200, &[0; 20_000]);
    scene.client.request_with(begin(USER, Flags::END_STREAM | odd), meta.as_ref(), b"");
    let call = scene.server.expect(Kind::Request);
    assert_eq!((call.header.flags, &call.meta[..]), (Flags::END_STREAM | odd, meta.as_ref()));
    for status in [1, 299, 65_535, 65_536, u32::MAX] {
        let (_, call) = scene.call(Flags::END_STREAM, b"");
        let back = call.back(Kind::Response);
        let flags = back.flags | Flags::END_STREAM | Flags::COMPRESSED | odd;
        scene.server.send(Header { flags, word: status, ..back }, &[77, 0, 1, 5], b"body");
        let got = scene.client.expect(Kind::Response);
        assert_eq!((got.header.word, got.header.flags, &got.meta[..]), (status, flags, &[77, 0, 1, 5][..]));
        let (_, call) = scene.call(Flags::END_STREAM, b"");
        scene.server.send(Header { word: status, ..call.back(Kind::Cancel) }, &[], &[]);
        let got = scene.client.expect(Kind::Response);
        assert!(got.header.word != 0 && got.has(Flags::END_STREAM), "a call that was given up is no success: {got:?}");
    }
}

#[test]
fn a_message_that_overruns_its_window_ends_the_connection() {
    let mut scene = scene();
    let windows = scene.client.hello.as_ref().expect("the agent's HELLO").windows;
    // The service gives nothing back of the message, and takes the smallest part of it.
    scene.server = {
        let mut hello = service("s2", &["/service/narrow"]);
        hello.connection = Some(0);
        hello.windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
        FramePeer::connect(scene.agent.address(), &hello)
    };
    let stream = scene.client.request("/service/narrow", Flags::NONE, b"");
    let header = Header { stream, via: u64::from(stream), ..begin("/service/narrow", Flags::NONE) };
    let pieces = (windows.stream + WINDOW_MIN) / 60_000 + 2;
    for _ in 0..pieces {
        if scene
            .client
            .try_write(&moa_tests::frames::bytes_of(Header { kind: Kind::Data as u8, ..header }, &[], &[7; 60_000]))
            .is_err()
        {
            break;
        }
    }
    let mut got = scene.client.expect_any();
    while got.kind() == Some(Kind::Credit) {
        got = scene.client.expect_any();
    }
    assert_eq!((got.kind(), got.header.word), (Some(Kind::GoAway), reason::FLOW_CONTROL), "{got:?}");
    assert!(got.error().contains(&format!("stream {stream} ")), "{}", got.error());
}

#[test]
fn an_answer_that_overruns_its_window_ends_the_services_connection() {
    let mut scene = scene();
    let mut narrow = caller();
    narrow.connection = Some(0);
    narrow.windows = Windows { stream: WINDOW_MIN, connection: WINDOW_MIN };
    scene.client = FramePeer::connect(scene.agent.address(), &narrow);
    let (stream, call) = scene.call(Flags::END_STREAM, b"");
    let windows = scene.server.hello.as_ref().expect("the agent's HELLO").windows;
    let back = call.back(Kind::Response);
    scene.server.send(back, &[], b"");
    for _ in 0..(windows.stream + WINDOW_MIN) / 60_000 + 2 {
        let data = Header { kind: Kind::Data as u8, flags: Flags::TO_CALLER, ..back };
        if scene.server.try_write(&moa_tests::frames::bytes_of(data, &[], &[7; 60_000])).is_err() {
            break;
        }
    }
    let mut got = scene.server.expect_any();
    while got.kind() == Some(Kind::Credit) {
        got = scene.server.expect_any();
    }
    assert_eq!((got.kind(), got.header.word), (Some(Kind::GoAway), reason::FLOW_CONTROL), "{got:?}");
    assert!(got.error().contains(&format!("stream {} ", call.header.stream)), "{}", got.error());
    let mut got = scene.client.expect_any();
    while got.kind() != Some(Kind::Cancel) {
        assert_eq!(got.header.stream, stream);
        got = scene.client.expect_any();
    }
    assert_eq!((got.header.word, got.header.stream), (303, stream));
}

#[test]
fn credit_that_makes_a_window_too_large_ends_the_connection() {
    let mut scene = scene();
    scene.client.send(Header { word: WINDOW_MAX, ..Header::new(Kind::Credit) }, &[], &[]);
    let goaway = scene.client.expect_goaway(reason::FLOW_CONTROL);
    assert!(goaway.error().contains("stream 0 "), "{}", goaway.error());
    let mut scene = self::scene();
    let (stream, call) = scene.call(Flags::END_STREAM, b"");
    let back = call.back(Kind::Response);
    scene.server.send(back, &[], b"begun");
    scene.client.expect(Kind::Response);
    let credit = Header { stream, via: u64::from(stream), word: WINDOW_MAX, ..Header::new(Kind::Credit) };
    scene.client.send(credit, &[], &[]);
    scene.expect_goaway_naming(reason::FLOW_CONTROL, stream);
    scene.server.expect(Kind::Cancel);
}

#[test]
fn an_applications_end_ends_its_calls() {
    let mut scene = scene();
    let (_, call) = scene.call(Flags::END_STREAM, b"");
    let streamed = { scene.call(Flags::NONE, b"").1 };
    scene.client = FramePeer::connect(scene.agent.address(), &caller());
    let mut cancelled = [scene.server.expect(Kind::Cancel).header.via, scene.server.expect(Kind::Cancel).header.via];
    cancelled.sort_unstable();
    let mut expected = [call.header.via, streamed.header.via];
    expected.sort_unstable();
    assert_eq!(cancelled, expected);
    scene.expect_fine();
    until_true("nothing to be in flight", || scene.agent.json(&["status"])["calls"]["in_flight"] == 0);
}
