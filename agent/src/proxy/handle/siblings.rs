//! The side of failover: where this agent's applications go, and those of others that come.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::timeout;

use super::{ANSWER_WITHIN, Options, Proxy, ask};
use crate::{
    api,
    config::Checked,
    failover::Gates,
    netns::thread::cookie,
    proxy::{stats::WorkerCounters, worker::Control},
};

impl Proxy {
    /// Where connects go when this agent cannot take them; none if the kernel is not asked.
    pub(crate) fn gates(&self) -> Option<&Arc<Gates>> {
        self.beside.gates.as_ref()
    }

    /// The side of other agents' applications; none if none are taken.
    pub async fn foreign(&self) -> Option<api::failover::Foreign> {
        let listen = self.routes().checked.config.failover.listen?;
        let (accepted_total, refused_total) = self.foreign_totals();
        let mut connections = BTreeMap::new();
        for worker in &self.workers {
            for (application, count) in ask(worker, Control::Foreign).await.unwrap_or_default() {
                *connections.entry(application).or_default() += count;
            }
        }
        Some(api::failover::Foreign { listen: listen.to_string(), connections, accepted_total, refused_total })
    }

    /// Connections of other agents' applications: taken, turned away.
    pub(crate) fn foreign_totals(&self) -> (u64, u64) {
        let sum = |of: fn(&WorkerCounters) -> u64| self.workers.iter().map(|worker| of(&worker.counters)).sum();
        (sum(|counters| counters.foreign_accepted.get()), sum(|counters| counters.foreign_refused.get()))
    }

    /// Has connections of other agents' applications closed, each between two calls.
    pub async fn send_home(&self) {
        for worker in &self.workers {
            // One that is late does so as soon as it can.
            let _ = timeout(ANSWER_WITHIN, worker.control.send(Control::SendHome)).await;
        }
    }
}

/// Where applications connect, as the kernel is told; none if it is not asked.
pub(super) fn gates(options: &Options, checked: &Checked) -> Option<Arc<Gates>> {
    let gates = Gates::new(options.hooks.clone()?, &options.name, checked);
    match cookie() {
        Ok(here) => gates.open(here, checked.config.app.listen, "".into(), "".into()),
        Err(error) => tracing::warn!(%error, "applications of this namespace find no sibling when this agent is gone"),
    }
    Some(gates)
}
