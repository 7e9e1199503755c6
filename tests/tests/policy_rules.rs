//! Where calls go for what they say of themselves: environments, routes, splits, stress tests; on one agent and across two.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::frame::{Flags, id};
use moa_tests::{
    Agent, DEMO, FakeMoa, Judge,
    config::{self, NO_HEALTH_CHECK},
    fake::End,
    fleet::{Caller, Server, await_events, begin_with, events, json_of, named, outcome, section, values},
    load::Load,
    until_true,
};

const ONE: &str = "[agent]\nworkers = 1\n";

/// An agent that has these servers.
fn one(instances: &[(&FakeMoa, &str)], policy: &str) -> Agent {
    Agent::start(&format!("{ONE}{}", section(DEMO, instances, policy)))
}

/// An agent that reaches DEMO by way of another one, and instances of its own.
fn near(far: &Agent, own: &[(&FakeMoa, &str)], policy: &str) -> Agent {
    let peer = config::peer("far", far.tunnel_address());
    let policy = format!("agents = [\"far\"]\n{policy}");
    let near = Agent::start(&format!("{ONE}{peer}{}", section(DEMO, own, &policy)));
    let mut caller = near.connect();
    until_true("the other agent to be reached", || caller.call(&json_of(DEMO, "warm", &[]))["ec"] == 0 || !own.is_empty());
    near
}

#[test]
fn an_environment_has_calls_that_ask_for_it_and_no_others() {
    let (online, pre) = (named("online"), named("pre"));
    let agent = one(&[(&online, ""), (&pre, "environment = \"pre\"")], "");
    for mut caller in Caller::both(&agent) {
        caller.expect("online", DEMO, "get", &[]);
        for value in ["1", "", "0", "false"] {
            caller.expect("pre", DEMO, "get", &[("moa.env.pre", value)]);
        }
        caller.expect("online", DEMO, "get", &[("moa.env.prep", "1")]);
        // Another environment that nobody has.
        caller.expect("online", DEMO, "get", &[("environment", "grey")]);
    }
    Caller::frames(&agent, "").expect("pre", DEMO, "get", &[("environment", "pre")]);
    // As it came.
    let json = json_of(DEMO, "exact", &[("moa.env.pre", "1")]);
    agent.connect().get(&json);
    assert!(pre.requests().iter().any(|sent| String::from_utf8_lossy(sent).contains(&json)));

    pre.down(End::Reset);
    for mut caller in Caller::both(&agent) {
        caller.expect("online", DEMO, "get", &[("moa.env.pre", "1")]);
    }
    pre.up();
    until_true("it to be used again", || Caller::redis(&agent, "").call(DEMO, "get", &[("moa.env.pre", "1")]).by() == "pre");
    online.down(End::Reset);
    for mut caller in Caller::both(&agent) {
        assert!(caller.call(DEMO, "get", &[]).code == 303, "online calls go to no pre-release");
        caller.expect("pre", DEMO, "get", &[("moa.env.pre", "1")]);
    }
}

#[test]
fn the_other_agent_picks_the_environment_among_its_own() {
    let (online, pre) = (named("online"), named("pre"));
    let far = one(&[(&online, ""), (&pre, "environment = \"pre\"")], "");
    let near = near(&far, &[], "");
    for mut caller in Caller::both(&near) {
        caller.expect("online", DEMO, "get", &[]);
        caller.expect("pre", DEMO, "get", &[("moa.env.pre", "")]);
    }
    Caller::frames(&near, "").expect("pre", DEMO, "get", &[("environment", "pre")]);
    pre.down(End::Reset);
    for mut caller in Caller::both(&near) {
        caller.expect("online", DEMO, "get", &[("moa.env.pre", "")]);
    }
}

#[test]
fn an_own_instance_of_the_environment_comes_before_the_other_agent() {
    let (there, here) = (named("there"), named("here"));
    let far = one(&[(&there, "")], "");
    let near = near(&far, &[(&here, "environment = \"pre\"")], "");
    for mut caller in Caller::both(&near) {
        caller.expect("there", DEMO, "get", &[]);
        caller.expect("here", DEMO, "get", &[("moa.env.pre", "1")]);
    }
    here.down(End::Reset);
    for mut caller in Caller::both(&near) {
        caller.expect("there", DEMO, "get", &[("moa.env.pre", "1")]);
    }
}

