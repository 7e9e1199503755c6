//! What a service is given: `[defaults]`, and the keys of a service's own section laid over it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    check::Conflict,
    schema::{COUNT_MAX, DAY_MS, REDIS_BULK_MAX},
    traffic::{
        Access, Balance, Breaker, Concurrency, Fault, Hedge, Locality, Outlier, Priority, Rate, Retry, Route, Shadow, Stress,
    },
};
use crate::wire::envelope::scan_request;

/// A call as a health check could send it.
const EXAMPLE_CALL: &str = r#"{"action":"/service/user","params":{"m":"ping","args":[]}}"#;

/// How the calls of a service are handled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServicePolicy {
    /// How much its calls matter when the agent has too much to bear (`[overload]`): those that matter least are refused first.
    pub priority: Priority,
    /// How long a call may take; a late one is answered with 304.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub timeout_ms: u64,
    /// Whether the servers answer in order, so that several calls can share a connection.
    pub pipelined: bool,
    /// Calls in flight on one connection, if `pipelined`.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub pipeline_max: usize,
    /// Size of a call's JSON; a longer one is answered with 302 and not sent. Servers of 2016 reset the connection at 32,768.
    #[schemars(range(min = 64, max = REDIS_BULK_MAX))]
    pub argument_bytes_max: usize,
    /// Connections to one instance that a worker opens at most.
    #[schemars(range(min = 1, max = 65_535))]
    pub connections_max: usize,
    /// Connections to one instance that a worker keeps open from the start.
    #[schemars(range(max = 65_535))]
    pub connections_min: usize,
    /// How long opening a connection may take.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub connect_timeout_ms: u64,
    /// How long an unused connection above `connections_min` stays open.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub idle_timeout_ms: u64,
    /// Calls that may wait for a connection to one instance, in a worker; one more is answered with 504.
    #[schemars(range(max = COUNT_MAX))]
    pub queue_max: usize,
    /// Whether connections to instances on this machine go by way of the kernel. Not for servers that `splice`, or that read
    /// with `MSG_WAITALL`.
    pub kernel: bool,
    /// How long one try of a call may take before it counts as failed; 0 is as long as the call.
    #[schemars(range(max = DAY_MS))]
    pub try_timeout_ms: u64,
    /// The share of calls, in hundredths of a percent, that this traffic policy applies to, so that a service can be brought in
    /// step by step. The others go to an instance by chance, once, whatever else is said here.
    #[schemars(range(max = 10_000))]
    pub mesh_per_10k: u32,
    /// What becomes of calls with the mark of a stress test.
    pub stress: Stress,
    /// How an instance's health is checked.
    pub health: Health,
    /// How an instance is picked.
    pub balance: Balance,
    /// Which instances are preferred for where they are.
    pub locality: Locality,
    /// When a call is sent again. What no instance has seen a byte of is sent elsewhere in any case.
    pub retry: Retry,
    /// When a second copy is sent of a call that may be executed twice, as its answer is late: the first answer counts.
    pub hedge: Hedge,
    /// When an instance is taken out of traffic for a while, for what its calls show.
    pub outlier: Outlier,
    /// Bounds on what is under way at once, in the whole agent; one more is answered with 504. 0 is no bound.
    pub breaker: Breaker,
    /// Bounds on calls each second, in the whole agent; one more is answered with 504. 0 is no bound.
    pub rate: Rate,
    /// A bound on calls in flight that follows what the service can take: it falls when answers become slower than they are
    /// without load.
    pub concurrency: Concurrency,
    /// Who may call.
    pub access: Access,
    /// Where calls go for what they say of themselves. The first rule that fits counts.
    pub routes: Vec<Route>,
    /// Copies of calls, whose answers are dropped.
    pub shadows: Vec<Shadow>,
    /// Faults that are put into calls, for drills. The first one that fits counts.
    pub faults: Vec<Fault>,
}

