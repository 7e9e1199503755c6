//! Calls that are sent again: which ones, after what, where to, how often, and that nobody is asked more than the budget lets.

use std::net::TcpListener;

use agent_common::frame::{Flags, Header, Hello, Kind, Role, service_hash};
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate, Several,
    client::command,
    config, echo, expect_code,
    fake::End,
    frames::{FramePeer, Got, WIDE, caller, meta_of, service},
    machine::free_address,
    mesh::tunnel,
    several::{ONE, by, call_of, stats},
    until, until_true,
};
use serde_json::{Value, json};

/// Nothing is taken out of traffic for failing.
const KEPT: &str = "outlier.consecutive = 0\noutlier.success_rate_deviations = 0\nbalance.policy = \"round-robin\"\n";
/// The budget is no matter.
const RICH: &str = "retry.budget_percent = 1000\nretry.budget_per_s = 1000\nretry.backoff_ms = 0\n";

fn policy(more: &str) -> String {
    format!("{KEPT}{RICH}{more}\n")
}

fn idempotent() -> Flags {
    Flags::END_STREAM | Flags::IDEMPOTENT
}

/// Calls with one text each until this server has got one, and returns the answer to that one, and the text.
fn until_at(several: &Several, server: usize, method: &str) -> (Value, String) {
    let mut client = several.connect();
    let mut number = 0;
    until("the call to go there", || {
        number += 1;
        let text = format!("<{method}-{number}>");
        let answer = client.call(&call_of(method, &text));
        (several.seen(&text)[server] > 0).then_some((answer, text))
    })
}

#[test]
fn after_a_lost_connection_what_may_be_executed_twice_goes_elsewhere() {
    let several = Several::start(3, &policy("retry.methods = [\"get*\", \"find\"]"));
    several.script(|server, _| if server == 0 { by(0).cut(0).then(End::Reset) } else { by(server) });
    for method in ["getUser", "find", "get"] {
        let (answer, text) = until_at(&several, 0, method);
        assert_eq!(answer["ec"], 0, "{answer}");
        let seen = several.seen(&text);
        assert_eq!((seen[0], seen.iter().sum::<usize>()), (1, 2), "{seen:?}");
    }
    for method in ["set", "finder", "forget", ""] {
        let (answer, text) = until_at(&several, 0, method);
        assert_eq!(answer["ec"], 303, "{answer}");
        assert_eq!(several.seen(&text), [1, 0, 0]);
    }
    several.await_idle();
}

#[test]
fn a_frame_that_may_be_executed_twice_is_sent_again_and_no_other() {
    for (flags, again) in [(idempotent(), true), (Flags::END_STREAM, false)] {
        let agent = Agent::start(&format!("{ONE}[defaults]\n{}", policy("")));
        let goes = FramePeer::connect(agent.address(), &service("goes", &[DEMO]));
        let mut client = FramePeer::connect(agent.address(), &caller());
        client.request(DEMO, flags, b"body");
        let mut goes = goes;
        let first = goes.expect(Kind::Request);
        let mut stays = FramePeer::connect(agent.address(), &service("stays", &[DEMO]));
        drop(goes);
        if again {
            let second = stays.expect(Kind::Request);
            assert_eq!((&second.body, &second.meta), (&first.body, &first.meta));
            assert!(second.has(Flags::IDEMPOTENT));
            stays.respond(&second, 0, b"second");
            assert_eq!(client.expect(Kind::Response).body, b"second");
        } else {
            let got = client.expect(Kind::Response);
            assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (303, false), "{}", got.error());
        }
        stays.expect_quiet();
        client.expect_quiet();
    }
}