#[test]
fn a_route_to_an_environment_that_only_the_other_agent_has() {
    let (online, pre) = (named("online"), named("pre"));
    let far = one(&[(&online, ""), (&pre, "environment = \"pre\"")], "");
    for fallback in [true, false] {
        let route = format!(
            "routes = [{{ name = \"testers\", when = {{ user = \"7\" }}, to = {{ environment = \"pre\", fallback = {fallback} }} }}]"
        );
        let near = near(&far, &[], &route);
        for mut caller in Caller::both(&near) {
            caller.expect("pre", DEMO, "get", &[("user", "7")]);
            caller.expect("online", DEMO, "get", &[("user", "8")]);
        }
    }
}

#[test]
fn what_the_other_agent_is_told_is_what_was_decided() {
    let far = Agent::start(&format!("{ONE}{}", config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let route = "routes = [{ name = \"testers\", when = { user = \"7\" }, to = { environment = \"grey\" } }]";
    let near = near(&far, &[], route);
    let mut count = server.calls().len();
    for mut caller in Caller::both(&near) {
        caller.expect("server", DEMO, "get", &[("user", "7"), ("other", "x")]);
        let calls = server.await_calls(count + 8);
        let environments = values(calls.last().expect("a call"), id::ENVIRONMENT);
        assert_eq!(environments, ["grey"], "{}", caller.kind());
        count += 8;
    }
}

#[test]
fn routes_go_by_method_application_entries_and_properties() {
    let [blue, red, green, plain] = ["blue", "red", "green", "plain"].map(named);
    let policy = r#"
        [[services."/service/demo".routes]]
        name = "writers"
        when = { method = ["set*", "put"], application = "web-*" }
        to = { labels = { colour = "blue" } }
        [[services."/service/demo".routes]]
        name = "all-writes"
        when = { method = "set*" }
        to = { labels = { colour = "red" } }
        [[services."/service/demo".routes]]
        name = "tenants"
        when = { tenant = "acme", "props.method" = "odd" }
        to = { labels = { colour = "green" } }
        [[services."/service/demo".routes]]
        name = "keys"
        when = { hash_key = "k*" }
        to = { labels = { colour = "green" } }
        [[services."/service/demo".routes]]
        name = "raw"
        when = { "entry.200" = "on" }
        to = { labels = { colour = "red" } }
        "#;
    let with = |colour: &str| format!("labels = {{ colour = \"{colour}\" }}");
    let (b, r, g) = (with("blue"), with("red"), with("green"));
    let policy = format!("balance.policy = \"random\"\n{policy}");
    let agent = one(&[(&blue, &b), (&red, &r), (&green, &g), (&plain, "")], &policy);
    for mut caller in Caller::both_as(&agent, "web-1") {
        caller.expect("blue", DEMO, "setName", &[]);
        caller.expect("blue", DEMO, "put", &[]);
        caller.expect("green", DEMO, "get", &[("tenant", "acme"), ("method", "odd")]);
    }
    for mut caller in Caller::both_as(&agent, "batch") {
        caller.expect("red", DEMO, "setName", &[]);
    }
    Caller::redis(&agent, "").expect("green", DEMO, "get", &[("hashid", "k1")]);
    Caller::frames(&agent, "").expect("green", DEMO, "get", &[("hash_key", "k1")]);
    Caller::frames(&agent, "").expect("red", DEMO, "get", &[("entry.200", "on")]);
    for mut caller in Caller::both(&agent) {
        // Without a rule: anywhere.
        let by: BTreeSet<_> = caller.tally(200, DEMO, "get", &[("tenant", "acme")]).into_keys().collect();
        assert_eq!(by.len(), 4, "{by:?}");
    }
}

#[test]
fn a_rule_without_a_way_out_names_itself() {
    let (blue, plain) = (named("blue"), named("plain"));
    let policy = |fallback: bool| {
        format!(
            r#"routes = [{{ name = "to-blue", when = {{ user = "7" }}, to = {{ labels = {{ colour = "blue" }}, fallback = {fallback} }} }}]"#
        )
    };
    let instances: &[(&FakeMoa, &str)] = &[(&blue, "labels = { colour = \"blue\" }"), (&plain, "")];
    let agent = one(instances, &policy(false));
    for mut caller in Caller::both(&agent) {
        caller.expect("blue", DEMO, "get", &[("user", "7")]);
    }
    blue.down(End::Reset);
    for mut caller in Caller::both(&agent) {
        let text = caller.call(DEMO, "get", &[("user", "7")]).error(303);
        assert!(text.contains("to-blue"), "{}: {text}", caller.kind());
        caller.expect("plain", DEMO, "get", &[]);
    }
    agent.reload(&format!("{ONE}{}", section(DEMO, instances, &policy(true))));
    for mut caller in Caller::both(&agent) {
        caller.expect("plain", DEMO, "get", &[("user", "7")]);
    }
}

#[test]
fn a_route_to_a_group_with_a_section() {
    let (blue, plain) = (named("blue"), named("plain"));
    let policy = r#"routes = [{ name = "blues", when = { user = "7" }, to = { group = "blue" } }]"#;
    let both = format!("{ONE}{}{}", section(DEMO, &[(&plain, "")], policy), section("/service/demo#blue", &[(&blue, "")], ""));
    let agent = Agent::start(&both);
    for mut caller in Caller::both(&agent) {
        caller.expect("blue", DEMO, "get", &[("user", "7")]);
        caller.expect("plain", DEMO, "get", &[("user", "8")]);
    }
    Caller::frames(&agent, "").expect("blue", "/service/demo#blue", "get", &[]);
    blue.down(End::Reset);
    until_true("the agent to have seen it", || {
        agent.instance("/service/demo#blue", blue.address()).is_some_and(|one| one["connections"] == 0)
    });
    // A way out is on unless it is turned off.
    for mut caller in Caller::both(&agent) {
        caller.expect("plain", DEMO, "get", &[("user", "7")]);
    }
}

#[test]
fn methods_are_counted_where_the_call_went() {
    let (blue, plain) = (named("blue"), named("plain"));
    let policy = r#"routes = [{ name = "blues", when = { user = "7" }, to = { group = "blue" } }]"#;
    let both = format!("{ONE}{}{}", section(DEMO, &[(&plain, "")], policy), section("/service/demo#blue", &[(&blue, "")], ""));
    let agent = Agent::start(&both);
    let mut caller = Caller::frames(&agent, "");
    caller.expect("blue", "/service/demo#blue", "first", &[]);
    caller.expect("plain", DEMO, "other", &[]);
    caller.expect("plain", DEMO, "second", &[]);
    caller.expect("blue", DEMO, "second", &[("user", "7")]);
    let (_, metrics) = moa_tests::machine::http(agent.metrics_address(), "/metrics");
    let line =
        |method: &str| metrics.lines().any(|line| line.contains("demo#blue") && line.contains(&format!("method=\"{method}\"")));
    assert!(line("first") && line("second") && !line("other"), "{metrics}");
}

#[test]
fn a_route_to_a_group_that_an_application_offers() {
    let plain = named("plain");
    for fallback in [true, false] {
        let policy = format!(
            r#"routes = [{{ name = "blues", when = {{ user = "7" }}, to = {{ group = "blue", fallback = {fallback} }} }}]"#
        );
        let agent = one(&[(&plain, "")], &policy);
        for mut caller in Caller::both(&agent) {
            match fallback {
                true => caller.expect("plain", DEMO, "get", &[("user", "7")]),
                false => {
                    let text = caller.call(DEMO, "get", &[("user", "7")]).error(501);
                    assert!(text.contains("blues") && text.contains("blue"), "{text}");
                }
            }
        }
        let server = Server::start(&agent, "blue", &["/service/demo#blue"]);
        for mut caller in Caller::both(&agent) {
            let count = server.calls().len();
            caller.expect("blue", DEMO, "get", &[("user", "7")]);
            caller.expect("plain", DEMO, "get", &[]);
            // It is told that it is the group's call.
            for got in &server.await_calls(count + 8)[count..] {
                assert_eq!(values(got, id::GROUP), ["blue"], "{}", caller.kind());
                assert_eq!(values(got, id::URI), [DEMO], "{}", caller.kind());
                assert_eq!(values(got, id::METHOD), ["get"], "{}", caller.kind());
            }
        }
    }
}

#[test]
fn a_route_to_a_group_that_the_other_agent_has() {
    let (plain, blue) = (named("plain"), named("blue"));
    let far = Agent::start(&format!(
        "{ONE}{}{}",
        section(DEMO, &[(&plain, "")], ""),
        section("/service/demo#blue", &[(&blue, "")], "")
    ));
    let peer = config::peer("far", far.tunnel_address());
    let policy = "agents = [\"far\"]\nroutes = [{ name = \"blues\", when = { user = \"7\" }, to = { group = \"blue\" } }]";
    let group = section("/service/demo#blue", &[], "agents = [\"far\"]");
    let near = Agent::start(&format!("{ONE}{peer}{}{group}", section(DEMO, &[], policy)));
    for mut caller in Caller::both(&near) {
        until_true("the other agent to be reached", || caller.call(DEMO, "get", &[]).code == 0);
        caller.expect("plain", DEMO, "get", &[]);
        caller.expect("blue", DEMO, "get", &[("user", "7")]);
    }
    // Of more than one frame too.
    let Caller::Frames(mut peer) = Caller::frames(&near, "") else { unreachable!() };
    let stream = begin_with(&mut peer, DEMO, "get", (Flags::NONE, &[("user", "7")]));
    let numbers = agent_common::frame::Header {
        stream,
        via: stream.into(),
        service: agent_common::frame::service_hash(DEMO.as_bytes(), b""),
        ..agent_common::frame::Header::new(agent_common::frame::Kind::Data)
    };
    peer.data(&numbers, Flags::END_STREAM, b" ");
    assert_eq!(outcome(&peer.answer_to(stream)).by(), "blue");
}

#[test]
fn splits_hold_within_chance_and_stay_with_a_key() {
    let (old, new) = (named("old"), named("new"));
    let policy = |sticky: bool| {
        format!(
            r#"routes = [{{ name = "canary", sticky = {sticky}, split = [{{ weight = 30, to = {{ labels = {{ v = "2" }} }} }}, {{ weight = 70, to = {{ labels = {{ v = "1" }} }} }}] }}]"#
        )
    };
    let instances: &[(&FakeMoa, &str)] = &[(&old, "labels = { v = \"1\" }"), (&new, "labels = { v = \"2\" }")];
    let agent = one(instances, &policy(false));
    for mut caller in Caller::both(&agent) {
        let tally = caller.tally(2_000, DEMO, "get", &[("hashid", "same")]);
        // 30 % of 2,000 with a standard deviation of 20.5: six of them.
        assert!((477..=723).contains(&tally["new"]), "{tally:?}");
    }
    agent.reload(&format!("{ONE}{}", section(DEMO, instances, &policy(true))));
    let [mut redis, mut frames] = Caller::both(&agent);
    let mut new = 0;
    for key in 0..400 {
        let key = format!("user-{key}");
        let by: BTreeSet<_> = (0..4)
            .flat_map(|_| {
                [redis.call(DEMO, "get", &[("hashid", &key)]).by(), frames.call(DEMO, "get", &[("hash_key", &key)]).by()]
            })
            .collect();
        assert_eq!(by.len(), 1, "{key} is at {by:?}");
        new += usize::from(by.contains("new"));
    }
    // 120 with a standard deviation of 9.2.
    assert!((65..=175).contains(&new), "{new}");
}

#[test]
fn a_service_is_brought_in_step_by_step() {
    let (blue, plain) = (named("blue"), named("plain"));
    let policy = |per_10k: u32| {
        format!(
            "mesh_per_10k = {per_10k}\nroutes = [{{ name = \"all\", to = {{ labels = {{ colour = \"blue\" }} }} }}]\n\
             faults = [{{ name = \"drill\", when = {{ method = \"fail\" }}, code = 777 }}]"
        )
    };
    let instances: &[(&FakeMoa, &str)] = &[(&blue, "labels = { colour = \"blue\" }"), (&plain, "")];
    let agent = one(instances, &policy(0));
    for mut caller in Caller::both(&agent) {
        let tally = caller.tally(400, DEMO, "get", &[]);
        assert!(tally["blue"] > 100 && tally["plain"] > 100, "{tally:?}");
        caller.tally(50, DEMO, "fail", &[]);
    }
    agent.reload(&format!("{ONE}{}", section(DEMO, instances, &policy(5_000))));
    for mut caller in Caller::both(&agent) {
        // Half of them by the rule, half of the others by chance: 3/4, and a standard deviation of 19.
        let tally = caller.tally(2_000, DEMO, "get", &[]);
        assert!((1_380..=1_620).contains(&tally["blue"]), "{tally:?}");
        let failed = (0..400).filter(|_| caller.call(DEMO, "fail", &[]).code == 777).count();
        assert!((140..=260).contains(&failed), "{failed}");
    }
    agent.reload(&format!("{ONE}{}", section(DEMO, instances, &policy(10_000))));
    for mut caller in Caller::both(&agent) {
        caller.expect("blue", DEMO, "get", &[]);
        caller.call(DEMO, "fail", &[]).error(777);
    }
}

#[test]
fn rules_change_under_load_and_no_call_is_lost() {
    let fakes: Vec<_> = (0..3).map(|_| FakeMoa::start()).collect();
    let instances: Vec<_> = fakes.iter().zip(["labels = { c = \"0\" }", "labels = { c = \"1\" }", ""]).collect();
    let config = |round: usize| {
        let policy = match round % 4 {
            0 => "routes = [{ name = \"a\", to = { labels = { c = \"0\" } } }]".to_owned(),
            1 => "routes = [{ name = \"b\", to = { labels = { c = \"1\" } } }]\nfaults = [{ name = \"slow\", per_10k = 1000, delay_ms = 5 }]".to_owned(),
            2 => "routes = [{ name = \"c\", split = [{ weight = 1, to = { labels = { c = \"1\" } } }, { weight = 1 }] }]\n\
                  shadows = [{ name = \"s\", to = { labels = { c = \"0\" } } }]".to_owned(),
            _ => String::new(),
        };
        let instances: Vec<_> = instances.iter().map(|(fake, keys)| (*fake, *keys)).collect();
        format!("[agent]\nworkers = 2\n{}", section(DEMO, &instances, &policy))
    };
    let agent = Agent::start(&config(0));
    let loads = [Load::start(agent.address(), &[DEMO], 4), Load::start_frames(agent.address(), &[DEMO], 4)];
    for round in 1..13 {
        agent.reload(&config(round));
        let ask = Judge.ask(DEMO, 10);
        ask.expect_right(&agent.connect().get(&ask.json));
        let before: usize = fakes.iter().map(|fake| fake.counts().calls).sum();
        until_true("calls to go on", || fakes.iter().map(|fake| fake.counts().calls).sum::<usize>() > before + 50);
    }
    for load in loads {
        let account = load.stop();
        assert_eq!(account.failures(), 0, "{account:?}");
    }
}

#[test]
fn stress_tests_go_together_or_apart() {
    let (online, apart) = (named("online"), named("apart"));
    let instances: &[(&FakeMoa, &str)] = &[(&online, ""), (&apart, "environment = \"stress\"")];
    let agent = one(instances, "");
    for mut caller in Caller::both(&agent) {
        caller.expect("online", DEMO, "get", &[("moa.stress", "1")]);
    }
    agent.reload(&format!("{ONE}{}", section(DEMO, instances, "stress = \"apart\"")));
    for mut caller in Caller::both(&agent) {
        caller.expect("apart", DEMO, "get", &[("moa.stress", "1")]);
        caller.expect("online", DEMO, "get", &[]);
    }
    Caller::frames(&agent, "").expect("apart", DEMO, "get", &[("stress", "x")]);
    apart.down(End::Reset);
    for mut caller in Caller::both(&agent) {
        caller.call(DEMO, "get", &[("moa.stress", "1")]).error(303);
    }
    // And where there is none of them.
    agent.reload(&format!("{ONE}{}", section(DEMO, &instances[..1], "stress = \"apart\"")));
    for mut caller in Caller::both(&agent) {
        let text = caller.call(DEMO, "get", &[("moa.stress", "1")]).error(303);
        assert!(text.contains("stress"), "{text}");
    }
    assert!(online.requests().iter().filter(|json| String::from_utf8_lossy(json).contains("moa.stress")).count() == 8);
}

#[test]
fn the_mark_of_a_stress_test_is_carried_on() {
    let far = Agent::start(&format!("{ONE}{}", config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let near = near(&far, &[], "");
    let before = server.calls().len();
    Caller::redis(&near, "").call(DEMO, "get", &[("moa.stress", "load-7")]).by();
    Caller::frames(&near, "").call(DEMO, "get", &[("stress", "load-8")]).by();
    let calls = server.await_calls(before + 2);
    assert_eq!(values(&calls[before], id::STRESS), ["load-7"]);
    assert_eq!(calls[before].body, json_of(DEMO, "get", &[("moa.stress", "load-7")]).as_bytes());
    assert_eq!(values(&calls[before + 1], id::STRESS), ["load-8"]);
}

#[test]
fn stress_tests_are_kept_apart_across_two_agents() {
    let (online, apart) = (named("online"), named("apart"));
    let far = one(&[(&online, ""), (&apart, "environment = \"stress\"")], "stress = \"apart\"");
    for policy in ["", "stress = \"apart\""] {
        let near = near(&far, &[], policy);
        for mut caller in Caller::both(&near) {
            caller.expect("apart", DEMO, "get", &[("moa.stress", "1")]);
            caller.expect("online", DEMO, "get", &[]);
        }
    }
    apart.down(End::Reset);
    let near = near(&far, &[], "stress = \"apart\"");
    for mut caller in Caller::both(&near) {
        caller.call(DEMO, "get", &[("moa.stress", "1")]).error(303);
    }
}

#[test]
fn stress_calls_are_counted() {
    let online = named("online");
    let agent = one(&[(&online, "")], "faults = [{ name = \"none\", when = { method = \"none\" }, code = 700 }]");
    assert_eq!(events(&agent, DEMO, "stress_calls"), 0);
    for mut caller in Caller::both(&agent) {
        caller.call(DEMO, "get", &[("moa.stress", "1")]).by();
        caller.call(DEMO, "get", &[]).by();
    }
    await_events(&agent, DEMO, "stress_calls", 2);
}

#[test]
fn random_calls_go_where_a_model_says() {
    use rand::RngExt;
    let mut rng = moa_tests::seed::rng("random_calls_go_where_a_model_says");
    let [online, pre, blue, red] = ["online", "pre", "blue", "red"].map(named);
    let policy = r#"
        [[services."/service/demo".routes]]
        name = "one"
        when = { a = ["1", "2"], method = "get*" }
        to = { labels = { c = "blue" }, environment = "special" }
        [[services."/service/demo".routes]]
        name = "two"
        when = { b = "x*" }
        to = { environment = "red" }
        "#;
    let instances: &[(&FakeMoa, &str)] = &[
        (&online, ""),
        (&pre, "environment = \"pre\""),
        (&blue, "environment = \"special\", labels = { c = \"blue\" }"),
        (&red, "environment = \"red\""),
    ];
    let agent = one(instances, policy);
    let mut callers = Caller::both(&agent);
    let mut all = BTreeMap::new();
    for _ in 0..moa_tests::seed::count(800, 20_000) {
        let method = ["get", "getAll", "set"][rng.random_range(0..3)];
        let mut marks = Vec::new();
        for (name, values) in [("a", &["1", "2", "3"][..]), ("b", &["x", "xy", "y"]), ("moa.env.pre", &["", "1"])] {
            if rng.random_bool(0.5) {
                marks.push((name, values[rng.random_range(0..values.len())]));
            }
        }
        let says = |name: &str| marks.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let expected = if method.starts_with("get") && matches!(says("a"), Some("1" | "2")) {
            "blue"
        } else if says("b").is_some_and(|b| b.starts_with('x')) {
            "red"
        } else if says("moa.env.pre").is_some() {
            "pre"
        } else {
            "online"
        };
        for caller in &mut callers {
            let by = caller.call(DEMO, method, &marks).by();
            assert_eq!(by, expected, "{} {method} {marks:?}", caller.kind());
        }
        *all.entry(expected).or_insert(0) += 1;
    }
    assert_eq!(all.len(), 4, "{all:?}");
}
