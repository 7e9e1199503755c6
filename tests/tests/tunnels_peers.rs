//! Which agent is called: peers that are none, several for one service, peers that a reload brings, moves and takes away.

use std::{
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use agent_common::frame::{Flags, Header, Hello, Kind, Role};
use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Gate, Judge,
    client::command,
    config, echo,
    fake::{End, demo},
    frames::{FramePeer, WIDE, caller, service},
    load::Load,
    machine::free_address,
    mesh::tunnel,
    until_true,
};
use serde_json::Value;

/// What the agent's configuration says of its tunnels, so that tests need not wait long.
const QUICK: &str = "[agent]\nworkers = 2\n[tunnel]\nconnect_timeout_ms = 200\n";

/// An agent that reaches DEMO by way of these peers.
fn near(peers: &[(&str, SocketAddr)]) -> String {
    by(QUICK, peers)
}

fn by(more: &str, peers: &[(&str, SocketAddr)]) -> String {
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    let sections: String = peers.iter().map(|(name, address)| config::peer(name, *address)).collect();
    format!("{more}\n{sections}{}", config::served_by(DEMO, &[], &names, config::NO_HEALTH_CHECK))
}

/// An agent that has the server.
fn far(fake: &FakeMoa) -> Agent {
    Agent::start(&served(fake))
}

fn served(fake: &FakeMoa) -> String {
    config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)
}

/// How many connections other agents have to this one.
fn tunnels(agent: &Agent) -> Vec<Value> {
    let conns = agent.json(&["conns"]);
    conns.as_array().expect("a list").iter().filter(|conn| conn["protocol"] == "tunnel").cloned().collect()
}

/// Waits until an agent is reached by two workers.
fn await_tunnels(far: &Agent) {
    until_true("both workers to be connected", || tunnels(far).len() == 2);
}

/// Calls, and gets an answer from this server.
fn expect_served_by(agent: &Agent, fake: &FakeMoa) {
    for _ in 0..20 {
        let before = fake.counts().calls;
        let ask = Judge.ask(DEMO, 10);
        ask.expect_right(&agent.connect().get(&ask.json));
        assert_eq!(fake.counts().calls, before + 1, "another one was called");
    }
}

/// Takes connections until it is dropped, does with each what it was told, and counts them.
struct Stranger {
    address: SocketAddr,
    taken: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// One that answers each connection with these bytes, and keeps it.
    fn start(answer: &'static [u8]) -> Self {
        let address = free_address();
        let listener = TcpListener::bind(address).expect("a port of this test");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let (taken, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (taken.clone(), over.clone());
        let thread = thread::spawn(move || {
            let mut kept: Vec<TcpStream> = Vec::new();
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        // Fails only if the agent has gone.
                        let _ = stream.write_all(answer);
                        kept.push(stream);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
                    Err(error) => panic!("accepting: {error}"),
                }
            }
        });
        Self { address, taken, over, thread: Some(thread) }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, None | Some(Ok(()))) || thread::panicking(), "a stranger has failed");
    }
}

/// Expects that a peer is found not to be one, in the list of services and in the errors, and is tried again, but not
/// all the time.
fn expect_no_agent(address: SocketAddr, words: &[&str], tries: impl Fn() -> usize) {
    let agent = Agent::start(&near(&[("far", address)]));
    until_true("the peer to be found down", || !tunnel(&agent, "far").0);
    let reason = tunnel(&agent, "far").1;
    let text = agent.connect().call(&echo("nobody"))["em"].as_str().unwrap_or_default().to_owned();
    for word in words {
        assert!(reason.contains(word), "nothing of {word:?} in the list: {reason}");
        assert!(text.contains(word) && text.contains("agent far"), "nothing of {word:?} in the error: {text}");
    }
    let shown = agent.verb(&["services"]).stdout;
    assert!(shown.contains("agent far") && shown.contains("down") && shown.contains(words[0]), "{shown}");
    until_true("more tries", || tries() >= 14);
    let before = tries();
    sleep(Duration::from_secs(3));
    // A second at most between two tries of each of the workers, and half of that at least.
    let more = tries() - before;
    assert!((1..=16).contains(&more), "{more} tries in three seconds");
    let open = tunnels(&agent).len();
    assert!(open <= 16, "{open} connections are open");
}

