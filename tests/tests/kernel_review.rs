//! What a review of the kernel path found: sockets that are bound to a device, resets while an answer waits, agents of one
//! name, connections that are enrolled late or while the path is turned off.

use std::{
    fs,
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
};

use agent::kernel::Pass;
use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Judge, PATIENCE, Reply,
    client::command,
    config, envelope,
    kernel::{self, Look, receive_memory},
    leg::{self, Legs, Pair, Took, in_new_namespace},
    mixed,
    resp::read_reply,
    until, until_true,
};
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        signal::Signal,
        socket::{setsockopt, sockopt::BindToDevice},
    },
};

const BOUND: u64 = 256 << 10;
const LARGE: usize = 50_000;
/// What the kernel adds for itself: a page or two.
const SLACK: u64 = 16 << 10;
/// As `moa kernel` calls it.
const SPECIAL: &str = "special-socket";

/// An agent with a service whose answers are too much for an application that does not read.
struct Bed {
    agent: Agent,
    _fake: FakeMoa,
    body: Arc<[u8]>,
}

impl Bed {
    fn start() -> Self {
        let fake = FakeMoa::builder().in_order().start();
        let body: Arc<[u8]> = (0..=250).cycle().take(LARGE).collect();
        let answer = Answer::bulk(&body);
        fake.script(move |call| if call.method == "large" { answer.clone() } else { mixed::service(call) });
        // Nothing but the test ends a connection that stands still.
        let app = "[app]\nstall_timeout_ms = 3_600_000\nqueued_bytes_max = 4_194_304\n";
        let policy = format!("timeout_ms = 60_000\npipelined = true\n{}", config::NO_HEALTH_CHECK);
        let section = config::service(DEMO, &[fake.address()], &policy);
        let agent = kernel::start(&format!("{app}[kernel]\nleg_bytes_max = {BOUND}\n{section}"));
        Self { agent, _fake: fake, body }
    }

    /// Waits until as much waits in an application's socket as will, while others call, and returns the most that did.
    fn settled(&self, application: &TcpStream) -> u64 {
        let (own, peer) = ends(application);
        let waiting = || receive_memory(own, peer).unwrap_or_default();
        until_true("something to wait in the socket", || waiting() > BOUND / 2);
        let (mut other, mut most, mut same) = (self.agent.connect(), 0, 0);
        until("nothing more to come", || {
            (0..20).for_each(|_| expect_call(&mut other));
            let now = waiting();
            same = if now <= most { same + 1 } else { 0 };
            most = most.max(now);
            (same == 20).then_some(most)
        })
    }
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().expect("an address"), stream.peer_addr().expect("an address"))
}

fn expect_call(client: &mut Client) {
    let ask = Judge.ask(DEMO, 100);
    ask.expect_right(&client.get(&ask.json));
}

fn large() -> Vec<u8> {
    command(&["GET", &envelope(DEMO, "large", "")])
}

