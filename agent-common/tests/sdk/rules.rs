//! What breaks a rule ends the connection with a GOAWAY that says so; what may be skipped is.

use crate::peer::{Agent, Frame, Peer, agent_hello, soon};
use agent_common::{
    frame::{Flags, Hello, Kind, WINDOW_MAX, id, status},
    sdk::{Client, Error, Request, Response},
};
use tokio::task::JoinHandle;

type Task = JoinHandle<Result<Response, Error>>;

async fn begun() -> (Agent, Client, Peer, Task, Frame) {
    let agent = Agent::listen().await;
    let client = Client::builder("shop").agents([agent.address()]).windows(65_536, 1 << 20).build().unwrap();
    let calling = client.clone();
    let task = tokio::spawn(async move { calling.call(Request::new("/a")).await });
    let mut peer = agent.connected().await;
    let frame = peer.expect(Kind::Request).await;
    (agent, client, peer, task, frame)
}

/// The connection ends with this reason, and the call with it.
async fn ends(mut peer: Peer, task: Task, reason: u32, text: &str) {
    let goaway = peer.expect(Kind::GoAway).await;
    assert_eq!((goaway.header.word, goaway.has(Flags::END_STREAM)), (reason, true), "{goaway:?}");
    assert!(goaway.text(id::ERROR_TEXT).contains(text), "{:?}", goaway.text(id::ERROR_TEXT));
    peer.expect_end().await;
    if let Ok(response) = soon("the call", task).await.unwrap() {
        let error = soon("the body's end", response.body.bytes()).await.unwrap_err();
        assert_eq!(error.status(), status::REMOTING);
    }
}

#[tokio::test]
async fn a_second_hello() {
    let (_agent, _client, mut peer, task, _) = begun().await;
    peer.greet().await;
    ends(peer, task, 1, "second HELLO").await;
}

#[tokio::test]
async fn bad_magic() {
    let (_agent, _client, mut peer, task, _) = begun().await;
    peer.send_bytes(b"*1\r\n$4\r\nPING\r\n").await;
    ends(peer, task, 1, "0x4D4F").await;
}

#[tokio::test]
async fn a_kind_that_may_not_be_skipped() {
    let (_agent, _client, mut peer, task, _) = begun().await;
    let mut frame = Frame::new(Kind::Ping);
    frame.header.kind = 127;
    peer.send(frame).await;
    ends(peer, task, 1, "kind 127").await;
}

#[tokio::test]
async fn a_kind_that_may_be_skipped() {
    let (_agent, _client, mut peer, task, frame) = begun().await;
    let mut unknown = Frame::new(Kind::Ping).body(b"whatever");
    unknown.header.kind = 128;
    peer.send(unknown).await;
    peer.send(frame.answer(0).flags(Flags(1 << 15)).end()).await;
    soon("the call", task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_version_that_is_not_known() {
    let (_agent, _client, mut peer, task, frame) = begun().await;
    let mut bytes = frame.answer(0).end().bytes();
    bytes[2] = 9;
    peer.send_bytes(&bytes).await;
    ends(peer, task, 3, "version 9").await;
}

#[tokio::test]
async fn a_message_that_overruns_its_window() {
    let (_agent, _client, mut peer, task, frame) = begun().await;
    peer.send(frame.answer(0).body(&[0; 40_000])).await;
    peer.send(frame.back(Kind::Data).body(&[0; 40_000])).await;
    ends(peer, task, 2, "stream 1 overruns its window").await;
}

#[tokio::test]
async fn more_credit_than_a_window_may_have() {
    let (_agent, _client, mut peer, task, _) = begun().await;
    peer.send(Frame::new(Kind::Credit).word(WINDOW_MAX)).await;
    ends(peer, task, 2, "credit").await;
}

#[tokio::test]
async fn calls_whose_numbers_go_back() {
    let (_agent, _client, mut peer, task, _) = begun().await;
    peer.send(Frame::request(7, "/b").end()).await;
    let refusal = peer.expect(Kind::Response).await;
    assert_eq!((refusal.header.word, refusal.has(Flags::NOT_EXECUTED)), (status::SERVICE_NOT_FOUND, true));
    peer.send(Frame::request(7, "/b").end()).await;
    ends(peer, task, 1, "stream 7").await;
}

#[tokio::test]
async fn a_hello_with_nothing_in_common() {
    for (hello, reason) in
        [(Hello { versions: (2, 3), ..agent_hello() }.encode().unwrap(), 3), (Frame::new(Kind::Hello).bytes().into(), 1)]
    {
        let agent = Agent::listen().await;
        let connecting = tokio::spawn(Client::builder("shop").agents([agent.address()]).connect());
        let mut peer = agent.accept().await;
        peer.send_bytes(&hello).await;
        assert_eq!(peer.expect(Kind::GoAway).await.header.word, reason);
        peer.expect_end().await;
        soon("the end", connecting).await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn anything_at_all_is_no_panic() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    for _ in 0..50 {
        let (_agent, client, mut peer, task, frame) = begun().await;
        let mut bytes = [frame.answer(0).body(b"be"), frame.back(Kind::Data).body(b"fore").end(), frame.back(Kind::Cancel)]
            .map(|frame| frame.bytes())
            .concat();
        for _ in 0..3 {
            let at = rand::RngExt::random_range(&mut random, 0..bytes.len());
            bytes[at] = rand::RngExt::random(&mut random);
        }
        peer.send_bytes(&bytes).await;
        drop(peer);
        if let Ok(response) = soon("the call", task).await.unwrap() {
            let _ = soon("the body", response.body.bytes()).await;
        }
        drop(client);
    }
}
