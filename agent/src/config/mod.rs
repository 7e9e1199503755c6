//! The agent's configuration: one TOML file, checked as a whole before any of it applies.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The agent's process.
    pub agent: Agent,
    /// The side of the applications: a Redis server.
    pub app: App,
    /// Metrics and health for machines.
    pub metrics: Metrics,
    /// What every service has unless its own section says otherwise.
    pub defaults: ServicePolicy,
    /// The services that can be called, by URI.
    pub services: BTreeMap<String, Service>,
}

/// The agent's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Worker threads; 0 is one for each CPU that the process may use.
    pub workers: usize,
    /// Calls in flight in the whole agent; one more is answered with 504.
    pub calls_in_flight_max: usize,
    /// Bytes of requests and answers that may wait in the whole agent; at the bound a call is answered with 504.
    pub queued_bytes_max: usize,
    /// How long a graceful stop waits for calls in flight, in milliseconds.
    pub drain_timeout_ms: u64,
}

/// The side of the applications.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct App {
    /// The address that applications call.
    pub listen: SocketAddr,
    /// Open connections; 0 is what the file limit allows, less a reserve for backends. One more gets `-ERR max number of clients reached`.
    pub connections_max: usize,
    /// Calls in flight on one connection; one more is answered with 504 in its place.
    pub pipeline_max: usize,
    /// Bytes of one argument; a longer one is answered with 302 in its place.
    pub argument_bytes_max: usize,
    /// Bytes of one command with all its arguments; a longer one is answered with 302 in its place.
    pub command_bytes_max: usize,
    /// Bytes of answers that may wait for one application to read them; at the bound the agent stops reading its calls.
    pub queued_bytes_max: usize,
    /// Keys of one MGET; one more is a protocol error.
    pub mget_keys_max: usize,
    /// How long a whole MGET may take, in milliseconds; calls that are late are answered with 304 in their place.
    pub mget_timeout_ms: u64,
}

/// Metrics and health for machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The address of `/metrics`, `/live` and `/ready`.
    pub listen: SocketAddr,
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Its instances, as `host:port`.
    pub instances: Vec<SocketAddr>,
    /// What differs from `[defaults]`.
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub policy: BTreeMap<String, toml::Value>,
}

/// How the calls of a service are handled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServicePolicy {
    /// How long a call may take, in milliseconds.
    pub timeout_ms: u64,
    /// Whether the servers answer in order, so that several calls can share a connection.
    pub pipelined: bool,
    /// Calls in flight on one connection, if `pipelined`.
    pub pipeline_max: usize,
    /// Bytes of a call's JSON; a longer one is answered with 302 and not sent. Servers of 2016 reset the connection at 32,768.
    pub argument_bytes_max: usize,
    /// Connections to one instance that a worker opens at most.
    pub connections_max: usize,
    /// Connections to one instance that a worker keeps open from the start.
    pub connections_min: usize,
    /// How long opening a connection may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long an unused connection above `connections_min` stays open, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Calls that may wait for a connection to one instance, in a worker; one more is answered with 504.
    pub queue_max: usize,
    /// How an instance's health is checked.
    pub health: Health,
}

/// How an instance's health is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// What is sent.
    pub check: HealthCheck,
    /// The JSON of the call that is sent, if `check = "call"`; it is healthy if it is answered with `ec` 0 or 200.
    pub call: Option<String>,
    /// Time between two checks, in milliseconds.
    pub interval_ms: u64,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Good answers in a row that bring an instance back.
    pub healthy_after: u32,
    /// Bad answers in a row that take an instance out.
    pub unhealthy_after: u32,
}

/// What a health check sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheck {
    /// Nothing: every instance counts as healthy.
    Off,
    /// `PING`, answered by `+PONG`.
    Ping,
    /// The call of `health.call`.
    Call,
}

impl Default for Agent {
    fn default() -> Self {
        Self { workers: 0, calls_in_flight_max: 100_000, queued_bytes_max: 512 << 20, drain_timeout_ms: 10_000 }
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 13000)),
            connections_max: 0,
            pipeline_max: 4096,
            argument_bytes_max: 1 << 20,
            command_bytes_max: 4 << 20,
            queued_bytes_max: 4 << 20,
            mget_keys_max: 512,
            mget_timeout_ms: 4_500,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 13900)) }
    }
}

impl Default for ServicePolicy {
    fn default() -> Self {
        Self {
            timeout_ms: 4_500,
            pipelined: false,
            pipeline_max: 1024,
            argument_bytes_max: 32_767,
            connections_max: 64,
            connections_min: 0,
            connect_timeout_ms: 1_000,
            idle_timeout_ms: 60_000,
            queue_max: 1024,
            health: Health::default(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { check: HealthCheck::Ping, call: None, interval_ms: 2_000, timeout_ms: 1_000, healthy_after: 2, unhealthy_after: 3 }
    }
}

/// A configuration that was checked as a whole, with every service's policy filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The file it came from.
    pub path: Option<PathBuf>,
    /// The sections as they stand, `services` and `defaults` included.
    pub config: Config,
    /// The services, each with its whole policy.
    pub services: Vec<CheckedService>,
}

/// A service with its whole policy.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedService {
    /// Its URI.
    pub uri: String,
    /// Its instances, none twice.
    pub instances: Vec<SocketAddr>,
    /// `[defaults]` with the service's own keys laid over it.
    pub policy: ServicePolicy,
}
