//! The agent in every pod at 127.0.0.1:13000: namespaces come and go, who is in one is known from that, and nothing of one that is
//! gone stays open.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
};

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, DEMO, FakeMoa, config, echo,
    fleet::{Caller, json_of, metric, named},
    frames::{self, FramePeer, serve},
    kernel::{self, Look},
    leg::set_sysctl,
    machine::open_files,
    pods::{AGENT, Pod, Pods, await_served, shown},
    until_true,
};

/// Where servers are in pods.
const SERVER: SocketAddr = SocketAddr::new(AGENT.ip(), 8_000);

const WEB_ONLY: &str = "access.default = \"deny\"\naccess.rules = [{ name = \"web\", when = { application = \"web\" } }]";

fn demo(fake: &FakeMoa, more: &str) -> String {
    config::service(DEMO, &[fake.address()], &format!("{}\n{more}", config::NO_HEALTH_CHECK))
}

/// A service with an instance in each of these namespaces.
fn within(uri: &str, namespaces: &[&str], policy: &str) -> String {
    let instances: Vec<_> = namespaces.iter().map(|name| format!("{{ address = \"{SERVER}\", namespace = {name:?} }}")).collect();
    format!("[services.\"{uri}\"]\ninstances = [{}]\n{policy}\n", instances.join(", "))
}

fn expect_all(callers: &mut [Caller], server: &str) {
    callers.iter_mut().for_each(|caller| caller.expect(server, DEMO, "get", &[]));
}

fn reason_of(agent: &Agent, service: &str) -> String {
    let services = agent.json(&["services"]);
    let found = services.as_array().expect("services").iter().find(|entry| entry["uri"] == service).expect("the service").clone();
    found["instances"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn every_pod_has_the_agent_at_the_same_address() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let first = pods.pod("first");
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let second = pods.pod("second");
    for pod in [&first, &second] {
        expect_all(&mut pod.callers("any"), "fake");
    }
    await_served(&agent, 2);
    let first = shown(&agent, "first").expect("it is served");
    assert_eq!((&first["application"], &first["listen"]), (&"first".into(), &AGENT.to_string().into()));
    let text = agent.verb(&["status"]).stdout;
    assert!(text.contains("2 network namespaces served"), "{text}");
    assert_eq!((metric(&agent, "moa_namespaces_served"), metric(&agent, "moa_namespaces_opened_total")), (2, 2));
}

#[test]
fn pods_with_the_same_addresses_and_ports_do_not_mix() {
    let pods = Pods::new();
    let names = ["one", "two"];
    let services: String =
        names.iter().map(|name| within(&format!("/service/{name}"), &[name], config::NO_HEALTH_CHECK)).collect();
    let agent = kernel::start(&(pods.section("") + &services));
    let made: Vec<Pod> = names.iter().map(|name| pods.pod(name)).collect();
    // Each connection comes from the same port.
    made.iter().for_each(|pod| pod.inside(|| set_sysctl("net/ipv4/ip_local_port_range", "40000 40001")));
    await_served(&agent, 2);
    let servers: Vec<_> = made.iter().zip(names).map(|(pod, name)| pod.server(SERVER, name)).collect();
    let mut clients: Vec<_> = made.iter().map(|pod| pod.inside(|| moa_tests::Client::connect(AGENT))).collect();
    let ports: Vec<_> = clients.iter().map(|client| client.stream().local_addr().expect("an address").port()).collect();
    assert!(ports.iter().all(|port| (40_000..=40_001).contains(port)), "{ports:?}");
    for _ in 0..50 {
        for client in &mut clients {
            for name in names {
                assert_eq!(client.call(&json_of(&format!("/service/{name}"), "get", &[]))["result"], name);
            }
        }
    }
    assert!(servers.iter().all(|server| server.counts().calls == 100));
    let conns = agent.json(&["conns"]);
    let mut shown: Vec<_> = conns.as_array().expect("connections").iter().map(|conn| conn["namespace"].as_str()).collect();
    shown.sort_unstable();
    assert_eq!(shown, [Some("one"), Some("two")]);
}

#[test]
fn every_byte_goes_through_the_kernel() {
    let pods = Pods::new();
    let pod = pods.pod("pod");
    let agent = kernel::start(&(pods.section("") + &within(DEMO, &["pod"], config::NO_HEALTH_CHECK)));
    let server = pod.server(SERVER, "server");
    let mut client = pod.client();
    until_true("the service to be reached", || client.call(&echo("x"))["ec"] == 0);
    until_true("the first connection to be closed", || agent.json(&["conns"]).as_array().is_some_and(|all| all.len() == 1));
    let before = Look::at(&agent);
    let large = "x".repeat(30_000);
    for text in ["small", &large] {
        for _ in 0..400 {
            assert_eq!(client.call(&echo(text))["result"], "server");
        }
    }
    let way = Look::at(&agent).since(&before);
    way.expect_kernel_only();
    assert_eq!(way.enrolled, 0, "the connections stay");
    assert!(way.to_agent > 10_000_000 && way.from_agent > 10_000_000, "{way:?}");
    drop(server);
}

#[test]
fn a_stop_leaves_nothing_in_the_kernel_though_applications_in_pods_stay() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let pod = pods.pod("pod");
    let mut agent = kernel::start(&(pods.section("") + &demo(&fake, "")));
    let mut client = pod.client();
    assert_eq!(client.call(&echo("x"))["result"], "fake");
    assert!(Look::at(&agent).redirected() > 0);
    let pins = Path::new("/sys/fs/bpf/moa").join(agent.name());
    assert!(pins.exists());
    agent.stop();
    assert!(!pins.exists(), "{}", agent.log());
    client.expect_closed();
}

