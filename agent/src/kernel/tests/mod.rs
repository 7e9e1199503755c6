//! The programs in the real kernel, on a cgroup of our own. Needs root, and fails without it.

mod connects;
mod lanes;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use agent_common::{Listener, WATCHED};

use super::{AttachError, Counts, Kernel, Options, cgroup, legs::lock, probe::Roots};
use crate::netns::thread::cookie;

/// Listens and connects on command, so that its sockets belong to its cgroup.
const PEER: &str = r"
import socket, sys
kept = []
for line in sys.stdin:
    verb, family, host, port = line.split()
    family = socket.AF_INET6 if family == 'v6' else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    if verb == 'listen':
        if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.bind((host, int(port))); s.listen(4096)
    else:
        s.connect((host, int(port)))
    kept.append(s)
    print(s.getsockname()[1], flush=True)
";

/// A cgroup with a process in it. Dropping it ends the process and removes the cgroup.
struct Peer {
    cgroup: PathBuf,
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = cgroup::find(&Roots::default()).unwrap();
        let name = format!("moa-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let cgroup = root.join(name);
        fs::create_dir(&cgroup).expect("this test makes a cgroup: run it as root");
        Self::inside(cgroup)
    }

    /// A process in a cgroup that is there.
    fn inside(cgroup: PathBuf) -> Self {
        let child = Command::new("python3").args(["-c", PEER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("this test needs python3: run cargo xtask setup");
        let (commands, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let peer = Self { cgroup, child, commands, answers };
        fs::write(peer.cgroup.join("cgroup.procs"), peer.child.id().to_string()).unwrap();
        peer
    }

    fn attach(&self, listeners: &[SocketAddr]) -> Kernel {
        let options = Options { cgroup: Some(self.cgroup.clone()), bound: 1 << 20, ..Options::default() };
        let kernel = Kernel::attach(&options).expect("run as root, after cargo xtask build");
        let netns = cookie().unwrap();
        for listener in listeners {
            let key = Listener::new(netns, *listener);
            lock(&kernel.legs.listeners).insert(key, WATCHED, 0).unwrap();
        }
        kernel
    }

    /// Listens at the address, on any port; the address with the port.
    fn listen(&mut self, host: &str) -> SocketAddr {
        let mut address: SocketAddr = format!("{host}:0").parse().unwrap();
        address.set_port(self.command("listen", address));
        address
    }

    fn connect(&mut self, host: &str, port: u16, times: usize) {
        for _ in 0..times {
            self.command("connect", format!("{host}:{port}").parse().unwrap());
        }
    }

    fn command(&mut self, verb: &str, address: SocketAddr) -> u16 {
        let family = if address.is_ipv6() { "v6" } else { "v4" };
        writeln!(self.commands, "{verb} {family} {} {}", address.ip(), address.port()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or_else(|_| panic!("{verb} {address} failed"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// The accepting end is established when the last packet of the handshake arrives, which is after `connect` returned.
#[track_caller]
fn expect(kernel: &Kernel, counts: Counts) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while kernel.established().unwrap() != counts && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(kernel.established().unwrap(), counts);
}

fn v4(passive: u64, active: u64) -> Counts {
    Counts { passive_v4: passive, active_v4: active, ..Counts::default() }
}

fn v6(passive: u64, active: u64) -> Counts {
    Counts { passive_v6: passive, active_v6: active, ..Counts::default() }
}

#[test]
fn counts_connections_to_our_listeners_only() {
    let mut peer = Peer::new();
    let (ours, other) = (peer.listen("127.0.0.1"), peer.listen("127.0.0.1"));
    let kernel = peer.attach(&[ours]);
    assert_eq!(kernel.established().unwrap(), Counts::default());
    peer.connect("127.0.0.1", other.port(), 5);
    peer.connect("127.0.0.1", ours.port(), 7);
    expect(&kernel, v4(7, 7));
}

#[test]
fn counts_ipv6() {
    let mut peer = Peer::new();
    let (ours, other) = (peer.listen("[::1]"), peer.listen("[::1]"));
    let kernel = peer.attach(&[ours]);
    peer.connect("[::1]", other.port(), 2);
    peer.connect("[::1]", ours.port(), 3);
    expect(&kernel, v6(3, 3));
}

#[test]
fn a_listener_on_every_address_takes_both_families() {
    let mut peer = Peer::new();
    let ours = peer.listen("[::]");
    let kernel = peer.attach(&[ours]);
    peer.connect("127.0.0.1", ours.port(), 2);
    peer.connect("127.0.0.2", ours.port(), 1);
    expect(&kernel, v4(3, 3));
    peer.connect("[::1]", ours.port(), 4);
    peer.connect("[::ffff:127.0.0.1]", ours.port(), 5);
    expect(&kernel, v4(8, 8) + v6(4, 4));
}

#[test]
fn a_listener_on_every_ipv4_address() {
    let mut peer = Peer::new();
    let ours = peer.listen("0.0.0.0");
    let kernel = peer.attach(&[ours]);
    peer.connect("127.0.0.1", ours.port(), 2);
    expect(&kernel, v4(2, 2));
}

#[test]
fn the_same_port_on_another_address_is_a_stranger() {
    let mut peer = Peer::new();
    let ours = peer.listen("127.0.0.1");
    let stranger = peer.command("listen", SocketAddr::new([127, 0, 0, 2].into(), ours.port()));
    let kernel = peer.attach(&[ours]);
    peer.connect("127.0.0.2", stranger, 3);
    peer.connect("127.0.0.1", ours.port(), 1);
    expect(&kernel, v4(1, 1));
}

#[test]
fn sockets_outside_the_cgroup_are_not_seen() {
    let mut inside = Peer::new();
    let mut outside = Peer::new();
    let ours = outside.listen("127.0.0.1");
    let kernel = inside.attach(&[ours]);
    outside.connect("127.0.0.1", ours.port(), 4);
    inside.connect("127.0.0.1", ours.port(), 2);
    expect(&kernel, v4(0, 2));
}

#[test]
fn two_agents_count_side_by_side() {
    let mut peer = Peer::new();
    let (first, second) = (peer.listen("127.0.0.1"), peer.listen("127.0.0.1"));
    let kernels = (peer.attach(&[first]), peer.attach(&[second]));
    peer.connect("127.0.0.1", first.port(), 1);
    peer.connect("127.0.0.1", second.port(), 2);
    expect(&kernels.0, v4(1, 1));
    expect(&kernels.1, v4(2, 2));
}

#[test]
fn nothing_is_lost_when_many_connect_at_once() {
    const EACH: usize = 300;
    let mut peer = Peer::new();
    let ours = peer.listen("127.0.0.1");
    let kernel = peer.attach(&[ours]);
    let callers: Vec<Peer> = (0..3).map(|_| Peer::inside(peer.cgroup.clone())).collect();
    let threads = callers.into_iter().map(|mut caller| {
        std::thread::spawn(move || {
            caller.connect("127.0.0.1", ours.port(), EACH);
            caller
        })
    });
    let threads: Vec<_> = threads.collect();
    let callers: Vec<Peer> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let all = (callers.len() * EACH) as u64;
    expect(&kernel, v4(all, all));
}

#[test]
fn dropping_it_detaches() {
    let mut peer = Peer::new();
    let ours = peer.listen("127.0.0.1");
    let (first, second) = (peer.attach(&[ours]), peer.attach(&[ours]));
    peer.connect("127.0.0.1", ours.port(), 1);
    expect(&first, v4(1, 1));
    drop(first);
    peer.connect("127.0.0.1", ours.port(), 1);
    expect(&second, v4(2, 2));
    let program = program(&second);
    assert!(loaded(program), "the program is not found even while it is loaded");
    drop(second);
    let deadline = Instant::now() + Duration::from_secs(5);
    while loaded(program) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(!loaded(program), "the program stayed behind");
}

fn program(kernel: &Kernel) -> u32 {
    kernel.programs.program("established").unwrap().info().unwrap().id()
}

fn loaded(program: u32) -> bool {
    // One that goes while the list is read is an error in the list.
    aya::programs::loaded_programs().filter_map(Result::ok).any(|info| info.id() == program)
}

#[test]
fn a_wrong_cgroup_is_named() {
    let attach = |path: PathBuf| Kernel::attach(&Options { cgroup: Some(path), ..Options::default() }).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    let error = attach(folder.path().to_path_buf());
    assert!(matches!(error, AttachError::NotCgroup2 { .. }), "{error}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    let error = attach(PathBuf::from("/no/such/cgroup"));
    assert!(matches!(error, AttachError::Cgroup { .. }), "{error}");
}
