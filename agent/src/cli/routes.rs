//! `moa routes`.

mod explain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Global, Out,
    client::encoded,
    out::OUT,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::count,
};
use crate::api::routes::{Policy, Rule, RuleKind};

/// Show what the policies of services say about calls, and what they did.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Routes {
    /// Only this service, such as /service/user, or /service/user#two for one of its groups.
    #[arg(value_name = "URI")]
    uri: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what becomes of a call: which rules are about it, and which instances it can go to.
    Explain(explain::Explain),
}

/// What a policy did that changed what became of calls, in the words of [`Policy::events`] and of people.
const EVENTS: [(&str, &str); 12] = [
    ("retries", "calls sent again"),
    ("hedges", "second copies of late calls"),
    ("budget_exhausted", "retries and second copies that the budget had none left for"),
    ("denied", "calls refused by a rule"),
    ("denied_dry_run", "calls that would have been refused by a rule"),
    ("rate_limited", "calls refused by a rate limit"),
    ("breaker_open", "calls refused at a bound of the breaker"),
    ("shed", "calls refused by the adaptive limit"),
    ("faults", "calls with a fault"),
    ("shadows", "copies sent"),
    ("shadows_dropped", "copies not sent, for a bound"),
    ("stress_calls", "calls of stress tests"),
];

impl Routes {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        if let Some(Verb::Explain(explain)) = self.verb {
            return explain.run(global, out);
        }
        let path = self.uri.as_ref().map_or_else(String::new, |uri| format!("?service={}", encoded(uri)));
        let policies: Vec<Policy> = global.client().get(&format!("/v1/routes{path}"))?;
        let text = |policies: &Vec<Policy>| match self.uri {
            Some(_) => policies.iter().map(render_one).collect::<Vec<_>>().join("\n"),
            None => render(policies),
        };
        out.show(&policies, text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// All services: a line each, then the rules that there are.
fn render(policies: &[Policy]) -> String {
    if policies.is_empty() {
        return "no services: add [services.\"/service/…\"] to the configuration, and `moa config reload`\n".into();
    }
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("BALANCE", Left),
        ("RULES", Right),
        ("LIMITS", Right),
        ("RETRIES", Right),
        ("BUDGET LEFT", Right),
        ("EJECTED", Right),
        ("DENIED", Right),
        ("LIMITED", Right),
    ]);
    for policy in policies {
        let of = |names: &[&str]| count(names.iter().filter_map(|name| policy.events.get(*name)).sum());
        let ejected = format!("{}/{}", policy.ejected, policy.instances);
        table.row([
            policy.uri.clone(),
            policy.balance.clone(),
            count(policy.rules.len() as u64),
            count(policy.limits.len() as u64),
            of(&["retries", "hedges"]),
            count(policy.budget_left),
            if policy.ejected > 0 { OUT.bad(&ejected) } else { ejected },
            of(&["denied"]),
            of(&["rate_limited", "breaker_open", "shed"]),
        ]);
    }
    let rules = policies.iter().flat_map(|policy| policy.rules.iter().map(|rule| (policy.uri.as_str(), rule)));
    let rules: Vec<_> = rules.collect();
    if rules.is_empty() {
        return table.render();
    }
    let mut listed = Table::new(&[("SERVICE", Left), ("RULE", Left), ("CALLS", Left)]);
    for (uri, rule) in rules {
        listed.row(std::iter::once(uri.to_owned()).chain(cells(rule)));
        listed.note(&rule.what);
    }
    format!("{}\n{}", table.render(), listed.render())
}

