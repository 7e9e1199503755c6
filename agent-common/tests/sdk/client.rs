//! Calls of a client, with an agent that follows a script.

use std::{collections::VecDeque, time::Duration};

use crate::peer::{Agent, Frame, Peer, agent_hello, connected_unix, soon};
use agent_common::{
    frame::{Flags, Hello, Kind, MetaBuilder, Windows, find, id, status},
    sdk::{Body, Client, Error, Request, Response},
};
use bytes::Bytes;
use tokio::task::JoinHandle;

fn client(agent: &Agent) -> Client {
    Client::builder("shop").agents([agent.address()]).build().unwrap()
}

fn call(client: &Client, request: Request) -> JoinHandle<Result<Response, Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.call(request).await })
}

async fn done<T>(task: JoinHandle<T>) -> T {
    soon("the call", task).await.unwrap()
}

fn small_windows() -> Hello {
    Hello { windows: Windows { stream: 65_536, connection: 4 << 20 }, ..agent_hello() }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// A call that has begun, and its REQUEST.
async fn begun(agent: &Agent, request: Request) -> (Client, Peer, JoinHandle<Result<Response, Error>>, Frame) {
    let client = client(agent);
    let task = call(&client, request);
    let mut peer = agent.connected().await;
    let frame = peer.expect(Kind::Request).await;
    (client, peer, task, frame)
}

#[tokio::test]
async fn a_call_and_its_answer() {
    let agent = Agent::listen().await;
    let request = Request::new("/service/user").method("get").group("blue").property("color", b"red").metadata(200, b"x");
    let (_client, mut peer, task, frame) =
        begun(&agent, request.idempotent(true).timeout(Duration::from_secs(5)).body("seven")).await;
    assert_eq!(
        (frame.text(id::URI), frame.text(id::METHOD), frame.text(id::GROUP)),
        ("/service/user".into(), "get".into(), "blue".into())
    );
    assert!(frame.has(Flags::END_STREAM | Flags::IDEMPOTENT) && !frame.has(Flags::ONE_WAY));
    assert!((4000..=5000).contains(&frame.header.word), "{} ms are left", frame.header.word);
    assert_eq!((frame.header.stream, &frame.body[..], frame.text(200)), (1, &b"seven"[..], "x".into()));
    assert_eq!(peer.hello.application, "shop");
    let mut meta = MetaBuilder::new();
    meta.put(id::CONTENT_TYPE, b"text/plain");
    peer.send(frame.answer(0).meta(meta).body(b"fine").end()).await;
    let answer = done(task).await.unwrap();
    assert_eq!((answer.status, answer.metadata.text(id::CONTENT_TYPE)), (0, Some("text/plain")));
    assert_eq!(answer.body.bytes().await.unwrap(), "fine");
}

#[tokio::test]
async fn over_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("moa-sdk-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let client = Client::builder("shop").agents([format!("unix:{}", path.display())]).build().unwrap();
    let task = call(&client, Request::new("/a"));
    let mut peer = connected_unix(&listener).await;
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn an_error_has_status_text_and_body() {
    let agent = Agent::listen().await;
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a")).await;
    let mut meta = MetaBuilder::new();
    meta.put(id::ERROR_TEXT, b"no money");
    peer.send(frame.answer(1234).meta(meta).body(b"{}").end()).await;
    let error = done(task).await.unwrap_err();
    assert_eq!((error.status(), error.text(), error.is_safe_to_retry()), (1234, "no money", false));
    assert_eq!(error.into_response().unwrap().body.bytes().await.unwrap(), "{}");
}

#[tokio::test]
async fn frames_may_come_a_byte_at_a_time() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let task = call(&client, Request::new("/a"));
    let mut peer = agent.accept().await;
    for byte in agent_hello().encode().unwrap() {
        peer.send_bytes(&[byte]).await;
    }
    let frame = peer.expect(Kind::Request).await;
    let bytes = [frame.answer(0).body(b"be").bytes(), frame.back(Kind::Data).body(b"fore").end().bytes()].concat();
    for byte in bytes {
        peer.send_bytes(&[byte]).await;
    }
    assert_eq!(done(task).await.unwrap().body.bytes().await.unwrap(), "before");
}

#[tokio::test]
async fn a_large_body_waits_for_credit_and_comes_whole() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let body = pattern(10_000_000);
    let task = call(&client, Request::new("/a").body(body.clone()));
    let mut peer = agent.accept().await;
    peer.greet_with(&small_windows()).await;
    let first = peer.expect(Kind::Request).await;
    let mut frames = VecDeque::from(peer.sync().await);
    // All that the window has room for, and no more.
    let sent: usize = frames.iter().chain([&first]).map(|frame| frame.header.frame_len()).sum();
    assert!((49_153..=65_536).contains(&sent), "{sent} bytes");
    assert!(peer.sync().await.is_empty());
    assert_eq!(find(&first.meta, id::BODY_LEN), Some(&10_000_000_u64.to_be_bytes()[..]));
    let (mut came, mut frame) = (Vec::new(), first.clone());
    loop {
        came.extend_from_slice(&frame.body);
        if frame.has(Flags::END_STREAM) {
            break;
        }
        peer.credit(&frame).await;
        frame = match frames.pop_front() {
            Some(frame) => frame,
            None => peer.expect(Kind::Data).await,
        };
    }
    assert!(came == body);
    peer.send(first.answer(0).end()).await;
    done(task).await.unwrap();
}

