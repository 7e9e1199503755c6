//! Second copies of calls whose answers are late: the first answer counts, whoever gives it, and the other copy is given up.

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, Answer, DEMO, Gate, Several,
    client::command,
    expect_code,
    fake::End,
    frames::{FramePeer, Got, caller, service},
    several::{ONE, by, call_of, stats},
    until, until_true,
};
use serde_json::{Value, json};

const HEDGED: &str = "outlier.consecutive = 0\nbalance.policy = \"round-robin\"\nretry.methods = [\"get\"]\nhedge.after_ms = 40\n\
                      hedge.budget_percent = 100\nretry.on = []\n";

/// Several servers whose answers wait for a gate each.
fn gated(more: &str) -> (Several, [Gate; 2]) {
    let several = Several::start(2, &format!("{HEDGED}{more}"));
    let gates = [(); 2].map(|()| Gate::closed());
    let own = gates.clone();
    several.script(move |server, call| if call.method == "get" { by(server).at(&own[server]) } else { by(server) });
    (several, gates)
}

/// Which server has the first copy; both have one when this returns.
fn both(several: &Several) -> usize {
    let is_at = |server: &usize| several.fakes[*server].counts().in_flight == 1;
    let first = until("the first copy", || (0..2).find(is_at));
    several.fakes[1 - first].await_in_flight(1);
    first
}

#[test]
fn the_first_answer_counts_whoever_gives_it() {
    let mut winners = Vec::new();
    for of_second in [false, true] {
        let (several, gates) = gated("");
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", "x")]));
        let first = both(&several);
        let winner = if of_second { 1 - first } else { first };
        gates[winner].open();
        let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
        assert_eq!(answer["result"], winner);
        gates[1 - winner].open();
        client.expect_usable();
        several.await_idle();
        let stats = several.stats();
        assert_eq!((&stats["calls"], &stats["mesh_errors"]), (&json!(1), &json!(0)), "one call: {stats}");
        winners.push(winner == first);
    }
    assert_eq!(winners, [true, false]);
}

#[test]
fn a_copy_that_fails_leaves_the_call_to_the_other() {
    for fails_first in [true, false] {
        let several = Several::start(2, HEDGED);
        let gates = [(); 2].map(|()| Gate::closed());
        let own = gates.clone();
        several.script(move |server, _| by(server).at(&own[server]));
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", "x")]));
        let first = both(&several);
        let fails = if fails_first { first } else { 1 - first };
        several.fakes[fails].hang_up(End::Reset);
        until_true("the copy to be over", || several.instance(fails)["stats"]["in_flight"] == 0);
        gates[1 - fails].open();
        let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
        assert_eq!(answer["result"], 1 - fails, "{answer}");
        several.await_idle();
        assert_eq!(several.stats()["calls"], 1);
    }
}

#[test]
fn when_both_fail_the_caller_is_told_once() {
    let (several, _gates) = gated("");
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("get", "x")]));
    both(&several);
    several.fakes.iter().for_each(|fake| fake.hang_up(End::Reset));
    expect_code(&client.read(), 303);
    client.expect_usable();
    several.await_idle();
    let stats = several.stats();
    assert_eq!((&stats["calls"], &stats["mesh_errors"]), (&json!(1), &json!(1)), "{stats}");
}

#[test]
fn an_error_after_which_calls_are_sent_again_leaves_the_call_to_the_other_copy() {
    let policy =
        HEDGED.replace("retry.on = []", "retry.on = [\"code\", \"connection\"]\nretry.codes = [777]\nretry.backoff_ms = 0");
    for tries in [2, 3] {
        let several = Several::start(2, &format!("{policy}retry.tries_max = {tries}"));
        let gates = [(); 2].map(|()| Gate::closed());
        let own = gates.clone();
        several.script(move |server, _| Answer::envelope(777, &format!("no {server}"), "null").at(&own[server]));
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", "x")]));
        let first = both(&several);
        gates[first].open();
        until_true("the copy to be over", || several.instance(first)["stats"]["in_flight"] == 0);
        gates[1 - first].open();
        expect_code(&client.read(), 777);
        assert_eq!(several.sum(), tries, "both copies together are tries of one call");
        several.await_idle();
        let stats = several.stats();
        assert_eq!((&stats["calls"], &stats["mesh_errors"]), (&json!(1), &json!(0)), "{stats}");
    }
}

