//! What happens when a call fails, or an instance does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::schema::{COUNT_MAX, DAY_MS};

/// When a call is sent again. What no instance has seen a byte of is sent elsewhere in any case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How often a call is sent at most, the first time included; 1 is no retries.
    #[schemars(range(min = 1, max = 10))]
    pub tries_max: u32,
    /// Methods that may be executed twice, such as `get*`. A frame with the flag IDEMPOTENT may in any case.
    pub methods: Vec<String>,
    /// After what a call is sent again.
    #[schemars(extend("uniqueItems" = true))]
    pub on: Vec<RetryOn>,
    /// The service's own error codes after which it is sent again, if `on` has `code`.
    #[schemars(extend("uniqueItems" = true))]
    pub codes: Vec<u16>,
    /// The wait before the second try; doubled for each further one, with up to half of it taken off by chance.
    #[schemars(range(max = DAY_MS))]
    pub backoff_ms: u64,
    /// The longest wait.
    #[schemars(range(max = DAY_MS))]
    pub backoff_max_ms: u64,
    /// Retries for each hundred calls of the service, at most.
    #[schemars(range(max = 1000))]
    pub budget_percent: u32,
    /// Retries that the service has in any case, each second.
    #[schemars(range(max = COUNT_MAX))]
    pub budget_per_s: u32,
}

/// A failure after which a call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The connection broke, or what came was no answer.
    Connection,
    /// No answer within `try_timeout_ms`.
    Timeout,
    /// The callee says that it has not executed the call; needs no idempotence.
    NotExecuted,
    /// The service answered with one of `codes`.
    Code,
}

/// A second copy of a call that may be executed twice, when the first one's answer is late: the first answer counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hedge {
    /// How long the first answer may take; 0 is no second copies.
    #[schemars(range(max = DAY_MS))]
    pub after_ms: u64,
    /// Second copies for each hundred calls of the service, at most.
    #[schemars(range(max = 100))]
    pub budget_percent: u32,
}

/// When an instance is taken out of traffic for a while, for what its calls show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Failures in a row that take it out; 0 is never.
    #[schemars(range(max = COUNT_MAX))]
    pub consecutive: u32,
    /// The service's own error codes that count as failures. No answer, and a late one, count in any case.
    #[schemars(extend("uniqueItems" = true))]
    pub codes: Vec<u16>,
    /// How many standard deviations below the mean success rate it may be, in hundredths; 0 is not looked at.
    #[schemars(range(max = 10_000))]
    pub success_rate_deviations: u32,
    /// How slow it may be, in percent of the median instance's mean latency; 0 is not looked at.
    #[schemars(range(max = 100_000))]
    pub latency_percent: u32,
    /// Calls that an instance must have had in an interval for its success rate and latency to be looked at.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub calls_min: u32,
    /// Instances that must have had so many calls.
    #[schemars(range(min = 2, max = COUNT_MAX))]
    pub instances_min: u32,
    /// How often success rates and latencies are looked at.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub interval_ms: u64,
    /// How long it is out the first time; as long again for each further time in a row.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub ejection_ms: u64,
    /// How long it is out at most.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub ejection_max_ms: u64,
    /// The share of a service's instances that may be out at once; one may in any case if there are two.
    #[schemars(range(max = 100))]
    pub ejected_max_percent: u8,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries_max: 2,
            methods: Vec::new(),
            on: vec![RetryOn::Connection, RetryOn::Timeout, RetryOn::NotExecuted],
            codes: Vec::new(),
            backoff_ms: 10,
            backoff_max_ms: 250,
            budget_percent: 20,
            budget_per_s: 10,
        }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after_ms: 0, budget_percent: 5 }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive: 5,
            codes: vec![301, 504, 3041],
            success_rate_deviations: 190,
            latency_percent: 0,
            calls_min: 100,
            instances_min: 5,
            interval_ms: 10_000,
            ejection_ms: 30_000,
            ejection_max_ms: 300_000,
            ejected_max_percent: 50,
        }
    }
}
