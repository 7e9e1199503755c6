//! What applications that dial in say of themselves: weight, environment, labels.

use std::num::NonZeroU32;

use agent_common::frame::{Flags, Header, Hello, Kind, MetaBuilder, Traits, WEIGHT_MAX, id, service_hash, status::reason};
use moa_tests::{
    Agent, config,
    frames::{FramePeer, Got, bytes_of, caller, meta_of, serve, service},
    until_true,
};

const USER: &str = "/service/user";

/// Two workers, whatever machine this is.
const TWO: &str = "[agent]\nworkers = 2\n";

fn nth(hello: Hello, connection: u16) -> Hello {
    Hello { connection: Some(connection), ..hello }
}

/// An application that serves [`USER`] and says this of itself.
fn with(instance: &str, traits: Traits) -> Hello {
    Hello { traits, ..service(instance, &[USER]) }
}

fn of_environment(name: &str) -> Traits {
    Traits { environment: name.into(), ..Traits::default() }
}

fn of_weight(weight: u32) -> Traits {
    Traits { weight: NonZeroU32::new(weight), ..Traits::default() }
}

fn of_version(version: &str) -> Traits {
    Traits { labels: [("version".into(), version.into())].into(), ..Traits::default() }
}

/// The metadata of a call of an environment.
fn meant_for(environment: &str) -> MetaBuilder {
    let mut meta = meta_of(USER);
    meta.put(id::ENVIRONMENT, environment.as_bytes());
    meta
}

fn request(client: &mut FramePeer, meta: &MetaBuilder) -> u32 {
    let service = service_hash(USER.as_bytes(), b"");
    client.request_with(Header { flags: Flags::END_STREAM, service, ..Header::new(Kind::Request) }, meta.as_ref(), b"")
}

fn call(client: &mut FramePeer, meta: &MetaBuilder) -> Got {
    let stream = request(client, meta);
    client.answer_to(stream)
}

/// A call that this service gets and no other.
fn expect_at(server: &mut FramePeer, client: &mut FramePeer, meta: &MetaBuilder) {
    request(client, meta);
    let call = server.expect(Kind::Request);
    server.respond(&call, 0, b"");
    assert_eq!(client.expect(Kind::Response).header.word, 0);
}

/// Serves with its name as the answer.
fn answer_with(name: &'static str, server: FramePeer) {
    serve(server, move |peer, call| peer.respond(&call, 0, name.as_bytes()));
}

#[test]
fn a_call_of_an_environment_goes_to_the_application_that_offers_with_it() {
    let agent = Agent::start(TWO);
    let mut usual = FramePeer::connect(agent.address(), &nth(service("usual", &[USER]), 0));
    let mut pre = FramePeer::connect(agent.address(), &nth(with("pre", of_environment("pre")), 1));
    let mut clients = [0, 1].map(|worker| FramePeer::connect(agent.address(), &nth(caller(), worker)));
    for client in &mut clients {
        for _ in 0..4 {
            expect_at(&mut pre, client, &meant_for("pre"));
            expect_at(&mut usual, client, &meta_of(USER));
            expect_at(&mut usual, client, &meant_for("grey"));
        }
    }
    drop(pre);
    answer_with("usual", usual);
    for client in &mut clients {
        // What was on its way when it left is lost.
        until_true("calls of the environment to fall back", || call(client, &meant_for("pre")).body == b"usual");
        assert_eq!(call(client, &meta_of(USER)).body, b"usual");
    }
}

#[test]
fn other_calls_never_go_to_an_environment() {
    let agent = Agent::start(TWO);
    let mut pre = FramePeer::connect(agent.address(), &with("pre", of_environment("pre")));
    let mut client = FramePeer::connect(agent.address(), &caller());
    for meta in [meta_of(USER), meant_for("grey")] {
        let refused = call(&mut client, &meta);
        assert!(refused.header.word != 0 && refused.has(Flags::NOT_EXECUTED), "{refused:?}: {}", refused.error());
    }
    pre.expect_quiet();
    expect_at(&mut pre, &mut client, &meant_for("pre"));
}