#[tokio::test]
async fn bodies_are_streamed_both_ways_at_once() {
    let agent = Agent::listen().await;
    let (sender, body) = Body::channel();
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a").body(body)).await;
    assert!(!frame.has(Flags::END_STREAM) && frame.body.is_empty());
    peer.send(frame.answer(0).body(b"0")).await;
    let mut answer = done(task).await.unwrap().body;
    assert_eq!(answer.next().await.unwrap().unwrap(), "0");
    for n in 1..100 {
        let text = n.to_string();
        sender.send(text.clone()).await.unwrap();
        let data = peer.expect(Kind::Data).await;
        assert_eq!(data.body, text);
        peer.send(frame.back(Kind::Data).body(&data.body)).await;
        assert_eq!(answer.next().await.unwrap().unwrap(), text);
    }
    sender.finish().await.unwrap();
    assert!(peer.expect(Kind::Data).await.has(Flags::END_STREAM));
    peer.send(frame.back(Kind::Data).end()).await;
    assert!(answer.next().await.is_none());
}

#[tokio::test]
async fn a_streamed_body_stalls_without_credit_and_goes_on_with_it() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let (sender, body) = Body::channel();
    let task = call(&client, Request::new("/a").body(body));
    let mut peer = agent.accept().await;
    peer.greet_with(&small_windows()).await;
    let first = peer.expect(Kind::Request).await;
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            sender.send(Bytes::from(vec![7; 16_000])).await.unwrap();
        }
        sender.finish().await.unwrap();
    });
    let (mut frames, mut bytes) = (Vec::new(), first.header.frame_len());
    while bytes <= 65_536 - 16_040 {
        let data = peer.expect(Kind::Data).await;
        bytes += data.header.frame_len();
        frames.push(data);
    }
    assert!(peer.sync().await.is_empty() && !sending.is_finished());
    let mut body: usize = frames.iter().map(|frame| frame.body.len()).sum();
    for frame in &frames {
        peer.credit(frame).await;
    }
    loop {
        let data = peer.expect(Kind::Data).await;
        body += data.body.len();
        if data.has(Flags::END_STREAM) {
            break;
        }
        peer.credit(&data).await;
    }
    assert_eq!(body, 1_600_000);
    peer.send(first.answer(0).end()).await;
    done(task).await.unwrap();
    done(sending).await;
}

