//! Applications and services that stand still: the kernel holds no more for them than the bound, nobody else is harmed, and
//! at last every byte arrives, by TCP.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Judge, PATIENCE, Reply,
    client::command,
    config, envelope,
    judge::{Ask, Verdict, pattern},
    kernel::{self, Look, receive_memory},
    load::Load,
    machine::{free_address, release_address},
    mixed, until,
    wait::until_true,
};

const BOUND: u64 = 256 << 10;
const LARGE: usize = 8 << 20;
/// Bytes of answers that the agent holds for an application.
const OUTPUT_MAX: u64 = 512 << 10;
/// The service that stands still, or whose answers are too much for an application that does.
const LARGE_URI: &str = "/service/large";
/// What the kernel adds for itself: a page or two.
const SLACK: u64 = 16 << 10;

/// An agent with a service of each kind; the other one's applications are never to be harmed.
struct Bed {
    agent: Agent,
    _large: FakeMoa,
    _other: FakeMoa,
    body: Arc<[u8]>,
}

/// A service whose only connection carries all calls.
const SHARED: &str = "pipelined = true\nconnections_max = 1\nqueue_max = 100_000";
/// One whose connections carry a call each: an application that stands still holds nobody up, and is left in peace.
const SINGLE: &str = "pipelined = false";

fn section(large: SocketAddr, policy: &str, other: SocketAddr) -> String {
    let common = "timeout_ms = 60_000\nargument_bytes_max = 1_048_576\nhealth = { check = \"off\" }";
    let large = config::service(LARGE_URI, &[large], &format!("{common}\n{policy}"));
    let other = config::service(DEMO, &[other], config::NO_HEALTH_CHECK);
    let app = format!("[app]\nqueued_bytes_max = {OUTPUT_MAX}\nstall_timeout_ms = 600_000\n");
    format!("[agent]\nworkers = 1\n{app}[kernel]\nleg_bytes_max = {BOUND}\n{large}{other}")
}

fn start(mode: &str, policy: &str) -> Bed {
    let (large, other) = (FakeMoa::builder().in_order().start(), FakeMoa::start());
    let body: Arc<[u8]> = pattern(LARGE).into();
    let answer = Answer::bulk(&body);
    large.script(move |call| if call.method == "large" { answer.clone() } else { mixed::service(call) });
    let agent = Agent::prepare(&section(large.address(), policy, other.address())).kernel(mode).start();
    Bed { agent, _large: large, _other: other, body }
}

impl Bed {
    /// An application that asks for a large answer and does not read it, with the most that waits for it in the kernel while
    /// others call.
    fn stalled(&self) -> (Client, u64) {
        let mut client = self.agent.connect();
        client.send(command(&["GET", &envelope(LARGE_URI, "large", "")]));
        let own = client.stream().local_addr().expect("an address");
        let most = stand_still(&self.agent, own, self.agent.address());
        (client, most)
    }
}

/// Waits until as much waits in a socket as will, while other applications call, and returns how much that is.
fn stand_still(agent: &Agent, own: SocketAddr, peer: SocketAddr) -> u64 {
    let load = Load::start(agent.address(), &[DEMO], 2);
    let waiting = || receive_memory(own, peer).unwrap_or_default();
    until_true("something to wait in the socket", || waiting() > 64 << 10);
    let (mut most, mut same) = (waiting(), 0);
    until("nothing more to come", || {
        load.await_calls(20);
        let now = waiting();
        same = if now <= most { same + 1 } else { 0 };
        most = most.max(now);
        (same == 20).then_some(())
    });
    load.stop().expect_all_right();
    most
}

#[test]
fn an_application_that_reads_nothing_of_a_large_answer() {
    let bed = start("on", SINGLE);
    let before = Look::at(&bed.agent);
    let (mut client, most) = bed.stalled();
    println!("{most} bytes wait of {BOUND}");
    assert!(most <= BOUND + SLACK && most > BOUND / 2, "{most} bytes wait, more than {BOUND}");
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
    let way = Look::at(&bed.agent).since(&before);
    assert_eq!(way.fallbacks.get("bound-at-other-end"), Some(&1), "{way:?}");
    assert_eq!(way.fallbacks.get("bound-at-agent"), Some(&1), "{way:?}");
    assert!(way.tcp > LARGE as u64 && way.to_agent > 0 && way.from_agent > BOUND / 2, "{way:?}");
    // For life, both of them.
    let before = Look::at(&bed.agent);
    client.send(command(&["GET", &envelope(LARGE_URI, "large", "")]));
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
    let way = Look::at(&bed.agent).since(&before);
    assert!(way.tcp > LARGE as u64 && way.from_agent < 1000, "{way:?}");
}

#[test]
fn the_same_by_tcp_alone() {
    let bed = start("off", SINGLE);
    let (mut client, most) = bed.stalled();
    println!("{most} bytes wait");
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
}

#[test]
fn an_application_that_half_closes_before_it_reads() {
    let bed = start("on", SINGLE);
    let before = Look::at(&bed.agent);
    let (mut client, most) = bed.stalled();
    assert!(most <= BOUND + SLACK, "{most} bytes wait, more than {BOUND}");
    client.half_close();
    assert!(client.read().bulk() == &bed.body[..], "the answer is not what was sent");
    client.expect_closed();
    assert_eq!(Look::at(&bed.agent).since(&before).fallbacks.get("bound-at-other-end"), Some(&1));
}

