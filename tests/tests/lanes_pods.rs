//! Lanes of applications in network namespaces of their own: their calls go from one to the other in the kernel, who is in which is
//! known there too, and nothing of one that is gone stays.

use std::thread::JoinHandle;

use agent_common::frame::{Flags, Hello, Kind};
use moa_tests::{
    Agent, DEMO, LanePeer,
    fleet::metric,
    frames::{caller, service},
    kernel,
    lanes::{self, Way},
    leg::set_sysctl,
    machine::open_files,
    pods::{AGENT, Pod, Pods, await_served},
    routed::{Routed, await_idle, await_lanes, await_routed},
    until_true,
};

const WEB_ONLY: &str = "[services.\"/service/demo\"]\naccess.default = \"deny\"\n\
                        access.rules = [{ name = \"web\", when = { application = \"web\" }, verdict = \"allow\" }]\n";

fn open(pod: &Pod, hello: &Hello) -> LanePeer {
    pod.inside(|| LanePeer::open(AGENT, hello))
}

fn echo(pod: &Pod, hello: &Hello) -> JoinHandle<()> {
    let peer = open(pod, hello);
    lanes::serve(peer, |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond_by(way, &got, 0, &got.body);
        }
    })
}

/// Answers with its name.
fn named(pod: &Pod, uri: &str) -> JoinHandle<()> {
    let name = uri.to_owned().into_bytes();
    lanes::serve(open(pod, &service("named", &[uri])), move |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            peer.respond_by(way, &got, 0, &name);
        }
    })
}

fn says(name: &str) -> Hello {
    Hello { application: name.to_owned(), ..caller() }
}

/// Calls until the way is this one: labels follow within a moment.
fn await_way(peer: &mut LanePeer, way: Way, status: u32) {
    until_true(&format!("{status} by the {way:?}"), || {
        let (by, got) = peer.call(DEMO, b"x");
        (by, got.header.word) == (way, status)
    });
}

#[test]
fn the_same_addresses_in_two_pods_do_not_mix() {
    let pods = Pods::new();
    let agent = kernel::start(&pods.section(""));
    let made = [pods.pod("one"), pods.pod("two")];
    // A client and a server, each with two connections: in both pods they come from the same four ports.
    made.iter().for_each(|pod| pod.inside(|| set_sysctl("net/ipv4/ip_local_port_range", "40000 40003")));
    await_served(&agent, 2);
    let uris = ["/service/one", "/service/two"];
    let _serving: Vec<_> = made.iter().zip(uris).map(|(pod, uri)| named(pod, uri)).collect();
    let mut clients = made.each_ref().map(|pod| open(pod, &caller()));
    let ports: Vec<_> = clients.iter().map(|peer| peer.socket().local_addr().expect("an address").port()).collect();
    assert!(ports.iter().all(|port| (40_000..=40_003).contains(port)), "{ports:?}");
    uris.iter().for_each(|uri| await_routed(&agent, uri));
    let before = Routed::at(&agent);
    for _ in 0..100 {
        for client in &mut clients {
            for uri in uris {
                let (way, got) = client.call(uri, b"who");
                assert_eq!((way, &*got.body), (Way::Lane, uri.as_bytes()));
            }
        }
    }
    let after = Routed::at(&agent);
    assert_eq!((after.lanes, after.calls - before.calls, after.answers - before.answers), (4, 400, 400), "{after:?}");
    until_true("nothing to be in flight", || Routed::at(&agent).in_flight == 0);
}

#[test]
fn a_call_goes_from_pod_to_pod_and_to_the_agents_own_namespace() {
    let pods = Pods::new();
    let agent = kernel::start(&pods.section(""));
    let (calling, serving) = (pods.pod("calling"), pods.pod("serving"));
    await_served(&agent, 2);
    let _serving = [echo(&serving, &service("in a pod", &[DEMO])), lanes::echo(agent.address(), &service("outside", &[DEMO]))];
    await_routed(&agent, DEMO);
    until_true("both to be there", || {
        agent.json(&["services", DEMO])[0]["instances"].as_array().is_some_and(|all| all.len() == 2)
    });
    let mut clients = [open(&calling, &caller()), LanePeer::open(agent.address(), &caller())];
    until_true("both to be routed to", || Routed::at(&agent).routes(DEMO));
    for size in [0, 1, 1_000, 32_000] {
        let body = vec![7; size];
        for client in &mut clients {
            for _ in 0..20 {
                let (way, got) = client.call(DEMO, &body);
                assert_eq!((way, got.header.word, got.body == body), (Way::Lane, 0, true), "{size}");
            }
        }
    }
    let names = agent.json(&["conns"]).to_string();
    assert!(names.contains("calling") && names.contains("serving"), "{names}");
    await_idle(&agent);
}

