//! `moa drain`: peers move away, what is in flight is finished, what is left is said, and it can be taken back. Agents that die
//! and come back.

use std::{net::TcpListener, time::Duration};

use agent_common::frame::{Flags, Header, Hello, Kind, Role};
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate, Judge, PATIENCE,
    client::command,
    config, echo, envelope,
    frames::{FramePeer, Got, WIDE, caller, service},
    load::Load,
    machine::{free_address, http},
    mesh::tunnel,
    until, until_true,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const USER: &str = "/service/user";
const ORDER: &str = "/service/order";
const WHOLE: Flags = Flags::END_STREAM;

/// An agent that has servers of these services.
fn far(services: &[(&str, &FakeMoa)]) -> Agent {
    let section = |(uri, fake): &(&str, &FakeMoa)| config::service(uri, &[fake.address()], config::NO_HEALTH_CHECK);
    Agent::start(&services.iter().map(section).collect::<String>())
}

/// An agent that reaches these services by way of others.
fn near(fars: &[(&str, &Agent)], services: &[&str], policy: &str) -> Agent {
    let names: Vec<_> = fars.iter().map(|(name, _)| *name).collect();
    let peers: String = fars.iter().map(|(name, far)| config::peer(name, far.tunnel_address())).collect();
    let policy = format!("{}\n{policy}", config::NO_HEALTH_CHECK);
    let served: String = services.iter().map(|uri| config::served_by(uri, &[], &names, &policy)).collect();
    Agent::start(&format!("[agent]\nworkers = 2\n{peers}{served}"))
}

/// Waits until all of them answer calls.
fn await_served(near: &Agent, fakes: &[&FakeMoa]) {
    until_true("all servers to be reached", || {
        let ask = Judge.ask(DEMO, 10);
        ask.expect_right(&near.connect().get(&ask.json));
        fakes.iter().all(|fake| fake.counts().calls > 0)
    });
}

fn ready(agent: &Agent) -> (u16, String) {
    http(agent.metrics_address(), "/ready")
}

fn remains(agent: &Agent, what: &str) -> u64 {
    agent.json(&["status"])["drain"]["remains"][what].as_u64().expect("a number")
}

#[test]
fn peers_move_away_without_a_failed_call_and_come_back() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let fars = fakes.each_ref().map(|fake| far(&[(DEMO, fake)]));
    let near = near(&[("one", &fars[0]), ("two", &fars[1])], &[DEMO], "");
    await_served(&near, &[&fakes[0], &fakes[1]]);
    let load = [Load::start(near.address(), &[DEMO], 4), Load::start_frames(near.address(), &[DEMO], 4)];
    for _ in 0..3 {
        load.iter().for_each(|load| load.await_calls(200));
        let outcome = fars[0].verb(&["drain", "--timeout", "20"]);
        assert!(outcome.status.success(), "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains("drained"), "{}", outcome.stdout);
        let before = fakes[0].counts().calls;
        load.iter().for_each(|load| load.await_calls(200));
        assert_eq!(fakes[0].counts().calls, before, "an agent that drains was called");
        until_true("the reason", || tunnel(&near, "one").1.contains("drains"));
        assert!(!tunnel(&near, "one").0);
        let outcome = fars[0].verb(&["drain", "--cancel"]);
        assert!(outcome.status.success(), "{}", outcome.stderr);
        fakes[0].await_counts("calls again", |counts| counts.calls > before);
    }
    for load in load {
        load.stop().expect_all_right();
    }
}

