//! The kernel path of an agent: whether it is there, and what went by it.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{
    bed::{free_port, wait_until},
    cpu::Cpus,
    subject::{Setting, Subject, agent_name},
    workshop::{Program, Workshop},
};
use crate::{command, place::Place};

/// What `moa status --json` says of it.
#[derive(Debug, Deserialize)]
struct Status {
    kernel: Attached,
}

#[derive(Debug, Deserialize)]
struct Attached {
    attached: bool,
    reason: Option<String>,
}

/// What `moa kernel --json` says of it: sums since the agent was started.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Kernel {
    to_agent: Sent,
    from_agent: Sent,
    /// What became of calls on lanes; none if the agent knows no lanes.
    #[serde(rename = "routing")]
    routed: Option<Routed>,
    /// Directions that went over to TCP, by reason.
    fallbacks: BTreeMap<String, u64>,
    /// The programs.
    pub(super) programs: Vec<KernelProgram>,
}

/// Calls that the programs routed, and messages that they did not, by reason.
#[derive(Debug, Clone, Default, Deserialize)]
struct Routed {
    calls: u64,
    unrouted: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Sent {
    bytes: u64,
}

/// How often a program ran, and how long, while the kernel counted that.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct KernelProgram {
    pub(super) name: String,
    pub(super) runs: u64,
    pub(super) run_ns: u64,
}

/// Why an agent on this machine has no kernel path; none if it has one.
pub(super) fn why_not(place: &Place, workshop: &Workshop) -> Result<Option<String>> {
    let (listen, extra, upstream, tunnel) = (free_port()?, free_port()?, free_port()?, free_port()?);
    let (folder, moa) = (workshop.path().join("probe"), place.shipped_moa());
    fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let args = Subject::AgentOn.configure(&Setting { folder: &folder, listen, extra, upstream, tunnel, workers: 1 })?;
    let mut agent = workshop.start("probe", &Program { file: moa.clone(), args }, Cpus::All)?;
    let mut found = None;
    let ask = || {
        found = Some(ask::<Status>(&moa, "status", listen).context("`moa status` has no answer")?.kernel);
        Ok(())
    };
    wait_until(&mut agent, ask).context("the agent does not start")?;
    let kernel = found.context("`moa status` has no answer")?;
    Ok((!kernel.attached).then(|| kernel.reason.unwrap_or_else(|| "the agent does not say why".to_owned())))
}

impl Kernel {
    /// Asks the agent that takes calls on a port.
    pub(super) fn now(moa: &Path, port: u16) -> Result<Self> {
        ask(moa, "kernel", port).context("`moa kernel` has no answer")
    }

    /// Bytes that were redirected since then, on both legs.
    pub(super) fn redirected_since(&self, before: &Self) -> u64 {
        let redirected = |kernel: &Self| kernel.to_agent.bytes + kernel.from_agent.bytes;
        redirected(self).saturating_sub(redirected(before))
    }

    /// Why directions have gone over to TCP since then.
    pub(super) fn fallbacks_since(&self, before: &Self) -> String {
        let news = news(&self.fallbacks, &before.fallbacks);
        if news.is_empty() { "no direction went over to TCP meanwhile".to_owned() } else { news }
    }

    /// Calls that the programs have routed since then.
    pub(super) fn routed_since(&self, before: &Self) -> u64 {
        let calls = |kernel: &Self| kernel.routed.as_ref().map_or(0, |routed| routed.calls);
        calls(self).saturating_sub(calls(before))
    }

    /// Why they have not routed others since then.
    pub(super) fn unrouted_since(&self, before: &Self) -> String {
        let Some(routed) = &self.routed else { return "`moa kernel` says nothing of lanes".to_owned() };
        let former = before.routed.as_ref().map(|before| before.unrouted.clone()).unwrap_or_default();
        let news = news(&routed.unrouted, &former);
        if news.is_empty() { "no message on a lane was left to the agent meanwhile".to_owned() } else { news }
    }
}

/// What was counted since then.
fn news(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> String {
    let news = |(why, count): (&String, &u64)| {
        let new = count.saturating_sub(before.get(why).copied().unwrap_or(0));
        (new > 0).then(|| format!("{why} {new}"))
    };
    now.iter().filter_map(news).collect::<Vec<_>>().join(", ")
}

fn ask<T: for<'de> Deserialize<'de>>(moa: &Path, verb: &str, port: u16) -> Option<T> {
    let printed = command::printed(Command::new(moa).args([verb, "--json", "--name", &agent_name(port)]))?;
    serde_json::from_str(&printed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(to: u64, from: u64, fallbacks: &serde_json::Value) -> Kernel {
        let sent = |bytes| serde_json::json!({ "messages": 1, "bytes": bytes });
        let json = serde_json::json!({
            "to_agent": sent(to), "from_agent": sent(from), "fallbacks": fallbacks, "programs": [], "more": 1
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_came_before_does_not_count() {
        let before = kernel(100, 100, &serde_json::json!({ "zerocopy": 3 }));
        let after = kernel(140, 150, &serde_json::json!({ "zerocopy": 3, "bound-at-agent": 2, "ulp": 0 }));
        assert_eq!(after.redirected_since(&before), 90);
        assert_eq!(after.fallbacks_since(&before), "bound-at-agent 2");
        assert_eq!(
            (after.routed_since(&before), after.unrouted_since(&before)),
            (0, "`moa kernel` says nothing of lanes".to_owned())
        );
        let routed = |calls, unrouted| Kernel { routed: Some(Routed { calls, unrouted }), ..after.clone() };
        let (before, after) = (routed(5, BTreeMap::new()), routed(9, [("no-route".to_owned(), 3)].into()));
        assert_eq!((after.routed_since(&before), after.unrouted_since(&before)), (4, "no-route 3".to_owned()));
    }
}
