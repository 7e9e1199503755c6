//! What a client does when an agent refuses, goes away or falls silent, and what it sends again.

use std::time::Duration;

use crate::peer::{Agent, Frame, Peer, agent_hello, soon};
use agent_common::{
    frame::{Flags, Hello, Kind, MetaBuilder, find, id, status},
    sdk::{Body, Call, Client, Error, Reply, Request, Response, Server},
};
use tokio::task::JoinHandle;

type Task = JoinHandle<Result<Response, Error>>;

fn call(client: &Client, request: Request) -> Task {
    let client = client.clone();
    tokio::spawn(async move { client.call(request).await })
}

async fn done<T>(task: JoinHandle<T>) -> T {
    soon("the call", task).await.unwrap()
}

fn idempotent(uri: &str) -> Request {
    Request::new(uri).idempotent(true)
}

async fn answer(peer: &mut Peer, task: Task) {
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
}

/// An address where nobody listens.
async fn nobody() -> String {
    Agent::listen().await.address()
}

/// A client with two agents, connected to both, and one call on its way to the first.
async fn two(request: Request) -> (Client, [Agent; 2], [Peer; 2], Task, Frame) {
    let agents = [Agent::listen().await, Agent::listen().await];
    let client = Client::builder("shop").agents(agents.each_ref().map(Agent::address)).build().unwrap();
    let task = call(&client, request);
    let mut peers = [agents[0].connected().await, agents[1].connected().await];
    let frame = peers[0].expect(Kind::Request).await;
    (client, agents, peers, task, frame)
}