#[tokio::test]
async fn room_is_given_back_as_the_application_takes_the_body() {
    let agent = Agent::listen().await;
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a")).await;
    peer.send(frame.answer(0).body(&pattern(60_000))).await;
    for _ in 0..3 {
        peer.send(frame.back(Kind::Data).body(&pattern(60_000))).await;
    }
    let mut answer = done(task).await.unwrap().body;
    let of_call = |frames: Vec<Frame>| frames.iter().filter(|frame| frame.header.stream == 1).count();
    assert_eq!(of_call(peer.sync().await), 0);
    for _ in 0..2 {
        assert_eq!(answer.next().await.unwrap().unwrap().len(), 60_000);
    }
    let credit = peer.expect(Kind::Credit).await;
    assert_eq!((credit.header.stream, credit.header.word, credit.has(Flags::TO_CALLER)), (1, 120_080, false));
}

#[tokio::test]
async fn a_small_call_goes_before_a_large_one() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let large = call(&client, Request::new("/large").body(pattern(3_000_000)));
    let mut peer = agent.accept().await;
    peer.greet_with(&small_windows()).await;
    let first = peer.expect(Kind::Request).await;
    let small = call(&client, Request::new("/small").body("x"));
    let mut between = 0;
    let second = loop {
        let frame = peer.next().await;
        match frame.header.kind() {
            Some(Kind::Request) => break frame,
            Some(Kind::Data) => between += frame.header.frame_len(),
            _ => {}
        }
    };
    assert!(between <= 65_536, "{between} bytes went before");
    peer.send(second.answer(0).end()).await;
    done(small).await.unwrap();
    peer.send(first.answer(0).end()).await;
    done(large).await.unwrap();
}

#[tokio::test]
async fn a_deadline_cancels() {
    let agent = Agent::listen().await;
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a").timeout(Duration::from_millis(50))).await;
    let cancel = peer.expect(Kind::Cancel).await;
    assert_eq!((cancel.header.via, cancel.header.word), (frame.header.via, status::TIMEOUT));
    assert_eq!(done(task).await.unwrap_err().status(), status::TIMEOUT);
}

#[tokio::test]
async fn a_deadline_counts_for_the_body_too() {
    let agent = Agent::listen().await;
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a").timeout(Duration::from_millis(50))).await;
    peer.send(frame.answer(0).body(b"begin")).await;
    let error = done(task).await.unwrap().body.bytes().await.unwrap_err();
    assert_eq!(error.status(), status::TIMEOUT);
    assert_eq!(peer.expect(Kind::Cancel).await.header.word, status::TIMEOUT);
}

#[tokio::test]
async fn dropping_a_call_or_its_answer_cancels() {
    let agent = Agent::listen().await;
    let (client, mut peer, task, frame) = begun(&agent, Request::new("/a")).await;
    task.abort();
    let cancel = peer.expect(Kind::Cancel).await;
    assert_eq!((cancel.header.stream, cancel.header.word), (1, status::CANCELLED));
    // The answer had been on its way, and the connection goes on.
    peer.send(frame.answer(0).end()).await;
    let task = call(&client, Request::new("/a"));
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).body(b"begin")).await;
    drop(done(task).await.unwrap());
    assert_eq!(peer.expect(Kind::Cancel).await.header.stream, 2);
    peer.send(frame.back(Kind::Data).body(b"more").end()).await;
    let task = call(&client, Request::new("/a"));
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_ends_early_stops_the_request() {
    let agent = Agent::listen().await;
    let (sender, body) = Body::channel();
    let (_client, mut peer, task, frame) = begun(&agent, Request::new("/a").body(body)).await;
    peer.send(frame.answer(0).body(b"enough").end()).await;
    assert_eq!(done(task).await.unwrap().body.bytes().await.unwrap(), "enough");
    soon("the body to be stopped", async { while sender.send("more").await.is_ok() {} }).await;
    let frames = peer.sync().await;
    assert!(frames.iter().all(|frame| frame.header.kind() == Some(Kind::Data)), "no CANCEL: {frames:?}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_cancels() {
    let agent = Agent::listen().await;
    let (sender, body) = Body::channel();
    let (_client, mut peer, task, _) = begun(&agent, Request::new("/a").body(body)).await;
    drop(sender);
    peer.expect(Kind::Cancel).await;
    assert_eq!(done(task).await.unwrap_err().status(), status::CANCELLED);
}

#[tokio::test]
async fn a_cancel_from_the_agent_ends_the_call_and_its_body() {
    let agent = Agent::listen().await;
    let (client, mut peer, task, frame) = begun(&agent, Request::new("/a")).await;
    peer.send(frame.back(Kind::Cancel).word(504)).await;
    assert_eq!(done(task).await.unwrap_err().status(), 504);
    let task = call(&client, Request::new("/a"));
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).body(b"begin")).await;
    peer.send(frame.back(Kind::Cancel).word(303)).await;
    let mut body = done(task).await.unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap(), "begin");
    assert_eq!(body.next().await.unwrap().unwrap_err().status(), 303);
}

