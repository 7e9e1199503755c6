//! Applications that do on their lanes what they should not, or at the worst moment: it hurts nobody else, and nothing for long.

use agent_common::{
    frame::{Flags, Header, Hello, Kind, Windows, service_hash},
    lane::KERNEL_VIA,
};
use moa_tests::{
    Agent, DEMO,
    frames::{FramePeer, Got, bytes_of, caller, meta_of, service},
    kernel,
    lanes::{self, LanePeer, Way},
    routed::{Routed, await_idle, await_routed},
    seed, until_true,
};
use rand::RngExt;

fn unrouted(agent: &Agent, why: &str) -> u64 {
    agent.json(&["kernel"])["routing"]["unrouted"][why].as_u64().expect("a number")
}

fn echoing() -> Agent {
    let agent = kernel::start("");
    lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    agent
}

fn holding(hello: &Hello) -> (Agent, LanePeer) {
    let agent = kernel::start("");
    let held = LanePeer::open(agent.address(), hello);
    await_routed(&agent, DEMO);
    (agent, held)
}

fn held() -> (Agent, LanePeer) {
    holding(&service("held", &[DEMO]))
}

fn client(agent: &Agent) -> LanePeer {
    LanePeer::open(agent.address(), &caller())
}

/// One that takes little at once.
fn narrow(agent: &Agent) -> LanePeer {
    let windows = Windows { stream: 1 << 16, connection: 1 << 16 };
    LanePeer::open(agent.address(), &Hello { windows, ..caller() })
}

/// A call that its instance has not answered: the agent, the instance, the caller, the call's number there, and as it came.
fn called(by: fn(&Agent) -> LanePeer) -> (Agent, LanePeer, LanePeer, u32, Got) {
    let (agent, mut held) = held();
    let mut caller = by(&agent);
    let stream = caller.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    (agent, held, caller, stream, call)
}

/// Others are unharmed.
fn expect_well(peer: &mut LanePeer) {
    let (way, got) = peer.call(DEMO, b"well");
    assert_eq!((way, got.header.word, &*got.body), (Way::Lane, 0, &b"well"[..]), "{}", got.error());
}

fn request(peer: &mut LanePeer, body: &[u8]) -> (u32, Vec<u8>) {
    peer.request_bytes(lanes::request_header(DEMO, Flags::END_STREAM), meta_of(DEMO).as_ref(), body)
}

#[test]
fn frames_in_pieces_and_several_in_one_are_understood_by_the_agent() {
    let agent = echoing();
    let mut good = client(&agent);
    for step in [1, 39, 41, 1_000] {
        let mut peer = client(&agent);
        let (stream, bytes) = request(&mut peer, &[7; 3_000]);
        peer.send_in_pieces(&bytes, step);
        let (way, got) = peer.answer_to(stream);
        assert_eq!((way, got.header.word, got.body.len()), (Way::Stream, 0, 3_000), "{step}");
    }
    let mut peer = client(&agent);
    let (one, mut bytes) = request(&mut peer, b"one");
    let (two, more) = request(&mut peer, b"two");
    bytes.extend(more);
    peer.send_bytes(&bytes);
    assert_eq!((peer.answer_to(one).1.body, peer.answer_to(two).1.body), (b"one".to_vec(), b"two".to_vec()));
    let (way, got) = peer.call(DEMO, b"three");
    assert_eq!((way, &*got.body), (Way::Stream, &b"three"[..]), "a stream for life");
    assert!(unrouted(&agent, "not-one-frame") >= 5);
    expect_well(&mut good);
    await_idle(&agent);
}

