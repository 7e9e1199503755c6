//! The kernel path of an agent: whether it is there, and what went by it.

use std::{fs, path::Path, process::Command};

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Carried {
    to_agent: Sent,
    from_agent: Sent,
    tcp: Sent,
    /// Bytes that the agent has read and written, whichever way they took.
    bytes_total: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct Sent {
    messages: u64,
    bytes: u64,
}

/// Why an agent on this machine has no kernel path; none if it has one.
pub(super) fn why_not(place: &Place, workshop: &Workshop) -> Result<Option<String>> {
    let (listen, extra, upstream) = (free_port()?, free_port()?, free_port()?);
    let (folder, moa) = (workshop.path().join("probe"), place.moa(false));
    fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let args = Subject::AgentOn.configure(&Setting { folder: &folder, listen, extra, upstream, workers: 1 })?;
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

impl Carried {
    /// Asks the agent that takes calls on a port. None if this `moa` cannot say.
    pub(super) fn now(moa: &Path, port: u16) -> Option<Self> {
        ask(moa, "kernel", port)
    }

    /// What came since then.
    pub(super) fn since(self, before: Self) -> Self {
        let sent = |now: Sent, before: Sent| Sent {
            messages: now.messages.saturating_sub(before.messages),
            bytes: now.bytes.saturating_sub(before.bytes),
        };
        Self {
            to_agent: sent(self.to_agent, before.to_agent),
            from_agent: sent(self.from_agent, before.from_agent),
            tcp: sent(self.tcp, before.tcp),
            bytes_total: self.bytes_total.saturating_sub(before.bytes_total),
        }
    }

    /// The share of all bytes that was redirected; none if there were no bytes.
    pub(super) fn share(self) -> Option<f64> {
        let redirected = self.to_agent.bytes + self.from_agent.bytes;
        (self.bytes_total > 0).then(|| redirected as f64 / self.bytes_total as f64)
    }
}

fn ask<T: for<'de> Deserialize<'de>>(moa: &Path, verb: &str, port: u16) -> Option<T> {
    let printed = command::printed(Command::new(moa).args([verb, "--json", "--name", &agent_name(port)]))?;
    serde_json::from_str(&printed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_what_came_meanwhile() {
        let carried = |to, from, total| {
            let sent = |bytes| serde_json::json!({ "messages": 1, "bytes": bytes });
            let json = serde_json::json!({ "to_agent": sent(to), "from_agent": sent(from), "tcp": sent(0), "bytes_total": total, "more": 1 });
            serde_json::from_value::<Carried>(json).unwrap()
        };
        let (before, after) = (carried(100, 100, 1_000), carried(140, 140, 1_100));
        assert_eq!(after.since(before).share(), Some(0.8));
        assert_eq!(before.since(before).share(), None);
    }
}
