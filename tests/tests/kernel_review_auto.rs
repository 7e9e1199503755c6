//! The kernel path that the agent chose by itself (`--kernel auto`): sockets that block are left to TCP, where a signal does
//! not end a `recv` early; those that do not stay on the path.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    process::Command,
};

use moa_tests::{
    Agent, DEMO, FakeMoa, Gate, Judge, PATIENCE,
    client::command,
    config,
    fake::demo,
    judge::Ask,
    kernel::Look,
    machine::{free_address, release_address},
    process::Process,
    resp::read_reply,
    until_true,
};
use nix::{
    libc::EINPROGRESS,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

const BLOCKING: &str = "blocking-socket";

/// An application whose socket blocks, and whose handler of SIGUSR1 has calls go on (`SA_RESTART`).
const APPLICATION: &str = r#"
import signal, socket, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, False)
agent = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
assert agent.gettimeout() is None
for json in sys.argv[2:]:
    agent.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(json), json.encode()))
    answer = b""
    while not answer.endswith(b"}\r\n"):
        answer += agent.recv(65536) or sys.exit("the end of the stream")
    print(answer.decode().split("\r\n")[1], flush=True)
"#;

/// A service whose sockets block.
const BLOCKING_SERVICE: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
agent, _ = listener.accept()
request = b""
while chunk := agent.recv(65536):
    request += chunk
    if request.endswith(b"}\r\n"):
        request = b""
        agent.sendall(b"$4\r\ndone\r\n")
"#;

/// The same, of sockets that do not.
const ASYNC_SERVICE: &str = r#"
import asyncio, sys
async def serve(reader, writer):
    while await reader.readuntil(b"}\r\n"):
        writer.write(b"$4\r\ndone\r\n")
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

const DONE: &str = "$4\r\ndone\r\n";

/// A program of Python's, with its log.
struct Python {
    process: Process,
    _dir: TempDir,
}

impl Python {
    fn start(script: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut python = Command::new("python3");
        python.args(["-c", script]).args(arguments);
        let process = Process::start("python3", &mut python, &dir.path().join("log"));
        Self { process, _dir: dir }
    }

    fn of(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.pid())).expect("/proc")
    }

    fn await_state(&self, state: char) {
        until_true(&format!("the state {state} of the application"), || {
            self.of("stat").rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(state))
        });
    }

    /// Stops it while it waits, and has it go on.
    fn stop_and_go_on(&self) {
        self.await_state('S');
        self.process.signal(Signal::SIGSTOP);
        self.await_state('T');
        self.process.signal(Signal::SIGCONT);
        self.await_state('S');
    }

    /// Interrupts it while it waits, and waits until it has noticed.
    fn interrupt(&self) {
        self.await_state('S');
        self.process.signal(Signal::SIGUSR1);
        until_true("the application to take the signal", || {
            let status = self.of("status");
            let pending = |name: &str| status.lines().any(|line| line.starts_with(name) && !line.ends_with("0000000000000000"));
            !pending("SigPnd") && !pending("ShdPnd")
        });
        self.await_state('S');
    }
}

/// An agent that decides by itself, and is told to use the path whatever it measured.
fn start(service: SocketAddr) -> Agent {
    let section = config::service(DEMO, &[service], config::NO_HEALTH_CHECK);
    let agent = Agent::prepare(&format!("[agent]\nworkers = 1\n{section}")).kernel("auto").start();
    let said = agent.json(&["kernel", "on"]);
    assert_eq!(said["status"]["on"], true, "{said}");
    agent
}

/// An application of three calls, one of which waits for its answer while the application is interrupted.
fn interrupted(waits: usize, interrupt: impl Fn(&Python)) {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| if call.number == waits { demo(call).at(&own) } else { demo(call) });
    let agent = start(fake.address());
    let before = Look::at(&agent);
    let asks: Vec<Ask> = (0..3).map(|_| Judge.ask(DEMO, 500)).collect();
    let port = agent.address().port().to_string();
    let arguments: Vec<&str> = [port.as_str()].into_iter().chain(asks.iter().map(|ask| ask.json.as_str())).collect();
    let mut application = Python::start(APPLICATION, &arguments);
    fake.await_counts("the call that waits", |counts| counts.calls == waits + 1 && counts.in_flight == 1);
    interrupt(&application);
    // Both ends of the connection to the service, and the agent's: the application's socket is not in the map.
    assert_eq!(Look::at(&agent).enrolled, 3);
    gate.open();
    assert!(application.process.wait().success(), "{}", application.process.log());
    let log = application.process.log();
    assert!(asks.iter().all(|ask| log.contains(ask.id())) && log.lines().count() == asks.len(), "{log}");
    let way = Look::at(&agent).since(&before);
    assert_eq!((way.refusals.get(BLOCKING), way.refusals.len()), (Some(&1), 1), "{way:?}");
    assert_eq!((way.fallbacks.get("peer-not-enrolled"), way.fallbacks.len()), (Some(&1), 1), "{way:?}");
    // What goes between the agent and the service; the answers go on by TCP.
    assert_eq!(way.from_agent, fake.counts().bytes as u64, "{way:?}");
    assert_eq!((way.to_agent, way.enrolled), (way.tcp, 3), "{way:?}");
}

#[test]
fn an_application_that_blocks_is_stopped_while_it_waits() {
    interrupted(1, Python::stop_and_go_on);
}

#[test]
fn an_application_that_blocks_is_interrupted_while_it_waits() {
    interrupted(2, |application| (0..20).for_each(|_| application.interrupt()));
}

