//! Rules on what a call says of itself.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::schema::DAY_MS;

/// What a call must say for a rule to be about it: all of these, each as one of its patterns has it.
///
/// Names: `method`, `application`, `instance` (the caller's process), `group`, `environment`, `zone`, `stress`, `hash_key`,
/// `content_type`; `entry.N` for the metadata entry with that number; any other name is a property (`props`), and `props.NAME` is
/// one that would otherwise mean something else. In a pattern `*` stands for anything.
pub type When = BTreeMap<String, Patterns>;

/// One pattern or several, of which one must fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Patterns(pub Vec<String>);

/// Where the calls go that a rule is about. The first rule that fits counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct Route {
    /// What it is called in errors and lists: lower-case letters, digits, `-`, `_` and `.`, at most 64; no two of a list are called
    /// the same.
    #[schemars(example = "new-search")]
    pub name: String,
    /// Which calls: what each of them must say, all of it, each as a pattern or one of several has it; without any, all calls.
    /// Names: `method`, `application`, `instance` (the caller's process), `group`, `environment`, `zone`, `stress`, `hash_key`,
    /// `content_type`; `entry.N` for the metadata entry with that number; any other name is a property (`props`), and `props.NAME`
    /// is one that would otherwise mean something else. In a pattern `*` stands for anything.
    pub when: When,
    /// Where to, all of them.
    pub to: Option<To>,
    /// Where to, by shares.
    pub split: Vec<Split>,
    /// Whether calls with the same hash key always have the same share.
    pub sticky: bool,
}

/// Some of a service's instances. Without any key: those without an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct To {
    /// Those of this environment.
    pub environment: Option<String>,
    /// Those of this group.
    pub group: Option<String>,
    /// Those with these labels.
    pub labels: BTreeMap<String, String>,
    /// Whether others may serve the call when none of them can: those that would have without the rule.
    pub fallback: bool,
}

/// A share of the calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// The share, in relation to the others' sum.
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
    /// Where to; without it as without the rule.
    pub to: Option<To>,
}

/// Copies of calls, whose answers are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct Shadow {
    /// What it is called in lists.
    #[schemars(example = "next-version")]
    pub name: String,
    /// Which calls, as `when` of routes has it.
    pub when: When,
    /// Where the copies go.
    pub to: To,
    /// The service that they go to, if another one.
    pub service: Option<String>,
    /// The share of the calls, in hundredths of a percent.
    #[schemars(range(max = 10_000))]
    pub per_10k: u32,
    /// Copies in flight in one worker; beyond that none is made.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub in_flight_max: u32,
}

/// A fault that is put into calls, for drills. The first one that fits counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct Fault {
    /// What it is called in errors and lists.
    #[schemars(example = "slow-answers")]
    pub name: String,
    /// Which calls, as `when` of routes has it.
    pub when: When,
    /// The share of them, in hundredths of a percent.
    #[schemars(range(max = 10_000))]
    pub per_10k: u32,
    /// How long they are held up.
    #[schemars(range(max = DAY_MS))]
    pub delay_ms: u64,
    /// The code that they are answered with, instead of being sent.
    #[schemars(range(min = 1, max = 65_535))]
    pub code: Option<u16>,
}

/// Who may call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// Whether the rules are followed, or only counted.
    pub mode: AccessMode,
    /// What holds for calls that no rule is about.
    pub default: Verdict,
    /// The rules; the first one that fits counts.
    pub rules: Vec<AccessRule>,
}

/// A rule about who may call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct AccessRule {
    /// What it is called in errors and lists.
    #[schemars(example = "no-guests")]
    pub name: String,
    /// Which calls, as `when` of routes has it.
    pub when: When,
    /// What holds for them.
    pub verdict: Verdict,
}

/// Whether rules about who may call are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// A call that may not be made is answered with 506.
    #[default]
    Enforce,
    /// It is made, and counted as one that would have been refused.
    DryRun,
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

/// What becomes of calls with the mark of a stress test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stress {
    /// They go where all calls go.
    #[default]
    Together,
    /// They go to instances of the environment `stress`, and nowhere else.
    Apart,
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        Ok(match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(pattern) => Self(vec![pattern]),
            OneOrMore::More(patterns) => Self(patterns),
        })
    }
}

impl JsonSchema for Patterns {
    fn schema_name() -> Cow<'static, str> {
        "Patterns".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" } })
    }
}

impl Default for To {
    fn default() -> Self {
        Self { environment: None, group: None, labels: BTreeMap::new(), fallback: true }
    }
}

impl Default for Split {
    fn default() -> Self {
        Self { weight: 1, to: None }
    }
}

impl Default for Shadow {
    fn default() -> Self {
        Self { name: String::new(), when: When::new(), to: To::default(), service: None, per_10k: 10_000, in_flight_max: 100 }
    }
}

impl Default for Fault {
    fn default() -> Self {
        Self { name: String::new(), when: When::new(), per_10k: 10_000, delay_ms: 0, code: None }
    }
}
