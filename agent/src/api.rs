//! What the admin socket answers: the shapes that `moa`'s verbs print and `--json` hands on.
//!
//! Rule for changing it: fields are only ever added, with `#[serde(default)]`; a field that changes its meaning
//! gets a new name; anything else is a new [`VERSION`] under a new path (`/v1/…`).

pub mod failover;
pub mod routes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::trace::{By, Line as CallLine, Record as CallRecord};

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
    /// The network namespaces; none if none is to be served.
    #[serde(default)]
    pub namespaces: Option<NamespacesStatus>,
    /// What is left, while it drains.
    #[serde(default)]
    pub drain: Option<Drain>,
    /// How much it has to bear; none from an agent that does not look.
    #[serde(default)]
    pub overload: Option<Overload>,
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

/// `GET /v1/drain`, `POST /v1/drain`, `POST /v1/drain/cancel`: whether the agent drains, and what it has left to do.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Drain {
    /// Whether it drains.
    pub draining: bool,
    /// Whether the process ends afterwards.
    pub ending: bool,
    /// Whether applications are moved to siblings.
    pub to_siblings: bool,
    /// How long it has been draining.
    pub since_ms: u64,
    /// How long a stop waits for what is left (`agent.drain_timeout_ms`).
    pub timeout_ms: u64,
    /// What is left.
    pub remains: Remains,
}

/// How much an agent has to bear, and which calls it refuses for that.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Overload {
    /// 0: it refuses nothing; 1: calls of low priority; 2: those of normal priority, too; 3: all.
    pub level: u8,
    /// The same in a word: `nothing`, `low`, `normal`, `all`.
    pub shedding: String,
    /// What is over which limit, if something is.
    pub reason: Option<String>,
    /// Calls in flight, in the worker that has most: 1,000 is at the limit, 2,000 at the hard bound.
    pub calls_per_mille: u32,
    /// Memory, in the same way.
    pub memory_per_mille: u32,
    /// How late workers are, in the same way.
    pub lag_per_mille: u32,
    /// How often it had too much to bear.
    pub raised: u64,
    /// Calls that were refused for that.
    pub refused: u64,
}

/// What an agent has left to do before nobody needs it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Remains {
    /// Calls in flight that somebody waits for, those that the kernel routes included.
    pub calls: u64,
    /// Connections of applications that speak Redis.
    pub redis: u64,
    /// Connections of applications that call in frames.
    pub frames: u64,
    /// Connections by which services have dialled in.
    pub services: u64,
    /// Connections of other agents, which may still wait for answers.
    pub agents: u64,
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
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct KernelStatus {
    /// Whether the programs are loaded and attached.
    pub attached: bool,
    /// Why they are not, if they are not.
    pub reason: Option<String>,
    /// Connections to the agent's listeners that the programs saw established.
    pub established: u64,
    /// Whether new connections are taken onto the kernel path.
    #[serde(default)]
    pub on: bool,
    /// Bytes that went through the kernel, on both local legs of calls, since the programs were first attached.
    #[serde(default)]
    pub redirected_bytes: u64,
    /// The share of them in all that this agent has read and written on both legs, from 0 to 1.
    #[serde(default)]
    pub share: f64,
    /// Why `kernel.mode = "auto"` decided as it did.
    #[serde(default)]
    pub decision: Option<String>,
    /// Calls that the kernel routed from application to application.
    #[serde(default)]
    pub routed_calls: u64,
    /// Their share in all calls of this agent, from 0 to 1.
    #[serde(default)]
    pub routed_share: f64,
}

