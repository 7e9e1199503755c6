//! Several servers of one service behind one agent.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{
    Agent, DEMO,
    client::Client,
    config, envelope,
    fake::{Answer, Call, FakeMoa},
    wait::until_true,
};

/// One worker, so that what a worker does in turn is in turn.
pub const ONE: &str = "[agent]\nworkers = 1\n";

/// An agent and the servers of [`DEMO`].
pub struct Several {
    /// The agent.
    pub agent: Agent,
    /// The servers.
    pub fakes: Vec<FakeMoa>,
    head: String,
}

impl Several {
    /// Starts so many servers, and an agent of one worker; `policy` is more of the service's section.
    pub fn start(count: usize, policy: &str) -> Self {
        Self::with((0..count).map(|_| FakeMoa::start()).collect(), ONE, policy)
    }

    /// Starts an agent for these servers; `head` is what its configuration begins with.
    pub fn with(fakes: Vec<FakeMoa>, head: &str, policy: &str) -> Self {
        let agent = Agent::start(&config_of(head, &addresses(&fakes), policy));
        Self { agent, fakes, head: head.to_owned() }
    }

    /// Gives the service another policy.
    pub fn reload(&self, policy: &str) {
        self.agent.reload(&config_of(&self.head, &addresses(&self.fakes), policy));
    }

    /// Gives the service other instances, by their numbers, and another policy.
    pub fn reload_with(&self, servers: &[usize], policy: &str) {
        let addresses: Vec<_> = servers.iter().map(|server| self.fakes[*server].address()).collect();
        self.agent.reload(&config_of(&self.head, &addresses, policy));
    }

    /// Has each server answer like this; the first argument is its number.
    pub fn script(&self, script: impl Fn(usize, &Call) -> Answer + Clone + Send + Sync + 'static) {
        for (number, fake) in self.fakes.iter().enumerate() {
            let script = script.clone();
            fake.script(move |call| script(number, call));
        }
    }

    /// A connection of a Redis client.
    pub fn connect(&self) -> Client {
        self.agent.connect()
    }

    /// Calls that each server has got.
    pub fn calls(&self) -> Vec<usize> {
        self.fakes.iter().map(|fake| fake.counts().calls).collect()
    }

    /// Calls that all servers have got.
    pub fn sum(&self) -> usize {
        self.calls().iter().sum()
    }

    /// Calls with this text in them that each server has got.
    pub fn seen(&self, text: &str) -> Vec<usize> {
        let has = |request: &Vec<u8>| String::from_utf8_lossy(request).contains(text);
        self.fakes.iter().map(|fake| fake.requests().iter().filter(|request| has(request)).count()).collect()
    }

    /// What the agent counts of the service's calls.
    pub fn stats(&self) -> Value {
        stats(&self.agent)
    }

    /// What the agent says of one server.
    pub fn instance(&self, server: usize) -> Value {
        self.agent.instance(DEMO, self.fakes[server].address()).expect("an instance")
    }

    /// Waits until the agent counts no calls in flight, of the service and of each server.
    pub fn await_idle(&self) {
        until_true(&format!("no calls in flight: {}", self.agent.json(&["services", DEMO])), || {
            let services = self.agent.json(&["services", DEMO]);
            let instances = services[0]["instances"].as_array().expect("a list");
            services[0]["stats"]["in_flight"] == 0
                && instances.iter().all(|one| one["stats"]["in_flight"] == 0 && one["queued"] == 0)
        });
    }
}

/// What an agent counts of the calls of [`DEMO`].
pub fn stats(agent: &Agent) -> Value {
    agent.json(&["services", DEMO])[0]["stats"].clone()
}

/// A call of [`DEMO`].
pub fn call_of(method: &str, text: &str) -> String {
    envelope(DEMO, method, &json!(text).to_string())
}

/// The answer that says which server has given it.
pub fn by(server: usize) -> Answer {
    Answer::ok(&json!(server))
}

fn addresses(fakes: &[FakeMoa]) -> Vec<SocketAddr> {
    fakes.iter().map(FakeMoa::address).collect()
}

fn config_of(head: &str, servers: &[SocketAddr], policy: &str) -> String {
    let health = if policy.contains("health") { "" } else { config::NO_HEALTH_CHECK };
    format!("{head}{}", config::service(DEMO, servers, &format!("{health}\n{policy}")))
}
