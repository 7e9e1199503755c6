//! Copies of calls: where they go, that nobody but their counters hears of them, and their bounds.

use agent_common::frame::{Flags, Header, Kind, id, service_hash};
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate,
    client::command,
    config::{self, NO_HEALTH_CHECK},
    fake::End,
    fleet::{Caller, Server, await_events, events, json_of, metric, named, section, values},
    until_true,
};

const ONE: &str = "[agent]\nworkers = 1\n";
const NEXT: &str = "/service/next";

const TO_LABEL: &str = r#"shadows = [{ name = "copy", to = { labels = { v = "next" } } }]
routes = [{ name = "rest", to = { labels = { v = "now" } } }]"#;

fn with_labels(now: &FakeMoa, next: &FakeMoa, policy: &str) -> String {
    format!("{ONE}{}", section(DEMO, &[(now, "labels = { v = \"now\" }"), (next, "labels = { v = \"next\" }")], policy))
}

#[test]
fn copies_go_to_other_instances_as_they_came_and_their_answers_are_dropped() {
    let (now, next) = (named("now"), named("next"));
    let agent = Agent::start(&with_labels(&now, &next, TO_LABEL));
    for mut caller in Caller::both(&agent) {
        caller.expect("now", DEMO, "get", &[("a", "b")]);
    }
    next.await_counts("the copies", |counts| counts.calls == 16 && counts.in_flight == 0);
    assert_eq!(now.counts().calls, 16);
    let mut sent = [now.requests(), next.requests()];
    sent.iter_mut().for_each(|requests| requests.sort());
    assert_eq!(sent[0], sent[1]);
    await_events(&agent, DEMO, "shadows", 16);
    assert_eq!(events(&agent, DEMO, "shadows_dropped"), 0);
}

#[test]
fn only_those_calls_are_copied_that_a_rule_is_about_and_their_share() {
    let (now, next) = (named("now"), named("next"));
    let policy = r#"shadows = [{ name = "copy", when = { method = "get*" }, per_10k = 5000, to = { labels = { v = "next" } } }]
        routes = [{ name = "rest", to = { labels = { v = "now" } } }]"#;
    let agent = Agent::start(&with_labels(&now, &next, policy));
    for mut caller in Caller::both(&agent) {
        caller.tally(500, DEMO, "set", &[]);
    }
    assert_eq!(next.counts().calls, 0);
    for mut caller in Caller::both(&agent) {
        caller.tally(1000, DEMO, "get", &[]);
    }
    let copied = events(&agent, DEMO, "shadows");
    // 1,000 of 2,000 with a standard deviation of 22.
    let meant = copied + events(&agent, DEMO, "shadows_dropped");
    assert!((866..=1134).contains(&meant), "{meant}");
    next.await_counts("the copies", |counts| counts.calls as u64 == copied);
}

#[test]
fn a_call_of_many_frames_has_no_copy_and_is_counted_as_without() {
    let (now, next) = (named("now"), named("next"));
    let agent = Agent::start(&with_labels(&now, &next, TO_LABEL));
    let Caller::Frames(mut peer) = Caller::frames(&agent, "web") else { unreachable!() };
    let json = json_of(DEMO, "get", &[]);
    let (head, rest) = json.as_bytes().split_at(10);
    let stream = peer.request(DEMO, Flags::NONE, head);
    let header =
        Header { stream, via: u64::from(stream), service: service_hash(DEMO.as_bytes(), b""), ..Header::new(Kind::Data) };
    peer.data(&header, Flags::END_STREAM, rest);
    assert_eq!(peer.expect(Kind::Response).header.word, 0);
    await_events(&agent, DEMO, "shadows_dropped", 1);
    assert_eq!((now.counts().calls, next.counts().calls), (1, 0));
}

#[test]
fn errors_slowness_and_absence_of_who_gets_copies_are_nobodys_concern() {
    let (now, next) = (named("now"), named("next"));
    let agent = Agent::start(&with_labels(&now, &next, TO_LABEL));
    let answers: [fn() -> Answer; 5] = [
        || Answer::envelope(500, "no", "null"),
        || Answer::raw(*b"-ERR no\r\n"),
        || Answer::raw(*b"nonsense\r\n").then(End::Reset),
        || Answer::raw(Vec::new()).then(End::Close),
        Answer::silence,
    ];
    for answer in answers {
        next.script(move |_| answer());
        for mut caller in Caller::both(&agent) {
            caller.expect("now", DEMO, "get", &[]);
        }
    }
    next.down(End::Reset);
    for mut caller in Caller::both(&agent) {
        caller.expect("now", DEMO, "get", &[]);
    }
    assert_eq!(now.counts().calls, 96);
}

