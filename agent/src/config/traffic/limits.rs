//! How much a service, its instances and its callers may have.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::schema::COUNT_MAX;

/// How much the calls of a service matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Refused first.
    Low,
    /// Refused when that is not enough.
    #[default]
    Normal,
    /// Refused at the hard bounds only.
    High,
}

/// Bounds on what is under way at once, in the whole agent; one more is answered with 504. 0 is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Calls in flight at one instance.
    #[schemars(range(max = COUNT_MAX))]
    pub instance_calls_max: usize,
    /// Calls in flight of the service.
    #[schemars(range(max = COUNT_MAX))]
    pub service_calls_max: usize,
    /// Calls of the service that wait for a connection.
    #[schemars(range(max = COUNT_MAX))]
    pub service_queue_max: usize,
    /// Connections to the service's instances.
    #[schemars(range(max = COUNT_MAX))]
    pub service_connections_max: usize,
}

/// Calls each second, in the whole agent; one more is answered with 504. 0 is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Of the service. Callers that want more than their share of it get what the others leave.
    #[schemars(range(max = COUNT_MAX))]
    pub service_per_s: u32,
    /// Of each calling application.
    #[schemars(range(max = COUNT_MAX))]
    pub caller_per_s: u32,
    /// Of the calling applications that are named here, instead of `caller_per_s`.
    #[schemars(extend("additionalProperties" = { "type": "integer", "minimum": 0, "maximum": COUNT_MAX }))]
    pub callers: BTreeMap<String, u32>,
    /// What may come at once after a pause: as much as the rate gives in this time.
    #[schemars(range(min = 1, max = 60_000))]
    pub burst_ms: u64,
}

/// A bound on calls in flight that follows what the service can take: it falls when answers become slower than they are without
/// load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Concurrency {
    /// Whether there is one.
    pub adaptive: bool,
    /// Calls in flight that a worker may have in any case.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub min: u32,
    /// Calls in flight that a worker may have at most.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub max: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { service_per_s: 0, caller_per_s: 0, callers: BTreeMap::new(), burst_ms: 100 }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { adaptive: false, min: 8, max: 10_000 }
    }
}
