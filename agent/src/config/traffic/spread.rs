//! How calls are spread over instances.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::schema::DAY_MS;

/// How an instance is picked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// The algorithm.
    pub policy: BalancePolicy,
    /// How long what was seen of an instance's latency counts: after so long without a call a third of it is left. Only for
    /// `peak-ewma`.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub decay_ms: u64,
    /// How long a new instance, or one that comes back, gets a growing share of what its weight says; 0 is not at all.
    #[schemars(range(max = DAY_MS))]
    pub slow_start_ms: u64,
    /// Below this share of instances that can be used, all get calls: better a few that fail than too many for the rest. 0 is never.
    #[schemars(range(max = 100))]
    pub panic_percent: u8,
}

/// How an instance is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BalancePolicy {
    /// The better of two by chance: latency (its peaks count at once, and fade) times calls in flight.
    PeakEwma,
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest calls in flight, of a few by chance where there are many.
    LeastRequest,
    /// By chance, by weight.
    Random,
    /// By the call's hash key, as MOA's SDK does; calls without one go by chance.
    Ketama,
}

/// Which instances are preferred for where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// Whether nearer instances come first: this node, this zone, this data centre, then the others.
    pub failover: bool,
    /// How calls are shared with instances on this node.
    pub local: LocalPreference,
    /// The share of calls that stays on this node, if `local = "weighted"`.
    #[schemars(range(max = 100))]
    pub local_percent: u8,
    /// How much of its load a level can carry: at 140 calls begin to go further away when less than 72 % of the level can be used.
    #[schemars(range(min = 100, max = 1000))]
    pub overprovisioning_percent: u16,
}

/// How calls are shared with instances on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LocalPreference {
    /// They get all calls, as long as they can be used.
    Always,
    /// They get `local_percent` of the calls.
    Weighted,
    /// They are instances of this zone like others.
    Never,
}

impl Default for Balance {
    fn default() -> Self {
        Self { policy: BalancePolicy::PeakEwma, decay_ms: 10_000, slow_start_ms: 0, panic_percent: 50 }
    }
}

impl Default for Locality {
    fn default() -> Self {
        Self { failover: true, local: LocalPreference::Always, local_percent: 80, overprovisioning_percent: 140 }
    }
}