#[test]
fn after_codes_of_the_service() {
    let codes = policy("retry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [777]\nretry.tries_max = 4");
    let several = Several::start(3, &codes);
    several.script(|server, _| if server == 0 { Answer::envelope(777, "no", "null") } else { by(server) });
    let mut client = several.connect();
    for n in 0..30 {
        let text = format!("get-{n}-");
        assert_eq!(client.call(&call_of("get", &text))["ec"], 0);
        let seen = several.seen(&text);
        assert_eq!(seen[1] + seen[2], 1, "{seen:?}");
        assert!(seen[0] <= 1, "{seen:?}");
    }
    assert!(several.calls()[0] > 0, "some calls begin there");
    // Everybody says no: as often as it may be, and the caller gets what the service says.
    several.script(|server, _| Answer::envelope(777, &format!("no {server}"), "null"));
    let answer = client.call(&call_of("get", "all-"));
    assert_eq!((&answer["ec"], several.seen("all-").iter().sum::<usize>()), (&json!(777), 4), "{answer}");
    assert!(several.seen("all-").iter().all(|seen| *seen > 0), "each is asked before one is asked twice");
    // Other codes, and other methods.
    let answer = client.call(&call_of("set", "set-"));
    assert_eq!((&answer["ec"], several.seen("set-").iter().sum::<usize>()), (&json!(777), 1));
    several.script(|_, _| Answer::envelope(778, "no", "null"));
    client.call(&call_of("get", "other-"));
    assert_eq!(several.seen("other-").iter().sum::<usize>(), 1);
    let stats = several.stats();
    assert_eq!((&stats["calls"], &stats["in_flight"], &stats["mesh_errors"]), (&json!(33), &json!(0), &json!(0)), "{stats}");
}

#[test]
fn after_a_try_that_takes_too_long() {
    for pipelined in [false, true] {
        let several =
            Several::start(2, &policy(&format!("retry.methods = [\"get\"]\ntry_timeout_ms = 150\npipelined = {pipelined}")));
        several.script(|server, _| if server == 0 { Answer::silence() } else { by(server) });
        let mut client = several.connect();
        let mut silent = 0;
        for n in 0..8 {
            let text = format!("get-{n}-");
            let answer = client.call(&call_of("get", &text));
            assert_eq!((&answer["ec"], &answer["result"]), (&json!(0), &json!(1)), "{answer}");
            let seen = several.seen(&text);
            assert!(seen[0] <= 1 && seen[1] == 1, "{seen:?}");
            silent += seen[0];
        }
        let (answer, text) = until_at(&several, 0, "set");
        assert_eq!(answer["ec"], 304, "{answer}");
        assert!(answer["em"].as_str().is_some_and(|text| text.contains("try_timeout_ms")), "{answer}");
        assert_eq!(several.seen(&text), [1, 0]);
        several.await_idle();
        let instance = several.instance(0);
        assert!(silent > 0);
        assert_eq!(instance["stats"]["retries"], silent, "{instance}");
    }
}

/// The answer to a try that was given up must not be taken for the next one's.
#[test]
fn a_late_answer_to_the_first_try_is_no_answer() {
    let fakes = [(); 2].map(|()| FakeMoa::builder().in_order().start()).into();
    let more = "retry.methods = [\"get\"]\ntry_timeout_ms = 1500\npipelined = true";
    let several = Several::with(fakes, ONE, &policy(more));
    let gates = [(); 2].map(|()| Gate::closed());
    let own = gates.clone();
    several.script(move |server, call| if call.method == "get" { by(server).at(&own[server]) } else { by(server) });
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("get", "late-")]));
    let is_at = |server: &usize| several.fakes[*server].counts().in_flight == 1;
    let first = until("the first try", || (0..2).find(is_at));
    let second = 1 - first;
    several.fakes[second].await_in_flight(1);
    gates[first].open();
    several.fakes[first].await_counts("its answer to be sent, or not to be needed", |counts| counts.in_flight == 0);
    let mut other = several.connect();
    // Answers of the other one come in order.
    gates[second].open();
    for _ in 0..4 {
        assert_eq!(other.call(&echo("other"))["ec"], 0);
    }
    let answer: Value = serde_json::from_slice(client.read().bulk()).expect("an answer");
    assert_eq!(answer["result"], second, "{answer}");
    client.expect_usable();
    several.await_idle();
}

/// Another agent that knows the service and can reach no server of it.
fn in_vain() -> Agent {
    Agent::start(&config::service(DEMO, &[free_address()], config::NO_HEALTH_CHECK))
}

fn near(head: &str, peers: &[(&str, &Agent)], policy: &str) -> Agent {
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    let sections: String = peers.iter().map(|(name, agent)| config::peer(name, agent.tunnel_address())).collect();
    let policy = format!("{}\n{policy}", config::NO_HEALTH_CHECK);
    let agent = Agent::start(&format!("{head}{sections}{}", config::served_by(DEMO, &[], &names, &policy)));
    for (name, _) in peers {
        until_true("the tunnel to be open", || tunnel(&agent, name).0);
    }
    agent
}

