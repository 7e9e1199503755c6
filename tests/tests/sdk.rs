//! The SDK with real agents: both ends of a call, near and far, and what becomes of calls when an agent dies.

use std::{sync::Arc, time::Duration};

use agent_common::sdk::{Body, Call, Client, Handle, Reply, Request, Server};
use moa_tests::{Agent, DEMO, FakeMoa, config, echo, judge::pattern, until_true, wait::PATIENCE};
use tokio::{task::JoinSet, time::timeout};

const ECHO: &str = "/service/echo";

async fn echo_back(call: Call) -> Reply {
    match call.body.bytes().await {
        Ok(body) => Reply::new(body),
        Err(error) => Reply::error(error.status(), error.text()),
    }
}

async fn serve(agents: &[&Agent]) -> Handle {
    let addresses: Vec<_> = agents.iter().map(|agent| agent.address().to_string()).collect();
    Server::builder("test-server").agents(addresses).offer(ECHO).serve(echo_back).await.expect("an agent that takes it")
}

async fn client(agents: &[&Agent]) -> Client {
    let addresses: Vec<_> = agents.iter().map(|agent| agent.address().to_string()).collect();
    Client::builder("test-client").agents(addresses).connect().await.expect("an agent that takes it")
}

async fn call(client: &Client, request: Request) -> Vec<u8> {
    let answered = async { client.call(request).await?.body.bytes().await };
    timeout(PATIENCE, answered).await.expect("an answer").unwrap_or_else(|error| panic!("{error}")).to_vec()
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back() {
    let agent = Agent::start("");
    let server = serve(&[&agent]).await;
    let client = client(&[&agent]).await;
    for len in [0, 1, 4_000, 5_000, 65_000, 66_000, 1_000_000, 10_000_000] {
        let body = pattern(len);
        assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body, "{len} bytes");
    }
    let (sender, streamed) = Body::channel();
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            sender.send(vec![7; 50_000]).await.expect("room");
        }
        sender.finish().await.expect("room");
    });
    assert_eq!(call(&client, Request::new(ECHO).body(streamed)).await, vec![7; 5_000_000]);
    sending.await.expect("the body");
    timeout(PATIENCE, server.shutdown()).await.expect("the server's end");
    until_true("nothing is left of it", || agent.json(&["status"])["calls"]["in_flight"] == 0);
}

#[tokio::test]
async fn a_thousand_calls_at_once_by_way_of_two_agents() {
    let far = Agent::start("");
    let near = Agent::start(&format!(
        "{}{}",
        config::peer("far", far.tunnel_address()),
        config::served_by(ECHO, &[], &["far"], "timeout_ms = 20_000")
    ));
    let _server = serve(&[&far]).await;
    let client = Arc::new(client(&[&near]).await);
    let mut calls = JoinSet::new();
    for n in 0..1000_usize {
        let client = client.clone();
        calls.spawn(async move {
            // All of them together fit what may wait for one application.
            let body = pattern(n * 37 % 4_000);
            assert!(call(&client, Request::new(ECHO).body(body.clone())).await == body, "call {n}");
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("a call that ends well");
    }
}

#[tokio::test]
async fn a_redis_server_is_called_as_any_service() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let client = client(&[&agent]).await;
    let answer = call(&client, Request::new(DEMO).body(echo("hello"))).await;
    assert!(String::from_utf8_lossy(&answer).contains("hello"), "{answer:?}");
    let error = client.call(Request::new("/service/none")).await.expect_err("there is none");
    assert_eq!((error.status(), error.is_not_executed()), (501, true), "{error}");
}

#[tokio::test]
async fn when_its_agent_dies_the_next_call_goes_to_the_sibling() {
    let (mut local, sibling) = (Agent::start(""), Agent::start(""));
    let _here = serve(&[&local]).await;
    let _there = serve(&[&sibling]).await;
    let client = client(&[&local, &sibling]).await;
    assert_eq!(call(&client, Request::new(ECHO).body("before")).await, b"before");
    local.kill();
    // The connection's end may be seen only by the call that is on its way: it is safe to send again.
    assert_eq!(call(&client, Request::new(ECHO).idempotent(true).body("after")).await, b"after");
    for _ in 0..20 {
        assert_eq!(call(&client, Request::new(ECHO).body("and on")).await, b"and on");
    }
}

#[tokio::test]
async fn a_server_finds_its_agent_again() {
    let mut agent = Agent::start("");
    let _server = serve(&[&agent]).await;
    let before = client(&[&agent]).await;
    assert_eq!(call(&before, Request::new(ECHO).body("before")).await, b"before");
    agent.kill();
    agent.start_again();
    let after = client(&[&agent]).await;
    let mut last = None;
    let found = async {
        loop {
            match after.call(Request::new(ECHO).body("after")).await {
                Ok(answer) => return answer.body.bytes().await.expect("a body"),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let answer = timeout(PATIENCE, found).await;
    assert_eq!(answer.unwrap_or_else(|_| panic!("the service did not come back: {last:?}")), &b"after"[..]);
}