#[test]
fn who_is_in_a_pod_is_known_to_the_kernel_whatever_it_says() {
    let pods = Pods::new();
    let agent = kernel::start(&(pods.section("") + WEB_ONLY));
    let (web, other, serving) = (pods.pod("web"), pods.pod("other"), pods.pod("serving"));
    await_served(&agent, 3);
    let _serving = echo(&serving, &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut liar = open(&other, &says("web"));
    let mut modest = open(&web, &says("guest"));
    await_way(&mut modest, Way::Lane, 0);
    let before = Routed::at(&agent);
    for _ in 0..20 {
        let (way, got) = liar.call(DEMO, b"x");
        assert_eq!((way, got.header.word), (Way::Stream, 506), "{}", got.error());
        assert!(got.error().contains("other"), "{}", got.error());
        assert_eq!(modest.call(DEMO, b"x").0, Way::Lane);
    }
    let after = Routed::at(&agent);
    assert_eq!(after.calls - before.calls, 20);
    assert_eq!(after.unrouted["denied"] - before.unrouted.get("denied").copied().unwrap_or(0), 20, "{after:?}");
    await_idle(&agent);
}

#[test]
fn another_name_counts_for_lanes_that_are_open() {
    let pods = Pods::new();
    let configured = |name: &str| pods.section(&format!("applications = {{ pod = \"{name}\" }}")) + WEB_ONLY;
    let agent = kernel::start(&configured("web"));
    let (pod, serving) = (pods.pod("pod"), pods.pod("serving"));
    await_served(&agent, 2);
    let _serving = echo(&serving, &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = open(&pod, &says("web"));
    await_way(&mut client, Way::Lane, 0);
    agent.reload(&configured("guest"));
    await_way(&mut client, Way::Stream, 506);
    for _ in 0..10 {
        assert_eq!(client.call(DEMO, b"x").1.header.word, 506);
    }
    agent.reload(&configured("web"));
    await_way(&mut client, Way::Lane, 0);
}

/// A pod that calls and one that serves, with calls in flight.
struct Busy {
    agent: Agent,
    calling: Pod,
    serving: Pod,
    held: LanePeer,
    client: LanePeer,
    streams: Vec<u32>,
}

impl Busy {
    fn start(pods: &Pods) -> Self {
        let agent = kernel::start(&pods.section(""));
        let (calling, serving) = (pods.pod("calling"), pods.pod("serving"));
        await_served(&agent, 2);
        let held = open(&serving, &service("held", &[DEMO]));
        await_routed(&agent, DEMO);
        let mut client = open(&calling, &caller());
        let streams = (0..20).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect();
        Self { agent, calling, serving, held, client, streams }
    }
}

#[test]
fn a_pod_that_goes_ends_the_calls_that_it_has_made() {
    let pods = Pods::new();
    let Busy { agent, calling, serving: _serving, mut held, mut client, streams } = Busy::start(&pods);
    let calls: Vec<_> = streams.iter().map(|_| held.expect_that("a call", |got| got.kind() == Some(Kind::Request)).1).collect();
    assert_eq!(Routed::at(&agent).in_flight, 20);
    pods.remove("calling");
    // Its connections end, and whoever serves is told of each call.
    let mut told: Vec<_> = calls.iter().map(|_| held.expect(Kind::Cancel).1.header.via).collect();
    let mut given: Vec<_> = calls.iter().map(|call| call.header.via).collect();
    told.sort_unstable();
    given.sort_unstable();
    assert_eq!(told, given);
    while let Some((_, got)) = client.next_frame() {
        assert_ne!(got.kind(), Some(Kind::Response), "nobody has answered: {got:?}");
    }
    drop(client);
    pods.await_end(calling);
    calls.iter().for_each(|call| held.respond(call, 0, b"late"));
    await_idle(&agent);
    await_lanes(&agent, 1);
    // The service goes on.
    let mut next = LanePeer::open(agent.address(), &caller());
    let stream = next.request(DEMO, Flags::END_STREAM, b"y");
    let (_, call) = held.expect(Kind::Request);
    held.respond(&call, 0, b"on");
    assert_eq!(next.answer_to(stream).1.body, b"on");
}

#[test]
fn a_pod_that_goes_ends_the_calls_that_it_was_given() {
    let pods = Pods::new();
    let Busy { agent, calling: _calling, serving, mut held, mut client, streams } = Busy::start(&pods);
    streams.iter().for_each(|_| assert_eq!(held.expect(Kind::Request).0, Way::Lane));
    pods.remove("serving");
    for stream in streams {
        let (way, got) = client.answer_to(stream);
        assert_eq!((way, got.header.word), (Way::Stream, 303), "{}", got.error());
    }
    while held.next_frame().is_some() {}
    drop(held);
    pods.await_end(serving);
    await_idle(&agent);
    await_lanes(&agent, 1);
    // Nothing comes twice, and the caller goes on.
    client.stream.expect_quiet();
    let next = pods.pod("next");
    await_served(&agent, 2);
    let _serving = echo(&next, &service("next", &[DEMO]));
    await_routed(&agent, DEMO);
    await_way(&mut client, Way::Lane, 0);
}

#[test]
fn pods_with_lanes_come_and_go_under_load_and_nothing_leaks() {
    let pods = Pods::new();
    let agent = kernel::start(&pods.section(""));
    let _stays = lanes::echo(agent.address(), &service("stays", &[DEMO]));
    await_routed(&agent, DEMO);
    let round = || {
        let made = [pods.pod("a"), pods.pod("b")];
        await_served(&agent, 2);
        let serving = echo(&made[0], &service("goes", &[DEMO]));
        let mut client = open(&made[1], &caller());
        until_true("three lanes", || Routed::at(&agent).lanes == 3 && Routed::at(&agent).routes(DEMO));
        let streams: Vec<_> = (0..200).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect();
        pods.remove("a");
        for stream in streams {
            let word = client.answer_to(stream).1.header.word;
            assert!(word == 0 || word == 303, "{word}");
        }
        serving.join().expect("its connections have ended");
        client.request(DEMO, Flags::END_STREAM, b"last");
        pods.remove("b");
        while client.next_frame().is_some() {}
        drop(client);
        await_served(&agent, 0);
        made.into_iter().for_each(|pod| pods.await_end(pod));
        await_idle(&agent);
        await_lanes(&agent, 1);
    };
    round();
    let before = open_files(agent.pid());
    (0..9).for_each(|_| round());
    until_true("all files to be closed", || open_files(agent.pid()) <= before);
    assert_eq!(metric(&agent, "moa_namespaces_closed_total"), 20);
}

#[test]
fn a_pod_whose_processes_have_gone_is_freed_though_its_calls_are_in_flight() {
    let pods = Pods::new();
    let agent = kernel::start(&pods.section(""));
    let calling = pods.pod("calling");
    await_served(&agent, 1);
    let mut held = LanePeer::open(agent.address(), &service("held", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = open(&calling, &caller());
    client.request(DEMO, Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    drop(client);
    pods.remove("calling");
    pods.await_end(calling);
    assert_eq!(held.expect(Kind::Cancel).1.header.via, call.header.via);
    held.respond(&call, 0, b"to nobody");
    await_idle(&agent);
    await_served(&agent, 0);
}

#[test]
fn a_token_is_good_in_one_namespace_only() {
    let pods = Pods::new();
    let agent: Agent = kernel::start(&pods.section(""));
    let pod = pods.pod("pod");
    await_served(&agent, 1);
    let _serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    // A token of one namespace is none in another: whoever is there is somebody else.
    let hello = Hello { connection: Some(0), ..caller() };
    let stream = moa_tests::frames::FramePeer::connect(agent.address(), &hello);
    let lane = stream.hello.as_ref().and_then(|hello| hello.lane).expect("a lane");
    let from_pod = pod.inside(|| lanes::connect(AGENT));
    let refused = LanePeer::opened(stream, from_pod, &lanes::lane_hello(&hello, lane), lane);
    let Err(refused) = refused else { panic!("somebody in a pod got the lane of another") };
    let mut stream = *refused.stream;
    stream.request(DEMO, Flags::END_STREAM, b"by stream");
    assert_eq!(stream.expect(Kind::Response).body, b"by stream");
}