#[test]
fn what_is_in_flight_is_said_and_finished() {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    let held = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&held));
    let far = far(&[(DEMO, &fake)]);
    let near = near(&[("far", &far)], &[DEMO], "timeout_ms = 60000");
    let mut client = near.connect();
    client.send(command(&["GET", &echo("held")]));
    fake.await_in_flight(1);
    let outcome = far.verb(&["drain", "--timeout", "0.3"]);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stdout);
    for text in ["1 call in flight", "connection of another agent", "time is over", "goes on draining"] {
        assert!(outcome.stdout.contains(text), "nothing of {text:?}: {}", outcome.stdout);
    }
    assert_eq!(ready(&far), (503, "draining\n".to_owned()));
    assert!(far.verb(&["status"]).stdout.contains("draining"));
    assert_eq!(remains(&far, "calls"), 1);
    gate.open();
    assert!(client.read().text().contains("held"));
    // The second one joins the first.
    let shown = far.json(&["drain", "--timeout", "20"]);
    assert_eq!((&shown["draining"], &shown["remains"]["agents"]), (&true.into(), &0.into()), "{shown}");
    assert!(far.json(&["status"])["drain"]["since_ms"].as_u64().is_some_and(|ms| ms >= 300));
    // Nobody else is left: the error is at once, and says why.
    let answer = near.connect().call(&echo("nobody"));
    assert_eq!(answer["ec"], 303, "{answer}");
    assert!(answer["em"].as_str().is_some_and(|text| text.contains("drains")), "{answer}");
}

#[test]
fn applications_that_have_nowhere_to_go_stay() {
    let fake = FakeMoa::start();
    let mut agent = far(&[(DEMO, &fake)]);
    let mut redis = agent.connect();
    redis.expect_usable();
    let mut frames = FramePeer::connect(agent.address(), &caller());
    let mut served = FramePeer::connect(agent.address(), &service("s1", &[USER]));
    let outcome = agent.verb(&["drain", "--timeout", "0.2"]);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stdout);
    for text in ["1 Redis connection", "1 connection that calls in frames", "1 connection of a service", "--to-siblings"] {
        assert!(outcome.stdout.contains(text), "nothing of {text:?}: {}", outcome.stdout);
    }
    // Nobody is asked to go, and whoever comes is served: there is nobody else.
    frames.expect_quiet();
    served.expect_quiet();
    for client in [&mut redis, &mut agent.connect()] {
        assert_eq!(client.call(&echo("still"))["result"], "still");
    }
    frames.request(USER, WHOLE, b"");
    let call = served.expect(Kind::Request);
    served.respond(&call, 0, b"here");
    assert_eq!(frames.expect(Kind::Response).body, b"here");
    let in_vain = agent.verb(&["drain", "--to-siblings"]);
    assert!(!in_vain.status.success() && in_vain.stderr.contains("no sibling"), "{}", in_vain.stderr);
    assert_eq!(ready(&agent).0, 503);
    assert!(agent.verb(&["drain", "--cancel"]).status.success());
    assert_eq!(ready(&agent), (200, "ready\n".to_owned()));
    let again = agent.verb(&["drain", "--cancel"]);
    assert!(!again.status.success() && again.stderr.contains("does not drain"), "{}", again.stderr);
    // They go by themselves, and then nothing is left.
    drop((redis, frames, served));
    let outcome = agent.verb(&["drain", "--timeout", "20"]);
    assert!(outcome.status.success(), "{}", outcome.stdout);
    agent.stop();
}

#[test]
fn a_stop_ends_a_drain_and_says_what_it_cuts() {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    fake.script(move |call| Answer::ok(&call.args[0]).at(&gate));
    let service = config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK);
    let mut agent = Agent::start(&format!("[agent]\ndrain_timeout_ms = 300\n{service}"));
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("held")]));
    fake.await_in_flight(1);
    // As long as the configuration says.
    assert_eq!(agent.verb(&["drain"]).status.code(), Some(1));
    agent.signal(Signal::SIGTERM);
    assert!(!agent.wait(PATIENCE).success());
    let log = agent.log();
    let cut = log.lines().find(|line| line.contains("are cut")).unwrap_or_else(|| panic!("nothing of it: {log}"));
    assert!(cut.contains("\"calls\":1,\"redis\":1,"), "{cut}");
}

#[test]
fn a_stop_turns_peers_away_at_once() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let mut fars = fakes.each_ref().map(|fake| far(&[(DEMO, fake)]));
    let near = near(&[("one", &fars[0]), ("two", &fars[1])], &[DEMO], "");
    await_served(&near, &[&fakes[0], &fakes[1]]);
    let load = [Load::start(near.address(), &[DEMO], 4), Load::start_frames(near.address(), &[DEMO], 4)];
    load.iter().for_each(|load| load.await_calls(200));
    fars[0].stop();
    load.iter().for_each(|load| load.await_calls(200));
    for load in load {
        load.stop().expect_all_right();
    }
}