#[test]
fn lies_in_a_header_end_at_most_the_lane() {
    let agent = echoing();
    let mut good = client(&agent);
    // Where in the header, and what is written there.
    let lies: [(usize, &[u8]); 16] = [
        (0, b"XX"),
        (2, &[2]),
        (3, &[0]),
        (3, &[200]),
        (3, &[4]),
        (3, &[1]),
        (3, &[9]),
        (4, &[0xff, 0xff]),
        (4, &[0, 0x81]),
        (6, &[0xff, 0xff]),
        (8, &[0xff, 0xff, 0xff, 0xff]),
        (8, &[0, 0, 0, 0]),
        (8, &[0, 0, 0, 9]),
        (12, &[0; 4]),
        (16, &[0xff; 8]),
        (24, &[9; 8]),
    ];
    for (at, lie) in lies {
        let mut peer = client(&agent);
        let (_, mut bytes) = request(&mut peer, b"body");
        bytes[at..at + lie.len()].copy_from_slice(lie);
        peer.send_bytes(&bytes);
        let stream = peer.stream.request(DEMO, Flags::END_STREAM, b"by stream");
        assert_eq!(peer.answer_to(stream).1.body, b"by stream", "{at} {lie:?}");
        expect_well(&mut good);
    }
    await_idle(&agent);
}

#[test]
fn only_who_was_given_a_call_answers_it_and_once() {
    let (agent, mut held, mut client, stream, call) = called(client);
    let mut thief = LanePeer::open(agent.address(), &service("thief", &["/service/other"]));
    thief.respond(&call, 0, b"stolen");
    thief.respond(&call, 700, b"stolen");
    thief.stream.respond(&call, 0, b"stolen");
    let mut cancel = call.back(Kind::Cancel);
    cancel.word = 700;
    thief.stream.send(cancel, &[], &[]);
    thief.stream.expect_read();
    until_true("it to be seen", || unrouted(&agent, "not-its-call") >= 2);
    held.respond(&call, 0, b"right");
    held.respond(&call, 0, b"again");
    held.stream.respond(&call, 0, b"again");
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, &*got.body), (Way::Lane, &b"right"[..]));
    let stream = client.request(DEMO, Flags::END_STREAM, b"y");
    let (_, call) = held.expect(Kind::Request);
    held.respond(&call, 0, b"second");
    assert_eq!(client.answer_to(stream).1.body, b"second");
    assert!(client.stream.so_far().is_empty(), "nothing more came");
    await_idle(&agent);
}

#[test]
fn a_forged_via_is_nobodys() {
    let (agent, mut held) = held();
    let mut rng = seed::rng("a_forged_via");
    for _ in 0..200 {
        let via = KERNEL_VIA | rng.random::<u64>();
        let header = Header { flags: Flags::TO_CALLER | Flags::END_STREAM, stream: 1, via, ..Header::new(Kind::Response) };
        let service = service_hash(DEMO.as_bytes(), b"");
        held.send(Header { service, word: rng.random_range(0..2), ..header }, &[], b"forged");
    }
    assert_eq!(unrouted(&agent, "unknown-call"), 200);
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    held.respond(&call, 0, b"right");
    assert_eq!(client.answer_to(stream).1.body, b"right");
    await_idle(&agent);
}

#[test]
fn forged_receipts_prove_nothing_and_no_answer_is_lost() {
    let agent = echoing();
    let mut rng = seed::rng("forged_receipts");
    let mut peer = client(&agent);
    peer.returns_receipts = false;
    let mut by_stream = 0;
    for _ in 0..2_000 {
        let header = Header { receipt: rng.random(), ..lanes::request_header(DEMO, Flags::END_STREAM) };
        let stream = peer.request_with(header, meta_of(DEMO).as_ref(), &[3; 30_000]);
        let (way, got) = peer.answer_to(stream);
        assert_eq!((got.header.word, got.body.len()), (0, 30_000));
        by_stream += u32::from(way == Way::Stream);
        if by_stream > 20 {
            break;
        }
        if way == Way::Stream {
            peer.stream.credit(&got, 30_040);
        }
    }
    assert!(by_stream > 20 && unrouted(&agent, "caller-bytes") > 0, "the bound holds: {by_stream}");
    expect_well(&mut client(&agent));
    await_idle(&agent);
}

#[test]
fn who_never_reads_hurts_nobody_else() {
    let agent = echoing();
    let mut good = client(&agent);
    let mut deaf = client(&agent);
    for _ in 0..1_000 {
        deaf.request(DEMO, Flags::END_STREAM, &[1; 16_000]);
    }
    (0..20).for_each(|_| expect_well(&mut good));
    await_idle(&agent);
    drop(deaf);
    expect_well(&mut good);
}

