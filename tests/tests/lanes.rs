//! Calls that the kernel routes from application to application, and those of them that go by way of the agent all the same:
//! each ends once, with the same result, and is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, Header, Hello, Kind};
use moa_tests::{
    Agent, DEMO,
    fleet::metric,
    frames::{FramePeer, Got, caller, service},
    kernel,
    lanes::{self, LanePeer, Way},
    routed::{Routed, await_idle, await_lanes, await_routed},
    several::stats,
    until, until_true,
};
use serde_json::Value;

/// An agent, and applications with lanes that echo.
fn echoing(count: usize, policy: &str) -> (Agent, Vec<JoinHandle<()>>) {
    let agent = kernel::start(policy);
    let serving = (0..count).map(|nth| lanes::echo(agent.address(), &service(&format!("echo-{nth}"), &[DEMO]))).collect();
    await_routed(&agent, DEMO);
    (agent, serving)
}

/// Serves by hand.
fn held(agent: &Agent) -> LanePeer {
    let held = LanePeer::open(agent.address(), &service("held", &[DEMO]));
    await_routed(agent, DEMO);
    held
}

fn client(agent: &Agent) -> LanePeer {
    LanePeer::open(agent.address(), &caller())
}

/// What the agent counts of the service, once it has counted so many calls.
fn counted(agent: &Agent, calls: u64) -> Value {
    until(&format!("{calls} calls to be counted: {}", stats(agent)), || {
        Some(stats(agent)).filter(|stats| stats["calls"] == calls)
    })
}

#[test]
fn a_call_goes_from_lane_to_lane_and_is_counted() {
    let (agent, _serving) = echoing(1, "");
    let mut client = client(&agent);
    let before = Routed::at(&agent);
    for size in [0, 1, 64, 1_000, 16_000, 32_000] {
        let body: Vec<u8> = (0..size).map(|at: usize| u8::try_from(at % 251).expect("small")).collect();
        let (way, got) = client.call(DEMO, &body);
        assert_eq!((way, got.header.word, got.body == body), (Way::Lane, 0, true), "{size}");
    }
    let after = Routed::at(&agent);
    assert_eq!((after.calls - before.calls, after.answers - before.answers), (6, 6), "{after:?}");
    let stats = counted(&agent, 6);
    assert_eq!((&stats["mesh_errors"], &stats["service_errors"]), (&0.into(), &0.into()), "{stats}");
    assert!(stats["p50_us"].as_u64() > Some(0));
    let status = agent.json(&["status"]);
    assert_eq!(
        (&status["kernel"]["routed_calls"], status["kernel"]["routed_share"].as_f64()),
        (&6.into(), Some(1.0)),
        "{status}"
    );
    assert_eq!(metric(&agent, "moa_kernel_routed_calls_total"), 6);
    // The agent has served none of them, and balances by what the kernel saw.
    until_true("the instance's latency to be known", || {
        agent.json(&["services", DEMO])[0]["instances"][0]["ewma_us"].as_u64() > Some(0)
    });
    await_idle(&agent);
}

#[test]
fn what_does_not_fit_goes_by_way_of_the_agent_and_has_the_same_result() {
    let (agent, _serving) = echoing(1, "");
    let mut client = client(&agent);
    // Too large for a lane; a flag; a Redis client; an application without a lane.
    let large = vec![7; 40_000];
    let (_, got) = client.call(DEMO, &large);
    assert_eq!((got.header.word, got.body == large), (0, true));
    let stream = client.request(DEMO, Flags::END_STREAM | Flags::SLOW_PATH, b"slow");
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, &*got.body), (Way::Stream, &b"slow"[..]));
    let mut plain = FramePeer::connect(agent.address(), &caller());
    plain.request(DEMO, Flags::END_STREAM, b"plain");
    assert_eq!(plain.expect(Kind::Response).body, b"plain");
    let mut by_stream = client.leave_lane();
    by_stream.request(DEMO, Flags::END_STREAM, b"by stream");
    assert_eq!(by_stream.expect(Kind::Response).body, b"by stream");
    let unrouted = Routed::at(&agent).unrouted;
    assert_eq!((unrouted.get("too-large"), unrouted.get("flags")), (Some(&1), Some(&1)), "{unrouted:?}");
    counted(&agent, 4);
    await_idle(&agent);
}

