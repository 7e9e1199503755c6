//! New connects go to siblings while the agent drains, or has too much to bear.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{board::lock, place::Place, socket::Peer};
use crate::{clock::in_ns, failover::Hooks, netns::thread::cookie};

/// Tells the kernel when connects are to go to siblings. Nobody else does.
pub(super) struct Away {
    hooks: Option<Arc<dyn Hooks>>,
    wanted: Mutex<Wanted>,
}

/// Who wants that.
#[derive(Debug, Default)]
struct Wanted {
    /// The agent drains.
    draining: bool,
    /// It has too much to bear, and says so again before that is over.
    until_ns: u64,
}

/// Which applications' connects go to siblings while the agent is away: those of these network namespaces.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// The agent's own.
    own: bool,
    /// Others, by their cookies.
    others: HashSet<u64>,
}

impl Away {
    pub(super) fn new(hooks: Option<Arc<dyn Hooks>>) -> Self {
        Self { hooks, wanted: Mutex::default() }
    }

    /// Sends new connects to siblings for as long as the agent drains, or no more.
    pub(super) fn set_draining(&self, draining: bool) {
        let mut wanted = lock(&self.wanted);
        wanted.draining = draining;
        self.tell(&wanted);
    }

    /// Sends new connects to siblings for so long, or no more. It wakes nobody who is draining.
    pub(super) fn set_overloaded(&self, during: Option<Duration>) {
        let mut wanted = lock(&self.wanted);
        wanted.until_ns = during.map_or(0, in_ns);
        self.tell(&wanted);
    }

    fn tell(&self, wanted: &Wanted) {
        if let Some(hooks) = &self.hooks {
            hooks.set_away_until(if wanted.draining { u64::MAX } else { wanted.until_ns });
        }
    }

    /// Whose connects go to siblings.
    pub(super) fn ways(&self) -> Ways {
        let gates = self.hooks.as_ref().map(|hooks| hooks.gates()).unwrap_or_default();
        let own = cookie().ok();
        let mut ways = Ways::default();
        for gate in gates.iter().filter(|gate| !gate.siblings.is_empty()) {
            match own == Some(gate.netns) {
                true => ways.own = true,
                false => drop(ways.others.insert(gate.netns)),
            }
        }
        ways
    }
}

impl Ways {
    /// Whether nobody's do.
    pub(super) fn is_empty(&self) -> bool {
        !self.own && self.others.is_empty()
    }

    /// Whether whoever has this connection would be at a sibling after the next connect.
    pub(super) fn lead_away(&self, peer: Peer, place: Option<&Place>) -> bool {
        match (peer, place.and_then(Place::namespace)) {
            // The kernel sends no unix socket elsewhere.
            (Peer::Unix, _) => false,
            (Peer::Tcp(_), Some(namespace)) => self.others.contains(&namespace.cookie),
            (Peer::Tcp(_), None) => self.own,
        }
    }
}