#[test]
fn what_another_agent_has_not_executed_goes_to_a_third() {
    let fake = FakeMoa::start();
    let far = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let vain = in_vain();
    let near = near(ONE, &[("far", &far), ("vain", &vain)], &policy(""));
    let mut redis = near.connect();
    let mut frames = FramePeer::connect(near.address(), &caller());
    // No call of these may be executed twice; none needs to be.
    for n in 0..20 {
        assert_eq!(redis.call(&echo(&n.to_string()))["ec"], 0);
        let got = frames.call(DEMO, echo("framed").as_bytes());
        assert_eq!(got.header.word, 0, "{}", got.error());
    }
    assert_eq!(fake.counts().calls, 40);
    let refused = stats(&vain)["calls"].as_u64().expect("a count");
    assert!((1..=40).contains(&refused), "it was asked, and each call once: {refused}");
    assert_eq!(stats(&near)["calls"], 40);
    // Without leave, the caller is told.
    let without = format!("{KEPT}retry.on = []");
    let near = self::near(ONE, &[("far", &far), ("vain", &vain)], &without);
    let mut frames = FramePeer::connect(near.address(), &caller());
    let got = until("a call to go in vain", || Some(frames.call(DEMO, echo("x").as_bytes())).filter(|got| got.header.word != 0));
    assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (303, true), "{}", got.error());
}

/// A fake agent that has taken a tunnel.
fn strange_peer(listener: &TcpListener, name: &str) -> FramePeer {
    let mut peer = FramePeer::accepted(listener.accept().expect("a tunnel").0);
    peer.greet(&Hello::new(Role::Agent, name, &format!("{name}-1"), WIDE));
    peer
}

fn refuse(peer: &mut FramePeer, call: &Got, code: u32) {
    let back = call.back(Kind::Response);
    peer.send(Header { flags: back.flags | Flags::END_STREAM | Flags::NOT_EXECUTED, word: code, ..back }, &[], b"");
}

/// Two agents under the test's control, and one that has both as peers.
fn between_strangers(more: &str) -> (Agent, [FramePeer; 2]) {
    let listeners = [(); 2].map(|()| TcpListener::bind(free_address()).expect("a port"));
    let address = |nth: usize| listeners[nth].local_addr().expect("an address");
    let sections = format!("{}{}", config::peer("a", address(0)), config::peer("b", address(1)));
    let policy = policy(&format!("{}\n{more}", config::NO_HEALTH_CHECK));
    let agent = Agent::start(&format!("{ONE}{sections}{}", config::served_by(DEMO, &[], &["a", "b"], &policy)));
    let peers = [strange_peer(&listeners[0], "a"), strange_peer(&listeners[1], "b")];
    for name in ["a", "b"] {
        until_true("the tunnel to be open", || tunnel(&agent, name).0);
    }
    (agent, peers)
}

/// Who of two has got a call, and the call.
fn taken(peers: &mut [FramePeer; 2]) -> (usize, Got) {
    until("a call to come", || {
        (0..).zip(&mut *peers).find_map(|(nth, peer)| {
            let call = peer.so_far().into_iter().find(|got| got.kind() == Some(Kind::Request))?;
            Some((nth, call))
        })
    })
}

#[test]
fn not_executed_is_answered_once_when_nobody_executes_it() {
    let (agent, mut peers) = between_strangers("");
    for redis in [false, true] {
        let mut client = agent.connect();
        let mut frames = FramePeer::connect(agent.address(), &caller());
        if redis {
            client.send(command(&["GET", &echo("x")]));
        } else {
            frames.request(DEMO, Flags::END_STREAM, b"x");
        }
        let (first, call) = taken(&mut peers);
        refuse(&mut peers[first], &call, 504);
        let second = 1 - first;
        let call = peers[second].expect(Kind::Request);
        refuse(&mut peers[second], &call, 504);
        if redis {
            expect_code(&client.read(), 504);
            client.expect_usable();
        } else {
            let got = frames.expect(Kind::Response);
            assert_eq!((got.header.word, got.has(Flags::NOT_EXECUTED)), (504, true));
            frames.expect_quiet();
        }
        peers.iter_mut().for_each(FramePeer::expect_quiet);
    }
    assert_eq!(stats(&agent)["calls"], 2);
}