#[test]
fn who_is_in_a_pod_is_known_whatever_it_says() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let applications = "applications = { shop-1 = \"web\" }";
    let agent = Agent::start(&(pods.section(applications) + &demo(&fake, WEB_ONLY)));
    let (web, other) = (pods.pod("shop-1"), pods.pod("other"));
    expect_all(&mut web.callers("guest"), "fake");
    let mut callers = other.callers("web");
    for caller in &mut callers {
        let text = caller.call(DEMO, "get", &[]).error(506);
        assert!(text.contains("other"), "{text}");
    }
    // Outside, nothing but what it says is known.
    expect_all(&mut Caller::both_as(&agent, "web"), "fake");
    let names = agent.json(&["conns"]);
    let of = |namespace: &str| {
        let conn = names.as_array().expect("connections").iter().find(|conn| conn["namespace"] == namespace);
        conn.expect("a connection")["name"].clone()
    };
    assert_eq!(of("other"), "other");
    // Who is there changes for connections that are open, too.
    agent.reload(&(pods.section("applications = { other = \"web\" }") + &demo(&fake, WEB_ONLY)));
    until_true("the other pod to be let in", || callers[0].call(DEMO, "get", &[]).code == 0);
    expect_all(&mut callers, "fake");
}

#[test]
fn a_service_in_a_pod_is_called_from_everywhere() {
    let pods = Pods::new();
    let (serving, calling) = (pods.pod("serving"), pods.pod("calling"));
    let agent = Agent::start(&(pods.section("") + &within(DEMO, &["serving"], config::QUICK_HEALTH_CHECK)));
    let server = serving.server(SERVER, "server");
    let mut client = calling.client();
    until_true("the service to be reached", || client.call(&echo("x"))["ec"] == 0);
    expect_all(&mut calling.callers("x"), "server");
    expect_all(&mut serving.callers("x"), "server");
    expect_all(&mut Caller::both(&agent), "server");
    until_true("the health check to reach it", || server.counts().pings > 0);
    // One that dials in is called as any other, under the name that is known.
    let uri = "/service/framed";
    let peer = serving.greet(&frames::service("a", &[uri]));
    let thread = serve(peer, |peer, call| {
        if call.kind() == Some(Kind::Request) {
            peer.respond(&call, 0, b"framed");
        }
    });
    let mut caller = calling.greet(&frames::caller());
    assert_eq!(caller.call(uri, b"x").body, b"framed");
    let shown = agent.json(&["services"]).to_string();
    assert!(shown.contains("serving a"), "{shown}");
    pods.remove("serving");
    thread.join().expect("the service has ended");
}