/// The calls of a service that an agent has counted for a peer.
fn calls_of(near: &Agent, uri: &str, peer: &str) -> u64 {
    let services = near.json(&["services"]);
    let service = services.as_array().and_then(|all| all.iter().find(|service| service["uri"] == uri)).expect("the service");
    let is_it = |instance: &&Value| instance["address"] == format!("agent {peer}");
    let instances = service["instances"].as_array().expect("instances");
    instances.iter().find(is_it).expect("the peer")["stats"]["calls"].as_u64().expect("a number")
}

#[test]
fn all_that_is_behind_an_agent_that_dies_is_out_at_once() {
    let services = [DEMO, USER, ORDER];
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let mut fars = fakes.each_ref().map(|fake| far(&services.map(|uri| (uri, fake))));
    let near = near(&[("one", &fars[0]), ("two", &fars[1])], &services, "");
    let call = |uri: &str| {
        let ask = Judge.ask(uri, 10);
        ask.expect_right(&near.connect().get(&ask.json));
    };
    until_true("each service to be served by both", || {
        services.iter().for_each(|uri| call(uri));
        services.iter().all(|uri| ["one", "two"].iter().all(|peer| calls_of(&near, uri, peer) > 0))
    });
    fars[0].kill();
    // Seen by the calls of no service: the connection says it.
    until_true("it to be found down", || !tunnel(&near, "one").0);
    let before = services.map(|uri| calls_of(&near, uri, "one"));
    for _ in 0..50 {
        services.iter().for_each(|uri| call(uri));
    }
    assert_eq!(services.map(|uri| calls_of(&near, uri, "one")), before, "calls after the death");
}

/// An agent under the test's control, at a peer's address.
struct Peer {
    listener: TcpListener,
}

impl Peer {
    fn new() -> Self {
        Self { listener: TcpListener::bind(free_address()).expect("a port of this test") }
    }

    fn config(&self) -> String {
        config::peer("tested", self.listener.local_addr().expect("an address"))
    }

    /// Takes a connection, and says HELLO. It does not answer PINGs.
    fn accept(&self) -> FramePeer {
        let mut peer = FramePeer::accepted(self.listener.accept().expect("a connection").0);
        peer.quiet = false;
        peer.greet(&Hello::new(Role::Agent, "tested", "tested-1", WIDE));
        peer
    }
}

/// The calls that come within a moment, and how many PINGs do.
fn calls_within(peer: &mut FramePeer, moment: Duration) -> (Vec<Got>, Vec<Got>) {
    let mut came = Vec::new();
    while let Ok(Some(got)) = peer.frame_within(moment) {
        came.push(got);
    }
    let (calls, rest): (Vec<_>, Vec<_>) = came.into_iter().partition(|got| got.kind() == Some(Kind::Request));
    (calls, rest.into_iter().filter(|got| got.kind() == Some(Kind::Ping)).collect())
}

/// Begins a call.
fn begin(client: &mut FramePeer) {
    client.request(DEMO, WHOLE, envelope(DEMO, "echo", "\"x\"").as_bytes());
}

/// The next answer is a success.
fn expect_success(client: &mut FramePeer) {
    let got = client.expect(Kind::Response);
    assert_eq!(got.header.word, 0, "{}", got.error());
}

/// An agent of one worker that takes turns with its peers, and does not ask for signs of life for a while.
fn in_turns(peers: &str, names: &[&str]) -> Agent {
    let policy = format!("balance.policy = \"round-robin\"\n{}", config::NO_HEALTH_CHECK);
    let served = config::served_by(DEMO, &[], names, &policy);
    Agent::start(&format!("[agent]\nworkers = 1\n[tunnel]\nkeepalive_ms = 60000\nconnect_timeout_ms = 20000\n{peers}{served}"))
}