#[test]
fn only_so_many_copies_are_under_way() {
    let (now, next) = (named("now"), named("next"));
    let policy = r#"shadows = [{ name = "copy", in_flight_max = 3, to = { labels = { v = "next" } } }]
        routes = [{ name = "rest", to = { labels = { v = "now" } } }]"#;
    let agent = Agent::start(&with_labels(&now, &next, policy));
    let gate = Gate::closed();
    let held = gate.clone();
    next.script(move |_| Answer::ok(&1.into()).at(&held));
    for mut caller in Caller::both(&agent) {
        caller.expect("now", DEMO, "get", &[]);
    }
    await_events(&agent, DEMO, "shadows", 3);
    await_events(&agent, DEMO, "shadows_dropped", 13);
    next.await_in_flight(3);
    gate.open();
    next.await_in_flight(0);
    let mut caller = Caller::redis(&agent, "");
    // The agent may not have read the last answer yet.
    until_true("a copy again", || {
        caller.call(DEMO, "get", &[]).by();
        events(&agent, DEMO, "shadows") > 3
    });
}

#[test]
fn copies_are_none_of_the_services_calls() {
    let (now, next) = (named("now"), named("next"));
    next.script(|_| Answer::envelope(500, "no", "null"));
    let agent = Agent::start(&with_labels(&now, &next, TO_LABEL));
    for mut caller in Caller::both(&agent) {
        caller.expect("now", DEMO, "get", &[]);
    }
    next.await_counts("the copies", |counts| counts.calls == 16 && counts.in_flight == 0);
    let calls = |fake: &FakeMoa| agent.instance(DEMO, fake.address()).expect("the instance")["stats"]["calls"].clone();
    assert_eq!((calls(&now), calls(&next)), (16.into(), 0.into()), "{}", agent.json(&["services"]));
}

#[test]
fn a_caller_that_has_gone_takes_no_copy_with_it() {
    let (now, next) = (named("now"), named("next"));
    let gate = Gate::closed();
    for fake in [&now, &next] {
        let held = gate.clone();
        fake.script(move |_| Answer::ok(&1.into()).at(&held));
    }
    let agent = Agent::start(&with_labels(&now, &next, TO_LABEL));
    let mut client = agent.connect();
    client.send(command(&["GET", &json_of(DEMO, "get", &[])]));
    now.await_in_flight(1);
    next.await_in_flight(1);
    client.reset();
    gate.open();
    next.await_counts("the copy's end", |counts| counts.in_flight == 0);
    assert_eq!(next.counts().ended_by_peer, 0, "the copy was given up");
    Caller::redis(&agent, "").call(DEMO, "get", &[]);
}