#[test]
fn who_never_answers_gets_so_many_calls_and_the_others_still_work() {
    const MAX: u32 = 1_000;
    let (agent, mut held) = holding(&Hello { calls_max: MAX, ..service("held", &[DEMO]) });
    let mut client = client(&agent);
    let first: Vec<_> = (0..MAX).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect();
    until_true("as many as may be in flight", || Routed::at(&agent).in_flight == u64::from(MAX));
    lanes::echo(agent.address(), &service("echo", &[DEMO]));
    until_true("both to be routed to", || {
        agent.json(&["services", DEMO])[0]["instances"].as_array().is_some_and(|all| all.len() == 2)
    });
    let more: Vec<_> = (0..500).map(|_| client.request(DEMO, Flags::END_STREAM, b"more")).collect();
    let mut answered = 0;
    while answered < 200 {
        let (_, got) = client.expect_that("an answer", |got| more.contains(&got.header.stream));
        assert_eq!(&*got.body, b"more", "{}", got.error());
        answered += 1;
    }
    assert!(Routed::at(&agent).in_flight <= u64::from(MAX), "no more than it takes");
    // All that it has is answered at last: by the agent, as it is late.
    for stream in first {
        let (_, got) = client.answer_to(stream);
        assert_eq!(got.header.word, 304, "{}", got.error());
    }
    for _ in 0..MAX {
        let (_, call) = held.expect_that("a call on the lane", |got| got.kind() == Some(Kind::Request) && got.header.is_routed());
        held.respond(&call, 0, b"late");
    }
    until_true("nothing to be in flight", || Routed::at(&agent).in_flight == 0);
}

#[test]
fn a_uri_that_is_not_that_of_the_hash_is_for_the_callee_to_refuse() {
    let (agent, mut held) = held();
    let mut client = client(&agent);
    let header = lanes::request_header(DEMO, Flags::END_STREAM);
    let stream = client.request_with(header, meta_of("/service/other").as_ref(), b"x");
    let (way, call) = held.expect(Kind::Request);
    assert_eq!((way, call.header.service), (Way::Lane, service_hash(DEMO.as_bytes(), b"")), "where the hash says");
    held.respond(&call, 302, b"");
    assert_eq!(client.answer_to(stream).1.header.word, 302);
    // By way of the agent it is the agent that refuses it.
    let stream =
        client.request_with(Header { flags: header.flags | Flags::SLOW_PATH, ..header }, meta_of("/other").as_ref(), b"x");
    let (_, got) = client.answer_to(stream);
    assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (302, true), "{}", got.error());
    await_idle(&agent);
}

#[test]
fn a_second_lane_with_the_same_token_is_refused() {
    let agent = echoing();
    let mut first = client(&agent);
    let hello = Hello { connection: Some(0), ..caller() };
    let mut second = lanes::connect(agent.address());
    let said = lanes::lane_hello(&hello, first.lane).encode().expect("a HELLO that fits");
    std::io::Write::write_all(&mut second, &said).expect("it is taken");
    second.set_nonblocking(false).expect("it blocks");
    let mut second = FramePeer::accepted(second);
    let got = second.expect(Kind::GoAway);
    assert_eq!((got.header.word, got.has(Flags::END_STREAM)), (5, true), "{}", got.error());
    expect_well(&mut first);
}

#[test]
fn what_is_sent_before_hello_is_answered_loses_at_most_the_lane() {
    let agent = echoing();
    let hello = Hello { connection: Some(0), ..caller() };
    for nth in 0..30_u8 {
        let mut stream = FramePeer::connect(agent.address(), &hello);
        let lane = stream.hello.as_ref().and_then(|hello| hello.lane).expect("a lane");
        let mut early = lanes::connect(agent.address());
        let mut said = lanes::lane_hello(&hello, lane).encode().expect("a HELLO that fits").to_vec();
        let header = Header { stream: 1_000, via: 1_000, ..lanes::request_header(DEMO, Flags::END_STREAM) };
        let call = bytes_of(header, meta_of(DEMO).as_ref(), b"early");
        if nth % 2 == 0 {
            said.extend(&call);
        }
        std::io::Write::write_all(&mut early, &said).expect("it is taken");
        if nth % 2 == 1 {
            std::io::Write::write_all(&mut early, &call).expect("it is taken");
        }
        stream.request(DEMO, Flags::END_STREAM, b"by stream");
        let mut got = stream.expect(Kind::Response);
        if got.header.stream == 1_000 {
            assert_eq!(got.body, b"early");
            got = stream.expect(Kind::Response);
        }
        assert_eq!(got.body, b"by stream");
    }
    expect_well(&mut client(&agent));
    await_idle(&agent);
}