#[test]
fn an_application_that_blocks_is_stopped_while_it_waits_for_its_first_answer() {
    interrupted(0, Python::stop_and_go_on);
}

#[test]
fn an_application_that_blocks_is_interrupted_while_it_waits_for_its_first_answer() {
    interrupted(0, |application| (0..20).for_each(|_| application.interrupt()));
}

/// An application that blocks calls twice; `first` is done between its connecting and its first call.
fn leaves_the_map(first: impl Fn(&Agent)) {
    let fake = FakeMoa::start();
    let agent = start(fake.address());
    let before = Look::at(&agent);
    let mut client = agent.connect();
    first(&agent);
    let ask = Judge.ask(DEMO, 500);
    ask.expect_right(&client.get(&ask.json));
    let way = Look::at(&agent).since(&before);
    let (sent, received) = client.traffic();
    // Between the agent and the service, and nothing to the application.
    assert_eq!((way.to_agent, way.from_agent, way.tcp), (received, sent, sent + received), "{way:?}");
    until_true("one of four sockets to leave the map", || Look::at(&agent).enrolled == 3);
    let before = Look::at(&agent);
    let ask = Judge.ask(DEMO, 500);
    ask.expect_right(&client.get(&ask.json));
    let way = Look::at(&agent).since(&before);
    let now = client.traffic();
    // The programs no longer see what it sends itself.
    assert_eq!((way.to_agent, way.from_agent, way.tcp), (now.1 - received, now.0 - sent, now.1 - received), "{way:?}");
    assert!(way.fallbacks.is_empty(), "{way:?}");
}

#[test]
fn the_socket_of_an_application_that_blocks_leaves_the_map() {
    leaves_the_map(|_| {});
}

/// As connections of a pool do: the agent looks whether there is something to read, and there is not.
#[test]
fn the_socket_of_an_application_that_blocks_and_waits_before_it_calls_leaves_the_map() {
    leaves_the_map(|agent| {
        until_true("the agent to know the application", || agent.json(&["conns"]).as_array().is_some_and(|all| all.len() == 1));
    });
}

/// An application whose socket does not block, with the bytes that it sent and received.
struct NonBlocking {
    stream: TcpStream,
    sent: u64,
    received: u64,
}

impl NonBlocking {
    fn connect(agent: &Agent) -> Self {
        let address = agent.address();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None).expect("a socket");
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => panic!("connecting to {address}: {error}"),
            _ => {}
        }
        let stream = TcpStream::from(socket);
        until_true("the connection", || stream.peer_addr().is_ok());
        Self { stream, sent: 0, received: 0 }
    }

    fn call(&mut self, json: &str) -> moa_tests::Reply {
        let request = command(&["GET", json]);
        self.stream.write_all(&request).expect("room for a request");
        self.sent += request.len() as u64;
        read_reply(&mut BufReader::new(&mut *self)).expect("a reply")
    }
}

impl Read for NonBlocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(PATIENCE).expect("a time that poll can wait");
            assert_eq!(poll(&mut polled, patience)?, 1, "hung after {} bytes", self.received);
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.received += *read.as_ref().unwrap_or(&0) as u64;
                    return read;
                }
            }
        }
    }
}

#[test]
fn an_application_that_does_not_block_stays_on_the_path() {
    let fake = FakeMoa::start();
    let agent = start(fake.address());
    let before = Look::at(&agent);
    let mut application = NonBlocking::connect(&agent);
    for _ in 0..100 {
        let ask = Judge.ask(DEMO, 2_000);
        ask.expect_right(&application.call(&ask.json));
    }
    let way = Look::at(&agent).since(&before);
    way.expect_kernel_only();
    let both = application.sent + application.received;
    assert_eq!((way.to_agent, way.from_agent, way.enrolled), (both, both, 4), "{way:?}");
}

/// Which way ten calls went, after a first one, by an application that does not block.
fn ten_calls(script: &str) -> (Agent, Look, NonBlocking, Python) {
    let address = free_address();
    let service = Python::start(script, &[&address.port().to_string()]);
    until_true("the service to listen", || service.process.log().contains("ready"));
    let agent = start(address);
    let mut application = NonBlocking::connect(&agent);
    let first = Look::at(&agent);
    for _ in 0..11 {
        let ask = Judge.ask(DEMO, 1_000);
        assert!(application.call(&ask.json).is_text("done"));
    }
    release_address(address);
    (agent, first, application, service)
}

#[test]
fn a_service_that_blocks_is_left_to_tcp_from_its_first_answer_on() {
    let (agent, first, application, _service) = ten_calls(BLOCKING_SERVICE);
    let look = Look::at(&agent);
    let way = look.since(&first);
    let request = application.sent / 11;
    assert_eq!((way.fallbacks.get(BLOCKING), way.fallbacks.len()), (Some(&2), 1), "{way:?}");
    // Its first answer, and the ten requests after it: its socket is out of the map then, and unseen.
    assert!(way.tcp >= 10 * request && way.tcp <= 10 * request + 11 * 10 + 200, "{request}: {way:?}");
    assert_eq!(way.to_agent, application.sent, "{way:?}");
    assert_eq!(way.from_agent + way.tcp, application.received + application.sent + DONE.len() as u64, "{way:?}");
    assert_eq!(look.enrolled, 3);
}

#[test]
fn a_service_that_does_not_block_stays_on_the_path() {
    let (agent, first, application, _service) = ten_calls(ASYNC_SERVICE);
    let way = Look::at(&agent).since(&first);
    way.expect_kernel_only();
    let both = application.sent + application.received;
    assert_eq!((way.to_agent, way.from_agent), (both, both), "{way:?}");
}
