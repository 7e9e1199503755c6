//! The agent's configuration: one TOML file, checked as a whole before any of it applies.
//!
//! [`load()`] and [`parse`] give a [`Checked`] configuration, or every problem of the file at once, each with its line, what was found,
//! what was expected and what to do. The types of the sections are the only truth about keys, bounds and defaults: their JSON schema
//! ([`schema()`]) is what a file is checked against, and what the default file and the reference are made from.

mod check;
mod effective;
mod failover;
mod key;
mod load;
mod namespaces;
mod overload;
mod peers;
mod policy;
mod problem;
mod reference;
mod schema;
mod sections;
mod shape;
mod source;
#[cfg(test)]
mod tests;
pub mod traffic;
mod words;

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32, path::PathBuf};

use agent_common::frame;
use serde::{Deserialize, Serialize};

pub(crate) use check::wrong_uri;
pub use effective::effective;
pub use failover::{Failover, FailoverApplication};
pub use key::KeyPath;
pub use load::{load, parse};
pub use namespaces::{Cgroups, Namespaces};
pub use overload::Overload;
pub use policy::{Health, HealthCheck, ServicePolicy};
pub use problem::{ConfigError, Problem, Report};
pub use reference::{default_file, reference, with_reference};
pub use schema::schema;
pub use sections::{Agent, App, Kernel, KernelMode, Metrics, Tracing, Tunnel};
pub(crate) use words::suggestion;

/// The sections with every key filled in, peers and services aside.
///
/// `app.listen`, `tunnel.listen` and `metrics.listen` are resolved: what the command line says, else the file, else what the instance's
/// name gives.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Config {
    /// The agent's process.
    pub agent: Agent,
    /// The side of the applications: Redis and frames.
    pub app: App,
    /// The connections with other agents.
    pub tunnel: Tunnel,
    /// What the agent bears.
    pub overload: Overload,
    /// The way through the kernel.
    pub kernel: Kernel,
    /// Network namespaces that are served from inside.
    pub namespaces: Namespaces,
    /// Who calls, by cgroup.
    pub cgroups: Cgroups,
    /// What becomes of applications whose agent is gone.
    pub failover: Failover,
    /// Metrics and health for machines.
    pub metrics: Metrics,
    /// Spans of calls for a collector.
    pub tracing: Tracing,
    /// What every service has unless its own section says otherwise.
    pub defaults: ServicePolicy,
}

/// A configuration that was checked as a whole, with every key filled in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checked {
    /// The file it came from; none if there is no file.
    pub path: Option<PathBuf>,
    /// The sections.
    pub config: Config,
    /// The other agents, sorted by name.
    pub peers: Vec<CheckedPeer>,
    /// The services, each with its whole policy, in the order of their URIs.
    pub services: Vec<CheckedService>,
    /// Where each key came from that does not have its default, by key path.
    pub origins: BTreeMap<String, Origin>,
}

/// Another agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedPeer {
    /// What the file calls it: lower-case letters, digits, `-` and `.`, at most 64.
    pub name: String,
    /// Where it listens for other agents; no two peers share it.
    pub address: SocketAddr,
    /// Where it takes applications of agents that are gone; none if it takes none.
    pub failover: Option<SocketAddr>,
    /// Its zone; empty if it is not known.
    pub zone: String,
    /// Its data centre; empty if it is not known.
    pub data_centre: String,
}

/// A service with its whole policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckedService {
    /// Its URI.
    pub uri: String,
    /// Its group; empty for the default one. In the file it stands behind the URI, after a `#`.
    pub group: String,
    /// Its instances, none twice. There may be none: agents can serve it, and applications that offer it.
    pub instances: Vec<CheckedInstance>,
    /// The peers that serve it, by name, each one of [`Checked::peers`] and none twice.
    pub agents: Vec<String>,
    /// `[defaults]` with the service's own keys laid over it.
    pub policy: ServicePolicy,
}

/// A server of a service. As data it is as in the file: its address, or a table if more is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "schema::Address", into = "schema::Address")]
pub struct CheckedInstance {
    /// Where it listens.
    pub address: SocketAddr,
    /// The network namespace that it is in, as `[namespaces]` calls it; none for the agent's own.
    pub namespace: Option<String>,
    /// What is known of it.
    pub traits: Traits,
}

/// What is known of an instance besides its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traits {
    /// Its share of the calls, in relation to the others'; 1 to 10,000. 100 unless the file says otherwise.
    pub weight: u32,
    /// Its zone; empty if it is not known.
    pub zone: String,
    /// Its data centre; empty if it is not known.
    pub data_centre: String,
    /// Its environment, such as `pre`; empty if it serves all.
    pub environment: String,
    /// Whatever else rules can choose it by.
    pub labels: BTreeMap<String, String>,
}

impl CheckedService {
    /// Its name in the file: its URI, and behind a `#` its group if it has one.
    #[must_use]
    pub fn name(&self) -> String {
        if self.group.is_empty() { self.uri.clone() } else { format!("{}#{}", self.uri, self.group) }
    }
}

impl Default for Traits {
    fn default() -> Self {
        Self { weight: 100, zone: String::new(), data_centre: String::new(), environment: String::new(), labels: BTreeMap::new() }
    }
}

/// What an application says of itself counts as if it stood in the file.
impl From<&frame::Traits> for Traits {
    fn from(said: &frame::Traits) -> Self {
        let (usual, environment, labels) = (Self::default(), said.environment.clone(), said.labels.clone());
        Self { weight: said.weight.map_or(usual.weight, NonZeroU32::get), environment, labels, ..usual }
    }
}

/// Where the value of a key came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The key's default.
    Default,
    /// The ports that belong to the instance's name, or `--port-base`.
    Ports,
    /// This line of the file.
    Line(usize),
    /// A flag of the command line, which is stronger than the file.
    Flag(String),
}

/// What the instance and the command line decide about the configuration; a reload keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// `app.listen` unless the file has it.
    pub app_default: SocketAddr,
    /// `tunnel.listen` unless the file has it.
    pub tunnel_default: SocketAddr,
    /// `metrics.listen` unless the file has it.
    pub metrics_default: SocketAddr,
    /// `--app-listen`: stronger than the file.
    pub app_listen: Option<SocketAddr>,
    /// `--tunnel-listen`: stronger than the file.
    pub tunnel_listen: Option<SocketAddr>,
    /// `--metrics-listen`: stronger than the file.
    pub metrics_listen: Option<SocketAddr>,
    /// `--failover-listen`: stronger than the file.
    pub failover_listen: Option<SocketAddr>,
    /// `--kernel`: stronger than the file.
    pub kernel_mode: Option<KernelMode>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            app_default: App::default().listen,
            tunnel_default: Tunnel::default().listen,
            metrics_default: Metrics::default().listen,
            app_listen: None,
            tunnel_listen: None,
            metrics_listen: None,
            failover_listen: None,
            kernel_mode: None,
        }
    }
}