#[test]
fn a_stolen_token_hurts_whose_it_is_and_nobody_else() {
    let agent = echoing();
    let mut good = client(&agent);
    let hello = |name: &str| Hello { application: name.to_owned(), connection: Some(0), ..caller() };
    let mut victim = FramePeer::connect(agent.address(), &hello("victim"));
    let lane = victim.hello.as_ref().and_then(|hello| hello.lane).expect("a lane");
    // Another application's is refused.
    let other = FramePeer::connect(agent.address(), &hello("thief"));
    let said = lanes::lane_hello(&hello("thief"), lane);
    assert!(LanePeer::opened(other, lanes::connect(agent.address()), &said, lane).is_err());
    let own = FramePeer::connect(agent.address(), &hello("victim"));
    let said = lanes::lane_hello(&hello("victim"), lane);
    let mut thief = LanePeer::opened(own, lanes::connect(agent.address()), &said, lane).unwrap_or_else(|no| panic!("{}", no.why));
    // What it calls is the victim's call: an error of it goes to the victim.
    let header = lanes::request_header("/service/unknown", Flags::END_STREAM);
    let stream = thief.request_with(Header { stream: 77, ..header }, meta_of("/service/unknown").as_ref(), b"x");
    assert_eq!(victim.expect(Kind::Response).header.stream, stream);
    // The victim has no lane, and everything else.
    victim.take_number();
    victim.request(DEMO, Flags::END_STREAM, b"still");
    assert_eq!(victim.expect(Kind::Response).body, b"still");
    expect_well(&mut good);
    // And with its connection ends what was stolen.
    drop(victim);
    assert!(thief.next_of_lane().is_none_or(|got| got.kind() == Some(Kind::GoAway)));
    assert_eq!(thief.stream.call(DEMO, b"own").body, b"own");
    expect_well(&mut good);
    await_idle(&agent);
}

#[test]
fn a_lane_ends_with_its_stream_connection() {
    let (agent, mut held) = held();
    let mut client = client(&agent);
    client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    client.stream.finish();
    let (way, cancel) = held.expect(Kind::Cancel);
    assert_eq!((way, cancel.header.via), (Way::Stream, call.header.via));
    assert!(client.next_of_lane().is_none_or(|got| got.kind() == Some(Kind::GoAway)), "the lane has ended");
    held.respond(&call, 0, b"late");
    await_idle(&agent);
    assert_eq!(Routed::at(&agent).lanes, 1);
}

#[test]
fn calls_of_a_lane_that_ends_are_answered_on_the_stream_connection() {
    let (agent, mut held) = held();
    let mut peer = client(&agent);
    for round in 0..3_u8 {
        let streams: Vec<_> = (0..5).map(|_| peer.request(DEMO, Flags::END_STREAM, b"x")).collect();
        let calls: Vec<_> = (0..5).map(|_| held.expect(Kind::Request).1).collect();
        let mut stream = peer.leave_lane();
        let mut ended: Vec<_> = (0..5)
            .map(|_| {
                let got = stream.expect(Kind::Response);
                assert_eq!(got.header.word, 303, "{round}: {}", got.error());
                got.header.stream
            })
            .collect();
        ended.sort_unstable();
        assert_eq!(ended, streams);
        calls.iter().for_each(|call| held.respond(call, 0, b"late"));
        await_idle(&agent);
        // Another lane beside the same connection.
        let hello = Hello { connection: Some(0), ..caller() };
        peer = LanePeer::beside(stream, agent.address(), &hello).unwrap_or_else(|no| panic!("{}", no.why));
    }
    let stream = peer.request(DEMO, Flags::END_STREAM, b"x");
    let (way, call) = held.expect_that("the call", |got| got.kind() == Some(Kind::Request));
    held.respond(&call, 0, b"y");
    assert_eq!((way, peer.answer_to(stream).0), (Way::Lane, Way::Lane));
}

