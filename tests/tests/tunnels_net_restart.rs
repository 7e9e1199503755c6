//! Tunnels between agents on two nodes while one of the agents stops, is killed, and comes back.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
};

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Gate, PATIENCE,
    client::command,
    config, echo,
    fake::demo,
    frames::FramePeer,
    mesh::{Mesh, expect_only_unreached, load},
    netns::{Cable, Node},
    seed, until_true,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Calls of either kind that the server holds back.
const HELD: usize = 10;

fn nodes() -> [Node; 2] {
    [Node::new(), Node::new()]
}

/// A call that no other is like.
fn held() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    echo(&format!("held {}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Calls that are at the server until the gate is opened.
struct Held {
    gate: Gate,
    client: Client,
    frames: FramePeer,
    streams: BTreeSet<u32>,
}

impl Held {
    fn start(mesh: &Mesh<'_>) -> Self {
        let gate = Gate::closed();
        let at = gate.clone();
        mesh.fake.script(move |call| if call.text().starts_with("held") { demo(call).at(&at) } else { demo(call) });
        let (mut client, mut frames) = (mesh.client(), mesh.frames());
        (0..HELD).for_each(|_| client.send(command(&["GET", &held()])));
        let streams = (0..HELD).map(|_| frames.request(DEMO, Flags::END_STREAM, held().as_bytes())).collect();
        mesh.fake.await_in_flight(2 * HELD);
        Self { gate, client, frames, streams }
    }

    /// Each is answered, once.
    fn expect_answers(mut self) {
        self.gate.open();
        for _ in 0..HELD {
            let answer = self.client.read();
            assert!(answer.text().contains("held"), "{}", answer.brief());
        }
        self.end_in_frames(0);
    }

    /// Each has failed, once, though the server holds them still.
    fn expect_unreached(mut self) {
        for _ in 0..HELD {
            let answer: Value = serde_json::from_slice(self.client.read().bulk()).expect("JSON");
            assert_eq!(answer["ec"], 303, "{answer}");
            assert!(answer["em"].as_str().is_some_and(|text| text.contains("agent far")), "{answer}");
        }
        self.end_in_frames(303);
        self.gate.open();
    }

    fn end_in_frames(&mut self, status: u32) {
        let mut ended = BTreeSet::new();
        while ended.len() < HELD {
            let answer = self.frames.expect_any();
            // An agent that stops says so.
            if answer.kind() != Some(Kind::GoAway) {
                assert_eq!((answer.kind(), answer.header.word), (Some(Kind::Response), status), "{}", answer.error());
                assert!(ended.insert(answer.header.stream), "an answer twice: {answer:?}");
            }
        }
        assert_eq!(ended, self.streams);
    }
}

#[test]
fn the_far_agent_stops_and_answers_what_it_was_given() {
    let nodes = nodes();
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mut mesh = Mesh::start(&nodes, &cable, ["", ""], "timeout_ms = 60000");
    for _ in 0..seed::count(3, 50) {
        let held = Held::start(&mesh);
        mesh.far.signal(Signal::SIGTERM);
        mesh.await_tunnel(false);
        held.expect_answers();
        assert!(mesh.far.wait(PATIENCE).success());
        let answer = mesh.client().call(&echo("nobody"));
        assert_eq!(answer["ec"], 303, "{answer}");
        mesh.far_node.start_again(&mut mesh.far);
        mesh.await_service();
    }
}

#[test]
fn the_far_agent_is_killed() {
    let nodes = nodes();
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mut mesh = Mesh::start(&nodes, &cable, ["", ""], "timeout_ms = 60000");
    for _ in 0..seed::count(3, 50) {
        let (load, held) = (mesh.load(), Held::start(&mesh));
        load.iter().for_each(|load| load.await_calls(50));
        mesh.far.kill();
        held.expect_unreached();
        mesh.fake.await_counts("its connections to end", |counts| counts.open == 0);
        mesh.far_node.start_again(&mut mesh.far);
        mesh.await_service();
        load.iter().for_each(|load| load.await_calls(100));
        assert!(expect_only_unreached(load, "agent far") > 0);
    }
    mesh.fake.ledger().expect_none_twice();
}

#[test]
fn the_near_agent_stops_and_answers_what_it_was_asked() {
    let nodes = nodes();
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mut mesh = Mesh::start(&nodes, &cable, ["", ""], "timeout_ms = 60000");
    for _ in 0..seed::count(3, 50) {
        let (load, held) = (mesh.load_redis(), Held::start(&mesh));
        load.await_calls(50);
        mesh.near.signal(Signal::SIGTERM);
        // All callers but those whose calls are held are let go; no call of theirs has failed.
        load.await_close().expect_all_right();
        held.expect_answers();
        assert!(mesh.near.wait(PATIENCE).success());
        until_true("its connections to the far agent to end", || tunnels(&mesh.far) == 0);
        mesh.near_node.start_again(&mut mesh.near);
        mesh.await_service();
    }
    mesh.fake.ledger().expect_none_twice();
}

#[test]
fn the_near_agent_is_killed() {
    let nodes = nodes();
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mut mesh = Mesh::start(&nodes, &cable, ["", ""], "timeout_ms = 60000");
    for _ in 0..seed::count(3, 50) {
        let mut held = Held::start(&mesh);
        mesh.near.kill();
        held.client.expect_closed();
        assert_eq!(held.frames.next_frame(), None);
        until_true("its connections to the far agent to end", || tunnels(&mesh.far) == 0);
        held.gate.open();
        mesh.fake.await_in_flight(0);
        mesh.near_node.start_again(&mut mesh.near);
        mesh.await_service();
    }
    assert_eq!(mesh.far.json(&["status"])["calls"]["in_flight"], 0);
}

/// The connections of other agents.
fn tunnels(agent: &Agent) -> usize {
    let conns = agent.json(&["conns"]);
    conns.as_array().expect("a list").iter().filter(|conn| conn["protocol"] == "tunnel").count()
}

#[test]
fn no_call_fails_as_one_of_two_agents_stops() {
    let [near_node, one, two] = [Node::new(), Node::new(), Node::new()];
    let (to_one, to_two) = (Cable::between(&near_node, &one), Cable::between(&near_node, &two));
    let fakes = [&one, &two].map(|node| node.inside(FakeMoa::start));
    let served = |fake: &FakeMoa| config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK);
    let mut fars = [one.start(&to_one, &served(&fakes[0])), two.start(&to_two, &served(&fakes[1]))];
    let peers = [config::peer("one", to_one.tunnel_of(&one)), config::peer("two", to_two.tunnel_of(&two))].concat();
    let near =
        near_node.start(&to_one, &format!("[agent]\nworkers = 2\n{peers}{}", config::served_by(DEMO, &[], &["one", "two"], "")));
    let await_tunnels = |far: &Agent| until_true("every worker to be connected", || tunnels(far) == 2);
    fars.iter().for_each(await_tunnels);
    let load = load(&near_node, near.address());
    for round in 0..seed::count(8, 50) {
        let (far, node) = if round % 2 == 0 { (&mut fars[0], &one) } else { (&mut fars[1], &two) };
        load.iter().for_each(|load| load.await_calls(100));
        far.stop();
        load.iter().for_each(|load| load.await_calls(100));
        node.start_again(far);
        await_tunnels(far);
    }
    for load in load {
        load.stop().expect_all_right();
    }
    fakes.iter().for_each(|fake| fake.ledger().expect_none_twice());
}