#[test]
fn an_application_that_goes_without_having_read() {
    let bed = start("on", SINGLE);
    let before = Look::at(&bed.agent);
    let (client, _) = bed.stalled();
    drop(client);
    until_true("the agent to forget the application", || {
        bed.agent.json(&["conns"]).as_array().is_some_and(Vec::is_empty)
            && bed.agent.json(&["status"])["app"]["queued_bytes"] == 0
    });
    let mut next = bed.agent.connect();
    next.send(command(&["GET", &envelope(LARGE_URI, "large", "")]));
    assert!(next.read().bulk() == &bed.body[..], "the answer is not what was sent");
    assert!(Look::at(&bed.agent).since(&before).from_agent > BOUND / 2);
}

/// A service of one connection that reads when it is told.
struct Silent {
    listener: TcpListener,
    address: SocketAddr,
}

impl Silent {
    fn start() -> Self {
        let address = free_address();
        Self { listener: TcpListener::bind(address).expect("a listener"), address }
    }

    fn accept(&self) -> (TcpStream, SocketAddr) {
        let (stream, agent) = self.listener.accept().expect("the agent's connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
        (stream, agent)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        release_address(self.address);
    }
}

#[test]
fn a_service_that_reads_nothing_of_a_large_request() {
    let (silent, other) = (Silent::start(), FakeMoa::start());
    let agent = kernel::start(&section(silent.address, SHARED, other.address()));
    let before = Look::at(&agent);
    let request = command(&["GET", &Judge.ask(LARGE_URI, 1_000_000).json]);
    let mut client = agent.connect();
    client.send(&request);
    let (mut service, peer) = silent.accept();
    let most = stand_still(&agent, silent.address, peer);
    println!("{most} bytes wait of {BOUND}");
    assert!(most <= BOUND + SLACK && most > BOUND / 2, "{most} bytes wait, more than {BOUND}");
    let mut taken = vec![0; request.len()];
    service.read_exact(&mut taken).expect("the request");
    assert!(taken == request, "the request is not what was sent");
    service.write_all(b"$4\r\ndone\r\n").expect("an answer");
    assert!(client.read().is_text("done"));
    let way = Look::at(&agent).since(&before);
    assert_eq!(way.fallbacks.get("bound-at-other-end"), Some(&1), "{way:?}");
    assert!(way.tcp >= request.len() as u64 - BOUND, "{way:?}");
}

#[test]
fn a_service_that_reads_nothing_of_many_requests() {
    const CALLS: usize = 1_000;
    let (silent, other) = (Silent::start(), FakeMoa::start());
    let agent = kernel::start(&section(silent.address, SHARED, other.address()));
    let before = Look::at(&agent);
    let all: Vec<u8> = (0..CALLS).flat_map(|_| command(&["GET", &Judge.ask(LARGE_URI, 4_000).json])).collect();
    let mut client = agent.connect();
    client.send(&all);
    let (mut service, peer) = silent.accept();
    let most = stand_still(&agent, silent.address, peer);
    println!("{most} bytes wait of {BOUND}");
    assert!(most <= BOUND + SLACK, "{most} bytes wait, more than {BOUND}");
    let mut taken = vec![0; all.len()];
    service.read_exact(&mut taken).expect("the requests");
    assert!(taken == all, "the requests are not what was sent");
    for number in 0..CALLS {
        service.write_all(format!("${}\r\n{number}\r\n", number.to_string().len()).as_bytes()).expect("an answer");
    }
    for number in 0..CALLS {
        assert_eq!(client.read(), Reply::Bulk(number.to_string().into_bytes()));
    }
    let way = Look::at(&agent).since(&before);
    assert_eq!(way.fallbacks.get("bound-at-other-end"), Some(&1), "{way:?}");
    assert!(way.to_agent > 0 && way.tcp > 0, "{way:?}");
}

#[test]
fn an_application_that_floods_the_agent_and_takes_no_answers() {
    let bed = start("on", SHARED);
    let before = Look::at(&bed.agent);
    let asks: Vec<Ask> = (0..1_500).map(|_| Judge.ask(LARGE_URI, 4_000)).collect();
    let requests = |asks: &[Ask]| asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>();
    let mut client = bed.agent.connect();
    let own = client.stream().local_addr().expect("an address");
    // So many that the agent stops reading for the answers that wait.
    client.send(requests(&asks[..400]));
    until_true("the agent to hold as many answers as it may", || {
        bed.agent.json(&["conns"])[0]["queued_bytes"].as_u64() >= Some(OUTPUT_MAX)
    });
    let (mut sender, flood) = (client.stream().try_clone().expect("a second handle"), requests(&asks[400..]));
    let sender = thread::spawn(move || sender.write_all(&flood));
    let at_agent = stand_still(&bed.agent, bed.agent.address(), own);
    let at_application = receive_memory(own, bed.agent.address()).unwrap_or_default();
    println!("{at_agent} bytes wait at the agent, {at_application} at the application, of {BOUND}");
    // Behind what is redirected there is what TCP takes, which has room for both.
    assert!(at_agent > BOUND / 2 && at_agent <= 4 * BOUND && at_application <= BOUND + SLACK);
    assert!(Look::at(&bed.agent).since(&before).fallbacks.contains_key("bound-at-agent"));
    let mut right = 0;
    for ask in asks {
        match ask.judge(&client.read()) {
            Verdict::Right => right += 1,
            // More than it may hold, which is said in the answer's place.
            Verdict::Failed(code, text) => assert_eq!(code, 504, "{text}"),
        }
    }
    assert!(right > 0);
    sender.join().expect("the sender").expect("sending to the agent");
    let way = Look::at(&bed.agent).since(&before);
    assert!(way.to_agent > BOUND / 2 && way.from_agent > BOUND / 2 && way.tcp > BOUND, "{way:?}");
    assert!(way.fallbacks.contains_key("bound-at-other-end"), "{way:?}");
}
