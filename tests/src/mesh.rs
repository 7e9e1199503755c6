//! Two agents on two nodes: one whose applications call, and one that has the service.

use std::net::SocketAddr;

use crate::{
    Agent, DEMO, FakeMoa,
    client::Client,
    config,
    frames::{FramePeer, caller},
    judge::{Judge, Verdict},
    load::{Account, Load},
    netns::{Cable, Node},
    wait::until_true,
};

/// The agent near the callers, and the one far from them.
pub struct Mesh<'a> {
    /// Where the callers are.
    pub near_node: &'a Node,
    /// Where the service is.
    pub far_node: &'a Node,
    /// What joins them.
    pub cable: &'a Cable<'a>,
    /// The agent that the callers call. It knows the other one as `far`.
    pub near: Agent,
    /// The agent that has the service.
    pub far: Agent,
    /// The service.
    pub fake: FakeMoa,
}

impl<'a> Mesh<'a> {
    /// Starts them; `near` and `far` are further lines of their configurations, `policy` of the service's section at both.
    pub fn start(nodes: &'a [Node; 2], cable: &'a Cable<'a>, [near, far]: [&str; 2], policy: &str) -> Self {
        let [near_node, far_node] = nodes;
        let fake = far_node.inside(FakeMoa::start);
        let policy = format!("{policy}\n{}", config::NO_HEALTH_CHECK);
        let far = far_node.start(cable, &format!("{far}\n{}", config::service(DEMO, &[fake.address()], &policy)));
        let peer = config::peer("far", cable.tunnel_of(far_node));
        let near = format!("{near}\n{peer}{}", config::served_by(DEMO, &[], &["far"], &policy));
        let near = near_node.start(cable, &near);
        let mesh = Self { near_node, far_node, cable, near, far, fake };
        mesh.await_service();
        mesh
    }

    /// A Redis client of the near agent.
    pub fn client(&self) -> Client {
        self.near_node.inside(|| self.near.connect())
    }

    /// A client of the near agent that speaks frames.
    pub fn frames(&self) -> FramePeer {
        self.near_node.inside(|| FramePeer::connect(self.near.address(), &caller()))
    }

    /// Waits until calls are answered by way of every worker.
    pub fn await_service(&self) {
        // A new connection each time, so that every worker has its turn.
        let mut in_a_row = 0;
        until_true("the service to be reached", || {
            let ask = Judge.ask(DEMO, 10);
            let verdict = ask.judge(&self.client().get(&ask.json));
            in_a_row = if verdict == Verdict::Right { in_a_row + 1 } else { 0 };
            in_a_row == 20
        });
    }

    /// Waits until the near agent counts the far one as there, or not.
    pub fn await_tunnel(&self, up: bool) {
        until_true(&format!("the tunnel to be {}", if up { "open" } else { "down" }), || self.tunnel().0 == up);
    }

    /// Whether the near agent counts the far one as there, and why.
    pub fn tunnel(&self) -> (bool, String) {
        tunnel(&self.near, "far")
    }

    /// Starts callers that are Redis clients.
    pub fn load_redis(&self) -> Load {
        self.near_node.inside(|| Load::start(self.near.address(), &[DEMO], 4))
    }

    /// Starts callers of both kinds.
    pub fn load(&self) -> [Load; 2] {
        load(self.near_node, self.near.address())
    }
}

/// Starts callers of both kinds at a node, which call this address of an agent there.
pub fn load(node: &Node, address: SocketAddr) -> [Load; 2] {
    node.inside(|| [Load::start(address, &[DEMO], 4), Load::start_frames(address, &[DEMO], 4)])
}

/// Whether an agent counts a peer as there that serves [`DEMO`], and why, as `moa services` tells.
pub fn tunnel(agent: &Agent, peer: &str) -> (bool, String) {
    let services = agent.json(&["services"]);
    let service = services.as_array().and_then(|all| all.iter().find(|service| service["uri"] == DEMO));
    let instances = service.and_then(|service| service["instances"].as_array()).expect("the service's instances");
    let name = format!("agent {peer}");
    let instance = instances.iter().find(|instance| instance["address"] == name.as_str()).expect("the peer");
    (instance["healthy"] == true, instance["reason"].as_str().unwrap_or_default().to_owned())
}

/// Stops them and expects that calls only failed as they may while the other agent is not reached, with a text that says who
/// that is. Returns how many did.
///
/// # Panics
/// If one failed otherwise.
pub fn expect_only_unreached(load: [Load; 2], peer: &str) -> u64 {
    load.into_iter().map(|load| only_unreached(&load.stop(), peer)).sum()
}

fn only_unreached(account: &Account, peer: &str) -> u64 {
    println!("{account:?}");
    assert!(account.right > 0, "no call was answered: {account:?}");
    assert!(account.failed.keys().all(|code| [303, 304].contains(code)), "{account:?}");
    assert!(account.texts.iter().all(|text| text.contains(peer)), "a text names no {peer}: {account:?}");
    account.failures()
}
