//! The SDK's client and server with a real agent whose kernel path routes their calls: nothing to see of it but the counters.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_common::{
    frame::id,
    sdk::{Body, Call, Client, Error, Handle, Reply, Request, Server},
};
use moa_tests::{Agent, judge::pattern, kernel, routed::Routed, wait::PATIENCE};
use nix::sys::signal::Signal;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const ECHO: &str = "/service/echo";

/// Calls of which the handler has begun, and those of which its future was dropped before its end.
#[derive(Debug, Default)]
struct Seen {
    begun: AtomicUsize,
    dropped: AtomicUsize,
}

struct Guard(Arc<Seen>, bool);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(usize::from(!self.1), Ordering::SeqCst);
    }
}

/// Answers with the body, or as the method says.
async fn answer(seen: Arc<Seen>, call: Call) -> Reply {
    seen.begun.fetch_add(1, Ordering::SeqCst);
    let mut guard = Guard(seen, false);
    match call.method() {
        "never" => pending().await,
        "slow" => sleep(Duration::from_millis(50)).await,
        "fail" => {
            guard.1 = true;
            return Reply::error(777, "no");
        }
        _ => {}
    }
    let traced = call.metadata.get(id::TRACEPARENT).map(<[u8]>::to_vec);
    let body = call.body.bytes().await;
    guard.1 = true;
    match (body, traced) {
        (Ok(_), Some(traced)) => Reply::new(traced),
        (Ok(body), None) => Reply::new(body),
        (Err(error), _) => Reply::error(error.status(), error.text()),
    }
}

async fn serve_as(agents: &[&Agent], instance: &str) -> (Handle, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let own = seen.clone();
    let addresses: Vec<_> = agents.iter().map(|agent| agent.address().to_string()).collect();
    let server = Server::builder("test-server").instance(instance).agents(addresses).offer(ECHO);
    let handle = server.serve(move |call| answer(own.clone(), call)).await.expect("an agent that takes it");
    (handle, seen)
}

async fn client(agents: &[&Agent]) -> Client {
    let addresses: Vec<_> = agents.iter().map(|agent| agent.address().to_string()).collect();
    Client::builder("test-client").agents(addresses).connect().await.expect("an agent that takes it")
}

async fn try_call(client: &Client, request: Request) -> Result<Vec<u8>, Error> {
    let answered = async { client.call(request).await?.body.bytes().await };
    timeout(PATIENCE, answered).await.expect("an answer, or an error").map(|body| body.to_vec())
}

async fn call(client: &Client, request: Request) -> Vec<u8> {
    try_call(client, request).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !probe() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until calls are routed: lanes are opened beside the connections, in their own time.
async fn await_routed(agent: &Agent, client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = Routed::at(agent).calls;
        for _ in 0..10 {
            let _ = try_call(client, Request::new(ECHO).body("x")).await;
        }
        if Routed::at(agent).calls == before + 10 {
            return;
        }
        assert!(Instant::now() < deadline, "calls are not routed: {:?}", Routed::at(agent));
        sleep(Duration::from_millis(10)).await;
    }
}

async fn await_idle(agent: &Agent) {
    until("nothing to be in flight", || Routed::at(agent).in_flight == 0 && agent.json(&["status"])["calls"]["in_flight"] == 0)
        .await;
}

/// Waits for the agent's end, while the applications of this very process go on.
async fn stopped(agent: &mut Agent) {
    agent.signal(Signal::SIGTERM);
    until("the agent to end", || agent.ended().is_some()).await;
    assert!(agent.ended().is_some_and(|status| status.success()), "{}", agent.log());
}

/// An agent, a server and a client whose calls are routed.
async fn routed() -> (Agent, (Handle, Arc<Seen>), Client) {
    let agent = kernel::start("");
    let server = serve_as(&[&agent], "only").await;
    let client = client(&[&agent]).await;
    await_routed(&agent, &client).await;
    (agent, server, client)
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back_and_small_ones_are_routed() {
    let (agent, _server, client) = routed().await;
    let before = Routed::at(&agent);
    let sizes = [0, 1, 64, 4_000, 32_000, 32_768, 32_769, 65_000, 66_000, 1_000_000];
    for len in sizes {
        let body = pattern(len);
        assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body, "{len} bytes");
    }
    let after = Routed::at(&agent);
    assert_eq!((after.calls - before.calls, after.answers - before.answers), (6, 6), "{after:?}");
    await_idle(&agent).await;
}