fn bind_to_loopback(socket: impl AsFd) {
    setsockopt(&socket, BindToDevice, &"lo".into()).expect("SO_BINDTODEVICE");
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

#[test]
fn an_application_bound_to_a_device_before_it_connects_is_not_enrolled() {
    let bed = Bed::start();
    let before = Look::at(&bed.agent);
    let socket = leg::stream_socket(bed.agent.address());
    bind_to_loopback(&socket);
    socket.connect(&bed.agent.address().into()).expect("connecting");
    let mut stream = patient(socket.into());
    for _ in 0..5 {
        stream.write_all(&command(&["PING"])).expect("sending");
        assert_eq!(read_reply(&mut BufReader::new(&stream)).expect("a reply"), Reply::Simple("PONG".into()));
    }
    let way = Look::at(&bed.agent).since(&before);
    assert_eq!((way.to_agent, way.from_agent), (0, 0), "{way:?}");
    assert!(way.refusals.get(SPECIAL).is_some_and(|&count| count >= 1) && way.refusals.len() == 1, "{way:?}");
    assert!(way.fallbacks.keys().all(|why| why == "peer-not-enrolled"), "{way:?}");
}

#[test]
fn what_waits_for_an_application_bound_to_a_device_later_is_bounded() {
    let bed = Bed::start();
    let before = Look::at(&bed.agent);
    let mut stream = patient(TcpStream::connect(bed.agent.address()).expect("connecting"));
    bind_to_loopback(&stream);
    (0..20).for_each(|_| stream.write_all(&large()).expect("sending"));
    let most = bed.settled(&stream);
    println!("{most} bytes wait of {BOUND}");
    assert!(most <= BOUND + SLACK, "{most} bytes wait, more than {BOUND}");
    assert!(Look::at(&bed.agent).since(&before).from_agent > BOUND / 2);
    bed.agent.json(&["kernel", "off"]);
    let off = Look::at(&bed.agent);
    (0..5).for_each(|_| stream.write_all(&large()).expect("sending"));
    let mut reader = BufReader::new(&stream);
    for number in 0..25 {
        let reply = read_reply(&mut reader).unwrap_or_else(|error| panic!("the reply {number}: {error}"));
        assert!(reply.bulk() == &bed.body[..], "the answer {number} is not what was sent");
    }
    let way = Look::at(&bed.agent).since(&off);
    way.expect_tcp_only();
    assert!(way.tcp > 25 * LARGE as u64 - 2 * BOUND, "{way:?}");
}

#[test]
fn an_application_that_resets_while_answers_wait_is_forgotten_at_once() {
    let bed = Bed::start();
    let before = Look::at(&bed.agent);
    let mut client = bed.agent.connect();
    (0..40).for_each(|_| client.send(large()));
    let most = bed.settled(client.stream());
    let way = Look::at(&bed.agent).since(&before);
    assert!(way.from_agent > BOUND / 2 && most > BOUND / 2, "{way:?}");
    // What it cannot read yet has not gone over to TCP: the agent still waits for it.
    assert_eq!(way.fallbacks.get("bound-at-other-end"), None, "{way:?}");
    client.reset();
    until_true("the agent to forget the application", || {
        bed.agent.json(&["conns"]).as_array().is_some_and(Vec::is_empty)
            && bed.agent.json(&["status"])["app"]["queued_bytes"] == 0
    });
    expect_call(&mut bed.agent.connect());
}

/// Agents of one name, each with a run directory of its own.
fn start_of(fake: &FakeMoa, name: Option<&str>) -> Agent {
    let prepared = kernel::prepare(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    match name {
        Some(name) => prepared.name(name).start(),
        None => prepared.start(),
    }
}

fn expect_redirected(agent: &Agent) {
    let before = Look::at(agent);
    let mut client = agent.connect();
    (0..10).for_each(|_| expect_call(&mut client));
    Look::at(agent).since(&before).expect_kernel_only();
}

#[test]
fn the_second_agent_of_a_name_leaves_the_path_to_the_first() {
    let fake = FakeMoa::start();
    let mut first = start_of(&fake, None);
    let look = Look::at(&first);
    let mut second = start_of(&fake, Some(first.name()));
    let status = &second.json(&["status"])["kernel"];
    let said = status["reason"].as_str().unwrap_or_default();
    assert!(status["attached"] == false && said.contains("another agent of the name"), "{status}");
    expect_call(&mut second.connect());
    expect_redirected(&first);
    second.stop();
    for more in [&[][..], &["--force"], &["--json"]] {
        let outcome = second.verb(&[&["kernel", "uninstall"], more].concat());
        assert!(!outcome.status.success(), "{}", outcome.stdout);
        assert!(outcome.stderr.contains("an agent of this name runs and uses them"), "{}", outcome.stderr);
    }
    assert!(look.pins.as_deref().is_some_and(Path::exists), "the pins are gone");
    expect_redirected(&first);
    first.kill();
    first.start_again();
    let after = Look::at(&first);
    assert!(after.status.attached && after.status.on, "{:?}", after.status);
    assert_eq!((after.program("stub"), after.kept_maps()), (look.program("stub"), look.kept_maps()));
    expect_redirected(&first);
    // The pins of both, which a running agent keeps.
    drop(first);
}

#[test]
fn an_agent_that_was_killed_and_not_waited_for_is_adopted() {
    let fake = FakeMoa::start();
    let first = start_of(&fake, None);
    let look = Look::at(&first);
    // Its parent, which would wait for it, stands still.
    first.signal(Signal::SIGSTOP);
    first.signal_itself(Signal::SIGKILL);
    until_true("nothing but its number to be left", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", first.pid())).expect("/proc");
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
    });
    let second = start_of(&fake, Some(first.name()));
    let status = &second.json(&["status"])["kernel"];
    assert!(status["attached"] == true, "{status}");
    assert_eq!(Look::at(&second).kept_maps(), look.kept_maps());
    expect_redirected(&second);
    drop(second);
}

#[test]
fn what_is_accepted_after_the_path_was_turned_off_goes_by_tcp() {
    let legs = Legs::attach();
    let listener = legs.listen("127.0.0.1:0");
    let mut app = patient(TcpStream::connect(listener.local_addr().expect("an address")).expect("connecting"));
    until_true("both ends to be enrolled", || legs.took().enrolled == 2);
    legs.turn_off();
    let (agent, _) = listener.accept().expect("accepting");
    let mut agent = patient(agent);
    let mut received = [0; 1000];
    for _ in 0..3 {
        agent.write_all(&[7; 1000]).expect("sending");
        app.read_exact(&mut received).expect("what the agent sent");
        app.write_all(&[8; 1000]).expect("sending");
        agent.read_exact(&mut received).expect("what the application sent");
    }
    legs.expect(&Took { enrolled: 2, passed: 6000, passes: &[(Pass::Off, 2)], ..Took::default() });
}

/// Has another CPU take what comes by the loopback of the calling thread's namespace: so the end that accepts is established
/// some time after the end that connects.
fn spread_loopback() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a namespace for mounts");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("keeping mounts to this namespace");
    let folder = tempfile::tempdir().expect("a temporary directory");
    mount(Some("sysfs"), folder.path(), Some("sysfs"), MsFlags::empty(), none).expect("mounting sysfs");
    fs::write(folder.path().join("class/net/lo/queues/rx-0/rps_cpus"), "3").expect("rps_cpus");
    nix::mount::umount(folder.path()).expect("unmounting sysfs");
}