#[test]
fn a_second_copy_never_goes_where_the_first_one_is() {
    // The other instance can take nothing.
    let several = Several::start(2, &format!("{HEDGED}breaker.instance_calls_max = 1"));
    let gate = Gate::closed();
    let own = gate.clone();
    several.script(move |server, _| by(server).at(&own));
    let mut holder = several.connect();
    holder.send(command(&["GET", &call_of("set", "held")]));
    until_true("the holder to be under way", || several.sum() == 1);
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("get", "x")]));
    until_true("the second copy to have been tried", || {
        moa_tests::fleet::events(&several.agent, DEMO, "hedges") == 1 && several.sum() == 2
    });
    gate.open();
    assert!(client.read().bulk().starts_with(b"{\"ec\":0"));
    assert_eq!(several.sum(), 2);
    several.await_idle();
}

#[test]
fn when_both_are_late_the_caller_is_told_once() {
    let (several, gates) = gated("timeout_ms = 300");
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("get", "x")]));
    both(&several);
    expect_code(&client.read(), 304);
    client.expect_usable();
    gates.iter().for_each(Gate::open);
    several.await_idle();
    assert_eq!(several.stats()["calls"], 1);
}

#[test]
fn what_may_not_be_executed_twice_has_no_second_copy() {
    let (several, gates) = gated("timeout_ms = 400");
    let own = gates.clone();
    several.script(move |server, _| by(server).at(&own[server]));
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("set", "x")]));
    expect_code(&client.read(), 304);
    assert_eq!(several.sum(), 1);
}

#[test]
fn pipelined_calls_keep_their_order_and_large_answers_come_whole() {
    let several = Several::start(2, HEDGED);
    let big = "x".repeat(200_000);
    let answer = big.clone();
    several.script(move |server, call| {
        let text = if call.args[0] == "big" { json!(answer) } else { call.args[0].clone() };
        let answer = Answer::ok(&text);
        if server == 0 { answer.after(std::time::Duration::from_millis(90)) } else { answer }
    });
    let mut client = several.connect();
    let texts: Vec<String> = (0..40).map(|n| if n % 8 == 3 { "big".to_owned() } else { n.to_string() }).collect();
    client.send(texts.iter().flat_map(|text| command(&["GET", &call_of("get", text)])).collect::<Vec<u8>>());
    for text in &texts {
        let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
        let expected = if text == "big" { &big } else { text };
        assert!(answer["result"] == **expected, "{text}");
    }
    several.await_idle();
    assert_eq!(several.stats()["calls"], 40);
    assert!(several.sum() > 40, "some had second copies: {:?}", several.calls());
}

/// Two applications that speak frames, and who has got the first copy.
fn framed() -> (Agent, FramePeer, [FramePeer; 2]) {
    let agent = Agent::start(&format!("{ONE}[defaults]\n{HEDGED}"));
    let servers = ["a", "b"].map(|name| FramePeer::connect(agent.address(), &service(name, &[DEMO])));
    let client = FramePeer::connect(agent.address(), &caller());
    (agent, client, servers)
}

fn copies(servers: &mut [FramePeer; 2]) -> [Got; 2] {
    servers.each_mut().map(|server| server.expect(Kind::Request))
}

