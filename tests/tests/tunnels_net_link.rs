//! Tunnels between agents on two nodes, when what joins the nodes fails: packets are lost, the cable is pulled, it is slow,
//! the agent at the other end stands still.

use std::{
    thread::{self, sleep},
    time::Duration,
};

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, DEMO, Gate,
    client::command,
    config, echo, envelope,
    fake::demo,
    frames::{FramePeer, service},
    judge::pattern,
    machine::memory_kib,
    mesh::{Mesh, expect_only_unreached},
    netns::{Cable, Node},
    seed, until_true,
};
use serde_json::Value;

const LARGE: &str = "/service/large";
/// So that all calls share one connection.
const ONE: &str = "[agent]\nworkers = 1\n";

/// Loses packets for as long, under load. Returns how many calls failed, each with a text that names the peer.
fn lose(lost: Duration, policy: &str) -> u64 {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mesh = Mesh::start(&nodes, &cable, ["", ""], policy);
    let load = mesh.load();
    load.iter().for_each(|load| load.await_calls(20));
    cable.lose();
    sleep(lost);
    cable.lose_nothing();
    mesh.await_tunnel(true);
    mesh.await_service();
    load.iter().for_each(|load| load.await_calls(100));
    let failed = expect_only_unreached(load, "agent far");
    mesh.fake.ledger().expect_none_twice();
    failed
}

#[test]
fn calls_outlive_a_second_of_loss() {
    // What was lost is sent again by TCP, which has doubled its wait by then.
    assert_eq!(lose(Duration::from_secs(1), "timeout_ms = 15000"), 0);
}

#[test]
fn calls_end_in_five_seconds_of_loss_and_succeed_afterwards() {
    assert!(lose(Duration::from_secs(5), "timeout_ms = 2000") > 0);
}

#[test]
fn calls_end_in_a_long_loss_and_succeed_afterwards() {
    let lost = Duration::from_secs(if seed::long() { 30 } else { 8 });
    assert!(lose(lost, "timeout_ms = 15000") > 0);
}

#[test]
fn calls_in_flight_end_once_when_packets_are_lost() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mesh = Mesh::start(&nodes, &cable, ["[tunnel]\nkeepalive_ms = 300", ""], "timeout_ms = 60000");
    let gate = Gate::closed();
    let at = gate.clone();
    mesh.fake.script(move |call| if call.text() == "held" { demo(call).at(&at) } else { demo(call) });
    let mut client = mesh.client();
    let mut frames = mesh.frames();
    (0..20).for_each(|_| client.send(command(&["GET", &echo("held")])));
    let streams: Vec<_> = (0..20).map(|_| frames.request(DEMO, Flags::END_STREAM, echo("held").as_bytes())).collect();
    mesh.fake.await_in_flight(40);
    cable.lose();
    for _ in 0..20 {
        let answer: Value = serde_json::from_slice(client.read().bulk()).expect("JSON");
        let text = answer["em"].as_str().unwrap_or_default();
        assert_eq!(answer["ec"], 303, "{answer}");
        assert!(text.contains("agent far") && text.contains("no sign of life"), "{text}");
    }
    let mut ended: Vec<_> = (0..20).map(|_| frames.expect(Kind::Response)).collect();
    ended.sort_by_key(|answer| answer.header.stream);
    assert_eq!(ended.iter().map(|answer| answer.header.stream).collect::<Vec<_>>(), streams);
    for answer in &ended {
        assert_eq!((answer.header.word, answer.has(Flags::NOT_EXECUTED)), (303, false), "{}", answer.error());
    }
    // What is made now finds no connection, and is told at once, or when one could not be opened.
    let answer = frames.call(DEMO, echo("lost").as_bytes());
    assert_eq!((answer.header.word, answer.has(Flags::NOT_EXECUTED)), (303, true), "{}", answer.error());
    assert!(answer.error().contains("agent far"), "{}", answer.error());
    cable.lose_nothing();
    gate.open();
    mesh.await_service();
    // The late answers went nowhere.
    assert_eq!(client.call(&echo("after"))["result"], "after");
    let answer = frames.call(DEMO, echo("after").as_bytes());
    assert!(answer.header.word == 0 && String::from_utf8_lossy(&answer.body).contains("after"), "{}", answer.error());
}

#[test]
fn a_cable_that_is_pulled_and_put_back() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mesh = Mesh::start(&nodes, &cable, ["", ""], "timeout_ms = 15000");
    for pulled in [Duration::from_secs(1), Duration::from_secs(5)] {
        let load = mesh.load();
        load.iter().for_each(|load| load.await_calls(20));
        cable.plug(false);
        sleep(pulled);
        cable.plug(true);
        mesh.await_service();
        load.iter().for_each(|load| load.await_calls(100));
        let failed = expect_only_unreached(load, "agent far");
        assert!(failed == 0 || pulled > Duration::from_secs(2), "{failed} calls failed within a second");
    }
}