/// `GET /v1/kernel`, `POST /v1/kernel/on`, `POST /v1/kernel/off`: the kernel path in detail.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct Kernel {
    /// As in `GET /v1/status`.
    pub status: KernelStatus,
    /// The cgroup whose sockets the programs see.
    pub cgroup: String,
    /// The folder of the pins; none if nothing is pinned.
    pub pins: Option<String>,
    /// Bytes that may wait at either end of a connection.
    pub leg_bytes_max: u64,
    /// Sockets that are enrolled now.
    pub enrolled: u64,
    /// Sockets that were ever enrolled.
    pub enrolled_total: u64,
    /// Sent by applications and services to the agent, and redirected.
    pub to_agent: Sent,
    /// Sent by the agent, and redirected.
    pub from_agent: Sent,
    /// Sent on enrolled sockets, and left to TCP.
    pub tcp: Sent,
    /// Bytes that this agent has read and written on all connections, redirected or not.
    pub bytes_total: u64,
    /// Directions that went over to TCP, by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Connections that were not enrolled, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// The programs.
    pub programs: Vec<KernelProgram>,
    /// The maps.
    pub maps: Vec<KernelMap>,
    /// What was tried at the start, and what came of it.
    pub probes: Vec<KernelProbe>,
    /// Calls that the kernel routes from application to application; none if it routes none.
    #[serde(default)]
    pub routing: Option<Routing>,
}

/// Calls that the kernel routes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Routing {
    /// Lanes that are open.
    pub lanes: u64,
    /// Calls in flight.
    pub in_flight: u64,
    /// Calls that were routed.
    pub calls: u64,
    /// Answers that were routed back.
    pub answers: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Messages on lanes that went to the agent, by reason.
    pub unrouted: BTreeMap<String, u64>,
    /// The services of this node's applications.
    pub services: Vec<RoutedService>,
}

/// Whether a service's calls are routed in the kernel.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct RoutedService {
    /// Its URI, and behind `#` its group if it has one.
    pub service: String,
    /// Why they are not; none if they are.
    pub why_not: Option<String>,
    /// Calls that were routed and answered with success, since the agent began.
    #[serde(default)]
    pub answered: u64,
    /// The time that half of them took at most, to a fifth of it; 0 without calls.
    #[serde(default)]
    pub p50_us: u64,
    /// The same for nine of ten.
    #[serde(default)]
    pub p90_us: u64,
    /// The same for 99 of 100.
    #[serde(default)]
    pub p99_us: u64,
    /// The same for all.
    #[serde(default)]
    pub max_us: u64,
    /// How many of them took how long, the fastest first; only what has happened.
    #[serde(default)]
    pub latency: Vec<LatencyBucket>,
}

/// Calls that took about the same time.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct LatencyBucket {
    /// At least so long, in nanoseconds.
    pub from_ns: u64,
    /// Less than that; none if there is no bound.
    pub below_ns: Option<u64>,
    /// How many.
    pub calls: u64,
}

/// Messages and their bytes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sent {
    /// How many: each is what one `send` gave the kernel at once.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A kernel program.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct KernelProgram {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub id: u32,
    /// The kernel's checksum of its instructions, in hexadecimal.
    pub tag: String,
    /// When it was loaded, in milliseconds since 1970.
    pub loaded_unix_ms: u64,
    /// How often it ran, while `kernel.bpf_stats_enabled` was 1.
    pub runs: u64,
    /// How long it ran altogether then.
    pub run_ns: u64,
}

/// A kernel map.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct KernelMap {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub id: u32,
    /// Entries that it has; none where they are not counted.
    pub entries: Option<u64>,
    /// Entries that it can have.
    pub entries_max: u32,
}

/// Something that the kernel was tried for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct KernelProbe {
    /// What.
    pub name: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was seen.
    pub found: String,
}

/// `GET /v1/services`: one service. With `?service=URI` only those of this name or URI, with each instance's share of the calls; with
/// `&methods=true` also with their methods.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct Service {
    /// Its URI, and behind a `#` its group if it has one.
    pub uri: String,
    /// How long a call may take.
    pub timeout_ms: u64,
    /// Whether several calls share a connection.
    pub pipelined: bool,
    /// Its calls, over all instances and with those that reached none.
    pub stats: CallStats,
    /// Its instances.
    pub instances: Vec<Instance>,
    /// How an instance is picked, as `balance.policy` has it.
    #[serde(default)]
    pub balance: String,
    /// Its methods: 64 of them, and one without a name for all others. Only if they were asked for.
    #[serde(default)]
    pub methods: Vec<Method>,
}