#[test]
fn an_error_of_the_service_comes_by_way_of_the_agent() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    assert!(call.header.is_routed());
    held.respond(&call, 777, b"no");
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word, &*got.body), (Way::Stream, 777, &b"no"[..]));
    assert_eq!(counted(&agent, 1)["service_errors"], 1);
    await_idle(&agent);
}

#[test]
fn a_large_answer_comes_by_the_stream_connections() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    let back = call.back(Kind::Response);
    held.stream.send(back, &[], &[1; 60_000]);
    for nth in 2..=4_u8 {
        let end = if nth == 4 { Flags::END_STREAM } else { Flags::NONE };
        held.stream.data(&back, Flags::TO_CALLER | end, &[nth; 60_000]);
    }
    let (way, first) = client.expect(Kind::Response);
    assert_eq!((way, first.header.stream, first.header.via, first.body.len()), (Way::Stream, stream, u64::from(stream), 60_000));
    for nth in 2..=4_u8 {
        let (_, piece) = client.expect(Kind::Data);
        assert_eq!((piece.header.stream, piece.body.len(), piece.body[0]), (stream, 60_000, nth));
        client.stream.credit(&piece, 60_040);
    }
    counted(&agent, 1);
    await_idle(&agent);
}

#[test]
fn a_call_that_takes_too_long_is_answered_and_its_callee_told() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut client = client(&agent);
    let header = Header { word: 50, ..lanes::request_header(DEMO, Flags::END_STREAM) };
    let stream = client.request_with(header, moa_tests::frames::meta_of(DEMO).as_ref(), b"x");
    let (_, call) = held.expect(Kind::Request);
    let (way, got) = client.answer_to(stream);
    assert_eq!((way, got.header.word), (Way::Stream, 304), "{}", got.error());
    let (way, cancel) = held.expect(Kind::Cancel);
    assert_eq!((way, cancel.header.via), (Way::Stream, call.header.via));
    assert_eq!(Routed::at(&agent).in_flight, 1, "its bytes are still reserved");
    held.respond(&call, 0, b"late");
    await_idle(&agent);
    assert_eq!(counted(&agent, 1)["mesh_errors"], 1);
    // The late answer is nobody's.
    let stream = client.request(DEMO, Flags::END_STREAM, b"y");
    let (_, call) = held.expect(Kind::Request);
    held.respond(&call, 0, b"in time");
    assert_eq!(client.answer_to(stream).1.body, b"in time");
}

#[test]
fn when_an_instance_dies_its_calls_are_answered_and_others_go_elsewhere() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut clients = [client(&agent), client(&agent)];
    let streams: Vec<_> = clients
        .iter_mut()
        .map(|client| (0..10).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect::<Vec<_>>())
        .collect();
    (0..20).for_each(|_| assert_eq!(held.expect(Kind::Request).0, Way::Lane));
    let _other = lanes::echo(agent.address(), &service("other", &[DEMO]));
    until_true("both to be there", || {
        agent.json(&["services", DEMO])[0]["instances"].as_array().is_some_and(|all| all.len() == 2)
    });
    drop(held);
    for (client, streams) in clients.iter_mut().zip(&streams) {
        for stream in streams {
            let (way, got) = client.answer_to(*stream);
            assert_eq!((way, got.header.word), (Way::Stream, 303), "{}", got.error());
            assert!(!got.has(Flags::NOT_EXECUTED), "nobody knows");
        }
    }
    await_routed(&agent, DEMO);
    until_true("calls to go to the other one", || clients[0].call(DEMO, b"again").0 == Way::Lane);
    await_idle(&agent);
}

/// Calls for this long, and expects each to go by the kernel and none to find no route.
fn expect_routed_for(agent: &Agent, client: &mut LanePeer, time: Duration) {
    let (before, end) = (Routed::at(agent), Instant::now() + time);
    let mut calls = 0;
    while Instant::now() < end {
        let (way, got) = client.call(DEMO, b"x");
        assert_eq!((way, got.header.word), (Way::Lane, 0), "after {calls} calls: {}", got.error());
        calls += 1;
        thread::sleep(Duration::from_millis(1));
    }
    let after = Routed::at(agent);
    assert_eq!((after.calls - before.calls, after.unrouted), (calls, before.unrouted), "{:?}", after.services);
}