#[test]
fn an_agent_that_is_back_is_tried_by_one_call_before_the_rest() {
    let (fake, tested) = (FakeMoa::start(), Peer::new());
    let other = far(&[(DEMO, &fake)]);
    let peers = tested.config() + &config::peer("other", other.tunnel_address());
    let near = in_turns(&peers, &["tested", "other"]);
    drop(tested.accept());
    until_true("it to be found down", || !tunnel(&near, "tested").0);
    let mut peer = tested.accept();
    until_true("it to be back", || tunnel(&near, "tested").0);
    until_true("the other one to be there", || tunnel(&near, "other").0);
    let mut client = FramePeer::connect(near.address(), &caller());
    let moment = Duration::from_millis(300);
    // It refuses what it is tried by: that proves nothing, and the call goes to the other one.
    for _ in 0..2 {
        (0..20).for_each(|_| begin(&mut client));
        let (calls, _) = calls_within(&mut peer, moment);
        assert_eq!(calls.len(), 1, "at a time");
        for _ in 0..19 {
            expect_success(&mut client);
        }
        let back = calls[0].back(Kind::Response);
        peer.send(Header { flags: back.flags | WHOLE | Flags::NOT_EXECUTED, word: 501, ..back }, &[], &[]);
        expect_success(&mut client);
    }
    // It answers one, and gets its share.
    (0..20).for_each(|_| begin(&mut client));
    let (calls, _) = calls_within(&mut peer, moment);
    assert_eq!(calls.len(), 1, "at a time");
    peer.respond(&calls[0], 0, br#"{"ec":0,"em":"","result":"x"}"#);
    for _ in 0..20 {
        expect_success(&mut client);
    }
    (0..20).for_each(|_| begin(&mut client));
    let (calls, _) = calls_within(&mut peer, moment);
    assert_eq!(calls.len(), 10, "its turns");
}

#[test]
fn a_sign_of_life_proves_it_too() {
    let (fake, tested) = (FakeMoa::start(), Peer::new());
    let other = far(&[(DEMO, &fake)]);
    let policy = format!("timeout_ms = 60000\nbalance.policy = \"round-robin\"\n{}", config::NO_HEALTH_CHECK);
    let served = config::served_by(DEMO, &[], &["tested", "other"], &policy);
    let peers = tested.config() + &config::peer("other", other.tunnel_address());
    let near = Agent::start(&format!(
        "[agent]\nworkers = 1\n[tunnel]\nkeepalive_ms = 2000\nconnect_timeout_ms = 20000\n{peers}{served}"
    ));
    drop(tested.accept());
    until_true("it to be found down", || !tunnel(&near, "tested").0);
    let mut peer = tested.accept();
    until_true("both to be there", || tunnel(&near, "tested").0 && tunnel(&near, "other").0);
    let mut client = FramePeer::connect(near.address(), &caller());
    let ping = until("a call and a PING", || {
        begin(&mut client);
        begin(&mut client);
        let (_, pings) = calls_within(&mut peer, Duration::from_millis(150));
        pings.into_iter().next()
    });
    peer.quiet = true;
    peer.send(Header { kind: Kind::Pong as u8, ..ping.header }, &[], &[]);
    until_true("more than one call at a time", || {
        (0..20).for_each(|_| begin(&mut client));
        calls_within(&mut peer, Duration::from_millis(150)).0.len() > 1
    });
}

#[test]
fn where_nobody_else_is_left_calls_go_to_who_is_back() {
    let tested = Peer::new();
    let near = in_turns(&tested.config(), &["tested"]);
    drop(tested.accept());
    until_true("it to be found down", || !tunnel(&near, "tested").0);
    let mut peer = tested.accept();
    until_true("it to be back", || tunnel(&near, "tested").0);
    let mut client = FramePeer::connect(near.address(), &caller());
    for _ in 0..5 {
        client.request(DEMO, WHOLE, b"x");
    }
    let (calls, _) = calls_within(&mut peer, Duration::from_millis(300));
    assert_eq!(calls.len(), 5);
    for call in &calls {
        peer.respond(call, 0, b"here");
        assert_eq!(client.expect(Kind::Response).body, b"here");
    }
}
