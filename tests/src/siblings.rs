//! Agents that stand in for each other: nodes joined by a switch, each with an agent, a server, and pods with applications.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Agent, Client, DEMO, FakeMoa, Reply, echo,
    fleet::says_name,
    netns::Node,
    pods::{AGENT, Pod, Pods},
    wait::{PATIENCE, until_true, until_within},
};

/// Where each agent takes applications of others.
pub const FAILOVER_PORT: u16 = 13_001;
/// Where each agent takes tunnels.
const TUNNEL_PORT: u16 = 13_100;
/// Where each node's server listens, on its loopback.
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5_000);
/// Who is in the pods.
pub const SHOP: &str = "shop";

/// Nodes that reach each other.
pub struct Cluster {
    switch: Node,
    /// The nodes, from 1 on in names and addresses.
    pub hosts: Vec<Host>,
}

/// A node with an agent.
pub struct Host {
    // Before what it stands on.
    /// The agent, if it was started.
    agent: Option<Agent>,
    /// Its server, which answers with the node's name.
    pub fake: FakeMoa,
    pods: Pods,
    node: Arc<Node>,
    number: u8,
    config: String,
}

impl Cluster {
    /// So many nodes, each with a running agent that knows the others to live; `more` is more of each one's configuration.
    pub fn start(count: u8, more: &str) -> Self {
        let mut cluster = Self::prepare(count, more);
        cluster.hosts.iter_mut().for_each(Host::start);
        for host in &cluster.hosts {
            let others = cluster.hosts.iter().filter(|other| other.number != host.number);
            others.for_each(|other| host.await_sibling(&other.name(), true));
        }
        cluster
    }

    /// The same, without agents.
    pub fn prepare(count: u8, more: &str) -> Self {
        let switch = Node::new();
        switch.run("ip", &["link", "add", "switch", "type", "bridge"]);
        switch.run("ip", &["link", "set", "switch", "up"]);
        let hosts = (1..=count).map(|number| Host::new(&switch, number, count, more)).collect();
        Self { switch, hosts }
    }

    /// Pulls a node's cable, or puts it back. The node itself is not told.
    pub fn plug(&self, host: usize, plugged: bool) {
        let port = format!("port{}", self.hosts[host].number);
        self.switch.run("ip", &["link", "set", &port, if plugged { "up" } else { "down" }]);
    }
}

impl Host {
    fn new(switch: &Node, number: u8, count: u8, more: &str) -> Self {
        let node = Arc::new(Node::new());
        let port = format!("port{number}");
        switch.run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &node.path()]);
        switch.run("ip", &["link", "set", &port, "master", "switch", "up"]);
        node.run("ip", &["address", "add", &format!("{}/24", address_of(number)), "dev", "eth0"]);
        node.run("ip", &["link", "set", "eth0", "up"]);
        node.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        for other in (1..=count).filter(|other| *other != number) {
            let pods = format!("10.79.{other}.0/24");
            node.run("ip", &["route", "add", &pods, "via", &address_of(other).to_string()]);
        }
        let fake = node.inside(|| FakeMoa::builder().at(SERVER).start());
        says_name(&fake, &format!("node-{number}"));
        let pods = Pods::on(node.clone());
        let config = config(number, count, &pods, more);
        Self { agent: None, fake, pods, node, number, config }
    }

    /// Its name.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Where its agent takes applications of others.
    pub fn failover_address(&self) -> SocketAddr {
        (address_of(self.number), FAILOVER_PORT).into()
    }

    /// Its agent.
    ///
    /// # Panics
    /// If there is none.
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent")
    }

    /// The same, to stop it.
    ///
    /// # Panics
    /// If there is none.
    pub fn agent_mut(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("an agent")
    }

    /// What its agent is configured by.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Runs something there.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        self.node.inside(run)
    }

    /// Runs a program there, which must succeed.
    pub fn run(&self, program: &str, words: &[&str]) {
        self.node.run(program, words);
    }

    /// Starts its agent.
    pub fn start(&mut self) {
        let tunnel = (address_of(self.number), TUNNEL_PORT).into();
        let prepared = self.node.inside(|| Agent::prepare(&self.config)).tunnel_at(tunnel).kernel("on");
        self.agent = Some(self.node.inside(|| prepared.start()));
    }

    /// Starts it once more after its end.
    pub fn start_again(&mut self) {
        let node = self.node.clone();
        let agent = self.agent_mut();
        node.inside(|| agent.start_again());
    }

    /// A pod there with an application, which its agent serves.
    pub fn pod(&self, name: &str, last: u8) -> Pod {
        let pod = self.pod_unserved(name, last);
        pod.await_agent();
        pod
    }

    /// The same, without waiting for anybody.
    pub fn pod_unserved(&self, name: &str, last: u8) -> Pod {
        let pod = self.pods.pod(name);
        pod.join(&self.node, Ipv4Addr::new(10, 79, self.number, last));
        pod
    }

    /// Its pods' files.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// How often its kernel decided this about a connect.
    pub fn decided(&self, decision: &str) -> u64 {
        self.agent().json(&["failover"])["decisions"][decision].as_u64().expect("a number")
    }

    /// Waits until its agent believes in a sibling, or does not.
    pub fn await_sibling(&self, name: &str, alive: bool) {
        until_true(&format!("{name} to be found {}", if alive { "alive" } else { "dead" }), || {
            let all = self.agent().json(&["failover"])["siblings"].clone();
            all.as_array().into_iter().flatten().any(|sibling| sibling["name"] == name && sibling["alive"] == alive)
        });
    }
}

