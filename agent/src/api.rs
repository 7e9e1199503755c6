//! What the admin socket answers: the shapes that `moa`'s verbs print and `--json` hands on.
//!
//! Rule for changing it: fields are only ever added, with `#[serde(default)]`; a field that changes its meaning
//! gets a new name; anything else is a new [`VERSION`] under a new path (`/v1/…`).

use serde::{Deserialize, Serialize};

/// The version of the admin API, which is the first part of every path.
pub const VERSION: u32 = 1;

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Status {
    /// The instance's name (`--name`).
    pub name: String,
    /// The version of the binary.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// How long it has been serving.
    pub uptime_ms: u64,
    /// Whether it takes new calls.
    pub state: State,
    /// How many worker threads it has.
    pub workers: usize,
    /// Where its configuration came from.
    pub config: ConfigSource,
    /// The side of the applications.
    pub app: AppStatus,
    /// Calls, over all services.
    pub calls: CallStats,
    /// The kernel path.
    pub kernel: KernelStatus,
}

/// Whether an agent takes new calls.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Listening and answering.
    Serving,
    /// Finishing what is in flight.
    Draining,
}

/// Where the configuration in force came from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ConfigSource {
    /// The file; none if the defaults are in force.
    pub path: Option<String>,
    /// Counts the configurations since the agent started, from 1.
    pub generation: u64,
    /// When it was taken over, in milliseconds since 1970.
    pub loaded_unix_ms: u64,
    /// Why the latest reload was refused, if it was.
    pub last_error: Option<String>,
}

/// The side of the applications.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct AppStatus {
    /// The address that applications call.
    pub listen: String,
    /// Connections that are open.
    pub connections: u64,
    /// The bound on them.
    pub connections_max: u64,
    /// Connections taken since the start.
    pub accepted: u64,
    /// Connections refused at the bound since the start.
    pub refused: u64,
    /// Bytes that wait in the agent: requests not yet sent, answers not yet taken.
    pub queued_bytes: u64,
}

/// Calls since the start, of all or of one instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CallStats {
    /// Calls that were answered.
    pub calls: u64,
    /// Those of them that the mesh itself answered with an error.
    pub mesh_errors: u64,
    /// Those of them that the service answered with an error code.
    pub service_errors: u64,
    /// Calls that are being served.
    pub in_flight: u64,
    /// Calls that were sent to a second instance, as no byte of them had been written to the first.
    pub retries: u64,
    /// Median time to the answer.
    pub p50_us: u64,
    /// 99th percentile of the time to the answer.
    pub p99_us: u64,
}

/// The kernel path.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct KernelStatus {
    /// Whether the programs are loaded and attached.
    pub attached: bool,
    /// Why they are not, if they are not.
    pub reason: Option<String>,
    /// Connections to the agent's listeners that the programs saw established.
    pub established: u64,
}

/// `GET /v1/services`: one service.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Service {
    /// Its URI.
    pub uri: String,
    /// How long a call may take.
    pub timeout_ms: u64,
    /// Whether several calls share a connection.
    pub pipelined: bool,
    /// Its calls, over all instances and with those that reached none.
    pub stats: CallStats,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// One instance of a service.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Instance {
    /// `host:port`.
    pub address: String,
    /// Whether it gets calls.
    pub healthy: bool,
    /// Why it is healthy or not: the latest finding of its health check, or the latest error.
    pub reason: String,
    /// Open connections, over all workers.
    pub connections: u64,
    /// Calls that wait for one.
    pub queued: u64,
    /// Its calls.
    pub stats: CallStats,
}

/// `GET /v1/conns`: one application's connection.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Conn {
    /// Unique in this process.
    pub id: u64,
    /// The worker that owns it.
    pub worker: usize,
    /// The application's end.
    pub peer: String,
    /// What the application calls itself (`CLIENT SETNAME`).
    pub name: Option<String>,
    /// `resp2` or `resp3`.
    pub protocol: String,
    /// Since it was accepted.
    pub age_ms: u64,
    /// Since its last command.
    pub idle_ms: u64,
    /// Calls since it was accepted.
    pub calls: u64,
    /// Calls that are being served.
    pub in_flight: u64,
    /// Bytes of answers that it has not taken yet.
    pub queued_bytes: u64,
}

/// `GET /v1/config`: the configuration in force.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct EffectiveConfig {
    /// Where it came from; `POST /v1/config/reload` answers this alone.
    pub source: ConfigSource,
    /// Every key that has a value: those of the agent first, then those of each service.
    pub keys: Vec<ConfigKey>,
}

/// One key of the configuration in force.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct ConfigKey {
    /// Its path, as TOML has it.
    pub key: String,
    /// Its value.
    pub value: serde_json::Value,
    /// Where that came from: a line of the file, a flag, or a default.
    pub from: String,
}

/// An error that the admin socket answers, with a status of 4xx or 5xx.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, where, and what to do.
    pub error: String,
}
