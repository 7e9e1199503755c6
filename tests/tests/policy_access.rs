//! Who may call: allow lists, deny lists, dry runs, on one agent and across two; and that nobody can pretend to be another.

use agent_common::frame::{Flags, Hello, Role, id};
use moa_tests::{
    Agent, DEMO, FakeMoa,
    config::{self, NO_HEALTH_CHECK},
    fleet::{Caller, Server, await_events, begin_with, events, json_of, named, outcome, section, values},
    frames::{FramePeer, WIDE, meta_of},
    until_true,
};

const ONE: &str = "[agent]\nworkers = 1\n";

const DENY: &str =
    r#"access.rules = [{ name = "no-guests", when = { application = "guest*", method = "set*" }, verdict = "deny" }]"#;

const ALLOW: &str = r#"access.default = "deny"
access.rules = [
    { name = "never", when = { method = "drop" }, verdict = "deny" },
    { name = "web", when = { application = ["web", "h5-*"] } },
]"#;

fn one(fake: &FakeMoa, policy: &str) -> Agent {
    Agent::start(&format!("{ONE}{}", section(DEMO, &[(fake, "")], policy)))
}

fn near(far: &Agent, policy: &str) -> Agent {
    let peer = config::peer("far", far.tunnel_address());
    Agent::start(&format!("{ONE}{peer}{}", section(DEMO, &[], &format!("agents = [\"far\"]\n{policy}"))))
}

/// Waits until a call is answered by the other agent, whatever the answer.
fn await_far(near: &Agent) {
    let mut caller = near.connect();
    until_true("the other agent to be reached", || caller.call(&json_of(DEMO, "x", &[]))["ec"] != 303);
}