#[test]
fn a_peer_that_says_nothing() {
    let stranger = Stranger::start(b"");
    expect_no_agent(stranger.address, &["no HELLO within 200 ms"], || stranger.taken());
}

#[test]
fn a_peer_that_speaks_http() {
    let stranger = Stranger::start(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    expect_no_agent(stranger.address, &["no agent"], || stranger.taken());
}

#[test]
fn a_peer_that_speaks_redis() {
    let stranger = Stranger::start(b"-ERR unknown command 'MO', with args beginning with: \r\n");
    expect_no_agent(stranger.address, &["no agent"], || stranger.taken());
}

#[test]
fn a_peer_that_is_the_port_for_applications() {
    let fake = FakeMoa::start();
    let other = far(&fake);
    let tries = || usize::try_from(other.json(&["status"])["app"]["accepted"].as_u64().expect("a number")).expect("a small one");
    expect_no_agent(other.address(), &["tunnel.listen"], tries);
}

#[test]
fn a_peer_that_is_a_real_server_of_another_kind() {
    let fake = FakeMoa::start();
    let other = far(&fake);
    // One that reads what is no RESP in silence or hangs up, and one that speaks HTTP.
    for address in [fake.address(), other.metrics_address()] {
        let agent = Agent::start(&near(&[("far", address)]));
        until_true("the peer to be found down", || !tunnel(&agent, "far").0);
        println!("{address}: {}", tunnel(&agent, "far").1);
        let answer = agent.connect().call(&echo("nobody"));
        assert_eq!(answer["ec"], 303, "{answer}");
        assert!(answer["em"].as_str().is_some_and(|text| text.contains("agent far")), "{answer}");
    }
}

#[test]
fn a_peer_moves_while_calls_are_in_flight() {
    let (old_fake, new_fake, gate) = (FakeMoa::start(), FakeMoa::start(), Gate::closed());
    let at = gate.clone();
    old_fake.script(move |call| if call.text().starts_with("held") { demo(call).at(&at) } else { demo(call) });
    let (old, new) = (far(&old_fake), far(&new_fake));
    let agent = Agent::start(&near(&[("far", old.tunnel_address())]));
    let mut client = agent.connect();
    let mut frames = FramePeer::connect(agent.address(), &caller());
    client.send(command(&["GET", &echo("held 1")]));
    let stream = frames.request(DEMO, Flags::END_STREAM, echo("held 2").as_bytes());
    old_fake.await_in_flight(2);
    agent.reload(&near(&[("far", new.tunnel_address())]));
    until_true("the new one to be connected", || tunnels(&new).len() == 2);
    expect_served_by(&agent, &new_fake);
    gate.open();
    assert!(client.read().text().contains("held 1"));
    let answer = frames.answer_to(stream);
    assert!(answer.header.word == 0 && String::from_utf8_lossy(&answer.body).contains("held 2"), "{}", answer.error());
    until_true("the old one to be left", || tunnels(&old).is_empty());
}

#[test]
fn peers_come_move_and_go_under_load() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let fars = [far(&fakes[0]), far(&fakes[1])];
    let [one, two] = [0, 1].map(|nth| fars[nth].tunnel_address());
    let agent = Agent::start(&near(&[("one", one)]));
    await_tunnels(&fars[0]);
    let load = [Load::start(agent.address(), &[DEMO], 4), Load::start_frames(agent.address(), &[DEMO], 4)];
    let local = FakeMoa::start();
    let sets: [&[(&str, SocketAddr)]; 5] =
        [&[("one", one), ("two", two)], &[("two", two)], &[("one", two)], &[("one", one)], &[]];
    for _ in 0..3 {
        for peers in sets {
            let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
            let sections: String = peers.iter().map(|(name, address)| config::peer(name, *address)).collect();
            // There is always somebody.
            let local = if peers.is_empty() { vec![local.address()] } else { Vec::new() };
            agent.reload(&format!("{QUICK}{sections}{}", config::served_by(DEMO, &local, &names, config::NO_HEALTH_CHECK)));
            load.iter().for_each(|load| load.await_calls(50));
        }
    }
    for load in load {
        load.stop().expect_all_right();
    }
    for far in &fars {
        until_true("the agents to be left", || tunnels(far).is_empty());
    }
}

