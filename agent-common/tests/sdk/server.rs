//! What a server does, with an agent that follows a script.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::peer::{Agent, Frame, Peer, agent_hello, soon, until};
use agent_common::{
    frame::{Flags, Hello, Kind, id, status},
    sdk::{Body, Call, Handle, Reply, Server, ServerBuilder},
};
use tokio::sync::Semaphore;

/// What handlers of the tests do, by the method of the call's URI.
async fn handle(call: Call, world: Arc<World>) -> Reply {
    match call.uri() {
        "/echo" => Reply::new(call.body.bytes().await.unwrap_or_default()),
        "/wait" => {
            let _running = Running::new(&world.running);
            world.gate.acquire().await.unwrap().forget();
            Reply::new("waited")
        }
        "/stream" => {
            let (sender, body) = Body::channel();
            let mut incoming = call.body;
            tokio::spawn(async move {
                while let Some(Ok(piece)) = incoming.next().await {
                    if sender.send(piece).await.is_err() {
                        return;
                    }
                }
                let _ = sender.finish().await;
            });
            Reply::new(body)
        }
        "/watch" => {
            let (over, world) = (call.over(), Arc::clone(&world));
            tokio::spawn(async move {
                over.wait().await;
                world.over.fetch_add(1, SeqCst);
            });
            std::future::pending().await
        }
        _ => Reply::error(1000, "no such thing").not_executed(),
    }
}

#[derive(Default)]
struct World {
    running: AtomicUsize,
    over: AtomicUsize,
    gate: Gate,
}

struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl std::ops::Deref for Gate {
    type Target = Semaphore;

    fn deref(&self) -> &Semaphore {
        &self.0
    }
}

/// Counts handlers that were not dropped.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn builder<T: Into<String>>(agents: impl IntoIterator<Item = T>) -> ServerBuilder {
    let builder = Server::builder("users").agents(agents).backoff_max(Duration::from_millis(20));
    ["/echo", "/wait", "/stream", "/watch", "/other"].iter().fold(builder, |builder, uri| builder.offer(uri))
}

/// A server with one connection to an agent.
async fn served(agent: &Agent, builder: ServerBuilder) -> (Handle, Peer, Arc<World>) {
    let world = Arc::new(World::default());
    let starting = tokio::spawn({
        let world = Arc::clone(&world);
        builder.serve(move |call| handle(call, Arc::clone(&world)))
    });
    let peer = agent.connected().await;
    (soon("the server", starting).await.unwrap().unwrap(), peer, world)
}

async fn server() -> (Agent, Handle, Peer, Arc<World>) {
    let agent = Agent::listen().await;
    let (handle, peer, world) = served(&agent, builder([agent.address()])).await;
    (agent, handle, peer, world)
}

#[tokio::test]
async fn calls_are_answered() {
    let (_agent, _handle, mut peer, _) = server().await;
    assert_eq!(peer.hello.offers.len(), 5);
    let call = Frame::request(1, "/echo").body(b"hello").end();
    peer.send(call.clone()).await;
    let answer = peer.expect(Kind::Response).await;
    assert_eq!((answer.header.word, &answer.body[..]), (0, &b"hello"[..]));
    assert_eq!((answer.header.via, answer.header.stream, answer.header.service), (call.header.via, 1, call.header.service));
    assert!(answer.has(Flags::TO_CALLER | Flags::END_STREAM));
    peer.send(Frame::request(2, "/other").end()).await;
    let answer = peer.expect(Kind::Response).await;
    assert_eq!((answer.header.word, answer.text(id::ERROR_TEXT)), (1000, "no such thing".to_owned()));
    assert!(answer.has(Flags::NOT_EXECUTED));
}

#[tokio::test]
async fn bodies_of_ten_megabytes_come_and_go_whole() {
    let (_agent, _handle, mut peer, _) = server().await;
    let call = Frame::request(1, "/stream");
    peer.send(call.clone()).await;
    let first = peer.expect(Kind::Response).await;
    let (mut sent, mut back) = (0_usize, first.body.len());
    let (mut room, mut ended) = (262_144 - call.header.frame_len(), false);
    while !ended {
        while sent < 10_000_000 && room >= 50_040 {
            let body = vec![u8::try_from(sent / 50_000 % 256).unwrap(); 50_000];
            sent += body.len();
            room -= 50_040;
            let data = call.same(Kind::Data).body(&body);
            peer.send(if sent == 10_000_000 { data.end() } else { data }).await;
        }
        let frame = peer.next().await;
        match frame.header.kind().unwrap() {
            Kind::Data => {
                back += frame.body.len();
                ended = frame.has(Flags::END_STREAM);
                if !ended {
                    peer.credit(&frame).await;
                }
            }
            Kind::Credit if frame.header.stream == 1 => room += usize::try_from(frame.header.word).unwrap(),
            _ => {}
        }
    }
    assert_eq!((sent, back), (10_000_000, 10_000_000));
    // And one that is collected.
    let call = Frame::request(2, "/echo");
    peer.send(call.clone()).await;
    peer.send(call.same(Kind::Data).body(&[1; 60_000])).await;
    peer.send(call.same(Kind::Data).body(&[2; 60_000]).end()).await;
    let (answer, body) = peer.message(Kind::Response).await;
    assert_eq!((answer.header.word, body.len()), (0, 120_000));
}