fn await_instances(agent: &Agent, count: usize) {
    until_true(&format!("{count} instances"), || {
        agent.json(&["services", DEMO])[0]["instances"].as_array().is_some_and(|all| all.len() == count)
    });
}

fn await_unrouted(agent: &Agent, why: &str) {
    until_true(why, || Routed::at(agent).services.get(DEMO) == Some(&Some(why.to_owned())));
}

#[test]
fn an_instance_that_joins_does_not_take_the_others_off_the_kernel() {
    let (agent, _serving) = echoing(1, "");
    let mut client = client(&agent);
    let hello = Hello { connection: Some(0), ..service("joins", &[DEMO]) };
    let stream = FramePeer::connect(agent.address(), &hello);
    await_instances(&agent, 2);
    expect_routed_for(&agent, &mut client, Duration::from_millis(500));
    // One that has no lane for long is to get its share of the calls.
    await_unrouted(&agent, "an instance has no lane");
    let Ok(joined) = LanePeer::beside(stream, agent.address(), &hello) else { panic!("no lane") };
    let counts = Arc::new(AtomicUsize::new(0));
    let counted = counts.clone();
    let _joined = lanes::serve(joined, move |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            counted.fetch_add(1, Ordering::Relaxed);
            peer.respond_by(way, &got, 0, &got.body);
        }
    });
    await_routed(&agent, DEMO);
    expect_routed_for(&agent, &mut client, Duration::from_millis(100));
    assert!(counts.load(Ordering::Relaxed) > 0, "the one that joined gets calls");
}

#[test]
fn an_instance_whose_lane_dies_first_does_not_take_the_others_off_the_kernel() {
    let (agent, _serving) = echoing(1, "");
    let dying = LanePeer::open(agent.address(), &service("dies", &[DEMO]));
    await_lanes(&agent, 2);
    let mut client = client(&agent);
    let stream = dying.leave_lane();
    await_lanes(&agent, 2);
    expect_routed_for(&agent, &mut client, Duration::from_millis(500));
    await_unrouted(&agent, "an instance has no lane");
    drop(stream);
    await_routed(&agent, DEMO);
    expect_routed_for(&agent, &mut client, Duration::from_millis(100));
    await_idle(&agent);
}

#[test]
fn when_the_only_lane_dies_nothing_is_routed_at_once() {
    let agent = kernel::start("");
    let held = held(&agent);
    let mut client = client(&agent);
    let mut stream = held.leave_lane();
    await_unrouted(&agent, "no instance has a lane");
    let number = client.request(DEMO, Flags::END_STREAM, b"x");
    let call = stream.expect(Kind::Request);
    stream.respond(&call, 0, b"y");
    assert_eq!(client.answer_to(number).1.body, b"y");
}

#[test]
fn when_a_caller_goes_or_gives_up_the_callee_is_told() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut first = client(&agent);
    let given_up = first.request(DEMO, Flags::END_STREAM, b"given up");
    let (_, one) = held.expect(Kind::Request);
    first.stream.cancel(DEMO, given_up);
    let (way, cancel) = held.expect(Kind::Cancel);
    assert_eq!((way, cancel.header.via), (Way::Stream, one.header.via));
    first.request(DEMO, Flags::END_STREAM, b"left");
    let (_, two) = held.expect(Kind::Request);
    drop(first);
    assert_eq!(held.expect(Kind::Cancel).1.header.via, two.header.via);
    held.respond(&one, 0, b"late");
    held.respond(&two, 0, b"late");
    await_idle(&agent);
}

#[test]
fn when_a_callers_lane_ends_alone_its_calls_are_answered() {
    let agent = kernel::start("");
    let mut held = held(&agent);
    let mut client = client(&agent);
    let stream = client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    let mut by_stream = client.leave_lane();
    let got = by_stream.expect(Kind::Response);
    assert_eq!((got.header.stream, got.header.word), (stream, 303), "{}", got.error());
    assert_eq!(held.expect(Kind::Cancel).1.header.via, call.header.via);
    held.respond(&call, 0, b"late");
    await_idle(&agent);
    by_stream.request(DEMO, Flags::END_STREAM, b"y");
    let (way, call) = held.expect(Kind::Request);
    held.respond_by(way, &call, 0, b"z");
    assert_eq!(by_stream.expect(Kind::Response).body, b"z");
}

