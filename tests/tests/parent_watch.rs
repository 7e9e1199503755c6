//! The agent's parent sees workers that hang, and resets what they hold.

use std::{
    fs,
    io::{self, Read},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Reply,
    client::command,
    config, echo,
    load::Load,
    pods::{AGENT, Pods},
    until, until_true,
};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// How soon a reset must come: half a second, and what it takes to be sure.
const SOON: Duration = Duration::from_millis(1500);
const HANGS: &str = "a worker of the agent hangs";

fn section(fake: &FakeMoa, workers: usize) -> String {
    format!("[agent]\nworkers = {workers}\n{}", config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK))
}

/// A thread of the agent that stands still, until it is let go.
struct Held(Pid);

impl Held {
    fn worker(agent: &Agent, worker: usize) -> Self {
        let name = format!("moa-worker-{worker}\n");
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads").flatten();
        let is_it = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm == name);
        let thread = threads.into_iter().find(is_it).expect("the thread of a worker");
        let thread = Pid::from_raw(thread.file_name().to_str().expect("a number").parse().expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("this test traces the agent: run it as root");
        ptrace::interrupt(thread).expect("stopping a thread");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("a thread that stops");
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The agent may have ended.
        let _ = ptrace::detach(self.0, None);
    }
}

/// Whether a connection was reset; else it serves.
fn was_reset(client: &mut Client) -> bool {
    let ping = |client: &mut Client| -> io::Result<Reply> {
        client.try_send(command(&["PING"]))?;
        client.try_read()
    };
    match ping(client) {
        Ok(reply) => {
            assert_eq!(reply, Reply::Simple("PONG".to_owned()));
            false
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => true,
        Err(error) => panic!("{error}"),
    }
}

/// Expects that the agent does next to nothing for a while.
fn expect_idle(agent: &Agent) {
    let used_ns = || -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads").flatten();
        let used = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        used.filter_map(|used| used.split_whitespace().next()?.parse::<u64>().ok()).sum()
    };
    let (before, begun) = (used_ns(), Instant::now());
    until_true("some time to pass", || begun.elapsed() > Duration::from_millis(600));
    let used = Duration::from_nanos(used_ns() - before);
    assert!(used < Duration::from_millis(100), "it has used {used:?} in {:?}", begun.elapsed());
}

fn worker_of(client: &mut Client, workers: usize) -> usize {
    let Reply::Integer(id) = client.command(&["CLIENT", "ID"]) else { panic!("no number") };
    usize::try_from(id).expect("a number") % workers
}

#[test]
fn an_agent_that_stands_still_is_reset_and_serves_again() {
    let (pods, fake) = (Pods::new(), FakeMoa::start());
    let pod = pods.pod("pod");
    let unix = pods.path("app.sock");
    let config = section(&fake, 2) + &config::app_unix(&unix, "") + &pods.section("include = [\"pod\"]");
    let mut agent = Agent::start(&config);
    let mut clients: Vec<Client> = (0..6).map(|_| agent.connect()).chain((0..4).map(|_| pod.client())).collect();
    for client in &mut clients {
        assert_eq!(client.call(&echo("before"))["result"], "before");
    }
    let mut by_unix = vec![UnixStream::connect(&unix).expect("the agent listens")];
    until_true("all to be accepted", || agent.json(&["status"])["app"]["connections"] == 11);
    let served = fake.counts().open;
    agent.freeze();
    let frozen = Instant::now();
    clients.extend((0..4).map(|_| agent.connect()));
    clients.extend((0..4).map(|_| pod.inside(|| Client::connect(AGENT))));
    by_unix.push(UnixStream::connect(&unix).expect("a backlog"));
    for client in &mut clients {
        assert_eq!(client.try_read().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    assert!(frozen.elapsed() < SOON, "{:?}", frozen.elapsed());
    for socket in &mut by_unix {
        assert_eq!(socket.read(&mut [0]).expect("an end"), 0);
    }
    until_true("each worker to be told of", || agent.log().matches(HANGS).count() == 2);
    assert!(Client::try_connect(agent.address()).is_err() && pod.inside(|| Client::try_connect(AGENT)).is_err());
    assert_eq!(fake.counts().open, served, "its own connections stay");
    agent.thaw();
    until_true("it to listen again", || Client::try_connect(agent.address()).is_ok());
    for mut client in [agent.connect(), pod.client()] {
        assert_eq!(client.call(&echo("after"))["result"], "after");
    }
    UnixStream::connect(&unix).expect("the agent listens");
    assert_eq!(agent.log().matches(HANGS).count(), 2, "{}", agent.log());
    until_true("each listener to be back", || agent.log().matches("listening again").count() == 2 * 3);
    expect_idle(&agent);
    drop(clients);
    agent.stop();
}

#[test]
fn a_worker_that_stands_still_loses_what_it_has_and_the_others_take_what_is_new() {
    const WORKERS: usize = 3;
    let fake = FakeMoa::start();
    let agent = Agent::start(&section(&fake, WORKERS));
    let connect = |count: usize| -> Vec<Client> { (0..count).map(|_| agent.connect()).collect() };
    let mut clients = connect(30);
    let of_first = clients.iter_mut().filter_map(|client| (worker_of(client, WORKERS) == 0).then_some(())).count();
    assert!((1..30).contains(&of_first), "{of_first} of 30");
    let held = Held::worker(&agent, 0);
    let mut waiting = connect(30);
    until_true("the worker to be found hung", || agent.log().contains(HANGS));
    assert_eq!(clients.iter_mut().filter_map(|client| was_reset(client).then_some(())).count(), of_first);
    let waited = waiting.iter_mut().filter_map(|client| was_reset(client).then_some(())).count();
    assert!((1..30).contains(&waited), "{waited} of 30 were in the backlog of the one that hangs");
    for client in &mut connect(60) {
        assert_ne!(worker_of(client, WORKERS), 0);
        assert_eq!(client.call(&echo("others"))["result"], "others");
    }
    drop(held);
    until("a connection of the worker that goes on", || (worker_of(&mut agent.connect(), WORKERS) == 0).then_some(()));
    for client in &mut connect(30) {
        assert_eq!(client.call(&echo("all"))["result"], "all");
    }
    expect_idle(&agent);
    let log = agent.log();
    assert!(log.matches(HANGS).count() == 1 && log.contains("listening again"), "{log}");
}

#[test]
fn an_agent_that_has_much_to_do_is_left_alone() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&section(&fake, 2));
    let loads = [Load::start(agent.address(), &[DEMO], 16), Load::start_frames(agent.address(), &[DEMO], 16)];
    let end = Instant::now() + Duration::from_secs(4);
    until_true("some time to pass", || Instant::now() > end);
    loads.into_iter().for_each(|load| drop(load.stop()));
    assert!(!agent.log().contains(HANGS), "{}", agent.log());
}
