//! Bounds on what is under way and on what comes each second: each refusal names its limit, and nothing is counted for ever.

use agent_common::frame::{Flags, Hello, Kind};
use moa_tests::{
    Agent, DEMO, FakeMoa, Gate, Several,
    client::command,
    config, echo, expect_code,
    frames::{FramePeer, caller},
    several::{ONE, by, call_of},
    until_true,
};
use serde_json::Value;

const KEPT: &str = "outlier.consecutive = 0\nbalance.policy = \"round-robin\"\n";

/// Several servers whose answers to `get` wait for one gate.
fn held(count: usize, policy: &str) -> (Several, Gate) {
    let several = Several::start(count, &format!("{KEPT}{policy}"));
    let gate = Gate::closed();
    let own = gate.clone();
    several.script(move |server, call| if call.method == "get" { by(server).at(&own) } else { by(server) });
    (several, gate)
}

fn refused(answer: &Value, key: &str) {
    assert_eq!(answer["ec"], 504, "{answer}");
    assert!(answer["em"].as_str().is_some_and(|text| text.contains(key)), "{answer}");
}

#[test]
fn each_breaker_names_itself_and_its_places_come_back() {
    for (policy, servers, fit) in [
        ("breaker.service_calls_max = 3", 2, 3),
        ("breaker.instance_calls_max = 2", 2, 4),
        ("breaker.service_queue_max = 2\nconnections_max = 1", 1, 3),
        ("breaker.service_connections_max = 1\nqueue_max = 1", 1, 2),
    ] {
        let key = policy.split(' ').next().expect("a key");
        let (several, gate) = held(servers, policy);
        for _ in 0..2 {
            // What is taken first ends by itself; the second time there is room for as many again.
            let mut holders: Vec<_> = (0..fit).map(|_| several.connect()).collect();
            for (nth, holder) in holders.iter_mut().enumerate() {
                holder.send(command(&["GET", &call_of("get", &format!("<{nth}>"))]));
                let taken = nth as u64 + 1;
                until_true("the call to be under way", || several.stats()["in_flight"] == taken);
            }
            refused(&several.connect().call(&echo("one more")), key);
            gate.open();
            for holder in &mut holders {
                assert!(holder.read().bulk().starts_with(b"{\"ec\":0"), "{policy}");
            }
            several.await_idle();
            gate.close();
        }
    }
}

#[test]
fn places_come_back_however_a_call_ends_and_whenever_the_bound_comes_and_goes() {
    let bound = "breaker.service_calls_max = 1\nbreaker.instance_calls_max = 1\ntimeout_ms = 400";
    let (several, gate) = held(1, bound);
    for _ in 0..3 {
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", "late")]));
        expect_code(&client.read(), 304);
        let mut framed = FramePeer::connect(several.agent.address(), &caller());
        let stream = framed.request_method(DEMO, "get", Flags::END_STREAM, call_of("get", "cancelled").as_bytes());
        until_true("the call to be under way", || several.stats()["in_flight"] == 1);
        framed.cancel(DEMO, stream);
        several.await_idle();
    }
    // A call that began without the bound ends with it, and the other way round.
    for policies in [["", bound], [bound, ""]] {
        several.reload(&format!("{KEPT}{}", policies[0]));
        let mut client = several.connect();
        client.send(command(&["GET", &call_of("get", "over a reload")]));
        until_true("the call to be under way", || several.stats()["in_flight"] == 1);
        several.reload(&format!("{KEPT}{}", policies[1]));
        gate.open();
        assert!(client.read().bulk().starts_with(b"{\"ec\":0"));
        several.await_idle();
        gate.close();
    }
    several.reload(&format!("{KEPT}{bound}"));
    let mut client = several.connect();
    client.send(command(&["GET", &call_of("get", "exactly one")]));
    until_true("the call to be under way", || several.stats()["in_flight"] == 1);
    refused(&several.connect().call(&echo("one more")), "breaker.service_calls_max");
    gate.open();
    assert!(client.read().bulk().starts_with(b"{\"ec\":0"));
    assert_eq!(several.connect().call(&echo("free again"))["ec"], 0);
}

#[test]
fn a_place_of_a_group_is_given_back_to_the_group() {
    let (own, group) = (FakeMoa::start(), FakeMoa::start());
    group.down(moa_tests::fake::End::Reset);
    let policy = format!("{}\n{KEPT}breaker.service_calls_max = 1", config::NO_HEALTH_CHECK);
    let route = "[[services.\"/service/demo\".routes]]\nname = \"blue\"\nto = { group = \"blue\" }\n";
    let agent = Agent::start(&format!(
        "{ONE}{}{}{route}",
        config::service("/service/demo#blue", &[group.address()], &policy),
        config::service(DEMO, &[own.address()], &policy),
    ));
    let mut client = agent.connect();
    for n in 0..5 {
        assert_eq!(client.call(&echo(&n.to_string()))["ec"], 0, "it falls back, each time");
    }
}