/// An agent under the test's control at a peer's address.
fn accept(listener: &TcpListener) -> FramePeer {
    FramePeer::accepted(listener.accept().expect("a connection").0)
}

fn agent_hello() -> Hello {
    Hello::new(Role::Agent, "far", "far-1", WIDE)
}

fn one_worker(more: &str) -> String {
    format!("[agent]\nworkers = 1\n{more}\n")
}

#[test]
fn a_tunnel_that_opens_when_it_is_no_longer_wanted_is_closed() {
    let fake = FakeMoa::start();
    let other = far(&fake);
    let listener = TcpListener::bind(free_address()).expect("a port of this test");
    let old = listener.local_addr().expect("an address");
    let slow = one_worker("[tunnel]\nconnect_timeout_ms = 10000");
    let agent = Agent::start(&by(&slow, &[("far", old)]));
    let mut peer = accept(&listener);
    peer.expect(Kind::Hello);
    let mut client = agent.connect();
    // It waits for the tunnel.
    client.send(command(&["GET", &echo("waits")]));
    until_true("the call to wait", || agent.json(&["status"])["calls"]["in_flight"] == 1);
    agent.reload(&by(&slow, &[("far", other.tunnel_address())]));
    until_true("the new one to be connected", || tunnels(&other).len() == 1);
    expect_served_by(&agent, &fake);
    // The old one says HELLO at last, and gets the call that has waited for it.
    peer.write(&agent_hello().encode().expect("a HELLO"));
    let call = peer.expect(Kind::Request);
    peer.respond(&call, 0, b"late");
    assert_eq!(client.read().text(), "late");
    let last = peer.expect(Kind::GoAway);
    assert!(last.has(Flags::END_STREAM) && last.header.word == 0, "{last:?}");
    assert_eq!(peer.next_frame(), None);
}

#[test]
fn a_call_that_waits_for_a_peer_that_goes_is_sent_elsewhere() {
    let fake = FakeMoa::start();
    let other = far(&fake);
    let listener = TcpListener::bind(free_address()).expect("a port of this test");
    let slow = one_worker("[tunnel]\nconnect_timeout_ms = 2000");
    let agent = Agent::start(&by(&slow, &[("far", listener.local_addr().expect("an address"))]));
    let _silent = listener.accept().expect("a connection");
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("waits")]));
    until_true("the call to wait", || agent.json(&["status"])["calls"]["in_flight"] == 1);
    agent.reload(&by(&slow, &[("other", other.tunnel_address())]));
    assert!(client.read().text().contains("waits"));
    assert_eq!(fake.counts().calls, 1);
}

#[test]
fn a_connection_is_replaced_before_it_ends() {
    let listener = TcpListener::bind(free_address()).expect("a port of this test");
    let agent = Agent::start(&by(&one_worker(""), &[("far", listener.local_addr().expect("an address"))]));
    let mut old = accept(&listener);
    old.greet(&agent_hello());
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("first")]));
    let first = old.expect(Kind::Request);
    old.send(Header::new(Kind::GoAway), &[], &[]);
    let mut new = accept(&listener);
    new.greet(&agent_hello());
    until_true("the new connection to be used", || tunnels(&agent).len() == 2);
    let mut second = agent.connect();
    second.send(command(&["GET", &echo("second")]));
    let call = new.expect(Kind::Request);
    new.respond(&call, 0, b"by the new one");
    assert_eq!(second.read().text(), "by the new one");
    old.respond(&first, 0, b"by the old one");
    assert_eq!(client.read().text(), "by the old one");
    let last = old.expect(Kind::GoAway);
    assert!(last.has(Flags::END_STREAM), "{last:?}");
    assert_eq!(old.next_frame(), None);
}