#[test]
fn a_service_that_asks_how_much_there_is_before_it_reads_is_told() {
    const ROUNDS: u64 = 500;
    const BYTES: usize = 100;
    let took = in_new_namespace(|| {
        spread_loopback();
        let legs = Legs::attach();
        let listener = TcpListener::bind("127.0.0.1:0").expect("listening");
        let address = listener.local_addr().expect("an address");
        for round in 0..ROUNDS {
            let mut agent = legs.dial(address);
            legs.path().dialled(agent.as_fd());
            agent.write_all(&[1; BYTES]).expect("sending");
            let (app, _) = listener.accept().expect("accepting");
            expect_told(&Pair { app, agent }, round);
        }
        let took = legs.took();
        // Redirected, or given to TCP and never enrolled: each byte is counted once.
        assert_eq!(took.from_agent.bytes + took.passed.bytes, ROUNDS * BYTES as u64, "{took:?}");
        assert_eq!(took.passes.iter().sum::<u64>(), took.passes[Pass::NoPeer as usize], "{took:?}");
        took
    });
    println!("{} of {ROUNDS} services were enrolled in time", took.from_agent.messages);
}

/// Expects that the service is told how much there is as soon as there is something, and reads that.
fn expect_told(pair: &Pair, round: u64) {
    let mut read = 0;
    let mut buffer = [0; 100];
    while read < buffer.len() {
        let mut polled = [PollFd::new(pair.app.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("a time that poll can wait");
        assert_eq!(poll(&mut polled, patience).expect("poll"), 1, "nothing came in round {round}");
        assert_ne!(leg::readable(&pair.app), 0, "told that there is nothing in round {round}");
        read += (&pair.app).read(&mut buffer).expect("what the agent sent");
    }
}