#[tokio::test]
async fn what_may_not_be_executed_is_refused() {
    let (_agent, _handle, mut peer, _) = server().await;
    let mut wrong_hash = Frame::request(1, "/echo").end();
    wrong_hash.header.service += 1;
    let mut no_uri = Frame::request(3, "/echo").end();
    (no_uri.meta, no_uri.header.meta_len) = (bytes::Bytes::new(), 0);
    let cases = [
        (wrong_hash, status::SERIALIZATION),
        (Frame::request(2, "/unknown").end(), status::SERVICE_NOT_FOUND),
        (no_uri, status::NO_URI),
    ];
    for (frame, status) in cases {
        peer.send(frame).await;
        let answer = peer.expect(Kind::Response).await;
        assert_eq!((answer.header.word, answer.has(Flags::NOT_EXECUTED | Flags::END_STREAM)), (status, true));
    }
}

#[tokio::test]
async fn more_calls_than_calls_max_are_refused() {
    let agent = Agent::listen().await;
    let (_handle, mut peer, world) = served(&agent, builder([agent.address()]).calls_max(2)).await;
    assert_eq!(peer.hello.calls_max, 2);
    for stream in 1..=3 {
        peer.send(Frame::request(stream, "/wait").end()).await;
    }
    let answer = peer.expect(Kind::Response).await;
    assert_eq!((answer.header.stream, answer.header.word, answer.has(Flags::NOT_EXECUTED)), (3, status::LIMIT, true));
    world.gate.add_permits(2);
    for _ in 0..2 {
        assert_eq!(peer.expect(Kind::Response).await.body, "waited");
    }
}