#[test]
fn access_by_application_is_kept_in_the_kernel_too() {
    let rules = "[services.\"/service/demo\"]\naccess.default = \"deny\"\n\
                 access.rules = [{ name = \"friends\", when = { application = \"friend-*\" }, verdict = \"allow\" }]\n";
    let agent = kernel::start(rules);
    let _serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let as_application = |name: &str| LanePeer::open(agent.address(), &Hello { application: name.to_owned(), ..caller() });
    let mut stranger = as_application("stranger");
    let (way, got) = stranger.call(DEMO, b"x");
    assert_eq!((way, got.header.word), (Way::Stream, 506), "{}", got.error());
    let mut friend = as_application("friend-1");
    until_true("the friend to be known", || friend.call(DEMO, b"x").0 == Way::Lane);
    assert_eq!(stranger.call(DEMO, b"x").1.header.word, 506);
    assert!(Routed::at(&agent).unrouted["denied"] >= 2);
}

#[test]
fn a_policy_that_only_the_agent_can_follow_takes_a_service_off_the_kernel() {
    let (agent, _serving) = echoing(1, "");
    let mut client = client(&agent);
    assert_eq!(client.call(DEMO, b"x").0, Way::Lane);
    for (policy, why) in [
        ("rate.service_per_s = 1000", "rate limits"),
        ("breaker.service_calls_max = 9", "breakers"),
        ("faults = [{ name = \"drill\", code = 700, per_10k = 1 }]", "rules"),
        ("shadows = [{ name = \"copy\", service = \"/service/other\" }]", "rules"),
        ("hedge.after_ms = 50", "hedge"),
        ("concurrency.adaptive = true", "concurrency.adaptive"),
        ("access.rules = [{ name = \"get\", when = { method = \"set\" }, verdict = \"deny\" }]", "access rules"),
        ("locality.local = \"never\"", "locality.local"),
        ("kernel = false", "kernel = false"),
    ] {
        agent.reload(&format!("[services.\"{DEMO}\"]\n{policy}\n[services.\"/service/other\"]\ninstances = []\n"));
        until_true(why, || Routed::at(&agent).services.get(DEMO) == Some(&Some(why.to_owned())));
        let (way, got) = client.call(DEMO, b"x");
        assert_eq!((way, got.header.word), (Way::Stream, 0), "{policy}");
    }
    agent.reload("");
    await_routed(&agent, DEMO);
    assert_eq!(client.call(DEMO, b"x").0, Way::Lane);
}

#[test]
fn turned_off_lanes_are_streams_and_lose_nothing() {
    let (agent, _serving) = echoing(1, "");
    let mut client = client(&agent);
    assert_eq!(client.call(DEMO, b"x").0, Way::Lane);
    agent.json(&["kernel", "off"]);
    for nth in 0..50_u8 {
        let (_, got) = client.call(DEMO, &[nth]);
        assert_eq!((got.header.word, &*got.body), (0, &[nth][..]));
    }
    agent.json(&["kernel", "on"]);
    let (_, got) = client.call(DEMO, b"still");
    assert_eq!(got.body, b"still");
    counted(&agent, 52);
    await_idle(&agent);
}

#[test]
fn a_wrong_token_is_refused_and_hurts_nobody() {
    let (agent, _serving) = echoing(1, "");
    let mut good = client(&agent);
    let hello = Hello { connection: Some(0), ..caller() };
    let stream = FramePeer::connect(agent.address(), &hello);
    let mut lane = stream.hello.as_ref().and_then(|hello| hello.lane).expect("a lane");
    lane.token[15] ^= 1;
    let refused = LanePeer::opened(stream, lanes::connect(agent.address()), &lanes::lane_hello(&hello, lane), lane);
    let Err(refused) = refused else { panic!("it was taken") };
    let (mut stream, why) = (*refused.stream, refused.why);
    assert!(why.contains("token"), "{why}");
    stream.request(DEMO, Flags::END_STREAM, b"by stream");
    let got: Got = stream.expect(Kind::Response);
    assert_eq!(got.body, b"by stream");
    assert_eq!(good.call(DEMO, b"x").0, Way::Lane);
}
