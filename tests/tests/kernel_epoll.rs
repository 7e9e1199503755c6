//! Applications that are told once that there is something, read until they get less than they asked for, and wait for the
//! next word: edge-triggered epoll, as Tokio, nginx and Netty use it. They never hang, whatever way the bytes come.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, PATIENCE,
    client::command,
    config, envelope,
    judge::pattern,
    kernel::{self, Look, receive_memory},
    seed::{self, rng},
    until_true,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rand::{RngExt, rngs::StdRng};

const BOUND: usize = 128 << 10;

/// An application with one connection.
struct Edge {
    stream: TcpStream,
    epoll: Epoll,
    chunk: usize,
}

impl Edge {
    fn connect(agent: &Agent, chunk: usize) -> Self {
        let stream = TcpStream::connect(agent.address()).expect("connecting to the agent");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, 0);
        epoll.add(&stream, event).expect("adding the socket");
        Self { stream, epoll, chunk }
    }

    fn waiting(&self) -> u64 {
        let (own, peer) = (self.stream.local_addr().expect("an address"), self.stream.peer_addr().expect("an address"));
        receive_memory(own, peer).unwrap_or_default()
    }

    /// Reads so many bytes; between two words of epoll it asks `between` whether to take its time.
    fn read(&mut self, count: usize, mut between: impl FnMut(&Self)) -> Vec<u8> {
        let mut all = Vec::with_capacity(count);
        let mut chunk = vec![0; self.chunk];
        while all.len() < count {
            let mut events = [EpollEvent::empty()];
            let patience = EpollTimeout::try_from(PATIENCE).expect("a time that epoll can wait");
            let told = self.epoll.wait(&mut events, patience).expect("epoll");
            assert_eq!(told, 1, "hung after {} of {count} bytes, {} wait in the socket", all.len(), self.waiting());
            between(self);
            loop {
                match self.stream.read(&mut chunk) {
                    Ok(0) => panic!("the end after {} of {count} bytes", all.len()),
                    Ok(read) => {
                        all.extend_from_slice(&chunk[..read]);
                        if read < chunk.len() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error} after {} of {count} bytes", all.len()),
                }
            }
        }
        all
    }
}

fn start(size: usize) -> (FakeMoa, Agent, Vec<u8>) {
    let fake = FakeMoa::start();
    let answer = Answer::bulk(&pattern(size));
    let bytes = answer.bytes().to_vec();
    fake.script(move |_| answer.clone());
    let policy = format!("timeout_ms = 60_000\n{}", config::NO_HEALTH_CHECK);
    let section = config::service(DEMO, &[fake.address()], &policy);
    let agent = kernel::start(&format!("[agent]\nworkers = 1\n[kernel]\nleg_bytes_max = {BOUND}\n{section}"));
    (fake, agent, bytes)
}

fn ask(edge: &mut Edge) {
    edge.stream.write_all(&command(&["GET", &envelope(DEMO, "large", "")])).expect("sending to the agent");
}

/// Whether the agent has something for an application that it does not send.
fn holds_back(agent: &Agent) -> bool {
    agent.json(&["conns"]).as_array().is_some_and(|conns| conns.iter().any(|conn| conn["queued_bytes"].as_u64() > Some(0)))
}

/// A size that is met by the last read now and then, and one that is never.
fn chunk(rng: &mut StdRng) -> usize {
    [4 << 10, 16 << 10, 64 << 10, 10_007][rng.random_range(0..4)]
}

#[test]
fn an_answer_that_goes_over_to_tcp_while_nobody_reads() {
    let (_fake, agent, bytes) = start(2 << 20);
    let mut rng = rng("an_answer_that_goes_over_to_tcp_while_nobody_reads");
    for _ in 0..seed::count(20, 1_000) {
        let mut edge = Edge::connect(&agent, chunk(&mut rng));
        let before = Look::at(&agent);
        ask(&mut edge);
        // The first word is answered late: as much waits as may, and the agent has more.
        let mut first = true;
        let read = edge.read(bytes.len(), |edge| {
            if std::mem::take(&mut first) {
                until_true("as much to wait as may", || edge.waiting() > BOUND as u64 / 2 && holds_back(&agent));
            }
        });
        assert!(read == bytes, "the answer is not what was sent");
        let way = Look::at(&agent).since(&before);
        assert!(way.fallbacks.contains_key("bound-at-other-end") && way.tcp > 0 && way.from_agent > 0, "{way:?}");
    }
}

#[test]
fn an_answer_that_is_read_at_any_pace() {
    let (_fake, agent, bytes) = start(1 << 20);
    let mut rng = rng("an_answer_that_is_read_at_any_pace");
    let before = Look::at(&agent);
    for _ in 0..seed::count(10, 500) {
        let mut edge = Edge::connect(&agent, chunk(&mut rng));
        for _ in 0..2 {
            ask(&mut edge);
            let read = edge.read(bytes.len(), |edge| {
                // Long enough for anything to come meanwhile, or not at all.
                for _ in 0..rng.random_range(0..3) {
                    edge.waiting();
                }
            });
            assert!(read == bytes, "the answer is not what was sent");
        }
    }
    let way = Look::at(&agent).since(&before);
    println!("{way:?}");
    assert!(way.from_agent > 0, "{way:?}");
}

#[test]
fn an_answer_during_which_the_path_is_turned_off() {
    let (_fake, agent, bytes) = start(1 << 20);
    let mut rng = rng("an_answer_during_which_the_path_is_turned_off");
    for _ in 0..seed::count(10, 500) {
        agent.json(&["kernel", "on"]);
        let mut edge = Edge::connect(&agent, chunk(&mut rng));
        let before = Look::at(&agent);
        ask(&mut edge);
        let mut words = rng.random_range(0..4);
        let read = edge.read(bytes.len(), |_| {
            if words == 0 {
                agent.json(&["kernel", "off"]);
            }
            words -= 1;
        });
        assert!(read == bytes, "the answer is not what was sent");
        let way = Look::at(&agent).since(&before);
        assert!(way.from_agent > 0, "{way:?}");
    }
}