#[test]
fn calls_go_to_the_other_one_when_a_peer_dies_or_says_nothing() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let (mut one, two) = (far(&fakes[0]), far(&fakes[1]));
    let stranger = Stranger::start(b"");
    let peers = [("one", one.tunnel_address()), ("silent", stranger.address), ("two", two.tunnel_address())];
    // Whoever waits for the silent one waits for long.
    let agent = Agent::start(&by("[agent]\nworkers = 2\n[tunnel]\nconnect_timeout_ms = 60000", &peers));
    await_tunnels(&one);
    await_tunnels(&two);
    let before = fakes.each_ref().map(|fake| fake.counts().calls);
    for _ in 0..100 {
        let ask = Judge.ask(DEMO, 10);
        ask.expect_right(&agent.connect().get(&ask.json));
    }
    let calls = [0, 1].map(|nth| fakes[nth].counts().calls - before[nth]);
    assert!(calls.iter().all(|calls| *calls > 20) && calls.iter().sum::<usize>() == 100, "{calls:?}");
    one.kill();
    until_true("it to be found down", || !tunnel(&agent, "one").0);
    expect_served_by(&agent, &fakes[1]);
    one.start_again();
    await_tunnels(&one);
    let before = fakes[0].counts().calls;
    until_true("it to be called again", || {
        agent.connect().call(&echo("again"));
        fakes[0].counts().calls > before
    });
}

#[test]
fn what_is_local_comes_first() {
    let (local, away) = (FakeMoa::start(), FakeMoa::start());
    let other = far(&away);
    let policy = config::QUICK_HEALTH_CHECK;
    let agent = Agent::start(&format!(
        "{QUICK}{}{}",
        config::peer("far", other.tunnel_address()),
        config::served_by(DEMO, &[local.address()], &["far"], policy)
    ));
    await_tunnels(&other);
    expect_served_by(&agent, &local);
    assert_eq!(away.counts().calls, 0);
    local.down(End::Close);
    agent.await_health(DEMO, local.address(), false);
    expect_served_by(&agent, &away);
    local.up();
    agent.await_health(DEMO, local.address(), true);
    expect_served_by(&agent, &local);
    // Also when an application offers it: it is local, too.
    agent.reload(&near(&[("far", other.tunnel_address())]));
    expect_served_by(&agent, &away);
    let mut server = FramePeer::connect(agent.address(), &service("s1", &[DEMO]));
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("offered")]));
    let call = server.expect(Kind::Request);
    server.respond(&call, 0, b"here");
    assert_eq!(client.read().text(), "here");
    drop(server);
    until_true("the other agent to be called", || {
        let before = away.counts().calls;
        client.call(&echo("away"))["ec"] == 0 && away.counts().calls > before
    });
}

#[test]
fn agents_that_name_each_other_do_not_call_in_circles() {
    let [one, two] = [Agent::prepare(""), Agent::prepare("")];
    let addresses = [one.tunnel_address(), two.tunnel_address()];
    let one = one.configured(&near(&[("two", addresses[1])])).start();
    let two = two.configured(&near(&[("one", addresses[0])])).start();
    until_true("both to be connected", || tunnels(&one).len() == 4 && tunnels(&two).len() == 4);
    for (agent, peer, other) in [(&one, "two", &two), (&two, "one", &one)] {
        let answer = agent.connect().call(&echo("nobody"));
        let text = answer["em"].as_str().unwrap_or_default();
        assert!(answer["ec"] == 303 && text.contains("no instance is here") && text.contains(other.name()), "{peer}: {answer}");
    }
    // With a server at one of them both have it.
    let mut server = FramePeer::connect(two.address(), &service("s1", &[DEMO]));
    for agent in [&one, &two] {
        let mut client = agent.connect();
        client.send(command(&["GET", &echo("somebody")]));
        let call = server.expect(Kind::Request);
        server.respond(&call, 0, b"here");
        assert_eq!(client.read().text(), "here");
    }
}

