//! `/v1/failover`: where connects to this agent go when it cannot take them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/failover`, and the answer to `POST /v1/failover/on` and `off`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Failover {
    /// Whether connects are diverted at all.
    pub on: bool,
    /// Where applications connect to this agent.
    pub gates: Vec<Gate>,
    /// The other agents that take them.
    pub siblings: Vec<Sibling>,
    /// How often each thing was decided about a connect, by name, since the hooks were made.
    pub decisions: BTreeMap<String, u64>,
    /// The side of other agents' applications.
    #[serde(default)]
    pub foreign: Option<Foreign>,
}

/// Where applications connect to this agent.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Gate {
    /// The network namespace; none for the agent's own.
    pub namespace: Option<String>,
    /// The address there.
    pub address: String,
    /// Who is there; empty if that is not known.
    pub application: String,
    /// The siblings that take them, by name, in the order of preference.
    pub siblings: Vec<String>,
}

/// An agent that takes this one's applications.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sibling {
    /// What the configuration calls it.
    pub name: String,
    /// Where it takes them.
    pub address: String,
    /// Whether it is believed to.
    pub alive: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Connects that were diverted to it.
    pub diverted_total: u64,
    /// How many of those failed.
    pub failed_total: u64,
}

/// Applications of other agents.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Foreign {
    /// Where they are taken.
    pub listen: String,
    /// Open connections, by application.
    pub connections: BTreeMap<String, u64>,
    /// Connections that were taken.
    pub accepted_total: u64,
    /// Connections that were turned away, as their address belongs to no application.
    pub refused_total: u64,
}
