//! The gates: where applications connect to this agent, and where the kernel sends them when it cannot take them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};
use tracing::warn;

use super::{
    hooks::{Decision, Hooks},
    probe,
    siblings::Siblings,
};
use crate::{api::failover as api, clock::now_ns, config::Checked};

/// Keeps what the kernel knows of the gates as it should be: as namespaces come and go, and as the configuration says.
pub(crate) struct Gates {
    hooks: Arc<dyn Hooks>,
    /// What this agent is called, as no other is.
    own: Arc<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    siblings: Siblings,
    open: BTreeMap<(u64, SocketAddr), Gate>,
    probes: BTreeMap<SocketAddr, (Duration, Probed)>,
    /// Whether what a former process left was taken away.
    swept: bool,
}

/// What is behind a gate.
struct Gate {
    application: Arc<str>,
    /// The namespace as its file is called; empty for the agent's own.
    place: Arc<str>,
}

/// A sibling that is looked at.
struct Probed {
    seen: watch::Receiver<probe::Seen>,
    task: JoinHandle<()>,
}

impl Gates {
    pub(crate) fn new(hooks: Arc<dyn Hooks>, own: &str, checked: &Checked) -> Arc<Self> {
        let gates = Arc::new(Self { hooks, own: own.into(), state: Mutex::default() });
        gates.configure(checked);
        gates
    }

    /// What the kernel is asked by.
    pub(crate) fn hooks(&self) -> &Arc<dyn Hooks> {
        &self.hooks
    }

    /// Applications connect here now.
    pub(crate) fn open(&self, netns: u64, address: SocketAddr, application: Arc<str>, place: Arc<str>) {
        let state = &mut *self.state();
        let gate = Gate { application, place };
        self.publish(&state.siblings, (netns, address), &gate);
        state.open.insert((netns, address), gate);
    }

    /// They never will again.
    pub(crate) fn close(&self, netns: u64) {
        let state = &mut *self.state();
        let gone: Vec<_> = state.open.keys().filter(|(of, _)| *of == netns).copied().collect();
        for (netns, address) in gone {
            state.open.remove(&(netns, address));
            self.hooks.remove_gate(netns, address);
        }
    }

    /// Takes those away that a former process has left and nobody has opened again.
    pub(crate) fn sweep(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.swept, true) {
            return;
        }
        for gate in self.hooks.gates() {
            if !state.open.contains_key(&(gate.netns, gate.address)) {
                self.hooks.remove_gate(gate.netns, gate.address);
            }
        }
    }

    /// Follows a new configuration. Called in a runtime, which the probes run in.
    pub(crate) fn configure(&self, checked: &Checked) {
        let state = &mut *self.state();
        self.hooks.set_stale(checked.config.failover.stale());
        let siblings = Siblings::new(checked);
        if siblings != state.siblings {
            state.siblings = siblings;
            for (at, gate) in &state.open {
                self.publish(&state.siblings, *at, gate);
            }
        }
        let every = Duration::from_millis(checked.config.failover.probe_ms);
        let wanted: BTreeSet<SocketAddr> = state.siblings.addresses().collect();
        state.probes.retain(|address, (rhythm, probed)| {
            let stays = wanted.contains(address) && *rhythm == every;
            if !stays {
                probed.task.abort();
            }
            stays
        });
        for address in wanted {
            state.probes.entry(address).or_insert_with(|| {
                let (told, seen) = watch::channel(probe::Seen::default());
                let task = tokio::spawn(probe::keep_looking(self.hooks.clone(), address, every, told));
                (every, Probed { seen, task })
            });
        }
    }

    /// For those who ask.
    pub(crate) fn look(&self) -> api::Failover {
        let state = self.state();
        let now = now_ns();
        let peers: BTreeMap<SocketAddr, _> = self.hooks.peers().into_iter().map(|peer| (peer.address, peer)).collect();
        let siblings = state.probes.iter().map(|(address, (_, probed))| {
            let (seen, peer) = (probed.seen.borrow().clone(), peers.get(address));
            api::Sibling {
                name: state.siblings.name(*address).unwrap_or_default().to_owned(),
                address: address.to_string(),
                alive: seen.alive && peer.is_none_or(|peer| peer.failed_until_ns <= now),
                reason: seen.why,
                diverted_total: peer.map_or(0, |peer| peer.diverted),
                failed_total: peer.map_or(0, |peer| peer.failed),
            }
        });
        let siblings: Vec<_> = siblings.collect();
        let gates = state.open.iter().map(|((_, address), gate)| api::Gate {
            namespace: Some(gate.place.to_string()).filter(|place| !place.is_empty()),
            address: address.to_string(),
            application: gate.application.to_string(),
            siblings: state
                .siblings
                .of(&self.own, &gate.application, &gate.place)
                .into_iter()
                .map(|(name, _)| name.to_owned())
                .collect(),
        });
        let decisions = self.hooks.decisions().unwrap_or_default();
        let decisions = Decision::ALL.map(|decision| (decision.name().to_owned(), decisions.of(decision)));
        api::Failover { on: self.hooks.is_on(), gates: gates.collect(), siblings, decisions: decisions.into(), foreign: None }
    }

    fn publish(&self, siblings: &Siblings, (netns, address): (u64, SocketAddr), gate: &Gate) {
        let siblings: Vec<_> =
            siblings.of(&self.own, &gate.application, &gate.place).into_iter().map(|(_, address)| address).collect();
        if let Err(error) = self.hooks.set_gate(netns, address, &siblings) {
            let place = if gate.place.is_empty() { "here" } else { &gate.place };
            warn!(%address, place, %error, "its connections find no sibling when this agent is gone");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        self.state().probes.values().for_each(|(_, probed)| probed.task.abort());
    }
}