/// The calls of one method of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Method {
    /// Its name; empty for all that are not counted by themselves.
    pub name: String,
    /// Its calls. In flight and retries are not counted by method.
    pub stats: CallStats,
}

/// One instance of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct Instance {
    /// `host:port`.
    pub address: String,
    /// Whether it is healthy. It gets calls if it is not `ejected` besides.
    pub healthy: bool,
    /// Why it is healthy or not: the latest finding of its health check, or the latest error.
    pub reason: String,
    /// Open connections, over all workers.
    pub connections: u64,
    /// Calls that wait for one.
    pub queued: u64,
    /// Its calls.
    pub stats: CallStats,
    /// Its share of the calls, in relation to the others'.
    #[serde(default)]
    pub weight: u32,
    /// How far it is.
    #[serde(default)]
    pub level: Option<Level>,
    /// Its zone; empty if it is not known.
    #[serde(default)]
    pub zone: String,
    /// Its data centre; empty if it is not known.
    #[serde(default)]
    pub data_centre: String,
    /// Its environment; empty if it serves all.
    #[serde(default)]
    pub environment: String,
    /// Whatever else rules can choose it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the balancer takes its latency for, on average over the workers; 0 before anything was seen.
    #[serde(default)]
    pub ewma_us: u64,
    /// Set while it is out of traffic for what its calls showed.
    #[serde(default)]
    pub ejected: Option<Ejected>,
    /// How often it was taken out of traffic so.
    #[serde(default)]
    pub ejections: u64,
    /// Which calls it gets, as one worker sees it. Only if one service was asked for.
    #[serde(default)]
    pub share: Option<InstanceShare>,
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// On this node.
    Node,
    /// In this zone.
    Zone,
    /// In this data centre.
    DataCentre,
    /// Further away.
    Elsewhere,
}

/// That an instance is out of traffic for what its calls showed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Ejected {
    /// For how long still.
    pub for_ms: u64,
    /// Why.
    pub reason: String,
}

/// Which calls an instance gets.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct InstanceShare {
    /// Its part of the calls that go where it is without a rule, from 0 to 1, if all instances are equally busy: of those for its
    /// environment, or of those for none.
    pub share: f64,
    /// What it weighs now: less than `weight` while it starts slowly.
    pub weight_now: f64,
    /// Whether it gets calls.
    pub used: bool,
    /// Whether so few can be used that all are (`balance.panic_percent`).
    pub panic: bool,
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
    /// Which application it is: the one in its namespace or its cgroup, else what it calls itself (`CLIENT SETNAME`, HELLO).
    pub name: Option<String>,
    /// The network namespace that it comes from; none for the agent's own.
    #[serde(default)]
    pub namespace: Option<String>,
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

/// The network namespaces in numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct NamespacesStatus {
    /// Namespaces that are served.
    pub served: u64,
    /// Files of which none is served.
    pub failed: u64,
    /// Namespaces that were ever served, one that came back counted again.
    pub opened_total: u64,
    /// Those of them that have gone.
    pub closed_total: u64,
    /// Tries to serve one that failed.
    pub failed_total: u64,
    /// Why no file can be seen, if none can.
    pub reason: Option<String>,
}

/// `GET /v1/namespaces`: a network namespace, or a file of none.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Namespace {
    /// What the configuration calls it; several names if it has several files.
    pub name: String,
    /// Its file, or one of them.
    pub path: String,
    /// Who is in it; none if it is not served.
    pub application: Option<String>,
    /// Where applications call there; none if it is not served.
    pub listen: Option<String>,
    /// Why it is not served, if it is not.
    pub reason: Option<String>,
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