#[test]
fn copies_go_to_another_service_and_group_and_are_told_so() {
    for to in [r#"service = "/service/next""#, r#"to = { group = "blue" }"#] {
        let now = named("now");
        let policy = format!(r#"shadows = [{{ name = "copy", {to} }}]"#);
        let next_section = section(NEXT, &[], "");
        let agent = Agent::start(&format!("{ONE}{}{next_section}", section(DEMO, &[(&now, "")], &policy)));
        let server = Server::start(&agent, "next", &[NEXT, "/service/demo#blue"]);
        for mut caller in Caller::both(&agent) {
            let before = server.calls().len();
            caller.expect("now", DEMO, "get", &[("a", "b")]);
            for copy in &server.await_calls(before + 8)[before..] {
                let (uri, groups) = if to.contains("group") { (DEMO, vec!["blue"]) } else { (NEXT, vec![]) };
                let group = groups.first().copied().unwrap_or_default();
                assert_eq!(values(copy, id::URI), [uri], "{}", caller.kind());
                assert_eq!(values(copy, id::GROUP), groups, "{}", caller.kind());
                assert_eq!(values(copy, id::METHOD), ["get"], "{}", caller.kind());
                assert_eq!(copy.header.service, service_hash(uri.as_bytes(), group.as_bytes()));
                assert!(copy.has(Flags::SHADOW), "{}", caller.kind());
            }
        }
        assert_eq!(now.counts().calls, 16);
    }
}

#[test]
fn copies_cross_to_another_agent_once() {
    let (now, next) = (named("now"), named("next"));
    // The other agent would make copies of its own calls.
    let policy = r#"shadows = [{ name = "theirs", to = { labels = { v = "next" } } }]"#;
    let far = Agent::start(&format!(
        "{ONE}{}",
        section(DEMO, &[(&now, ""), (&next, "environment = \"other\", labels = { v = \"next\" }")], policy)
    ));
    let here = named("here");
    let peer = config::peer("far", far.tunnel_address());
    let group = section("/service/demo#there", &[], "agents = [\"far\"]");
    let far_group =
        format!("{ONE}{}{}", section(DEMO, &[(&now, "")], policy), section("/service/demo#there", &[(&next, "")], policy));
    far.reload(&far_group);
    let policy = r#"shadows = [{ name = "ours", to = { group = "there" } }]"#;
    let near = Agent::start(&format!("{ONE}{peer}{}{group}", section(DEMO, &[(&here, "")], policy)));
    until_true("the other agent to be reached", || {
        Caller::redis(&near, "").call(DEMO, "get", &[]).by();
        next.counts().calls > 0
    });
    next.await_counts("no more copies", |counts| counts.calls as u64 == events(&near, DEMO, "shadows"));
    let before = next.counts().calls;
    for mut caller in Caller::both(&near) {
        caller.expect("here", DEMO, "get", &[]);
    }
    next.await_counts("the copies", |counts| counts.calls == before + 16);
    assert_eq!(now.counts().calls, 0);
    assert_eq!(events(&far, "/service/demo#there", "shadows"), 16 + before as u64, "counted there as what they are");
}

#[test]
fn the_other_agent_copies_no_copy_and_no_call_that_was_looked_at() {
    let (now, next) = (named("now"), named("next"));
    let far = Agent::start(&with_labels(&now, &next, TO_LABEL));
    let peer = config::peer("far", far.tunnel_address());
    let near = Agent::start(&format!("{ONE}{peer}{}", section(DEMO, &[], "agents = [\"far\"]")));
    let mut caller = Caller::redis(&near, "");
    until_true("the other agent to be reached", || caller.call(DEMO, "get", &[]).code == 0);
    for mut caller in Caller::both(&near) {
        caller.tally(50, DEMO, "get", &[]);
    }
    assert_eq!(events(&far, DEMO, "shadows"), 0);
    // Nor does anybody copy what its caller calls a copy.
    let Caller::Frames(mut peer) = Caller::frames(&far, "") else { unreachable!() };
    let header = Header {
        flags: Flags::END_STREAM | Flags::SHADOW,
        service: service_hash(DEMO.as_bytes(), b""),
        ..Header::new(Kind::Request)
    };
    let meta = moa_tests::fleet::meta_of(DEMO, "get", &[]);
    let stream = peer.request_with(header, meta.as_ref(), json_of(DEMO, "get", &[]).as_bytes());
    peer.answer_to(stream);
    assert_eq!(events(&far, DEMO, "shadows"), 0);
}

#[test]
fn stress_tests_that_are_kept_apart_are_not_copied() {
    let (now, next) = (named("now"), named("next"));
    let policy = r#"stress = "apart"
        shadows = [{ name = "copy", to = { labels = { v = "next" } } }]"#;
    let instances: &[(&FakeMoa, &str)] = &[(&now, "environment = \"stress\""), (&next, "labels = { v = \"next\" }")];
    let agent = Agent::start(&format!("{ONE}{}", section(DEMO, instances, policy)));
    for mut caller in Caller::both(&agent) {
        caller.expect("now", DEMO, "get", &[("moa.stress", "1")]);
    }
    assert_eq!((next.counts().calls, events(&agent, DEMO, "shadows")), (0, 0));
}

#[test]
fn a_large_call_of_a_redis_client_is_copied_too() {
    let now = named("now");
    let policy =
        format!("argument_bytes_max = 1000000\nshadows = [{{ name = \"copy\", service = \"{NEXT}\" }}]\n{NO_HEALTH_CHECK}");
    let agent = Agent::start(&format!(
        "{ONE}{}{}",
        config::service(DEMO, &[], &policy),
        section(NEXT, &[], "argument_bytes_max = 1000000")
    ));
    let (server, copies) = (Server::start(&agent, "server", &[DEMO]), Server::start(&agent, "next", &[NEXT]));
    let json = json_of(DEMO, "get", &[("long", &"x".repeat(300_000))]);
    assert_eq!(agent.connect().call(&json)["result"], "server");
    assert_eq!(server.await_calls(1)[0].body, json.as_bytes());
    let copy = &copies.await_calls(1)[0];
    assert_eq!(copy.body, json.as_bytes());
    assert!(copy.has(Flags::SHADOW));
    assert_eq!(metric(&agent, "moa_nothing"), 0);
    drop(now);
}