#[test]
fn a_call_that_a_rule_sends_to_a_group_is_bound_by_the_group_and_not_by_its_own() {
    let (own, group) = (FakeMoa::start(), FakeMoa::start());
    let gate = Gate::closed();
    for fake in [&own, &group] {
        let gate = gate.clone();
        fake.script(move |_| by(0).at(&gate));
    }
    let policy = |more: &str| format!("{}\n{KEPT}{more}", config::NO_HEALTH_CHECK);
    let route = "[[services.\"/service/demo\".routes]]\nname = \"blue\"\nwhen = { method = \"blue\" }\nto = { group = \"blue\", fallback = false }\n";
    let agent = Agent::start(&format!(
        "{ONE}{}{}{route}",
        config::service("/service/demo#blue", &[group.address()], &policy("breaker.service_calls_max = 2")),
        config::service(DEMO, &[own.address()], &policy("breaker.service_calls_max = 1")),
    ));
    let mut holders: Vec<_> = ["get", "blue", "blue"]
        .map(|method| {
            let mut client = agent.connect();
            client.send(command(&["GET", &call_of(method, "held")]));
            client
        })
        .into();
    until_true("all to be under way", || own.counts().in_flight == 1 && group.counts().in_flight == 2);
    for (method, key) in [("get", "1 calls of the service"), ("blue", "2 calls of the service")] {
        refused(&agent.connect().call(&call_of(method, "one more")), key);
    }
    gate.open();
    holders.iter_mut().for_each(|holder| assert!(holder.read().bulk().starts_with(b"{\"ec\":0")));
}

#[test]
fn what_waits_for_a_connection_that_can_never_come_goes_elsewhere() {
    let several = Several::start(2, &format!("{KEPT}breaker.service_connections_max = 2\ntimeout_ms = 60000"));
    let gate = Gate::closed();
    let own = gate.clone();
    several.script(move |server, call| if call.method == "get" { by(server).at(&own) } else { by(server) });
    // One connection to each, busy; two more calls wait.
    let mut clients: Vec<_> = (0..4).map(|_| several.connect()).collect();
    for (nth, client) in clients.iter_mut().enumerate() {
        client.send(command(&["GET", &call_of("get", &format!("<{nth}>"))]));
        until_true("the call to be under way", || several.stats()["in_flight"] == nth as u64 + 1);
    }
    let waits = |server: usize| several.instance(server)["queued"].as_u64().expect("a number");
    assert_eq!((waits(0), waits(1)), (1, 1));
    // The first server goes away for good: its place is taken by whoever waits for the second one.
    several.fakes[0].down(moa_tests::fake::End::Reset);
    until_true("its calls to be gone", || several.instance(0)["stats"]["in_flight"] == 0);
    gate.open();
    let answers: Vec<Value> =
        clients.iter_mut().map(|client| serde_json::from_slice(client.read().bulk()).expect("JSON")).collect();
    let good = answers.iter().filter(|answer| answer["ec"] == 0 && answer["result"] == 1).count();
    assert_eq!(good, 3, "{answers:?}");
    several.await_idle();
}

#[test]
fn rates_are_of_the_service_and_of_each_caller() {
    let few = "rate.caller_per_s = 1\nrate.callers.vip = 100000\nrate.burst_ms = 1\n";
    let (several, _gate) = held(1, few);
    let mut nobody = several.connect();
    assert_eq!(nobody.call(&echo("first"))["ec"], 0);
    refused(&nobody.call(&echo("second")), "rate.caller_per_s");
    let mut other = several.connect();
    other.send(command(&["CLIENT", "SETNAME", "other"]));
    other.read();
    assert_eq!(other.call(&echo("its own"))["ec"], 0, "each caller has its own");
    let hello = Hello { application: "vip".to_owned(), ..caller() };
    let mut vip = FramePeer::connect(several.agent.address(), &hello);
    for _ in 0..20 {
        vip.request(DEMO, Flags::END_STREAM, echo("vip").as_bytes());
        assert_eq!(vip.expect(Kind::Response).header.word, 0);
    }
    several.reload(&format!("{KEPT}rate.service_per_s = 1\nrate.burst_ms = 1"));
    let mut answers: Vec<_> = (0..2).map(|_| several.connect().call(&echo("x"))).collect();
    refused(&answers.pop().expect("two"), "rate.service_per_s");
}

#[test]
fn the_adaptive_limit_sheds_and_says_so() {
    let (several, gate) = held(1, "concurrency.adaptive = true\nconcurrency.min = 2\nconcurrency.max = 2\nconnections_max = 8");
    let mut holders: Vec<_> = (0..2).map(|_| several.connect()).collect();
    holders.iter_mut().for_each(|holder| holder.send(command(&["GET", &call_of("get", "held")])));
    until_true("both to be under way", || several.stats()["in_flight"] == 2);
    refused(&several.connect().call(&echo("one more")), "concurrency.adaptive");
    gate.open();
    holders.iter_mut().for_each(|holder| assert!(holder.read().bulk().starts_with(b"{\"ec\":0")));
    assert_eq!(several.connect().call(&echo("again"))["ec"], 0);
}