#[test]
fn never_after_an_answer_has_begun() {
    let several = Several::start(2, &policy("retry.methods = [\"get\"]"));
    let big = "x".repeat(200_000);
    let body = json!(big);
    several.script(move |server, _| if server == 0 { Answer::ok(&body).cut(100_000).then(End::Reset) } else { by(server) });
    for n in 0..4 {
        let text = format!("big-{n}-");
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", &text)]));
        // An error in the answer's place, or the end of the connection.
        if let Ok(reply) = client.try_read()
            && several.seen(&text)[0] == 1
        {
            expect_code(&reply, 303);
        }
        assert_eq!(several.seen(&text).iter().sum::<usize>(), 1);
    }
    let mut frames = FramePeer::connect(several.agent.address(), &caller());
    until("a framed call to be cut off", || {
        let before = several.calls();
        let stream = frames.request(DEMO, idempotent(), call_of("get", "framed").as_bytes());
        let mut got = frames.expect_any();
        while got.kind() == Some(Kind::Data) || (got.kind() == Some(Kind::Response) && !got.has(Flags::END_STREAM)) {
            let len = u32::try_from(got.header.frame_len()).expect("a length");
            frames.credit(&got, len);
            got = frames.expect_any();
        }
        assert_eq!(got.header.stream, stream);
        assert_eq!(several.sum(), before.iter().sum::<usize>() + 1);
        (got.kind() == Some(Kind::Cancel)).then_some(())
    });
    several.await_idle();
}

#[test]
fn an_answer_that_breaks_off_before_any_of_it_was_passed_on_does_not_count() {
    let several = Several::start(2, &policy("retry.methods = [\"get\"]"));
    let body = json!("x".repeat(40_000));
    several.script(move |server, _| if server == 0 { Answer::ok(&body).cut(30_000).then(End::Reset) } else { by(server) });
    let (answer, text) = until_at(&several, 0, "get");
    assert_eq!((&answer["result"], several.seen(&text)), (&json!(1), vec![1, 1]));
}

#[test]
fn the_budget_bounds_an_outage() {
    let more = "retry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [777]\nretry.tries_max = 5\n\
                retry.budget_percent = 20\nretry.budget_per_s = 0\nretry.backoff_ms = 0";
    let several = Several::start(3, &format!("{KEPT}{more}"));
    several.script(|_, _| Answer::envelope(777, "no", "null"));
    let mut client = several.connect();
    for _ in 0..10 {
        client.send((0..60).flat_map(|_| command(&["GET", &call_of("get", "x")])).collect::<Vec<u8>>());
        (0..60).for_each(|_| drop(expect_code(&client.read(), 777)));
    }
    let sum = several.sum();
    // A fifth more, and what there is at the beginning.
    assert!((600 + 100..=600 + 120 + 1).contains(&sum), "{sum} tries for 600 calls");
}

#[test]
fn two_agents_do_not_multiply_each_other() {
    let retries =
        policy("retry.methods = [\"get\"]\nretry.on = [\"code\", \"not-executed\"]\nretry.codes = [777]\nretry.tries_max = 3");
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    fakes.iter().for_each(|fake| fake.script(|_| Answer::envelope(777, "no", "null")));
    let addresses = [fakes[0].address(), fakes[1].address()];
    let policy = format!("{}\n{retries}", config::NO_HEALTH_CHECK);
    let far = Agent::start(&config::service(DEMO, &addresses, &policy));
    let near = near(ONE, &[("far", &far)], &retries);
    let mut client = near.connect();
    expect_code(&client.get(&call_of("get", "x")), 777);
    assert_eq!(fakes.iter().map(|fake| fake.counts().calls).sum::<usize>(), 3);
}

#[test]
fn the_time_of_the_whole_call_holds() {
    let more = "retry.methods = [\"get\"]\ntry_timeout_ms = 100\nretry.tries_max = 10\ntimeout_ms = 450\nretry.backoff_ms = 40";
    let several = Several::start(2, &format!("{KEPT}retry.budget_per_s = 1000\n{more}"));
    several.script(|_, _| Answer::silence());
    let mut client = several.connect();
    expect_code(&client.get(&call_of("get", "x")), 304);
    let sum = several.sum();
    assert!((2..=5).contains(&sum), "{sum} tries of at least 100 ms in 450");
    client.expect_usable();
    several.await_idle();
}

