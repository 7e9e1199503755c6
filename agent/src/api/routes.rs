//! What a service's policy says about calls: `moa routes`, `moa routes explain`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Level;

/// `GET /v1/routes`: what the policy of one service says, and what it did.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Policy {
    /// The service's URI, and behind a `#` its group if it has one.
    pub uri: String,
    /// Its group; empty for the default one.
    pub group: String,
    /// How an instance is picked, as `balance.policy` has it.
    pub balance: String,
    /// The bounds that are set, by their key.
    pub limits: BTreeMap<String, u64>,
    /// What the policy did since the agent started, by kind.
    pub events: BTreeMap<String, u64>,
    /// Retries that the budget has left, over all workers.
    pub budget_left: u64,
    /// Calls that may be in flight now by `concurrency.adaptive`, over all workers; 0 if there is no such limit.
    pub concurrency_limit: u64,
    /// Instances.
    pub instances: usize,
    /// Those of them that are out of traffic for what their calls showed.
    pub ejected: usize,
    /// How often one was taken out so.
    pub ejections: u64,
    /// Its rules, in the order in which they count for a call.
    pub rules: Vec<Rule>,
}

/// `GET /v1/routes/explain?uri=…&group=…&meta=NAME=VALUE…`: what becomes of a call that an application of this node makes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Explanation {
    /// The service's URI, and behind a `#` its group if it has one.
    pub uri: String,
    /// How an instance is picked, as `balance.policy` has it.
    pub balance: String,
    /// The worker that was asked: what it can reach, and which shares instances have, is its own view.
    pub worker: usize,
    /// What the rules say.
    pub rules: Explained,
    /// Where the call and its copies can go: each of the subsets that `rules` names in `route`, `outside` and `shadow`.
    pub ways: Vec<Way>,
}

/// One of the places that a call can go to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Way {
    /// Which.
    pub subset: Subset,
    /// The service whose instances they are, which differs from the call's if a rule sends it to another group.
    pub service: String,
    /// Why there is nobody, if the service isn't there at all.
    pub missing: Option<String>,
    /// Whether so few can be used that all are (`balance.panic_percent`).
    pub panic: bool,
    /// The instance that the call's hash key leads to, if it has one and the service goes by it.
    pub picked: Option<String>,
    /// Every instance of the service.
    pub candidates: Vec<Candidate>,
}

/// An instance that a call could go to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Candidate {
    /// What it is called in lists.
    pub address: String,
    /// Whether it belongs to the subset.
    pub fits: bool,
    /// Whether it can take the call now.
    pub takes: bool,
    /// Why not; or what is to be said of one that does.
    pub why: String,
    /// Its part of the calls that go this way, from 0 to 1, if all instances are equally busy; with hash keys, of all keys.
    pub share: f64,
    /// What it weighs now: less than configured while it starts slowly.
    pub weight: f64,
    /// How far it is.
    pub level: Option<Level>,
}

/// A rule of a service, in the list of all.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Rule {
    /// What it is about.
    pub kind: RuleKind,
    /// What it is called; empty where there is one of its kind.
    pub name: String,
    /// Which calls, for people; empty if it is all.
    pub when: String,
    /// What it does with them, for people.
    pub what: String,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Who may call.
    #[default]
    Access,
    /// Calls of stress tests.
    Stress,
    /// The share of calls that the policy is for.
    Mesh,
    /// Where calls go for what they say of themselves.
    Route,
    /// Where calls of an environment go that no route is about.
    Environment,
    /// Faults for drills.
    Fault,
    /// Copies of calls.
    Shadow,
}

/// What becomes of one call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Explained {
    /// What the call says of itself, of all that any rule asks for.
    pub says: BTreeMap<String, String>,
    /// Whether it may be made.
    pub access: Access,
    /// Whether it belongs to a stress test.
    pub stress: Stress,
    /// The environment that it is for.
    pub environment: Environment,
    /// The share of calls that the policy is for, in percent. The others have no route, no fault and no shadow.
    pub mesh_percent: f64,
    /// Where the others go: the first of these that has an instance for it.
    pub outside: Vec<Subset>,
    /// Where it goes.
    pub route: Route,
    /// The faults that may be put into it.
    pub fault: Fault,
    /// The copies that may be made of it.
    pub shadow: Shadows,
}

/// Whether a call may be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Access {
    /// Whether a rule, or the default, allows it.
    pub allowed: bool,
    /// Whether it is made all the same, and only counted, if not.
    pub dry_run: bool,
    /// The rule that counts; `default` if none fits.
    pub rule: String,
    /// The rules that were looked at: up to the first that fits.
    pub looked_at: Vec<LookedAt>,
}

/// Whether a call belongs to a stress test.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Stress {
    /// Whether it has the mark.
    pub marked: bool,
    /// Whether calls with the mark go to instances of the environment `stress`, and nowhere else.
    pub apart: bool,
}

/// The environment that a call is for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Environment {
    /// Its name, if the call has one.
    pub name: Option<String>,
    /// Whether the service has instances of it. A call without a route goes to those first, then to those without an environment.
    pub served: bool,
}

/// Where a call goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Route {
    /// The rule that counts; `stress` for calls of stress tests that are kept apart.
    pub rule: Option<String>,
    /// Whether the rule goes by the call's hash key.
    pub sticky: bool,
    /// The shares, of which it has one.
    pub shares: Vec<Share>,
    /// The rules that were looked at: up to the first that fits.
    pub looked_at: Vec<LookedAt>,
}

/// A share of the calls that a route is about.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Share {
    /// How much of them.
    pub percent: f64,
    /// Whether this call has it for sure: it is the only one, or goes by the call's hash key.
    pub certain: bool,
    /// Where it goes: the first of these that has an instance for it.
    pub to: Vec<Subset>,
}

/// Some of the instances of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Subset {
    /// Its position in the service's list of them.
    pub index: usize,
    /// Which instances, for people.
    pub instances: String,
}

/// The fault that may be put into a call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Fault {
    /// The rule that counts.
    pub rule: Option<String>,
    /// The share of the calls that have it.
    pub percent: f64,
    /// What is done to them, for people.
    pub what: String,
    /// The rules that were looked at: up to the first that fits.
    pub looked_at: Vec<LookedAt>,
}

/// The copies that may be made of a call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Shadows {
    /// The rules that fit: each makes a copy.
    pub rules: Vec<Shadow>,
    /// The rules that were looked at: all of them, or none for a stress test that is kept apart.
    pub looked_at: Vec<LookedAt>,
}

/// A copy that may be made of a call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Shadow {
    /// The rule.
    pub rule: String,
    /// The share of the calls that are copied.
    pub percent: f64,
    /// Where the copy goes.
    pub to: Subset,
}

/// A rule that was looked at.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct LookedAt {
    /// What it is called.
    pub rule: String,
    /// Why it is not about the call; if there is nothing here, it is.
    pub misfits: Vec<Misfit>,
}

/// Something that a call must say for a rule to be about it, and does not.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Misfit {
    /// What.
    pub name: String,
    /// The patterns, of which one would have to fit.
    pub expected: Vec<String>,
    /// What it says instead; none if nothing.
    pub found: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_yet_is_left_out() {
        assert_eq!(serde_json::from_str::<Policy>("{}").ok(), Some(Policy::default()));
        let way = r#"{"ways":[{"candidates":[{"address":"10.0.0.1:1","later":1}]}],"later":true}"#;
        let explanation: Explanation = serde_json::from_str(way).expect("of another version");
        assert_eq!(explanation.ways[0].candidates[0].address, "10.0.0.1:1");
        assert_eq!(explanation.rules, Explained::default());
    }
}
