//! A client and a server together, with an agent between them that only renumbers.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::peer::{Agent, Frame, Peer, agent_hello, soon};
use agent_common::{
    frame::{Flags, Hello, Kind, Windows},
    sdk::{Body, Call, Client, Handle, Incoming, Reply, Request, Server},
};

/// An agent for one server and one client, each of which is told the other's windows: it passes on credit as it comes.
async fn relay(server: Peer, client: Peer) {
    let ((to_server, mut from_server), (to_client, mut from_client)) = (server.split(), client.split());
    let (mut numbers, mut names, mut last) = (HashMap::new(), HashMap::new(), 0);
    loop {
        let (of_client, frame) = tokio::select! {
            frame = from_client.recv() => (true, frame),
            frame = from_server.recv() => (false, frame),
        };
        let Some(mut frame) = frame else { return };
        let (back, on) = if of_client { (&to_client, &to_server) } else { (&to_server, &to_client) };
        let header = &mut frame.header;
        match header.kind().unwrap() {
            Kind::Ping => {
                let _ = back.send(Frame::new(Kind::Pong).via(header.via));
                continue;
            }
            Kind::GoAway | Kind::Pong => continue,
            Kind::Credit if header.stream == 0 => {}
            Kind::Request => {
                last += 1;
                numbers.insert(header.via, last);
                names.insert(u64::from(last), (header.stream, header.via));
                (header.stream, header.via) = (last, u64::from(last));
            }
            _ if of_client => {
                let number = numbers[&header.via];
                (header.stream, header.via) = (number, u64::from(number));
            }
            _ => (header.stream, header.via) = names[&header.via],
        }
        let _ = on.send(frame);
    }
}

async fn handle(call: Call) -> Reply {
    match call.uri() {
        "/echo" => Reply::new(call.body.bytes().await.unwrap()),
        _ => {
            let (sender, body) = Body::channel();
            tokio::spawn(async move {
                let mut incoming: Incoming = call.body;
                while let Some(Ok(piece)) = incoming.next().await {
                    sender.send(piece).await.unwrap();
                }
                sender.finish().await.unwrap();
            });
            Reply::new(body)
        }
    }
}

/// Both ends have these windows.
async fn connected(windows: Windows) -> (Handle, Client) {
    let agent = Agent::listen().await;
    let server = Server::builder("both").agents([agent.address()]).offer("/echo").offer("/stream");
    let starting = tokio::spawn(server.windows(windows.stream, windows.connection).serve(handle));
    let hello = Hello { windows, ..agent_hello() };
    let mut serving = agent.accept().await;
    serving.greet_with(&hello).await;
    let handle = starting.await.unwrap().unwrap();
    let builder = Client::builder("both").agents([agent.address()]).windows(windows.stream, windows.connection);
    let connecting = tokio::spawn(builder.connect());
    let mut calling = agent.accept().await;
    calling.greet_with(&hello).await;
    let client = connecting.await.unwrap().unwrap();
    tokio::spawn(relay(serving, calling));
    (handle, client)
}

fn random_body(seed: u64, len: usize) -> Vec<u8> {
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let mut body = vec![0; len];
    rand::Rng::fill_bytes(&mut random, &mut body);
    body
}

async fn mixed(windows: Windows) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let (handle, client) = connected(windows).await;
    let tasks: Vec<_> = (0..100_usize)
        .map(|n| {
            let client = client.clone();
            let seed = seed.wrapping_add(u64::try_from(n).unwrap());
            let len = usize::try_from(seed % 7).unwrap() * [10, 1_000, 10_000, 60_000, 65_000][n % 5];
            tokio::spawn(async move {
                let body = random_body(seed, len);
                let uri = if n % 2 == 0 { "/echo" } else { "/stream" };
                let request = Request::new(uri).timeout(Duration::from_secs(20));
                let answer = if n % 3 == 0 {
                    let (sender, streamed) = Body::channel();
                    let pieces = body.clone();
                    tokio::spawn(async move {
                        for piece in pieces.chunks(7_777) {
                            sender.send(piece.to_vec()).await.unwrap();
                        }
                        sender.finish().await.unwrap();
                    });
                    client.call(request.body(streamed)).await.unwrap()
                } else {
                    client.call(request.body(body.clone())).await.unwrap()
                };
                assert!(answer.body.bytes().await.unwrap() == body, "call {n}");
            })
        })
        .collect();
    for task in tasks {
        soon("a call", task).await.unwrap();
    }
    soon("the server's end", handle.shutdown()).await;
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back_through_usual_windows() {
    mixed(Windows { stream: 262_144, connection: 4 << 20 }).await;
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back_through_the_smallest_windows() {
    mixed(Windows { stream: 65_536, connection: 65_536 }).await;
}

/// One write, one read and one wake for many calls: far from a system call for each.
#[tokio::test]
async fn many_calls_at_once_share_their_writes() {
    let (_handle, client) = connected(Windows { stream: 262_144, connection: 4 << 20 }).await;
    let begun = Instant::now();
    let callers: Vec<_> = (0..128)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    let answer = client.call(Request::new("/echo").body("small")).await.unwrap();
                    assert!(!answer.flags.has(Flags::NOT_EXECUTED));
                }
            })
        })
        .collect();
    for caller in callers {
        soon("a caller", caller).await.unwrap();
    }
    println!("{:?} a call", begun.elapsed() / 12_800);
}