#[test]
fn a_caller_that_goes_between_two_tries_leaves_nothing_behind() {
    let more = "retry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [777]\nbreaker.service_calls_max = 1\n\
                timeout_ms = 86400000\nretry.backoff_ms = 3600000\nretry.backoff_max_ms = 3600000";
    let several = Several::start(2, &format!("{KEPT}{more}"));
    several.script(|_, call| if call.method == "get" { Answer::envelope(777, "no", "null") } else { by(0) });
    // A Redis client that closes its end may still read, so its calls go on; a peer that speaks frames says GOAWAY for that.
    let before = several.sum();
    let mut framed = FramePeer::connect(several.agent.address(), &caller());
    framed.request_method(DEMO, "get", Flags::END_STREAM, call_of("get", "framed").as_bytes());
    until_true("the first try to be over", || several.sum() == before + 1);
    until_true("the call to be the only one", || several.connect().call(&echo("x"))["ec"] == 504);
    drop(framed);
    until_true("its place to be free", || several.connect().call(&echo("x"))["ec"] == 0);
    several.await_idle();
    assert_eq!(several.seen("\"get\"").iter().sum::<usize>(), 1);
}

#[test]
fn pipelined_calls_of_a_redis_client_keep_their_order() {
    let several =
        Several::start(3, &policy("retry.methods = [\"get\"]\nretry.on = [\"code\", \"connection\"]\nretry.codes = [777]"));
    several.script(|server, call| match server {
        0 => Answer::envelope(777, "no", "null"),
        _ => Answer::ok(&call.args[0]),
    });
    let mut client = several.connect();
    let calls: Vec<u8> = (0..200).flat_map(|n| command(&["GET", &call_of("get", &n.to_string())])).collect();
    client.send(calls);
    for n in 0..200 {
        let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
        assert_eq!(answer["result"], n.to_string(), "{answer}");
    }
    several.await_idle();
}

#[test]
fn large_calls_are_not_sent_again_and_are_answered_clearly() {
    let (agent, mut peers) = between_strangers("argument_bytes_max = 1000000");
    let mut client = FramePeer::connect(agent.address(), &caller());
    // Of several frames: passed on as they come.
    let body = vec![7; 100_000];
    let header = Header { flags: Flags::IDEMPOTENT, service: service_hash(DEMO.as_bytes(), b""), ..Header::new(Kind::Request) };
    let stream = client.request_with(header, meta_of(DEMO).as_ref(), &body[..50_000]);
    client.data(&Header { stream, via: u64::from(stream), ..header }, Flags::END_STREAM, &body[50_000..]);
    let (first, call) = taken(&mut peers);
    refuse(&mut peers[first], &call, 504);
    let got = until("an answer", || Some(client.expect_any()).filter(|got| got.kind() != Some(Kind::Credit)));
    assert_eq!((got.kind(), got.header.word, got.has(Flags::NOT_EXECUTED)), (Some(Kind::Response), 504, true));
    peers[1 - first].expect_quiet();
    assert_eq!(stats(&agent)["in_flight"], 0);
}

#[test]
fn a_whole_large_call_goes_elsewhere_whole() {
    // A Redis client's call is whole before it is sent: more than a frame, all the same.
    let (agent, mut peers) = between_strangers("argument_bytes_max = 1000000");
    let mut client = agent.connect();
    let text = "y".repeat(300_000);
    client.send(command(&["GET", &echo(&text)]));
    let (first, call) = taken(&mut peers);
    // Before the rest of it has been read.
    refuse(&mut peers[first], &call, 504);
    let second = 1 - first;
    let call = peers[second].expect(Kind::Request);
    let mut body = call.body.clone();
    let mut last = call.clone();
    while !last.has(Flags::END_STREAM) {
        last = peers[second].expect(Kind::Data);
        body.extend_from_slice(&last.body);
    }
    assert_eq!(String::from_utf8_lossy(&body), echo(&text));
    peers[second].respond(&call, 0, br#"{"ec":0,"result":"whole"}"#);
    let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
    assert_eq!(answer["result"], "whole");
}
