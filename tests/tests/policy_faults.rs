//! Faults for drills: delays, codes, shares, and what else may happen to a call meanwhile.

use agent_common::frame::{Flags, Header, Kind, service_hash};
use moa_tests::{
    Agent, DEMO, FakeMoa,
    client::command,
    config::{self, NO_HEALTH_CHECK},
    fleet::{Caller, Server, await_events, begin, begin_with, events, json_of, meta_of, named, outcome, section},
    until_true,
};

const ONE: &str = "[agent]\nworkers = 1\n";

fn one(fake: &FakeMoa, policy: &str) -> Agent {
    Agent::start(&format!("{ONE}{}", section(DEMO, &[(fake, "")], policy)))
}

#[test]
fn a_code_is_the_answer_and_nothing_is_sent() {
    let fake = named("fake");
    let agent = one(
        &fake,
        r#"faults = [{ name = "drill", when = { method = "set*" }, code = 789 }, { name = "never", code = 1 , per_10k = 0 }]"#,
    );
    for mut caller in Caller::both(&agent) {
        let text = caller.call(DEMO, "set", &[]).error(789);
        assert!(text.contains("drill") && text.contains(agent.name()), "{text}");
        caller.expect("fake", DEMO, "get", &[]);
    }
    await_events(&agent, DEMO, "faults", 2);
    assert_eq!(fake.counts().calls, 16);
}

#[test]
fn a_delay_holds_a_call_up_and_then_it_goes() {
    let fake = named("fake");
    let agent = one(
        &fake,
        r#"faults = [{ name = "slow", when = { method = "set" }, delay_ms = 30 }, { name = "both", when = { method = "put" }, delay_ms = 30, code = 790 }]"#,
    );
    for mut caller in Caller::both(&agent) {
        assert_eq!(caller.call(DEMO, "set", &[]).by(), "fake");
        let text = caller.call(DEMO, "put", &[]).error(790);
        assert!(text.contains("both"), "{text}");
    }
    await_events(&agent, DEMO, "faults", 4);
    assert_eq!(fake.counts().calls, 2);
}