/// One service: what it is, what its policy did, its rules.
fn render_one(policy: &Policy) -> String {
    let mut text = format!("{}: {}\n", OUT.bold(&policy.uri), policy.balance);
    for (key, bound) in &policy.limits {
        text += &format!("  {key} = {bound}\n");
    }
    if policy.concurrency_limit > 0 {
        text += &format!("  {} calls may be in flight now (concurrency.adaptive)\n", count(policy.concurrency_limit));
    }
    let out = format!("{} of {} instances out of traffic", policy.ejected, policy.instances);
    let out = if policy.ejected > 0 { OUT.bad(&out) } else { out };
    text += &format!("  {out}, {} ejections since the start\n", count(policy.ejections));
    text += &format!("  {} retries left in the budget\n", count(policy.budget_left));
    for (name, what) in EVENTS {
        let seen = policy.events.get(name).filter(|seen| **seen > 0);
        text.extend(seen.map(|seen| format!("  {} {what}\n", count(*seen))));
    }
    let unknown = policy.events.iter().filter(|(name, seen)| **seen > 0 && EVENTS.iter().all(|(known, _)| known != name));
    text.extend(unknown.map(|(name, seen)| format!("  {} {name}\n", count(*seen))));
    if policy.rules.is_empty() {
        return text + "  no rules: every call may be made, and goes to any instance\n";
    }
    let mut listed = Table::new(&[("RULE", Left), ("CALLS", Left)]);
    for rule in &policy.rules {
        listed.row(cells(rule));
        listed.note(&rule.what);
    }
    text + &listed.render()
}

fn cells(rule: &Rule) -> [String; 2] {
    let kind = match rule.kind {
        RuleKind::Access => "access",
        RuleKind::Stress => "stress",
        RuleKind::Mesh => "mesh",
        RuleKind::Route => "route",
        RuleKind::Environment => "environment",
        RuleKind::Fault => "fault",
        RuleKind::Shadow => "shadow",
    };
    let when = if rule.when.is_empty() { "all".to_owned() } else { rule.when.clone() };
    [format!("{kind} {}", rule.name).trim_end().to_owned(), when]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let rule =
            |kind, name: &str, when: &str, what: &str| Rule { kind, name: name.into(), when: when.into(), what: what.into() };
        Policy {
            uri: "/service/user".into(),
            balance: "peak-ewma".into(),
            limits: [("rate.service_per_s".to_owned(), 500)].into(),
            events: [("retries", 1_200), ("hedges", 1), ("denied", 3), ("shed", 0), ("breaker_open", 5), ("new", 2)]
                .map(|(name, seen)| (name.to_owned(), seen))
                .into(),
            budget_left: 10,
            instances: 3,
            ejected: 1,
            ejections: 4,
            rules: vec![
                rule(RuleKind::Access, "default", "", "deny"),
                rule(RuleKind::Route, "canary", "method = \"get*\"", "10 % to instances with version = \"2\""),
            ],
            ..Policy::default()
        }
    }

    #[test]
    fn a_service_is_a_line_and_so_is_a_rule() {
        let plain = Policy { uri: "/service/b".into(), balance: "ketama".into(), instances: 1, ..Policy::default() };
        let expected = "\
SERVICE        BALANCE    RULES  LIMITS  RETRIES  BUDGET LEFT  EJECTED  DENIED  LIMITED
/service/user  peak-ewma      2       1    1,201           10      1/3       3        5
/service/b     ketama         0       0        0            0      0/1       0        0

SERVICE        RULE            CALLS
/service/user  access default  all
    deny
/service/user  route canary    method = \"get*\"
    10 % to instances with version = \"2\"
";
        assert_eq!(render(&[policy(), plain.clone()]), expected);
        assert_eq!(render(&[plain]).lines().count(), 2);
    }

    #[test]
    fn one_service_says_what_its_policy_did() {
        let expected = "\
/service/user: peak-ewma
  rate.service_per_s = 500
  1 of 3 instances out of traffic, 4 ejections since the start
  10 retries left in the budget
  1,200 calls sent again
  1 second copies of late calls
  3 calls refused by a rule
  5 calls refused at a bound of the breaker
  2 new
RULE            CALLS
access default  all
    deny
route canary    method = \"get*\"
    10 % to instances with version = \"2\"
";
        assert_eq!(render_one(&policy()), expected);
        assert!(render_one(&Policy::default()).contains("no rules"));
    }
}