/// How an instance's health is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// What is sent.
    pub check: HealthCheck,
    /// The JSON of the call that is sent, if `check = "call"`; the instance is healthy if it answers with `ec` 0 or 200.
    #[schemars(example = EXAMPLE_CALL)]
    pub call: Option<String>,
    /// Time between two checks.
    #[schemars(range(min = 10, max = DAY_MS))]
    pub interval_ms: u64,
    /// How long an answer may take.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub timeout_ms: u64,
    /// Good answers in a row that bring an instance back.
    #[schemars(range(min = 1, max = 1000))]
    pub healthy_after: u32,
    /// Bad answers in a row that take an instance out.
    #[schemars(range(min = 1, max = 1000))]
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

impl ServicePolicy {
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        if self.connections_min > self.connections_max {
            conflicts.push(Conflict {
                keys: &["connections_min", "connections_max"],
                found: format!("{} to keep open of at most {}", self.connections_min, self.connections_max),
                expected: "connections_min to be at most connections_max".into(),
                advice: "raise connections_max, or lower connections_min".into(),
            });
        }
        if let Some(wrong) = self.health.call.as_deref().and_then(wrong_call) {
            conflicts.push(Conflict {
                keys: &["health.call"],
                found: wrong,
                expected: r#"a call's JSON with its `action`"#.into(),
                advice: r#"write call = '{"action":"/service/…","params":{"m":"…","args":[]}}'"#.into(),
            });
        }
        conflicts.extend(self.traffic_conflicts());
        conflicts
    }
}

impl Health {
    /// What is wrong with a service's own combination of `check` and `call`. `[defaults]` may hold one without the other.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let keys = &["health.check", "health.call"];
        let conflict = match (self.check, &self.call) {
            (HealthCheck::Call, None) => Conflict {
                keys,
                found: r#"check = "call" without a call"#.into(),
                expected: "health.call, the JSON of the call to send".into(),
                advice: r#"add call = '{"action":"…","params":{"m":"…","args":[]}}', or use check = "ping""#.into(),
            },
            (HealthCheck::Off | HealthCheck::Ping, Some(_)) => Conflict {
                keys,
                found: "a call that no check sends".into(),
                expected: r#"check = "call", or no call"#.into(),
                advice: r#"set check = "call", or remove call"#.into(),
            },
            _ => return Vec::new(),
        };
        vec![conflict]
    }
}

/// What is wrong with the JSON of a health check's call.
fn wrong_call(call: &str) -> Option<String> {
    let envelope = match scan_request(call.as_bytes()) {
        Ok(envelope) => envelope,
        Err(error) => return Some(format!("JSON that is no call ({error})")),
    };
    let action = envelope.action.and_then(|action| action.decode().ok());
    let named = action.is_some_and(|action| action.starts_with('/'));
    (!named).then(|| "JSON without a service's URI as its `action`".into())
}

impl Default for ServicePolicy {
    fn default() -> Self {
        Self {
            priority: Priority::default(),
            timeout_ms: 4_500,
            pipelined: false,
            pipeline_max: 1024,
            argument_bytes_max: 32_767,
            connections_max: 64,
            connections_min: 0,
            connect_timeout_ms: 1_000,
            idle_timeout_ms: 60_000,
            queue_max: 1024,
            kernel: true,
            try_timeout_ms: 0,
            mesh_per_10k: 10_000,
            stress: Stress::default(),
            health: Health::default(),
            balance: Balance::default(),
            locality: Locality::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            outlier: Outlier::default(),
            breaker: Breaker::default(),
            rate: Rate::default(),
            concurrency: Concurrency::default(),
            access: Access::default(),
            routes: Vec::new(),
            shadows: Vec::new(),
            faults: Vec::new(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { check: HealthCheck::Ping, call: None, interval_ms: 2_000, timeout_ms: 1_000, healthy_after: 2, unhealthy_after: 3 }
    }
}