#[tokio::test]
async fn nobody_listens_anywhere() {
    let client = Client::builder("shop").agents([nobody().await, nobody().await]).build().unwrap();
    let error = soon("an error", client.call(Request::new("/a"))).await.unwrap_err();
    assert_eq!((error.status(), error.is_not_executed()), (status::REMOTING, true));
    assert!(error.text().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_leads_to_the_sibling_at_once() {
    let sibling = Agent::listen().await;
    let client = Client::builder("shop").agents([nobody().await, sibling.address()]).build().unwrap();
    let task = call(&client, Request::new("/a"));
    let mut peer = sibling.connected().await;
    answer(&mut peer, task).await;
}

#[tokio::test]
async fn calls_go_back_to_the_local_agent_when_it_is_there() {
    let sibling = Agent::listen().await;
    let local = nobody().await;
    let client = Client::builder("shop")
        .agents([local.clone(), sibling.address()])
        .backoff_max(Duration::from_millis(20))
        .build()
        .unwrap();
    let task = call(&client, Request::new("/a"));
    let mut peer = sibling.connected().await;
    answer(&mut peer, task).await;
    let local = Agent::listen_at(&local).await;
    let mut local = local.connected().await;
    // Its HELLO may be read a little later than this call begins, which goes to the sibling then.
    soon("a call to the local agent", async {
        loop {
            let task = call(&client, Request::new("/a"));
            tokio::select! {
                frame = local.next() => {
                    local.send(frame.answer(0).end()).await;
                    break done(task).await.unwrap();
                }
                frame = peer.next() => {
                    peer.send(frame.answer(0).end()).await;
                    done(task).await.unwrap();
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_sends_what_is_idempotent_to_the_sibling() {
    let (client, _agents, [mut local, mut sibling], task, _) = two(idempotent("/a")).await;
    let other = call(&client, Request::new("/b"));
    local.expect(Kind::Request).await;
    drop(local);
    let frame = sibling.expect(Kind::Request).await;
    assert_eq!((frame.text(id::URI), find(&frame.meta, id::RETRY_COUNT)), ("/a".to_owned(), Some(&[1][..])));
    sibling.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
    let error = done(other).await.unwrap_err();
    assert_eq!((error.status(), error.is_safe_to_retry()), (status::REMOTING, false));
    // And the next call goes to the sibling at once.
    let task = call(&client, Request::new("/c"));
    answer(&mut sibling, task).await;
}

#[tokio::test]
async fn a_call_is_sent_to_each_agent_once_at_most() {
    let (_client, _agents, [local, mut sibling], task, _) = two(idempotent("/a")).await;
    drop(local);
    sibling.expect(Kind::Request).await;
    drop(sibling);
    let error = done(task).await.unwrap_err();
    assert_eq!((error.status(), error.is_safe_to_retry()), (status::REMOTING, true));
}

#[tokio::test]
async fn an_answer_is_no_reason_to_send_again_but_not_executed_is() {
    let (client, _agents, [mut local, mut sibling], task, frame) = two(idempotent("/a")).await;
    local.send(frame.answer(300).end()).await;
    assert_eq!(done(task).await.unwrap_err().status(), 300);
    let task = call(&client, Request::new("/b"));
    let frame = local.expect(Kind::Request).await;
    local.send(frame.answer(504).flags(Flags::NOT_EXECUTED).end()).await;
    answer(&mut sibling, task).await;
    // And with a CANCEL.
    let task = call(&client, Request::new("/c"));
    let frame = local.expect(Kind::Request).await;
    local.send(frame.back(Kind::Cancel).word(303).flags(Flags::NOT_EXECUTED)).await;
    answer(&mut sibling, task).await;
}

#[tokio::test]
async fn what_was_never_written_whole_is_sent_again() {
    let (client, _agents, [mut local, mut sibling], first, _) = two(Request::new("/a").body(vec![1; 60_000])).await;
    // The connection's window is used up by calls that get no credit: the last one stays here.
    let large: Vec<_> = (0..80).map(|_| call(&client, Request::new("/large").body(vec![1; 60_000]))).collect();
    let mut sent = 1;
    loop {
        let frames = local.sync().await;
        if frames.is_empty() && sent > 1 {
            break;
        }
        sent += frames.len();
    }
    assert!(sent < 80, "{sent} were sent");
    drop(local);
    for _ in sent..81 {
        let frame = sibling.expect(Kind::Request).await;
        sibling.credit(&frame).await;
        sibling.send(frame.answer(0).end()).await;
    }
    assert_eq!(done(first).await.unwrap_err().status(), status::REMOTING);
    let mut fine = 0;
    for task in large {
        fine += usize::from(done(task).await.is_ok());
    }
    assert_eq!(fine, 81 - sent);
}

#[tokio::test]
async fn goaway_lets_calls_end_and_sends_new_ones_elsewhere() {
    let (client, _agents, [mut local, mut sibling], task, frame) = two(Request::new("/a")).await;
    local.send(Frame::new(Kind::GoAway)).await;
    local.sync().await;
    let other = call(&client, Request::new("/b"));
    answer(&mut sibling, other).await;
    local.send(frame.answer(0).body(b"still").end()).await;
    assert_eq!(done(task).await.unwrap().body.bytes().await.unwrap(), "still");
    local.expect_end().await;
}

#[tokio::test]
async fn final_goaway_sends_again_what_comes_after_its_stream() {
    let (client, _agents, [mut local, mut sibling], first, frame) = two(Request::new("/a")).await;
    let second = call(&client, Request::new("/b"));
    let other = local.expect(Kind::Request).await;
    assert_eq!(other.header.stream, 2);
    local.send(Frame::new(Kind::GoAway).stream(1).end()).await;
    let again = sibling.expect(Kind::Request).await;
    assert_eq!(again.text(id::URI), "/b");
    sibling.send(again.answer(0).end()).await;
    done(second).await.unwrap();
    local.send(frame.answer(0).end()).await;
    done(first).await.unwrap();
}

#[tokio::test]
async fn what_a_goaway_says_is_told() {
    let (_client, _agents, [mut local, _sibling], task, _) = two(Request::new("/a")).await;
    let mut meta = MetaBuilder::new();
    meta.put(id::ERROR_TEXT, b"stream 1 overruns its window");
    local.send(Frame::new(Kind::GoAway).stream(1).word(2).meta(meta).end()).await;
    drop(local);
    let error = done(task).await.unwrap_err();
    assert!(error.text().contains("reason 2: stream 1 overruns"), "{error}");
}

#[tokio::test]
async fn three_pings_without_an_answer_are_the_end() {
    let agents = [Agent::listen().await, Agent::listen().await];
    let client = Client::builder("shop")
        .agents(agents.each_ref().map(Agent::address))
        .ping_interval(Duration::from_millis(20))
        .build()
        .unwrap();
    let task = call(&client, idempotent("/a"));
    let (mut local, mut sibling) = (agents[0].connected().await, agents[1].connected().await);
    let answers = tokio::spawn(async move {
        let frame = sibling.expect(Kind::Request).await;
        sibling.send(frame.answer(0).end()).await;
        sibling
    });
    let mut pings = 0;
    while pings < 3 {
        pings += usize::from(local.next().await.header.kind() == Some(Kind::Ping));
    }
    local.answers_pings = false;
    local.expect_end().await;
    done(task).await.unwrap();
    done(answers).await;
}

#[tokio::test]
async fn a_streamed_body_that_has_begun_is_not_sent_again() {
    let (sender, body) = Body::channel();
    let (_client, _agents, [mut local, mut sibling], task, _) = two(idempotent("/a").body(body)).await;
    sender.send("piece").await.unwrap();
    local.expect(Kind::Data).await;
    drop(local);
    assert_eq!(done(task).await.unwrap_err().status(), status::REMOTING);
    assert!(sibling.sync().await.is_empty());
}

#[tokio::test]
async fn a_streamed_body_that_has_not_begun_is_sent_to_the_sibling() {
    let (sender, body) = Body::channel();
    let (_client, _agents, [local, mut sibling], task, _) = two(idempotent("/a").body(body)).await;
    drop(local);
    let frame = sibling.expect(Kind::Request).await;
    sender.send("piece").await.unwrap();
    assert_eq!(sibling.expect(Kind::Data).await.body, "piece");
    sender.finish().await.unwrap();
    assert!(sibling.expect(Kind::Data).await.has(Flags::END_STREAM));
    sibling.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_refuses_says_why() {
    let agent = Agent::listen().await;
    let connecting = tokio::spawn(Client::builder("shop").agents([agent.address()]).connect());
    let mut peer = agent.accept().await;
    let mut meta = MetaBuilder::new();
    meta.put(id::ERROR_TEXT, b"too many");
    peer.send(Frame::new(Kind::GoAway).word(4).meta(meta).end()).await;
    let error = done(connecting).await.unwrap_err().to_string();
    assert!(error.contains("reason 4: too many"), "{error}");
}

/// What an agent says that has these siblings.
fn with_siblings(siblings: &[&Agent]) -> Hello {
    Hello { siblings: siblings.iter().map(|agent| agent.address().parse().unwrap()).collect(), ..agent_hello() }
}

#[tokio::test]
async fn the_siblings_that_the_local_agent_names_are_used_when_it_is_gone() {
    let [local, first, second] = [Agent::listen().await, Agent::listen().await, Agent::listen().await];
    let client = Client::builder("shop").agents([local.address()]).backoff_max(Duration::from_millis(20)).build().unwrap();
    let task = call(&client, Request::new("/a"));
    let mut peer = local.accept().await;
    peer.greet_with(&with_siblings(&[&first])).await;
    answer(&mut peer, task).await;
    // It is kept connected before it is needed.
    let mut sibling = first.connected().await;
    let task = call(&client, idempotent("/b"));
    peer.expect(Kind::Request).await;
    drop(peer);
    answer(&mut sibling, task).await;
    // The local one is back, and has another one.
    let mut peer = local.accept().await;
    peer.greet_with(&with_siblings(&[&second])).await;
    sibling.expect_end().await;
    let mut sibling = second.connected().await;
    drop((peer, local));
    // It may be sent before the client has seen the end.
    let task = call(&client, idempotent("/c"));
    answer(&mut sibling, task).await;
}

#[tokio::test]
async fn a_sibling_of_a_sibling_is_none_of_ours() {
    let [local, sibling, other] = [Agent::listen().await, Agent::listen().await, Agent::listen().await];
    let client = Client::builder("shop").agents([local.address(), sibling.address()]).build().unwrap();
    let task = call(&client, Request::new("/a"));
    let mut first = local.connected().await;
    answer(&mut first, task).await;
    let mut second = sibling.accept().await;
    second.greet_with(&with_siblings(&[&other])).await;
    drop((first, local));
    // The client has seen that it is gone when this call is sent elsewhere.
    soon("a call to the sibling", async {
        loop {
            let task = call(&client, idempotent("/b"));
            tokio::select! {
                frame = second.next() => {
                    second.send(frame.answer(0).end()).await;
                    break done(task).await.unwrap();
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => task.abort(),
            }
        }
    })
    .await;
    drop((second, sibling));
    let error = soon("an error", client.call(Request::new("/c"))).await.unwrap_err();
    assert!(!error.text().contains(&other.address()), "{error}");
}

#[tokio::test]
async fn a_server_registers_at_the_siblings_that_its_agent_names() {
    let [local, sibling] = [Agent::listen().await, Agent::listen().await];
    let server = Server::builder("users").agents([local.address()]).backoff_max(Duration::from_millis(20)).offer("/a");
    let serving = tokio::spawn(server.serve(|_: Call| async { Reply::new("ok") }));
    let mut peer = local.accept().await;
    peer.greet_with(&Hello { connections: 1, ..with_siblings(&[&sibling]) }).await;
    let handle = done(serving).await.unwrap();
    drop((peer, local));
    let mut peer = sibling.accept().await;
    peer.greet_with(&Hello { connections: 1, ..agent_hello() }).await;
    assert_eq!(peer.hello.offers.len(), 1);
    peer.send(Frame::request(1, "/a").end()).await;
    let frame = peer.expect(Kind::Response).await;
    assert_eq!(frame.body, "ok");
    drop(handle);
}