#[test]
fn a_service_waits_for_its_namespace() {
    let pods = Pods::new();
    let agent = Agent::start(&(pods.section("") + &within(DEMO, &["pod"], config::QUICK_HEALTH_CHECK)));
    let mut client = agent.connect();
    for _ in 0..3 {
        until_true("the reason to be given", || reason_of(&agent, DEMO) == "namespace pod isn't there");
        let refused = client.call(&echo("x"));
        assert_ne!(refused["ec"], 0);
        assert!(refused["em"].as_str().is_some_and(|text| text.contains("namespace pod isn't there")), "{refused}");
        let pod = pods.pod("pod");
        let server = pod.server(SERVER, "server");
        until_true("the service to be reached", || client.call(&echo("x"))["ec"] == 0);
        pods.remove("pod");
        drop(server);
        pods.await_end(pod);
    }
}

#[test]
fn a_file_may_come_before_its_namespace() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    pods.touch("late");
    let pod = pods.unnamed();
    agent.connect().expect_usable();
    pods.mount("late", &pod);
    expect_all(&mut pod.callers("x"), "fake");
    // A namespace that is taken off its file is gone, though the file is there.
    pods.unmount("late");
    await_served(&agent, 0);
    pods.await_end(pod);
}

#[test]
fn junk_is_ignored_and_told_of_once() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let agent = Agent::start(&(pods.section("exclude = [\"not-*\"]") + &demo(&fake, "")));
    pods.touch("junk");
    pods.touch("not-this");
    fs::create_dir(pods.path("folder")).expect("a folder");
    symlink("/proc/self/ns/uts", pods.path("uts")).expect("a link");
    let pod = pods.pod("pod");
    pods.pod("not-pod");
    expect_all(&mut pod.callers("x"), "fake");
    let warnings = |name: &str| agent.log().lines().filter(|line| line.contains(&format!("/{name} "))).count();
    until_true("the junk to be told of", || ["junk", "folder", "uts"].iter().all(|name| warnings(name) > 0));
    agent.reload(&(pods.section("exclude = [\"not-*\"]\nmax = 7") + &demo(&fake, "")));
    // They are looked at again with each file that comes.
    pods.touch("more");
    until_true("another one to be told of", || warnings("more") > 0);
    assert_eq!(["junk", "folder", "uts"].map(warnings), [1; 3], "{}", agent.log());
    assert_eq!(warnings("not-this") + warnings("not-pod"), 0);
    let junk = shown(&agent, "junk").expect("it is listed");
    assert!(junk["reason"].as_str().is_some_and(|reason| reason.contains("no namespace's file")), "{junk}");
    assert!(shown(&agent, "uts").expect("it is listed")["reason"].as_str().is_some_and(|reason| reason.contains("another kind")));
    await_served(&agent, 1);
}

#[test]
fn two_files_are_one_namespace_and_the_own_one_is_none() {
    let (pods, fake) = (Pods::new(), named("fake"));
    symlink("/proc/self/ns/net", pods.path("host")).expect("a link");
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let pod = pods.pod("a");
    pods.touch("b");
    pods.mount("b", &pod);
    let mut callers = pod.callers("x");
    expect_all(&mut callers, "fake");
    until_true("both names to be known", || shown(&agent, "a, b").is_some());
    await_served(&agent, 1);
    // It stays while one of them does, and so do its connections.
    pods.remove("a");
    until_true("one name to be left", || shown(&agent, "b").is_some_and(|shown| shown["application"] == "b"));
    expect_all(&mut callers, "fake");
    pods.remove("b");
    await_served(&agent, 0);
    drop(callers);
    pods.await_end(pod);
}

#[test]
fn a_file_that_another_namespace_takes_over() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let former = pods.pod("pod");
    let mut client = former.client();
    pods.remove("pod");
    let next = pods.pod("pod");
    expect_all(&mut next.callers("x"), "fake");
    client.expect_closed();
    drop(client);
    pods.await_end(former);
    await_served(&agent, 1);
}