#[tokio::test]
async fn many_calls_at_once_are_routed_beside_streams() {
    let (agent, _server, client) = routed().await;
    let before = Routed::at(&agent);
    let mut streams = JoinSet::new();
    for nth in 0..4_u8 {
        let client = client.clone();
        streams.spawn(async move {
            let (sender, body) = Body::channel();
            let sending = tokio::spawn(async move {
                for _ in 0..40 {
                    sender.send(vec![nth; 50_000]).await.expect("room");
                }
                sender.finish().await.expect("room");
            });
            assert!(call(&client, Request::new(ECHO).body(body)).await == vec![nth; 2_000_000], "stream {nth}");
            sending.await.expect("the body");
        });
    }
    for round in 0..20_usize {
        let mut calls = JoinSet::new();
        for n in 0..100_usize {
            let client = client.clone();
            calls.spawn(async move {
                let body = pattern((round * 100 + n) * 37 % 4_000);
                assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body, "call {n} of round {round}");
            });
        }
        while let Some(ended) = calls.join_next().await {
            ended.expect("a call that ends well");
        }
    }
    while let Some(ended) = streams.join_next().await {
        ended.expect("a stream that ends well");
    }
    await_idle(&agent).await;
    let after = Routed::at(&agent);
    assert!(after.calls - before.calls >= 1_800 && after.answers - before.answers >= 1_800, "{before:?} {after:?}");
}

#[tokio::test]
async fn deadlines_drops_and_errors_end_calls_on_both_sides() {
    let (agent, (_server, seen), client) = routed().await;
    let before = Routed::at(&agent);
    let late = Request::new(ECHO).method("never").timeout(Duration::from_millis(100));
    let error = try_call(&client, late).await.expect_err("nobody answers");
    assert_eq!(error.status(), 304, "{error}");
    until("the handler to be dropped", || seen.dropped.load(Ordering::SeqCst) == 1).await;
    let begun = seen.begun.load(Ordering::SeqCst);
    let dropped = {
        let client = client.clone();
        tokio::spawn(async move { client.call(Request::new(ECHO).method("never")).await.map(drop) })
    };
    until("the handler to begin", || seen.begun.load(Ordering::SeqCst) == begun + 1).await;
    dropped.abort();
    until("the handler to be dropped", || seen.dropped.load(Ordering::SeqCst) == 2).await;
    let error = try_call(&client, Request::new(ECHO).method("fail")).await.expect_err("an error");
    assert_eq!((error.status(), error.text()), (777, "no"));
    await_idle(&agent).await;
    assert_eq!(Routed::at(&agent).calls - before.calls, 3);
    assert_eq!(call(&client, Request::new(ECHO).body("on")).await, b"on");
    assert_eq!(Routed::at(&agent).calls - before.calls, 4, "the lane goes on");
}

#[tokio::test]
async fn when_a_server_dies_its_calls_end_and_the_next_go_elsewhere() {
    let (agent, (first, seen), client) = routed().await;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        calls.spawn(async move { try_call(&client, Request::new(ECHO).method("never")).await });
    }
    let begun = seen.begun.load(Ordering::SeqCst);
    until("the calls to be there", || seen.begun.load(Ordering::SeqCst) - begun <= 20 && Routed::at(&agent).in_flight == 20)
        .await;
    let (_second, other) = serve_as(&[&agent], "second").await;
    drop(first);
    while let Some(ended) = calls.join_next().await {
        let error = ended.expect("a task").expect_err("nobody has answered");
        assert_eq!(error.status(), 303, "{error}");
    }
    let before = other.begun.load(Ordering::SeqCst);
    for n in 0..20 {
        let body = pattern(n);
        assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body);
    }
    assert_eq!(other.begun.load(Ordering::SeqCst) - before, 20);
    await_routed(&agent, &client).await;
    await_idle(&agent).await;
}

#[tokio::test]
async fn lanes_come_back_after_the_agent_was_killed() {
    let (mut agent, _server, client) = routed().await;
    for _ in 0..2 {
        let before = Routed::at(&agent).calls;
        agent.kill();
        agent.start_again();
        assert!(Routed::at(&agent).calls >= before);
        await_routed(&agent, &client).await;
    }
    await_idle(&agent).await;
}