fn address_of(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number)
}

fn config(number: u8, count: u8, pods: &Pods, more: &str) -> String {
    let mut config = format!(
        "{more}\n[failover]\nlisten = \"{}:{FAILOVER_PORT}\"\nprobe_ms = 200\n\
         [failover.applications.{SHOP}]\naddresses = [\"10.79.0.0/16\"]\n\
         [services.\"{DEMO}\"]\ninstances = [\"{SERVER}\"]\nhealth.interval_ms = 200\n",
        address_of(number)
    );
    let names: Vec<_> = (1..=32).map(|pod| format!("pod-{pod} = \"{SHOP}\"")).collect();
    config += &pods.section(&format!("applications = {{ {} }}", names.join(", ")));
    for other in (1..=count).filter(|other| *other != number) {
        let address = address_of(other);
        config +=
            &format!("[peers.node-{other}]\naddress = \"{address}:{TUNNEL_PORT}\"\nfailover = \"{address}:{FAILOVER_PORT}\"\n");
    }
    config
}

/// What became of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// This node's server answered.
    Served(String),
    /// The connect was refused.
    Refused,
    /// The connection ended before its answer: taken by a backlog that died.
    Reset,
    /// Anything else, which should not be.
    Failed(String),
}

/// One call, from before its connect.
#[derive(Debug, Clone)]
pub struct Tried {
    /// When it began.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What became of it.
    pub became: Became,
}

/// An application in a pod that connects anew for each call, as PHP does: unmodified, without any retry.
pub struct Shopper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Tried>>,
    seen: Arc<std::sync::Mutex<Vec<Tried>>>,
}

impl Shopper {
    /// Calls until it is stopped.
    pub fn start(pod: &Pod) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Vec::new())));
        let (stopped, sees) = (stop.clone(), seen.clone());
        let thread = pod.inside(|| {
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    sees.lock().expect("what it has seen").push(call_once());
                }
                std::mem::take(&mut *sees.lock().expect("what it has seen"))
            })
        });
        Self { stop, thread, seen }
    }

    /// Waits until a call that began from now on was served by a node.
    pub fn await_served_by(&self, node: &str) {
        let (now, node) = (Instant::now(), Became::Served(node.to_owned()));
        until_within(PATIENCE, &format!("a call to be {node:?}"), || {
            let seen = self.seen.lock().expect("what it has seen");
            seen.iter().rev().take_while(|tried| tried.at >= now).any(|tried| tried.became == node).then_some(())
        });
    }

    /// What became of all its calls.
    pub fn stop(self) -> Vec<Tried> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("an application")
    }
}

/// Connects and calls from the namespace of the calling thread.
pub fn call_once() -> Tried {
    let at = Instant::now();
    let became = match Client::try_connect(AGENT) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Became::Refused,
        Err(error) => Became::Failed(format!("connecting: {error}")),
        Ok(mut client) => match client.try_get(&echo("x")) {
            Ok(Reply::Bulk(answer)) => served_by(&answer),
            Ok(other) => Became::Failed(other.brief()),
            Err(error) if is_end(&error) => Became::Reset,
            Err(error) => Became::Failed(error.to_string()),
        },
    };
    Tried { at, took: at.elapsed(), became }
}

/// Which node's server gave an answer.
pub fn served_by(answer: &[u8]) -> Became {
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    match answer["result"].as_str() {
        Some(name) => Became::Served(name.to_owned()),
        None => Became::Failed(answer.to_string()),
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// How many calls became this.
pub fn count(tries: &[Tried], became: &Became) -> usize {
    tries.iter().filter(|tried| tried.became == *became).count()
}
