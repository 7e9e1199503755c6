//! What the agent bears: `[overload]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{BYTES_MAX, DAY_MS};

/// When the agent has too much to bear: from one of these limits on it refuses calls, those to services of low `priority` first, with
/// 504, and new connects go to siblings, if there are some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overload {
    /// Calls in flight, as a share of `agent.calls_in_flight_max` in percent. What is above is kept for calls of higher priority; 100 keeps
    /// nothing.
    #[schemars(range(min = 1, max = 100))]
    pub calls_percent: u8,
    /// Memory that the agent's process has in use, in bytes; 0 is no limit. A tenth more is the hard bound, where all calls are refused.
    #[schemars(range(max = BYTES_MAX))]
    pub memory_bytes_max: u64,
    /// The same as a share of the memory limit of its cgroup in percent, if there is one; 0 is no limit. The hard bound is the cgroup's
    /// limit, less a hundredth.
    #[schemars(range(max = 98))]
    pub memory_percent: u8,
    /// How late a worker may be woken, at nine of ten times within a second, and in two seconds in a row; 0 is no limit. Calls of high
    /// priority are not refused for that.
    #[schemars(range(max = DAY_MS))]
    pub lag_ms: u64,
}

impl Default for Overload {
    fn default() -> Self {
        Self { calls_percent: 90, memory_bytes_max: 0, memory_percent: 90, lag_ms: 250 }
    }
}
