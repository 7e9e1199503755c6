//! `moa failover`.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Global, Out,
    out::OUT,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::count,
};
use crate::{
    api::failover::{Failover as Shown, Foreign, Gate, Sibling},
    failover::hooks::Decision,
};

/// Show where applications go when this agent can't take them, turn it on and off, send other agents' applications home.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  moa failover             # gates, siblings, and what was decided about connects\n  \
                        moa failover off         # touch no connect any more, until it is turned on\n  \
                        moa failover send-home   # the agent of those applications is back")]
pub(super) struct Failover {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Have connects go to a sibling while this agent can't take them.
    On,
    /// Touch no connect: each goes where the application says, whoever is there. Stays off until it is turned on.
    Off,
    /// Have applications of other agents go home: their connections to this agent are closed, each between two calls.
    SendHome,
}

impl Failover {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let shown: Shown = match self.verb {
            None => global.client().get("/v1/failover")?,
            Some(Verb::On) => global.client().post("/v1/failover/on")?,
            Some(Verb::Off) => global.client().post("/v1/failover/off")?,
            Some(Verb::SendHome) => global.client().post("/v1/failover/send-home")?,
        };
        out.show(&shown, render)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn render(shown: &Shown) -> String {
    let state = match shown.on {
        true => OUT.good("on"),
        false => OUT.doubtful("off: no connect is touched"),
    };
    let mut text = format!("{}  {state}\n", OUT.bold("failover"));
    text += &gates(&shown.gates);
    text += &siblings(&shown.siblings);
    text += &decisions(shown);
    text + &shown.foreign.as_ref().map_or_else(String::new, foreign)
}

fn gates(gates: &[Gate]) -> String {
    if gates.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("GATE", Left), ("NAMESPACE", Left), ("APPLICATION", Left), ("SIBLINGS", Left)]);
    for gate in gates {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let siblings = match gate.siblings.is_empty() {
            true => OUT.doubtful("none"),
            false => gate.siblings.join(", "),
        };
        let namespace = gate.namespace.as_deref().unwrap_or_default();
        table.row([gate.address.clone(), or_dash(namespace), or_dash(&gate.application), siblings]);
    }
    format!("\n{}", table.render())
}

fn siblings(siblings: &[Sibling]) -> String {
    if siblings.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("SIBLING", Left), ("ADDRESS", Left), ("DIVERTED", Right), ("FAILED", Right), ("STATE", Left)]);
    for sibling in siblings {
        let state = match (sibling.alive, &sibling.reason) {
            (true, _) => OUT.good("takes applications"),
            (false, Some(reason)) => OUT.bad(reason),
            (false, None) => OUT.doubtful("not known yet, or a connect to it failed just now"),
        };
        let (diverted, failed) = (count(sibling.diverted_total), count(sibling.failed_total));
        table.row([sibling.name.clone(), sibling.address.clone(), diverted, failed, state]);
    }
    format!("\n{}", table.render())
}

/// What each decision means, in the order in which it is shown.
const DECISIONS: [(Decision, &str); Decision::ALL.len()] = [
    (Decision::Local, "to this agent"),
    (Decision::NoListener, "to a sibling: nobody listened here"),
    (Decision::Stale, "to a sibling: a worker gave no sign of life"),
    (Decision::Away, "to a sibling: this agent wanted it (draining, overloaded)"),
    (Decision::NoSibling, "left alone: there is no sibling to go to"),
    (Decision::AllDown, "left alone: no sibling is believed alive"),
    (Decision::Bypassed, "left alone: it was turned off"),
    (Decision::Exempt, "left alone: the agent's own"),
    (Decision::Bound, "left alone: bound to the loopback"),
];

fn decisions(shown: &Shown) -> String {
    let mut table = Table::new(&[("CONNECTS", Right), ("DECISION", Left), ("MEANING", Left)]);
    let times = |name| shown.decisions.get(name).copied().unwrap_or(0);
    let known = DECISIONS.map(|(decision, meaning)| (decision.name(), meaning, times(decision.name())));
    let new = shown.decisions.iter().filter(|(name, _)| !Decision::ALL.iter().any(|known| known.name() == *name));
    let new = new.map(|(name, times)| (name.as_str(), "", *times));
    for (name, meaning, times) in
        known.into_iter().chain(new).filter(|(name, _, times)| *times > 0 || *name == Decision::Local.name())
    {
        table.row([count(times), name.to_owned(), meaning.to_owned()]);
    }
    format!("\n{}", table.render())
}

fn foreign(foreign: &Foreign) -> String {
    let mut text = format!(
        "\n{}  {}: {} taken, {} turned away\n",
        OUT.bold("applications of other agents"),
        foreign.listen,
        count(foreign.accepted_total),
        count(foreign.refused_total)
    );
    for (application, connections) in &foreign.connections {
        let _ = writeln!(text, "  {application}: {} connections", count(*connections));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn all_of_it_is_shown() {
        let gate = |namespace: Option<&str>, application: &str, siblings: &[&str]| Gate {
            namespace: namespace.map(str::to_owned),
            address: "127.0.0.1:13000".into(),
            application: application.into(),
            siblings: siblings.iter().map(|name| (*name).to_owned()).collect(),
        };
        let sibling = |name: &str, reason: Option<&str>| Sibling {
            name: name.into(),
            address: "10.0.0.2:13001".into(),
            alive: reason.is_none(),
            reason: reason.map(str::to_owned),
            diverted_total: 1200,
            failed_total: 3,
        };
        let shown = Shown {
            on: true,
            gates: vec![gate(None, "", &[]), gate(Some("pod-a"), "shop", &["b", "c"])],
            siblings: vec![sibling("b", None), sibling("c", Some("no answer within 1000 ms"))],
            decisions: [("local", 70), ("no-listener", 1200), ("stale", 0), ("newer", 1)]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            foreign: Some(Foreign {
                listen: "10.0.0.1:13001".into(),
                connections: BTreeMap::from([("web".to_owned(), 2)]),
                accepted_total: 5,
                refused_total: 1,
            }),
        };
        let expected = "\
failover  on

GATE             NAMESPACE  APPLICATION  SIBLINGS
127.0.0.1:13000  -          -            none
127.0.0.1:13000  pod-a      shop         b, c

SIBLING  ADDRESS         DIVERTED  FAILED  STATE
b        10.0.0.2:13001     1,200       3  takes applications
c        10.0.0.2:13001     1,200       3  no answer within 1000 ms

CONNECTS  DECISION     MEANING
      70  local        to this agent
   1,200  no-listener  to a sibling: nobody listened here
       1  newer        
  
applications of other agents  10.0.0.1:13001: 5 taken, 1 turned away
  web: 2 connections
";
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&render(&shown)), trimmed(expected));
    }
}