#[test]
fn a_callee_whose_lane_ends_goes_on_by_its_stream_connection() {
    let (agent, mut held, mut client, stream, call) = called(client);
    let lost = client.request(DEMO, Flags::END_STREAM, b"lost");
    held.expect(Kind::Request);
    let mut held = held.leave_lane();
    until_true("the lane to be over", || Routed::at(&agent).lanes == 1);
    assert_eq!(Routed::at(&agent).in_flight, 2, "they are not over");
    held.respond(&call, 0, b"by stream");
    held.respond(&call, 0, b"again");
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word, &*got.body), (Way::Stream, 0, &b"by stream"[..]), "{}", got.error());
    client.stream.cancel(DEMO, lost);
    assert_eq!(held.expect(Kind::Cancel).header.stream, lost, "they can be given up");
    let stream = client.request(DEMO, Flags::END_STREAM, b"y");
    let call = held.expect(Kind::Request);
    held.respond(&call, 0, b"z");
    assert_eq!(client.answer_to(stream).1.body, b"z");
    let hello = Hello { connection: Some(0), ..service("held", &[DEMO]) };
    let mut held = LanePeer::beside(held, agent.address(), &hello).unwrap_or_else(|no| panic!("{}", no.why));
    await_routed(&agent, DEMO);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (way, call) = held.expect(Kind::Request);
    held.respond(&call, 0, b"y");
    assert_eq!((way, client.answer_to(stream).0), (Way::Lane, Way::Lane));
    await_idle(&agent);
}

#[test]
fn a_cancel_that_races_the_answer_ends_the_call_once() {
    let (agent, mut held) = held();
    let mut client = client(&agent);
    let mut answers = 0;
    for nth in 0..300_u32 {
        let stream = client.request(DEMO, Flags::END_STREAM, b"x");
        let (_, call) = held.expect(Kind::Request);
        if nth % 2 == 0 {
            client.stream.cancel(DEMO, stream);
            held.respond(&call, 0, b"y");
        } else {
            held.respond(&call, 0, b"y");
            client.stream.cancel(DEMO, stream);
        }
    }
    await_idle(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"last");
    let (_, call) = held.expect_that("the last one", |got| got.body == b"last");
    held.respond(&call, 0, b"last");
    let mut seen = std::collections::HashSet::new();
    while let Some((_, got)) = client.next_frame() {
        assert!(seen.insert(got.header.stream), "a second end: {:?}", got.header);
        if got.header.stream == stream {
            break;
        }
        answers += 1;
    }
    assert!(answers >= 100, "{answers}");
    await_idle(&agent);
}

#[test]
fn a_callee_that_gives_a_call_up_ends_it() {
    let (agent, mut held, mut client, stream, call) = called(client);
    held.stream.send(Header { word: 777, ..call.back(Kind::Cancel) }, &[], &[]);
    assert_eq!(client.answer_to(stream).1.header.word, 777);
    // And so in the middle of an answer.
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect_that("the call", |got| got.kind() == Some(Kind::Request));
    held.stream.send(call.back(Kind::Response), &[], &[1; 50_000]);
    held.stream.send(Header { word: 778, ..call.back(Kind::Cancel) }, &[], &[]);
    // What had come of it may have been passed on before, or not.
    let (_, end) = client.expect(Kind::Cancel);
    assert_eq!((end.header.stream, end.header.word), (stream, 778));
    await_idle(&agent);
}

#[test]
fn who_says_goodbye_gets_no_more_calls_on_its_lane() {
    let (agent, mut held) = held();
    lanes::echo(agent.address(), &service("echo", &[DEMO]));
    let mut client = client(&agent);
    held.stream.send(Header::new(Kind::GoAway), &[], &[]);
    held.stream.send(Header { via: 77, ..Header::new(Kind::Ping) }, &[], &[]);
    // An agent that has no call for it ends the connection instead of answering.
    while !matches!(held.stream.expect_any().kind(), Some(Kind::Pong | Kind::GoAway)) {}
    for _ in 0..200 {
        assert_eq!(client.call(DEMO, b"x").1.body, b"x", "it is the other one's");
    }
    await_idle(&agent);
}