#[tokio::test]
async fn a_second_answer_and_what_comes_behind_the_end_are_ignored() {
    let agent = Agent::listen().await;
    let (client, mut peer, task, frame) = begun(&agent, Request::new("/a")).await;
    peer.send(frame.answer(0).body(b"one")).await;
    peer.send(frame.answer(0).body(b"two").end()).await;
    peer.send(frame.back(Kind::Data).body(b"!").end()).await;
    peer.send(frame.back(Kind::Data).body(b"?").end()).await;
    assert_eq!(done(task).await.unwrap().body.bytes().await.unwrap(), "one!");
    let task = call(&client, Request::new("/a"));
    let frame = peer.expect(Kind::Request).await;
    peer.send(frame.answer(0).end()).await;
    done(task).await.unwrap();
}

#[tokio::test]
async fn a_one_way_call_is_done_when_the_socket_took_it() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let task = tokio::spawn(async move {
        client.notify(Request::new("/a").body(pattern(100_000))).await.unwrap();
        client
    });
    let mut peer = agent.connected().await;
    let frame = peer.expect(Kind::Request).await;
    let data = peer.expect(Kind::Data).await;
    assert!(frame.has(Flags::ONE_WAY) && data.has(Flags::ONE_WAY | Flags::END_STREAM));
    drop(done(task).await);
    peer.expect_end().await;
}

#[tokio::test]
async fn bounds_fail_at_once() {
    let agent = Agent::listen().await;
    let client = Client::builder("shop").agents([agent.address()]).calls_max(2).build().unwrap();
    let tasks = [call(&client, Request::new("/a")), call(&client, Request::new("/a"))];
    let mut peer = agent.connected().await;
    let frames = [peer.expect(Kind::Request).await, peer.expect(Kind::Request).await];
    let error = soon("an error", client.call(Request::new("/a"))).await.unwrap_err();
    assert_eq!(error.status(), status::LIMIT);
    for frame in frames {
        peer.send(frame.answer(0).end()).await;
    }
    for task in tasks {
        done(task).await.unwrap();
    }
    let error = client.call(Request::new("/a").metadata(200, &[0; 40_000])).await.unwrap_err();
    assert_eq!(error.status(), status::SERIALIZATION);
}

#[tokio::test]
async fn many_calls_share_one_connection_and_come_back_in_any_order() {
    let agent = Agent::listen().await;
    let client = client(&agent);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let tasks: Vec<_> = (0..128).map(|n| call(&client, Request::new("/a").body(format!("{n}")))).collect();
    let mut peer = agent.connected().await;
    let mut frames = Vec::new();
    for _ in 0..128 {
        frames.push(peer.expect(Kind::Request).await);
    }
    rand::seq::SliceRandom::shuffle(&mut frames[..], &mut random);
    for frame in frames {
        peer.send(frame.answer(0).body(&frame.body).end()).await;
    }
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(done(task).await.unwrap().body.bytes().await.unwrap(), n.to_string());
    }
}