#[tokio::test]
async fn a_shutdown_of_a_server_under_load_loses_no_call() {
    let agent = kernel::start("");
    let (stays, _) = serve_as(&[&agent], "stays").await;
    let client = client(&[&agent]).await;
    for round in 0..5 {
        let (leaves, seen) = serve_as(&[&agent], &format!("leaves-{round}")).await;
        await_routed(&agent, &client).await;
        let mut calls = JoinSet::new();
        let until = Arc::new(AtomicUsize::new(0));
        for n in 0..16_usize {
            let (client, until) = (client.clone(), until.clone());
            calls.spawn(async move {
                let mut made = 0;
                while until.load(Ordering::SeqCst) == 0 {
                    let request = Request::new(ECHO).body(pattern(n)).method(if n % 4 == 0 { "slow" } else { "" });
                    assert!(call(&client, request).await == pattern(n));
                    made += 1;
                }
                made
            });
        }
        sleep(Duration::from_millis(100)).await;
        assert!(seen.begun.load(Ordering::SeqCst) > 0, "it has got no call");
        timeout(PATIENCE, leaves.shutdown()).await.expect("the server's end");
        until.store(1, Ordering::SeqCst);
        while let Some(ended) = calls.join_next().await {
            assert!(ended.expect("a caller whose calls all ended well") > 0);
        }
        assert_eq!(seen.dropped.load(Ordering::SeqCst), 0, "a call was cut");
    }
    drop(stays);
    await_idle(&agent).await;
}

#[tokio::test]
async fn a_client_that_is_dropped_ends_its_calls_first() {
    let (agent, (server, seen), client) = routed().await;
    let mut calls = JoinSet::new();
    for n in 0..50 {
        let client = client.clone();
        calls
            .spawn(async move { assert!(call(&client, Request::new(ECHO).method("slow").body(pattern(n))).await == pattern(n)) });
    }
    drop(client);
    let ending = tokio::spawn(server.shutdown());
    while let Some(ended) = calls.join_next().await {
        ended.expect("a call that ends well");
    }
    timeout(PATIENCE, ending).await.expect("the server's end").expect("a task");
    assert_eq!(seen.dropped.load(Ordering::SeqCst), 0);
    until("its lanes to be gone", || Routed::at(&agent).lanes == 0).await;
    await_idle(&agent).await;
}

#[tokio::test]
async fn a_stop_of_the_agent_loses_no_call_and_is_not_held_up() {
    let (mut local, sibling) = (kernel::start(""), kernel::start(""));
    let (_here, seen) = serve_as(&[&local, &sibling], "here").await;
    let (_there, _) = serve_as(&[&sibling], "there").await;
    let client = client(&[&local, &sibling]).await;
    await_routed(&local, &client).await;
    let mut calls = JoinSet::new();
    let until = Arc::new(AtomicUsize::new(0));
    for n in 0..16_usize {
        let (client, until) = (client.clone(), until.clone());
        calls.spawn(async move {
            while until.load(Ordering::SeqCst) == 0 {
                let request = Request::new(ECHO).body(pattern(n)).method(if n % 4 == 0 { "slow" } else { "" });
                assert!(call(&client, request).await == pattern(n));
            }
        });
    }
    sleep(Duration::from_millis(100)).await;
    timeout(Duration::from_secs(5), stopped(&mut local)).await.expect("the agent's end, before its drain is over");
    sleep(Duration::from_millis(100)).await;
    until.store(1, Ordering::SeqCst);
    while let Some(ended) = calls.join_next().await {
        ended.expect("a caller whose calls all ended well");
    }
    assert_eq!(seen.dropped.load(Ordering::SeqCst), 0, "a call was cut");
    await_routed(&sibling, &client).await;
}

#[tokio::test]
async fn an_idle_client_with_a_lane_does_not_hold_a_stop_up() {
    let (mut agent, _server, _client) = routed().await;
    timeout(Duration::from_secs(5), stopped(&mut agent)).await.expect("the agent's end, before its drain is over");
}

#[tokio::test]
async fn a_call_whose_trace_is_recorded_is_not_routed_and_others_are() {
    let (agent, _server, client) = routed().await;
    let parent = |flags: &str| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    for (flags, routed) in [("01", 0), ("00", 1)] {
        let before = Routed::at(&agent).calls;
        let request = Request::new(ECHO).metadata(id::TRACEPARENT, parent(flags).as_bytes()).body("x");
        let traced = String::from_utf8(call(&client, request).await).expect("text");
        assert!(traced.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{traced}");
        assert_eq!(Routed::at(&agent).calls - before, routed, "{flags}");
    }
    await_idle(&agent).await;
}

#[tokio::test]
async fn without_lanes_everything_is_the_same() {
    let agent = kernel::start("");
    let (_server, _) = serve_as(&[&agent], "only").await;
    let address = agent.address().to_string();
    let client = Client::builder("test-client").agents([address]).lanes(false).connect().await.expect("an agent");
    for len in [0, 100, 40_000] {
        let body = pattern(len);
        assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body);
    }
    assert_eq!(Routed::at(&agent).calls, 0);
}