fn rule_by_label(worker: u16) {
    let route = "routes = [{ name = \"new\", when = { method = \"new*\" }, to = { labels = { version = \"2\" } } }]";
    let agent = Agent::start(&format!("{TWO}{}", config::service(USER, &[], route)));
    for version in ["1", "2"] {
        let server = FramePeer::connect(agent.address(), &nth(with(version, of_version(version)), 0));
        answer_with(if version == "1" { "first" } else { "second" }, server);
    }
    let mut client = FramePeer::connect(agent.address(), &nth(caller(), worker));
    let mut new = meta_of(USER);
    new.put(id::METHOD, b"newest");
    for _ in 0..20 {
        assert_eq!(call(&mut client, &new).body, b"second");
    }
    until_true("a call without the rule to go to the other", || call(&mut client, &meta_of(USER)).body == b"first");
}

#[test]
fn rules_choose_applications_by_their_labels() {
    rule_by_label(0);
}

#[test]
fn rules_choose_applications_of_other_workers_by_their_labels() {
    rule_by_label(1);
}

#[test]
fn weights_are_shares_of_the_calls() {
    let agent = Agent::start("[agent]\nworkers = 1\n[defaults]\nbalance.policy = \"round-robin\"\n");
    answer_with("usual", FramePeer::connect(agent.address(), &service("usual", &[USER])));
    answer_with("half", FramePeer::connect(agent.address(), &with("half", of_weight(50))));
    answer_with("thrice", FramePeer::connect(agent.address(), &with("thrice", of_weight(300))));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let answers: Vec<_> = (0..90).map(|_| call(&mut client, &meta_of(USER)).body).collect();
    for (name, share) in [("usual", 20_usize), ("half", 10), ("thrice", 60)] {
        let count = answers.iter().filter(|body| **body == name.as_bytes()).count();
        assert!(count.abs_diff(share) <= 2, "{name}: {count} of 90 calls, not {share}");
    }
}

#[test]
fn of_connections_of_one_process_the_newest_says_what_it_is() {
    let agent = Agent::start("[agent]\nworkers = 1\n");
    let mut client = FramePeer::connect(agent.address(), &caller());
    let mut former = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    expect_at(&mut former, &mut client, &meta_of(USER));
    let next = FramePeer::connect(agent.address(), &with("s1", of_environment("pre")));
    assert_ne!(call(&mut client, &meta_of(USER)).header.word, 0);
    drop(next);
    answer_with("former", former);
    until_true("the other connection's word to count", || call(&mut client, &meta_of(USER)).body == b"former");
}

#[test]
fn wrong_values_end_the_connection() {
    let agent = Agent::start("");
    let said = |id, value: &[u8]| {
        let mut frame = service("s1", &[USER]).encode().expect("a HELLO that fits").to_vec();
        let mut meta = MetaBuilder::new();
        meta.put(id, value);
        let rest = frame.split_off(agent_common::frame::HEADER_LEN);
        bytes_of(Header::new(Kind::Hello), &[&rest, meta.as_ref()].concat(), &[])
    };
    let too_heavy = (WEIGHT_MAX + 1).to_be_bytes();
    let wrong: [(u8, &[u8], &str); 5] = [
        (13, &[0; 4], "weight"),
        (13, &too_heavy, "weight"),
        (14, b"a\nb", "environment"),
        (15, b"\x08version", "label"),
        (15, b"\x01a\xff", "label"),
    ];
    for (id, value, name) in wrong {
        let mut peer = FramePeer::silent(agent.address());
        peer.write(&said(id, value));
        let goaway = peer.expect_goaway(reason::PROTOCOL);
        assert!(goaway.error().contains(&format!("`{name}`")), "{}", goaway.error());
    }
}