/// The workers that have connections of other agents or to them, sorted.
fn workers(agent: &Agent) -> Vec<u64> {
    let mut workers: Vec<_> = tunnels(agent).iter().map(|conn| conn["worker"].as_u64().expect("a number")).collect();
    workers.sort_unstable();
    workers
}

#[test]
fn connections_spread_over_the_workers_of_both_agents() {
    let fake = FakeMoa::start();
    let with = |workers: usize| format!("[agent]\nworkers = {workers}\n");
    let start = |near: usize, connections: usize, far: usize| {
        let far = Agent::start(&format!("{}{}", with(far), served(&fake)));
        let more = format!("{}[tunnel]\nconnections = {connections}\n", with(near));
        let near = Agent::start(&by(&more, &[("far", far.tunnel_address())]));
        (near, far)
    };
    for (of_near, connections, of_far, at_near, at_far) in
        [(4, 1, 2, vec![0, 1, 2, 3], vec![0, 0, 1, 1]), (2, 2, 4, vec![0, 0, 1, 1], vec![0, 1, 2, 3])]
    {
        let (near, far) = start(of_near, connections, of_far);
        until_true("all connections", || workers(&near) == at_near && workers(&far) == at_far);
        // A service with a connection to one worker only is reached from all.
        let mut server = FramePeer::connect(far.address(), &service("s1", &["/service/offered"]));
        let serve = thread::spawn(move || {
            while let Some(call) = server.next_frame() {
                if call.kind() == Some(Kind::Request) {
                    server.respond(&call, 0, &call.body);
                }
            }
        });
        let peers = config::peer("far", far.tunnel_address());
        let services = config::served_by(DEMO, &[], &["far"], "") + &config::served_by("/service/offered", &[], &["far"], "");
        near.reload(&format!("{}[tunnel]\nconnections = {connections}\n{peers}{services}", with(of_near)));
        let mut clients: Vec<Client> = (0..40).map(|_| near.connect()).collect();
        let mut frames: Vec<FramePeer> = (0..40).map(|_| FramePeer::connect(near.address(), &caller())).collect();
        for _ in 0..5 {
            for client in &mut clients {
                let ask = Judge.ask(DEMO, 100);
                ask.expect_right(&client.get(&ask.json));
                let json = echo("x").replace(DEMO, "/service/offered");
                assert_eq!(client.get(&json).text(), json);
            }
            for frames in &mut frames {
                assert_eq!(frames.call(DEMO, echo("x").as_bytes()).header.word, 0);
                let answer = frames.call("/service/offered", b"any");
                assert_eq!((answer.header.word, &answer.body[..]), (0, &b"any"[..]), "{}", answer.error());
            }
        }
        let idle: Vec<_> = tunnels(&far).into_iter().filter(|conn| conn["calls"] == 0).collect();
        assert!(idle.len() <= connections.saturating_sub(1) * of_near, "connections without calls: {idle:?}");
        drop((near, far));
        serve.join().expect("the service");
    }
}

#[test]
fn agents_take_turns_for_small_calls_too() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let fars = fakes.each_ref().map(|fake| Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)));
    let peers = ["a", "b"].iter().zip(&fars).map(|(name, far)| config::peer(name, far.tunnel_address())).collect::<String>();
    let policy = format!("balance.policy = \"round-robin\"\n{}", config::NO_HEALTH_CHECK);
    let near = Agent::start(&format!("[agent]\nworkers = 1\n{peers}{}", config::served_by(DEMO, &[], &["a", "b"], &policy)));
    let mut client = FramePeer::connect(near.address(), &caller());
    let call = |client: &mut FramePeer| {
        client.request(DEMO, Flags::END_STREAM, echo("x").as_bytes());
        client.expect(Kind::Response).header.word == 0
    };
    until_true("both agents to be reached", || call(&mut client) && fakes.iter().all(|fake| fake.counts().calls > 0));
    let before = fakes.each_ref().map(|fake| fake.counts().calls);
    for _ in 0..40 {
        assert!(call(&mut client));
    }
    let after = fakes.each_ref().map(|fake| fake.counts().calls);
    assert_eq!([after[0] - before[0], after[1] - before[1]], [20, 20]);
}