#[test]
fn what_is_under_way_when_a_namespace_goes_may_end_or_is_cut() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let gate = moa_tests::Gate::default();
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let pod = pods.pod("pod");
    let [mut idle, mut busy] = [pod.client(), pod.client()];
    let mut framed = pod.greet(&frames::caller());
    fake.script({
        let gate = gate.clone();
        move |_| moa_tests::Answer::ok(&"late".into()).at(&gate)
    });
    busy.send(moa_tests::client::command(&["GET", &echo("x")]));
    framed.request(DEMO, Flags::END_STREAM, echo("x").as_bytes());
    fake.await_in_flight(2);
    pods.remove("pod");
    idle.expect_closed();
    // Nobody answers: they are cut.
    busy.expect_closed();
    while framed.next_frame().is_some() {}
    gate.open();
    drop((idle, busy, framed));
    pods.await_end(pod);
    assert!(metric(&agent, "moa_app_connections_closed_total{reason=\"namespace\"}") >= 2);
}

#[test]
fn pods_come_and_go_a_hundred_times_and_nothing_leaks() {
    let pods = Pods::new();
    let names: Vec<String> = (0..10).map(|n| format!("pod-{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let agent = Agent::start(&(pods.section("") + &within(DEMO, &all, config::QUICK_HEALTH_CHECK)));
    let round = || {
        let made: Vec<Pod> = all.iter().map(|name| pods.pod(name)).collect();
        let servers: Vec<FakeMoa> = made.iter().zip(&all).map(|(pod, name)| pod.server(SERVER, name)).collect();
        let mut clients: Vec<_> = made.iter().map(Pod::client).collect();
        for client in &mut clients {
            until_true("an answer", || client.call(&echo("x"))["ec"] == 0);
        }
        // Sockets of applications and of servers are still open when the files go.
        all.iter().for_each(|name| pods.remove(name));
        await_served(&agent, 0);
        drop((clients, servers));
        made.into_iter().for_each(|pod| pods.await_end(pod));
    };
    round();
    until_true("idle connections to be closed", || agent.json(&["conns"]).as_array().is_some_and(Vec::is_empty));
    let before = open_files(agent.pid());
    (0..9).for_each(|_| round());
    until_true("all files to be closed", || open_files(agent.pid()) <= before);
    assert_eq!(metric(&agent, "moa_namespaces_opened_total"), 100);
    assert_eq!(metric(&agent, "moa_namespaces_closed_total"), 100);
    assert_eq!(metric(&agent, "moa_namespaces_open_failures_total"), 0);
}

#[test]
fn a_namespace_is_destroyed_though_its_processes_hold_on_to_nothing_but_the_agent() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let pod = pods.pod("pod");
    expect_all(&mut pod.callers("x"), "fake");
    let device = pod.device().to_owned();
    // Nobody is there any more, and it lives by its file and the agent.
    drop(pod);
    assert!(pods.exists(&device));
    pods.remove("pod");
    until_true("the namespace to be destroyed", || !pods.exists(&device));
    await_served(&agent, 0);
}

#[test]
fn an_agent_that_was_stopped_or_killed_finds_them_again() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let mut agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    let pod = pods.pod("pod");
    expect_all(&mut pod.callers("x"), "fake");
    agent.kill();
    agent.start_again();
    expect_all(&mut pod.callers("x"), "fake");
    agent.stop();
    assert!(pod.inside(|| TcpStream::connect(AGENT)).is_err());
    agent.start_again();
    expect_all(&mut pod.callers("x"), "fake");
    pods.remove("pod");
    await_served(&agent, 0);
    pods.await_end(pod);
}