#[test]
fn a_deny_list_refuses_whom_it_names_and_says_so() {
    let fake = named("fake");
    let agent = one(&fake, DENY);
    for mut caller in Caller::both_as(&agent, "guest-7") {
        caller.expect("fake", DEMO, "get", &[]);
        let text = caller.call(DEMO, "setName", &[]).error(506);
        for part in ["guest-7", "no-guests", DEMO, agent.name()] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    for mut caller in Caller::both_as(&agent, "web").into_iter().chain(Caller::both(&agent)) {
        caller.expect("fake", DEMO, "setName", &[]);
    }
    await_events(&agent, DEMO, "denied", 2);
}

#[test]
fn an_allow_list_refuses_all_others() {
    let fake = named("fake");
    let agent = one(&fake, ALLOW);
    for name in ["web", "h5-shop"] {
        for mut caller in Caller::both_as(&agent, name) {
            caller.expect("fake", DEMO, "get", &[]);
            let text = caller.call(DEMO, "drop", &[]).error(506);
            assert!(text.contains("never") && text.contains(name), "{text}");
        }
    }
    for name in ["batch", "webs", "h5", ""] {
        for mut caller in Caller::both_as(&agent, name) {
            let text = caller.call(DEMO, "get", &[]).error(506);
            assert!(text.contains("default"), "{text}");
        }
    }
    // It is called something else meanwhile.
    let mut caller = Caller::redis(&agent, "batch");
    caller.call(DEMO, "get", &[]).error(506);
    if let Caller::Redis(client) = &mut caller {
        client.command(&["CLIENT", "SETNAME", "web"]);
    }
    caller.expect("fake", DEMO, "get", &[]);
    assert_eq!(fake.requests().iter().filter(|call| String::from_utf8_lossy(call).contains("drop")).count(), 0);
}

#[test]
fn a_dry_run_refuses_nobody_and_counts() {
    let fake = named("fake");
    let agent = one(&fake, &format!("access.mode = \"dry-run\"\n{ALLOW}"));
    for mut caller in Caller::both_as(&agent, "batch") {
        caller.expect("fake", DEMO, "get", &[]);
    }
    for mut caller in Caller::both_as(&agent, "web") {
        caller.expect("fake", DEMO, "get", &[]);
    }
    await_events(&agent, DEMO, "denied_dry_run", 16);
    assert_eq!(events(&agent, DEMO, "denied"), 0);
    // In earnest from now on.
    agent.reload(&format!("{ONE}{}", section(DEMO, &[(&fake, "")], ALLOW)));
    for mut caller in Caller::both_as(&agent, "batch") {
        caller.call(DEMO, "get", &[]).error(506);
    }
}

#[test]
fn a_group_and_any_entry_can_be_kept_out() {
    let fake = named("fake");
    let policy = r#"access.rules = [{ name = "no-blues", when = { group = "blue" }, verdict = "deny" }, { name = "zone", when = { zone = "z9" }, verdict = "deny" }]"#;
    let group = section("/service/demo#blue", &[(&fake, "")], policy);
    let agent = Agent::start(&format!("{ONE}{}{group}", section(DEMO, &[(&fake, "")], policy)));
    let mut caller = Caller::frames(&agent, "web");
    caller.expect("fake", DEMO, "get", &[]);
    let text = caller.call("/service/demo#blue", "get", &[]).error(506);
    assert!(text.contains("no-blues"), "{text}");
    caller.call(DEMO, "get", &[("zone", "z9")]).error(506);
}

#[test]
fn what_is_part_of_no_policy_needs_leave_too() {
    let fake = named("fake");
    let agent = one(&fake, &format!("mesh_per_10k = 0\n{DENY}"));
    for mut caller in Caller::both_as(&agent, "guest") {
        caller.call(DEMO, "set", &[]).error(506);
        caller.expect("fake", DEMO, "get", &[]);
    }
}

#[test]
fn a_call_of_many_frames_and_a_one_way_call_are_refused_too() {
    let agent = Agent::start(&format!("{ONE}{}", config::service(DEMO, &[], &format!("{DENY}\n{NO_HEALTH_CHECK}"))));
    let server = Server::start(&agent, "server", &[DEMO]);
    let Caller::Frames(mut peer) = Caller::frames(&agent, "guest") else { unreachable!() };
    let stream = begin_with(&mut peer, DEMO, "set", (Flags::NONE, &[]));
    let text = outcome(&peer.answer_to(stream)).error(506);
    assert!(text.contains("no-guests"), "{text}");
    begin_with(&mut peer, DEMO, "set", (Flags::ONE_WAY | Flags::END_STREAM, &[]));
    peer.expect_quiet();
    let stream = begin_with(&mut peer, DEMO, "get", (Flags::END_STREAM, &[]));
    assert_eq!(outcome(&peer.answer_to(stream)).by(), "server");
    assert_eq!(server.calls().len(), 1);
    await_events(&agent, DEMO, "denied", 2);
}

#[test]
fn the_second_agent_refuses_too_by_what_the_first_one_vouches_for() {
    let fake = named("fake");
    let far = one(&fake, ALLOW);
    // The first one has other rules, which let everybody through.
    let near = near(&far, r#"access.rules = [{ name = "nobody", when = { application = "nobody" }, verdict = "deny" }]"#);
    await_far(&near);
    for mut caller in Caller::both_as(&near, "web") {
        caller.expect("fake", DEMO, "get", &[]);
        let text = caller.call(DEMO, "drop", &[]).error(506);
        assert!(text.contains("never") && text.contains(far.name()), "{text}");
    }
    for mut caller in Caller::both_as(&near, "batch") {
        let text = caller.call(DEMO, "get", &[]).error(506);
        assert!(text.contains("batch") && text.contains(far.name()), "{text}");
    }
    for mut caller in Caller::both(&near) {
        caller.call(DEMO, "get", &[]).error(506);
    }
}

#[test]
fn an_application_cannot_pretend_to_be_another() {
    let fake = named("fake");
    let agent = one(&fake, ALLOW);
    let mut caller = Caller::frames(&agent, "batch");
    caller.call(DEMO, "get", &[("application", "web")]).error(506);
    let Caller::Frames(peer) = &mut caller else { unreachable!() };
    let stream = begin_with(peer, DEMO, "get", (Flags::END_STREAM | Flags::VERIFIED, &[("application", "web")]));
    outcome(&peer.answer_to(stream)).error(506);
}

#[test]
fn nor_can_it_across_two_agents() {
    let fake = named("fake");
    let far = one(&fake, ALLOW);
    let policies = [
        "",
        r#"access.rules = [{ name = "nobody", when = { application = "nobody" }, verdict = "deny" }]"#,
        "rate.caller_per_s = 100000",
    ];
    for policy in policies {
        let near = near(&far, policy);
        await_far(&near);
        for name in ["batch", ""] {
            for flags in [Flags::END_STREAM, Flags::END_STREAM | Flags::VERIFIED, Flags::VERIFIED] {
                let Caller::Frames(mut peer) = Caller::frames(&near, name) else { unreachable!() };
                let stream = begin_with(&mut peer, DEMO, "get", (flags, &[("application", "web")]));
                if !flags.has(Flags::END_STREAM) {
                    peer.data(&numbers(stream), Flags::END_STREAM, b"");
                }
                let outcome = outcome(&peer.answer_to(stream));
                assert_eq!(outcome.code, 506, "{policy:?} {name:?} {flags:?} {outcome:?}");
            }
        }
    }
    assert!(fake.requests().is_empty());
}

fn numbers(stream: u32) -> agent_common::frame::Header {
    agent_common::frame::Header {
        stream,
        via: stream.into(),
        service: agent_common::frame::service_hash(DEMO.as_bytes(), b""),
        ..agent_common::frame::Header::new(agent_common::frame::Kind::Data)
    }
}

#[test]
fn the_callee_is_told_who_calls_and_that_an_agent_says_so() {
    let far = Agent::start(&format!("{ONE}{}", config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let near = near(&far, DENY);
    await_far(&near);
    let mut count = server.calls().len();
    for mut caller in Caller::both_as(&near, "web") {
        caller.call(DEMO, "get", &[("application", "liar")]).by();
        count += 1;
        let call = server.await_calls(count).pop().expect("a call");
        assert_eq!(values(&call, id::SOURCE_APPLICATION), ["web"], "{}", caller.kind());
        assert!(call.has(Flags::VERIFIED), "{}", caller.kind());
    }
    assert_eq!(values(server.calls().last().expect("one"), id::SOURCE_INSTANCE), ["web-1"]);
    // What nobody vouches for is not marked as if somebody did.
    let mut peer = FramePeer::connect(near.address(), &Hello::new(Role::Application, "", "someone", WIDE));
    let meta = meta_of(DEMO);
    let header = agent_common::frame::Header {
        flags: Flags::END_STREAM | Flags::VERIFIED,
        service: agent_common::frame::service_hash(DEMO.as_bytes(), b""),
        ..agent_common::frame::Header::new(agent_common::frame::Kind::Request)
    };
    let stream = peer.request_with(header, meta.as_ref(), b"");
    peer.answer_to(stream);
    assert!(!server.await_calls(count + 1).pop().expect("a call").has(Flags::VERIFIED));
}