#[test]
fn a_large_answer_to_a_small_window_comes_in_order() {
    let (agent, mut held, mut client, stream, call) = called(narrow);
    let back = call.back(Kind::Response);
    held.stream.send(back, &[], &[0; 100]);
    // As much as the agent's window has room for.
    for nth in 1..=10_u8 {
        let size = if nth == 10 { 10 } else { 24_000 };
        held.stream.data(&back, Flags::TO_CALLER | if nth == 10 { Flags::END_STREAM } else { Flags::NONE }, &vec![nth; size]);
    }
    let (_, first) = client.answer_to(stream);
    client.stream.credit(&first, 140);
    for nth in 1..=10_u8 {
        let (_, piece) = client.expect(Kind::Data);
        assert_eq!((piece.body[0], piece.has(Flags::END_STREAM)), (nth, nth == 10));
        client.stream.credit(&piece, u32::try_from(piece.body.len() + 40).expect("a length"));
    }
    await_idle(&agent);
}

#[test]
fn nothing_of_an_answer_comes_after_it_was_broken_off() {
    let (agent, mut held, mut client, stream, call) = called(narrow);
    let back = call.back(Kind::Response);
    held.stream.send(back, &[], &[0; 24_000]);
    (0..8).for_each(|_| held.stream.data(&back, Flags::TO_CALLER, &[1; 24_000]));
    held.stream.expect_read();
    let (_, first) = client.answer_to(stream);
    drop(held);
    let (_, cancel) = client.expect(Kind::Cancel);
    assert_eq!(cancel.header.word, 303);
    // Room for what waited.
    client.stream.credit(&first, 1 << 16);
    client.stream.credit(&first, 1 << 16);
    // What has waited may come behind the first PONG, which needs no room.
    for _ in 0..2 {
        let late = client.stream.so_far();
        assert!(late.iter().all(|got| got.kind() == Some(Kind::Credit)), "{:?}", late[0].header);
    }
    until_true("nothing to be in flight", || Routed::at(&agent).in_flight == 0);
}

#[test]
fn an_answer_that_has_begun_goes_on_when_its_callers_lane_ends() {
    let (agent, mut held, mut client, stream, call) = called(client);
    let back = call.back(Kind::Response);
    held.stream.send(back, &[], &[1; 1_000]);
    client.answer_to(stream);
    let mut client = client.leave_lane();
    until_true("the lane to be over", || Routed::at(&agent).lanes == 1);
    held.stream.data(&back, Flags::TO_CALLER | Flags::END_STREAM, &[2; 1_000]);
    let got = client.expect_any();
    assert_eq!((got.kind(), got.header.stream, got.has(Flags::END_STREAM)), (Some(Kind::Data), stream, true));
}

#[test]
fn calls_of_a_callee_whose_lane_has_ended_end_with_its_stream_connection() {
    let (agent, mut held) = held();
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    held.expect(Kind::Request);
    let held = held.leave_lane();
    until_true("the lane to be over", || Routed::at(&agent).lanes == 1);
    drop(held);
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word), (Way::Stream, 303), "{}", got.error());
    await_idle(&agent);
}

#[test]
fn a_call_that_is_lost_with_its_callees_lane_is_too_late_at_last() {
    let (agent, mut held) = held();
    let mut client = client(&agent);
    let header = Header { word: 500, ..lanes::request_header(DEMO, Flags::END_STREAM) };
    let stream = client.request_with(header, meta_of(DEMO).as_ref(), b"x");
    held.expect(Kind::Request);
    let mut held = held.leave_lane();
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word), (Way::Stream, 304), "{}", got.error());
    assert_eq!(held.expect(Kind::Cancel).header.word, 304);
    await_idle(&agent);
}