#[test]
fn others_are_not_held_up() {
    let fake = named("fake");
    let agent = one(&fake, r#"faults = [{ name = "slow", when = { method = "set" }, delay_ms = 86400000 }]"#);
    // On one connection: calls in frames have no order.
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    begin(&mut peer, DEMO, "set", &[]);
    for _ in 0..3 {
        let stream = begin(&mut peer, DEMO, "get", &[]);
        assert_eq!(outcome(&peer.answer_to(stream)).by(), "fake");
    }
    let mut held = agent.connect();
    held.send(command(&["GET", &json_of(DEMO, "set", &[])]));
    Caller::redis(&agent, "").expect("fake", DEMO, "get", &[]);
    assert!(fake.requests().iter().all(|call| !String::from_utf8_lossy(call).contains("\"set\"")));
}

#[test]
fn the_first_fault_that_fits_counts_also_if_it_does_not_hit() {
    let fake = named("fake");
    let agent = one(
        &fake,
        r#"faults = [{ name = "a", when = { method = "set" }, code = 800, per_10k = 0 }, { name = "b", code = 801 }]"#,
    );
    for mut caller in Caller::both(&agent) {
        caller.expect("fake", DEMO, "set", &[]);
        caller.call(DEMO, "get", &[]).error(801);
    }
}

#[test]
fn a_share_is_hit_within_chance() {
    let fake = named("fake");
    let agent = one(&fake, r#"faults = [{ name = "some", code = 800, per_10k = 2500 }]"#);
    for mut caller in Caller::both(&agent) {
        let hit = (0..2_000).filter(|_| caller.call(DEMO, "get", &[]).code == 800).count();
        // 500 with a standard deviation of 19.4.
        assert!((384..=616).contains(&hit), "{hit}");
    }
}

#[test]
fn a_deadline_that_is_shorter_than_the_delay_is_kept() {
    let fake = named("fake");
    let agent = one(&fake, "timeout_ms = 60\nfaults = [{ name = \"slow\", delay_ms = 86400000, code = 800 }]");
    for mut caller in Caller::both(&agent) {
        caller.call(DEMO, "get", &[]).error(304);
    }
    // The caller's own, too.
    let agent = one(&fake, "timeout_ms = 86400000\nfaults = [{ name = \"slow\", delay_ms = 86400000 }]");
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    let header =
        Header { flags: Flags::END_STREAM, word: 40, service: service_hash(DEMO.as_bytes(), b""), ..Header::new(Kind::Request) };
    let stream = peer.request_with(header, meta_of(DEMO, "get", &[]).as_ref(), b"");
    let answer = peer.answer_to(stream);
    assert!(answer.has(Flags::NOT_EXECUTED), "{answer:?}");
    outcome(&answer).error(304);
    assert_eq!(fake.counts().calls, 0);
}

#[test]
fn a_call_that_is_given_up_while_held_up_is_never_sent() {
    let agent = Agent::start(&format!(
        "{ONE}{}",
        config::service(
            DEMO,
            &[],
            &format!("faults = [{{ name = \"slow\", when = {{ method = \"set\" }}, delay_ms = 150 }}]\n{NO_HEALTH_CHECK}")
        )
    ));
    let server = Server::start(&agent, "server", &[DEMO]);
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    let stream = begin(&mut peer, DEMO, "set", &[]);
    peer.cancel(DEMO, stream);
    let mut gone = agent.connect();
    gone.send(command(&["GET", &json_of(DEMO, "set", &[])]));
    until_true("three faults", || events(&agent, DEMO, "faults") == 2);
    gone.reset();
    // One that is held up behind them comes when they would have.
    let stream = begin(&mut peer, DEMO, "set", &[("last", "1")]);
    assert_eq!(outcome(&peer.answer_to(stream)).by(), "server");
    let calls = server.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(server.cancelled(), 0);
}

#[test]
fn large_calls_are_held_up_too() {
    let policy = format!(
        "argument_bytes_max = 1000000\nfaults = [{{ name = \"slow\", when = {{ method = \"set\" }}, delay_ms = 20 }}, {{ name = \"no\", when = {{ method = \"put\" }}, code = 800, delay_ms = 20 }}]\n{NO_HEALTH_CHECK}"
    );
    let agent = Agent::start(&format!("{ONE}{}", config::service(DEMO, &[], &policy)));
    let server = Server::start(&agent, "server", &[DEMO]);
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    let piece = vec![b'x'; 60_000];
    for (method, code) in [("set", 0), ("put", 800), ("set", 0)] {
        let stream = begin_with(&mut peer, DEMO, method, (Flags::NONE, &[]));
        let numbers =
            Header { stream, via: stream.into(), service: service_hash(DEMO.as_bytes(), b""), ..Header::new(Kind::Data) };
        for nth in 0..5 {
            peer.data(&numbers, if nth == 4 { Flags::END_STREAM } else { Flags::NONE }, &piece);
        }
        let outcome = outcome(&peer.answer_to(stream));
        assert_eq!(outcome.code, code, "{}", outcome.text);
    }
    let lens: Vec<_> = server.await_calls(2).iter().map(|call| call.body.len()).collect();
    let first = json_of(DEMO, "set", &[]).len();
    assert_eq!(lens, [first + 300_000, first + 300_000]);
    // And of Redis clients.
    let json = json_of(DEMO, "set", &[("long", &"x".repeat(300_000))]);
    assert_eq!(agent.connect().call(&json)["result"], "server");
    assert_eq!(server.await_calls(3)[2].body, json.as_bytes());
    let json = json_of(DEMO, "put", &[("long", &"x".repeat(300_000))]);
    assert_eq!(agent.connect().call(&json)["ec"], 800);
}

#[test]
fn a_fault_is_put_in_once_at_the_first_agent() {
    let fake = named("fake");
    let far = one(&fake, r#"faults = [{ name = "theirs", code = 801 }]"#);
    let peer = config::peer("far", far.tunnel_address());
    let policy = "agents = [\"far\"]\nfaults = [{ name = \"ours\", when = { method = \"set\" }, code = 802 }]";
    let near = Agent::start(&format!("{ONE}{peer}{}", section(DEMO, &[], policy)));
    for mut caller in Caller::both(&near) {
        until_true("the other agent to be reached", || caller.call(DEMO, "get", &[]).code == 0);
        caller.expect("fake", DEMO, "get", &[]);
        caller.call(DEMO, "set", &[]).error(802);
    }
    assert_eq!(events(&far, DEMO, "faults"), 0);
}

#[test]
fn a_held_up_call_goes_where_the_configuration_of_then_says() {
    let (old, new) = (named("old"), named("new"));
    let fault = |delay: u32| format!("timeout_ms = 20000\nfaults = [{{ name = \"slow\", delay_ms = {delay} }}]");
    let agent = one(&old, &fault(1500));
    let mut held = agent.connect();
    held.send(command(&["GET", &json_of(DEMO, "get", &[])]));
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    let stream = begin(&mut peer, DEMO, "get", &[]);
    until_true("both to be held up", || events(&agent, DEMO, "faults") == 2);
    agent.reload(&format!("{ONE}{}", section(DEMO, &[(&new, "")], "")));
    assert!(String::from_utf8_lossy(held.read().bulk()).contains("new"));
    assert_eq!(outcome(&peer.answer_to(stream)).by(), "new");
    assert_eq!(old.counts().calls, 0);
}

#[test]
fn a_one_way_call_with_a_fault_is_not_answered() {
    let agent = Agent::start(&format!(
        "{ONE}{}",
        config::service(
            DEMO,
            &[],
            &format!(
                "faults = [{{ name = \"no\", when = {{ method = \"put\" }}, code = 800 }}, {{ name = \"slow\", when = {{ method = \"set\" }}, delay_ms = 20 }}]\n{NO_HEALTH_CHECK}"
            )
        )
    ));
    let server = Server::start(&agent, "server", &[DEMO]);
    let Caller::Frames(mut peer) = Caller::frames(&agent, "") else { unreachable!() };
    for method in ["put", "set"] {
        begin_with(&mut peer, DEMO, method, (Flags::END_STREAM | Flags::ONE_WAY, &[]));
    }
    assert!(server.await_calls(1)[0].has(Flags::ONE_WAY));
    peer.expect_quiet();
    assert_eq!(server.calls().len(), 1);
}