/// Makes small calls until the large one has ended: some must be over before that. Nothing may pile up in the agent that sends.
fn overtake(mesh: &Mesh<'_>, sender: &Agent, is_over: impl Fn() -> bool) {
    let before = [&mesh.near, &mesh.far].map(|agent| memory_kib(agent.pid(), "VmRSS"));
    let mut small = mesh.client();
    let mut overtook = 0;
    loop {
        assert_eq!(small.call(&echo("small"))["result"], "small");
        if is_over() {
            break;
        }
        overtook += 1;
        let queued = sender.json(&["status"])["app"]["queued_bytes"].as_u64().expect("a number");
        assert!(queued < 3 << 20, "{queued} bytes are queued");
    }
    let peaks = [&mesh.near, &mesh.far].map(|agent| memory_kib(agent.pid(), "VmHWM"));
    println!("{overtook} calls meanwhile; KiB before: {before:?}, at most: {peaks:?}");
    assert!(overtook > 10, "{overtook} small calls ended before the large one");
    for (peak, before) in peaks.into_iter().zip(before) {
        assert!(peak.saturating_sub(before) < 16 << 10, "{peak} KiB, after {before}");
    }
}

#[test]
fn small_calls_overtake_a_large_request_on_a_slow_cable() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let large = config::served_by(LARGE, &[], &["far"], "timeout_ms = 60000");
    let mesh = Mesh::start(&nodes, &cable, [&format!("{ONE}{large}"), ONE], "timeout_ms = 60000");
    let mut server = mesh.far_node.inside(|| FramePeer::connect(mesh.far.address(), &service("s1", &[LARGE])));
    let body = pattern(5_000_000);
    cable.slow_down("5mbit");
    let mut frames = mesh.frames();
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let stream = frames.request_in_pieces(LARGE, &body);
            frames.answer_to(stream)
        });
        let serve = scope.spawn(|| {
            let (call, mut got) = (server.expect(Kind::Request), Vec::new());
            got.extend_from_slice(&call.body);
            while got.len() < body.len() {
                got.extend_from_slice(&server.expect(Kind::Data).body);
            }
            assert!(got == body, "the body has changed");
            server.respond(&call, 0, b"whole");
        });
        overtake(&mesh, &mesh.near, || call.is_finished() || serve.is_finished());
        serve.join().expect("the service");
        let answer = call.join().expect("the caller");
        assert_eq!((answer.header.word, &answer.body[..]), (0, &b"whole"[..]), "{}", answer.error());
    });
}

#[test]
fn small_calls_overtake_a_large_answer_on_a_slow_cable() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mesh = Mesh::start(&nodes, &cable, [ONE, ONE], "timeout_ms = 60000");
    cable.slow_down("5mbit");
    for in_frames in [false, true] {
        let (mut client, mut frames) = (mesh.client(), mesh.frames());
        let call = envelope(DEMO, "big", "5000000");
        thread::scope(|scope| {
            let large = scope
                .spawn(|| if in_frames { frames.call(DEMO, call.as_bytes()).body } else { client.get(&call).bulk().to_vec() });
            overtake(&mesh, &mesh.far, || large.is_finished());
            let answer: Value = serde_json::from_slice(&large.join().expect("the caller")).expect("JSON");
            assert_eq!((&answer["ec"], answer["result"].as_str().map(str::len)), (&0.into(), Some(5_000_000)));
        });
    }
}

#[test]
fn an_agent_that_stands_still() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    let mesh = Mesh::start(&nodes, &cable, ["[tunnel]\nkeepalive_ms = 300\nconnect_timeout_ms = 300", ""], "timeout_ms = 60000");
    mesh.far.freeze_all();
    let mut client = mesh.client();
    let answer = client.call(&echo("stopped"));
    let text = answer["em"].as_str().unwrap_or_default();
    assert_eq!(answer["ec"], 303, "{answer}");
    assert!(text.contains("agent far") && text.contains("no sign of life for three keepalive intervals"), "{text}");
    // It takes connections, as the kernel does that for it, and says nothing.
    let answer = client.call(&echo("still stopped"));
    let text = answer["em"].as_str().unwrap_or_default();
    assert_eq!(answer["ec"], 303, "{answer}");
    until_true("the reason to be known", || mesh.tunnel() == (false, "no HELLO within 300 ms".to_owned()));
    assert!(text.contains("agent far"), "{text}");
    mesh.far.thaw_all();
    mesh.await_service();
    let load = mesh.load();
    load.iter().for_each(|load| load.await_calls(100));
    assert_eq!(expect_only_unreached(load, "agent far"), 0);
}

#[test]
fn an_agent_that_stood_still_itself_blames_nobody() {
    let nodes = [Node::new(), Node::new()];
    let cable = Cable::between(&nodes[0], &nodes[1]);
    // The other agent waits longer.
    let mesh =
        Mesh::start(&nodes, &cable, ["[tunnel]\nkeepalive_ms = 100", "[tunnel]\nkeepalive_ms = 60000"], "timeout_ms = 60000");
    let gate = Gate::closed();
    let at = gate.clone();
    mesh.fake.script(move |call| if call.text() == "held" { demo(call).at(&at) } else { demo(call) });
    let mut client = mesh.client();
    client.send(command(&["GET", &echo("held")]));
    mesh.fake.await_in_flight(1);
    for _ in 0..3 {
        mesh.near.freeze_all();
        sleep(Duration::from_secs(1));
        mesh.near.thaw_all();
        assert_eq!(mesh.client().call(&echo("at once"))["result"], "at once");
    }
    gate.open();
    assert!(client.read().text().contains("held"));
}