#[test]
fn a_large_answer_waits_for_a_caller_that_takes_it_slowly() {
    const PIECE: usize = 24_000;
    const FRAME: usize = PIECE + 40;
    const PIECES: usize = 2_000;
    let (agent, mut held, mut client, stream, call) = called(narrow);
    let back = call.back(Kind::Response);
    let window = held.stream.hello.as_ref().expect("a HELLO").windows.stream;
    held.stream.quiet = false;
    held.stream.send(back, &[], &[]);
    let (_, first) = client.answer_to(stream);
    client.stream.credit(&first, 40);
    let mut room = usize::try_from(window).expect("a size") - 40;
    let (mut sent, mut got, mut given_back) = (0, 0, 0);
    let number = |nth: usize| u8::try_from(nth % 251).expect("a byte");
    while got < PIECES {
        while sent < PIECES && room >= FRAME {
            sent += 1;
            let end = if sent == PIECES { Flags::END_STREAM } else { Flags::NONE };
            held.stream.data(&back, Flags::TO_CALLER | end, &vec![number(sent); PIECE]);
            room -= FRAME;
        }
        let (_, piece) = client.expect(Kind::Data);
        got += 1;
        assert_eq!((piece.body[0], piece.body.len()), (number(got), PIECE));
        // Everything that came was taken, so that room for more must be given back.
        let must_come = sent < PIECES && got == sent;
        let limit = if must_come { moa_tests::wait::PATIENCE } else { std::time::Duration::ZERO };
        while room < FRAME
            && let Ok(Some((_, credit))) = held.frame_within(limit)
        {
            if credit.kind() == Some(Kind::Credit) && credit.header.stream != 0 {
                assert_eq!(credit.header.via, call.header.via);
                let bytes = usize::try_from(credit.header.word).expect("a size");
                (room, given_back) = (room + bytes, given_back + bytes);
            }
        }
        assert!(given_back <= got * FRAME + (1 << 16), "no more than the caller has taken, or has room for");
        client.stream.credit(&piece, u32::try_from(FRAME).expect("a length"));
    }
    await_idle(&agent);
}

#[test]
fn a_caller_that_gives_up_an_answer_that_has_begun_ends_it_for_its_callee() {
    let (agent, mut held, mut client, stream, call) = called(narrow);
    let back = call.back(Kind::Response);
    held.stream.send(back, &[], &[0; 24_000]);
    (0..5).for_each(|_| held.stream.data(&back, Flags::TO_CALLER, &[1; 24_000]));
    client.answer_to(stream);
    client.stream.cancel(DEMO, stream);
    let (way, cancel) = held.expect(Kind::Cancel);
    assert_eq!((way, cancel.header.via, cancel.header.stream), (Way::Stream, call.header.via, stream));
    // And so does one that goes.
    let mut other = narrow(&agent);
    other.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect_that("the call", |got| got.kind() == Some(Kind::Request));
    held.stream.send(call.back(Kind::Response), &[], &[0; 24_000]);
    drop(other);
    assert_eq!(held.expect(Kind::Cancel).1.header.via, call.header.via);
    await_idle(&agent);
}

#[test]
fn who_lies_about_a_late_answer_frees_nothing() {
    let (agent, mut held) = holding(&Hello { calls_max: 1, ..service("held", &[DEMO]) });
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    let mut lie = call.back(Kind::Response);
    lie.stream += 1;
    held.stream.send(Header { flags: lie.flags | Flags::END_STREAM, ..lie }, &[], b"lie");
    let lie = Header { service: 1, ..call.back(Kind::Response) };
    held.stream.send(Header { flags: lie.flags | Flags::END_STREAM, ..lie }, &[], b"lie");
    held.stream.expect_read();
    client.stream.cancel(DEMO, stream);
    held.expect(Kind::Cancel);
    held.stream.send(Header { flags: lie.flags | Flags::END_STREAM, ..lie }, &[], b"lie");
    held.stream.expect_read();
    assert_eq!(Routed::at(&agent).in_flight, 1, "nothing proves that it was read");
    held.respond(&call, 0, b"late");
    await_idle(&agent);
    assert!(client.stream.so_far().is_empty(), "it was given up");
}

#[test]
fn a_cancel_on_a_lane_ends_the_lane() {
    let (agent, mut held, mut client, stream, call) = called(client);
    let header = Header { stream, via: u64::from(stream), service: call.header.service, ..Header::new(Kind::Cancel) };
    client.send(header, &[], &[]);
    assert!(client.next_of_lane().is_none_or(|got| got.kind() == Some(Kind::GoAway)), "the lane has ended");
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word), (Way::Stream, 303), "{}", got.error());
    held.expect(Kind::Cancel);
    held.respond(&call, 0, b"late");
    await_idle(&agent);
}
