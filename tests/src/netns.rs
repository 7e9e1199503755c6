//! Nodes joined by cables: network namespaces of a test's own, with nothing of one in the other but what a cable brings.
//!
//! The namespaces have no names: they and their cables are gone when the test's process and those that it started are,
//! however they end.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Agent, agent::Prepared};

/// Where agents of nodes listen for each other.
const TUNNEL_PORT: u16 = 13_100;

/// A machine of its own, as far as its network goes.
pub struct Node {
    namespace: File,
}

/// A cable between two nodes.
pub struct Cable<'a> {
    ends: [End<'a>; 2],
    device: String,
}

struct End<'a> {
    node: &'a Node,
    address: Ipv4Addr,
}

impl Node {
    /// A node with nothing but its loopback.
    ///
    /// # Panics
    /// Without the rights for it.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes network namespaces: run it as root");
            File::open("/proc/thread-self/ns/net").expect("the file of a network namespace")
        });
        let node = Self { namespace: made.join().expect("a network namespace") };
        node.run("ip", &["link", "set", "lo", "up"]);
        node
    }

    /// Runs something there: the sockets that it opens, the threads and the processes that it starts belong to the node.
    ///
    /// # Panics
    /// If what it runs does.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
                run()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Prepares an agent there that has this configuration; other agents connect to it at one end of a cable.
    pub fn prepare(&self, cable: &Cable<'_>, config: &str) -> Prepared {
        let tunnel = cable.tunnel_of(self);
        self.inside(|| Agent::prepare(config).tunnel_at(tunnel))
    }

    /// Starts an agent there.
    pub fn start(&self, cable: &Cable<'_>, config: &str) -> Agent {
        let prepared = self.prepare(cable, config);
        self.inside(|| prepared.start())
    }

    /// Starts one once more after its end.
    pub fn start_again(&self, agent: &mut Agent) {
        self.inside(|| agent.start_again());
    }

    /// Its file, for as long as it is there.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Runs a program there, which must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn run(&self, program: &str, words: &[&str]) {
        self.inside(|| {
            let output = Command::new(program).args(words).output();
            let output = output.unwrap_or_else(|error| panic!("this test needs {program} ({error}): run `cargo xtask setup`"));
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {}: {error}", words.join(" "));
        });
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Cable<'a> {
    /// Joins two nodes.
    pub fn between(one: &'a Node, other: &'a Node) -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let device = format!("cable{number}");
        one.run("ip", &["link", "add", &device, "type", "veth", "peer", "name", &device, "netns", &other.path()]);
        let end = |node, last| End { node, address: Ipv4Addr::new(10, 77, number, last) };
        let cable = Self { ends: [end(one, 1), end(other, 2)], device };
        for End { node, address } in &cable.ends {
            node.run("ip", &["address", "add", &format!("{address}/24"), "dev", &cable.device]);
            node.run("ip", &["link", "set", &cable.device, "up"]);
        }
        cable
    }

    /// Where an agent on this node listens for others.
    pub fn tunnel_of(&self, node: &Node) -> SocketAddr {
        self.address_of(node, TUNNEL_PORT)
    }

    /// An address of this node, as it is reached from the other one.
    ///
    /// # Panics
    /// If the cable does not lead there.
    pub fn address_of(&self, node: &Node, port: u16) -> SocketAddr {
        let end = self.ends.iter().find(|end| std::ptr::eq(end.node, node)).expect("a node that the cable leads to");
        (end.address, port).into()
    }

    /// Loses everything from now on, in both directions; nobody is told.
    pub fn lose(&self) {
        for (own, other) in [(0, 1), (1, 0)] {
            // Addressed to a device that is not there, each packet is dropped where it arrives.
            let address = self.ends[other].address.to_string();
            let nowhere = ["lladdr", "02:00:00:00:00:01", "dev", &self.device, "nud", "permanent"];
            self.ends[own].node.run("ip", &[&["neighbour", "replace", &address][..], &nowhere].concat());
        }
    }

    /// Loses nothing any more.
    pub fn lose_nothing(&self) {
        for (own, other) in [(0, 1), (1, 0)] {
            let address = self.ends[other].address.to_string();
            self.ends[own].node.run("ip", &["neighbour", "delete", &address, "dev", &self.device]);
        }
    }

    /// Takes it out of the second node, or puts it back; the first one is told that nothing is at the other end.
    pub fn plug(&self, plugged: bool) {
        self.ends[1].node.run("ip", &["link", "set", &self.device, if plugged { "up" } else { "down" }]);
    }

    /// Makes it as slow as this, such as `5mbit`, in each direction.
    pub fn slow_down(&self, rate: &str) {
        for End { node, .. } in &self.ends {
            let bucket = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "100ms"];
            node.run("tc", &[&["qdisc", "replace", "dev", &self.device][..], &bucket].concat());
        }
    }
}