#[test]
fn a_reload_changes_where_they_are() {
    let (pods, others, fake) = (Pods::new(), Pods::new(), named("fake"));
    let service = demo(&fake, "");
    let agent = Agent::start(&service);
    assert!(agent.json(&["status"])["namespaces"].is_null());
    let (pod, other) = (pods.pod("pod"), others.pod("other"));
    agent.reload(&(pods.section("") + &service));
    expect_all(&mut pod.callers("x"), "fake");
    let path = others.path("other");
    agent.reload(&format!("[namespaces]\npaths = [{path:?}]\napplications = {{ {path:?} = \"shop\" }}\n{service}"));
    expect_all(&mut other.callers("x"), "fake");
    await_served(&agent, 1);
    let shown = shown(&agent, &path.display().to_string()).expect("it is served");
    assert_eq!(shown["application"], "shop");
    agent.reload(&service);
    until_true("nothing to be listened at", || other.inside(|| TcpStream::connect(AGENT)).is_err());
    pods.remove("pod");
    pods.await_end(pod);
    others.remove("other");
    others.await_end(other);
    let refused = agent.verb(&["config", "check", &agent.config_path().display().to_string()]);
    assert!(refused.status.success(), "{}", refused.stderr);
}

#[test]
fn a_folder_that_comes_and_goes() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let folder = pods.path("below");
    let agent = Agent::start(&format!("[namespaces]\nfolder = {folder:?}\n{}", demo(&fake, "")));
    until_true("the reason to be shown", || {
        agent.json(&["status"])["namespaces"]["reason"].as_str().is_some_and(|reason| reason.contains("isn't there yet"))
    });
    for _ in 0..2 {
        fs::create_dir(&folder).expect("a folder");
        let pod = pods.pod("below/pod");
        expect_all(&mut pod.callers("x"), "fake");
        pods.remove("below/pod");
        fs::remove_dir(&folder).expect("an empty folder");
        await_served(&agent, 0);
        pods.await_end(pod);
    }
}

#[test]
fn a_port_that_is_taken_is_told_of_and_tried_again() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let pod = pods.unnamed();
    let taken = pod.inside(|| std::net::TcpListener::bind(AGENT)).expect("a listener");
    let agent = Agent::start(&(pods.section("") + &demo(&fake, "")));
    pods.touch("pod");
    pods.mount("pod", &pod);
    until_true("the failure to be listed", || {
        shown(&agent, "pod").is_some_and(|pod| pod["reason"].as_str().is_some_and(|why| why.contains("namespaces.listen")))
    });
    assert!(agent.log().contains("/pod can't be served"), "{}", agent.log());
    drop(taken);
    until_true("the namespace to be served", || agent.json(&["status"])["namespaces"]["served"] == 1);
    expect_all(&mut pod.callers("x"), "fake");
}

#[test]
fn without_the_right_to_enter_the_agent_says_so_once_and_serves() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let made = [pods.pod("a"), pods.pod("b")];
    let agent = Agent::prepare(&(pods.section("") + &demo(&fake, ""))).without("sys_admin").start();
    until_true("both to have failed", || agent.json(&["status"])["namespaces"]["failed"] == 2);
    let warnings = agent.log().lines().filter(|line| line.contains("grant CAP_SYS_ADMIN")).count();
    assert_eq!(warnings, 1, "{}", agent.log());
    let reason = shown(&agent, "a").expect("it is listed")["reason"].to_string();
    assert!(reason.contains("run it as root, or grant CAP_SYS_ADMIN"), "{reason}");
    agent.connect().expect_usable();
    drop(made);
}

/// Peers of pods that speak frames are given to the worker that they belong to.
#[test]
fn a_connection_in_frames_may_belong_to_another_worker() {
    let (pods, fake) = (Pods::new(), named("fake"));
    let agent = Agent::start(&(pods.section("") + "[agent]\nworkers = 3\n" + &demo(&fake, WEB_ONLY)));
    let pod = pods.pod("web");
    let mut peers: Vec<FramePeer> = (0..6)
        .map(|connection| pod.greet(&agent_common::frame::Hello { connection: Some(connection), ..frames::caller() }))
        .collect();
    for peer in &mut peers {
        let answer = peer.call(DEMO, echo("x").as_bytes());
        assert_eq!(answer.header.word, 0, "{}", answer.error());
    }
    drop(agent);
}