#[tokio::test]
async fn a_cancel_drops_the_handler() {
    let (_agent, _handle, mut peer, world) = server().await;
    let call = Frame::request(1, "/wait").end();
    peer.send(call.clone()).await;
    until("the handler to run", || world.running.load(SeqCst) == 1).await;
    peer.send(call.same(Kind::Cancel).word(305)).await;
    until("the handler to be dropped", || world.running.load(SeqCst) == 0).await;
    assert!(peer.sync().await.is_empty());
    let watched = Frame::request(2, "/watch").end();
    peer.send(watched.clone()).await;
    peer.sync().await;
    peer.send(watched.same(Kind::Cancel).word(305)).await;
    until("what watches to be told", || world.over.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn a_deadline_drops_the_handler_and_answers_304() {
    let (_agent, _handle, mut peer, world) = server().await;
    peer.send(Frame::request(1, "/wait").word(20).end()).await;
    assert_eq!(peer.expect(Kind::Response).await.header.word, status::TIMEOUT);
    until("the handler to be dropped", || world.running.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn the_end_of_the_connection_drops_the_handlers() {
    let (agent, _handle, mut peer, world) = server().await;
    peer.send(Frame::request(1, "/wait").end()).await;
    until("the handler to run", || world.running.load(SeqCst) == 1).await;
    drop(peer);
    until("the handler to be dropped", || world.running.load(SeqCst) == 0).await;
    agent.connected().await;
}

#[tokio::test]
async fn one_way_calls_are_executed_and_not_answered() {
    let (_agent, _handle, mut peer, world) = server().await;
    peer.send(Frame::request(1, "/wait").flags(Flags::ONE_WAY).end()).await;
    until("the handler to run", || world.running.load(SeqCst) == 1).await;
    world.gate.add_permits(1);
    until("the handler to end", || world.running.load(SeqCst) == 0).await;
    peer.send(Frame::request(2, "/unknown").flags(Flags::ONE_WAY).end()).await;
    assert!(peer.sync().await.is_empty());
}

#[tokio::test]
async fn two_calls_with_one_via_break_a_rule() {
    let (_agent, _handle, mut peer, _) = server().await;
    peer.send(Frame::request(1, "/wait").via(9).end()).await;
    peer.send(Frame::request(2, "/wait").via(9).end()).await;
    let goaway = peer.expect(Kind::GoAway).await;
    assert_eq!((goaway.header.word, goaway.header.stream), (1, 2));
    peer.expect_end().await;
}

#[tokio::test]
async fn a_request_that_overruns_its_window_breaks_a_rule() {
    let (_agent, _handle, mut peer, _) = server().await;
    let call = Frame::request(1, "/wait");
    peer.send(call.clone()).await;
    for _ in 0..5 {
        peer.send(call.same(Kind::Data).body(&[0; 60_000])).await;
    }
    let goaway = peer.expect(Kind::GoAway).await;
    assert_eq!(goaway.header.word, 2);
    assert!(goaway.text(id::ERROR_TEXT).contains("stream 1"));
}

#[tokio::test]
async fn as_many_connections_as_the_agent_says() {
    let agent = Agent::listen().await;
    let starting = tokio::spawn(builder([agent.address()]).serve(|call| async { Reply::new(call.body.bytes().await.unwrap()) }));
    let mut first = agent.accept().await;
    first.greet_with(&Hello { connections: 2, ..agent_hello() }).await;
    let mut second = agent.accept().await;
    assert!(!starting.is_finished());
    second.greet_with(&Hello { connections: 2, ..agent_hello() }).await;
    let _handle = soon("the server", starting).await.unwrap().unwrap();
    assert_eq!((first.hello.connection, second.hello.connection), (Some(0), Some(1)));
    assert_eq!(first.hello.instance, second.hello.instance);
    for peer in [&mut first, &mut second] {
        peer.send(Frame::request(1, "/echo").body(b"x").end()).await;
        assert_eq!(peer.expect(Kind::Response).await.body, "x");
    }
    // One that is lost is opened again, and is the same one.
    drop(second);
    assert_eq!(agent.connected().await.hello.connection, Some(1));
}

#[tokio::test]
async fn every_connection_says_what_is_known_of_the_instance() {
    let agent = Agent::listen().await;
    let builder = builder([agent.address()]).weight(20_000).environment("pre").label("version", "1").label("version", "2");
    let starting = tokio::spawn(builder.serve(|_| async { Reply::new("") }));
    for _ in 0..2 {
        let mut peer = agent.accept().await;
        let traits = &peer.hello.traits;
        assert_eq!((traits.weight.map(NonZeroU32::get), &*traits.environment), (Some(10_000), "pre"));
        assert_eq!(traits.labels, [("version".to_owned(), "2".to_owned())].into());
        peer.greet_with(&Hello { connections: 2, ..agent_hello() }).await;
    }
    soon("the server", starting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_label_that_does_not_fit_is_an_error_of_the_server() {
    let agent = Agent::listen().await;
    let builder = builder([agent.address()]).label(&"x".repeat(256), "");
    let error = builder.serve(|_| async { Reply::new("") }).await.unwrap_err();
    assert!(error.to_string().contains("do not fit into a HELLO"), "{error}");
}

#[tokio::test]
async fn shutdown_waits_for_the_calls_in_flight() {
    let (_agent, handle, mut peer, world) = server().await;
    peer.send(Frame::request(1, "/wait").end()).await;
    until("the handler to run", || world.running.load(SeqCst) == 1).await;
    let ending = tokio::spawn(handle.shutdown());
    let goaway = peer.expect(Kind::GoAway).await;
    assert!(!goaway.has(Flags::END_STREAM) && goaway.header.word == 0);
    // One that had been on its way.
    peer.send(Frame::request(2, "/echo").body(b"late").end()).await;
    assert_eq!(peer.expect(Kind::Response).await.body, "late");
    assert!(!ending.is_finished());
    world.gate.add_permits(1);
    assert_eq!(peer.expect(Kind::Response).await.body, "waited");
    let last = peer.expect(Kind::GoAway).await;
    assert!(last.has(Flags::END_STREAM) && last.header.stream == 2);
    peer.expect_end().await;
    drop(peer);
    soon("the end", ending).await.unwrap();
}

#[tokio::test]
async fn a_server_comes_back_when_its_agent_does() {
    let (agent, _handle, peer, _) = server().await;
    let address = agent.address();
    drop((agent, peer));
    let agent = Agent::listen_at(&address).await;
    let mut peer = agent.connected().await;
    peer.send(Frame::request(1, "/echo").body(b"again").end()).await;
    assert_eq!(peer.expect(Kind::Response).await.body, "again");
}

#[tokio::test]
async fn a_server_goes_to_a_sibling_and_back() {
    let (local, sibling) = (Agent::listen().await, Agent::listen().await);
    let address = local.address();
    drop(local);
    let (_handle, mut away, _) = served(&sibling, builder([address.clone(), sibling.address()])).await;
    away.send(Frame::request(1, "/echo").body(b"here").end()).await;
    assert_eq!(away.expect(Kind::Response).await.body, "here");
    let local = Agent::listen_at(&address).await;
    let mut home = local.connected().await;
    assert!(!away.expect(Kind::GoAway).await.has(Flags::END_STREAM));
    home.send(Frame::request(1, "/echo").body(b"home").end()).await;
    assert_eq!(home.expect(Kind::Response).await.body, "home");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_cancelled() {
    let agent = Agent::listen().await;
    let serving = Server::builder("users").agents([agent.address()]).offer("/cut").serve(|_| async {
        let (sender, body) = Body::channel();
        tokio::spawn(async move { sender.send("begin").await });
        Reply::new(body)
    });
    let starting = tokio::spawn(serving);
    let mut peer = agent.connected().await;
    let _handle = soon("the server", starting).await.unwrap().unwrap();
    peer.send(Frame::request(1, "/cut").end()).await;
    peer.expect(Kind::Response).await;
    // What waits for its turn when the body is cut off is not sent any more.
    let cancel = loop {
        let frame = peer.next().await;
        match frame.header.kind() {
            Some(Kind::Cancel) => break frame,
            other => assert_eq!(other, Some(Kind::Data)),
        }
    };
    assert_eq!((cancel.header.word, cancel.has(Flags::TO_CALLER)), (status::FAILED, true));
}