#[test]
fn in_frames_the_loser_is_cancelled_and_a_long_answer_goes_on() {
    for winner in 0..2 {
        let (agent, mut client, mut servers) = framed();
        let stream = client.request(DEMO, Flags::END_STREAM | Flags::IDEMPOTENT, b"body");
        let calls = copies(&mut servers);
        assert_eq!((&calls[0].body, &calls[0].meta), (&calls[1].body, &calls[1].meta));
        let back = calls[winner].back(Kind::Response);
        servers[winner].send(back, &[], &[1; 50_000]);
        let begun = client.expect(Kind::Response);
        assert_eq!((begun.header.stream, begun.body.len()), (stream, 50_000));
        assert_eq!(servers[1 - winner].expect(Kind::Cancel).header.via, calls[1 - winner].header.via);
        // What the loser sends all the same is no matter, and what the caller gives back goes to the winner.
        servers[1 - winner].respond(&calls[1 - winner], 0, b"late");
        for nth in 0..20_u8 {
            let end = if nth == 19 { Flags::END_STREAM } else { Flags::NONE };
            servers[winner].data(&back, Flags::TO_CALLER | end, &[nth; 50_000]);
            let got = until("more of it", || Some(client.expect_any()).filter(|got| got.kind() == Some(Kind::Data)));
            assert_eq!((got.body.len(), got.body[0]), (50_000, nth));
            client.credit(&got, 50_040);
        }
        client.expect_quiet();
        until_true("nothing to be in flight", || stats(&agent)["in_flight"] == 0);
        assert_eq!(stats(&agent)["calls"], 1);
    }
}

#[test]
fn a_caller_that_gives_up_gives_up_both() {
    for goes in [false, true] {
        let (agent, mut client, mut servers) = framed();
        let stream = client.request(DEMO, Flags::END_STREAM | Flags::IDEMPOTENT, b"");
        copies(&mut servers);
        if goes {
            drop(client);
        } else {
            client.cancel(DEMO, stream);
            client.expect_quiet();
        }
        servers.iter_mut().for_each(|server| drop(server.expect(Kind::Cancel)));
        until_true("nothing to be in flight", || stats(&agent)["in_flight"] == 0);
        assert!(stats(&agent)["calls"].as_u64().is_some_and(|calls| calls <= 1));
    }
}

#[test]
fn a_copy_given_up_by_its_callee_leaves_the_call_to_the_other() {
    let (agent, mut client, mut servers) = framed();
    client.request(DEMO, Flags::END_STREAM | Flags::IDEMPOTENT, b"");
    let calls = copies(&mut servers);
    let back = calls[0].back(Kind::Cancel);
    servers[0].send(agent_common::frame::Header { word: 503, ..back }, &[], &[]);
    servers[0].expect_quiet();
    client.expect_quiet();
    servers[1].respond(&calls[1], 0, b"second");
    assert_eq!(client.expect(Kind::Response).body, b"second");
    assert_eq!(stats(&agent)["calls"], 1);
}

#[test]
fn who_has_not_executed_it_has_not_answered_it() {
    let (agent, mut client, mut servers) = framed();
    client.request(DEMO, Flags::END_STREAM | Flags::IDEMPOTENT, b"");
    let calls = copies(&mut servers);
    let back = calls[1].back(Kind::Response);
    let flags = back.flags | Flags::END_STREAM | Flags::NOT_EXECUTED;
    servers[1].send(agent_common::frame::Header { word: 504, flags, ..back }, &[], &[]);
    servers[1].expect_quiet();
    client.expect_quiet();
    servers[0].respond(&calls[0], 0, b"first");
    assert_eq!(client.expect(Kind::Response).body, b"first");
    assert_eq!(stats(&agent)["calls"], 1);
}

#[test]
fn the_budget_bounds_second_copies() {
    let several = Several::start(2, &HEDGED.replace("= 100", "= 10"));
    several.script(|server, _| by(server).after(std::time::Duration::from_millis(80)));
    let mut client = several.connect();
    let calls = (0..50).flat_map(|n| command(&["GET", &call_of("get", &n.to_string())])).collect::<Vec<u8>>();
    client.send(calls);
    (0..50).for_each(|_| assert!(client.read().bulk().starts_with(b"{\"ec\":0")));
    let sum = several.sum();
    assert!((51..=55).contains(&sum), "{sum}");
    several.await_idle();
}
