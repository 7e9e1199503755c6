//! The maps `ROUTES` and `ACCESS`, which hold two snapshots: the one in force, and the one before or after it.

use std::collections::{BTreeSet, HashMap as Map, HashSet};

use agent_common::lane::{ACCESS_MAX, Leave, MEMBERS_MAX, ROUTES_MAX, Route, RouteKey, TURNS_MAX, Turn, access, pick};
use aya::maps::{HashMap, MapData, MapError};

use super::{Switch, turns::turns};
use crate::{
    kernel::legs::clear,
    proxy::{LaneRoute, Pick},
};

/// Entries of the array `TURNS`.
const COUNTERS: u32 = 4096;
/// Services of a snapshot: half of the map `ROUTES`.
const SERVICES_MAX: usize = ROUTES_MAX as usize / 2;
/// Callers that have leave in a snapshot: half of the map `ACCESS`.
const LEAVES_MAX: usize = ACCESS_MAX as usize / 2;

/// What is routed, and how.
pub(in crate::kernel) struct Routes {
    routes: HashMap<MapData, RouteKey, Route>,
    access: HashMap<MapData, Leave, u32>,
    /// What either snapshot has in the maps.
    written: [Written; 2],
    /// The counter of each service, which goes on from snapshot to snapshot.
    counters: Map<u64, u32>,
}

#[derive(Debug, Default)]
struct Written {
    routes: HashSet<RouteKey>,
    access: HashSet<Leave>,
}

impl Routes {
    pub(in crate::kernel) fn new(routes: HashMap<MapData, RouteKey, Route>, access: HashMap<MapData, Leave, u32>) -> Self {
        Self { routes, access, written: Default::default(), counters: Map::new() }
    }

    /// Nothing is routed.
    pub(super) fn clear(&mut self, switch: &Switch) -> Result<(), MapError> {
        // Whoever was about to route by what is taken out now sees that it is another.
        switch.next();
        clear(&mut self.routes)?;
        clear(&mut self.access)
    }

    /// Writes the next snapshot and puts it in force. Gives the services that cannot be routed.
    ///
    /// What was in force two snapshots ago makes room first: nobody goes by it any more. So as a snapshot has at most half of
    /// what the maps hold, there is always room: what was allowed before and is forbidden now must not stay for a lack of it.
    pub(super) fn publish(&mut self, routes: &[LaneRoute], switch: &Switch) -> Result<Vec<u64>, MapError> {
        let snapshot = switch.snapshot().wrapping_add(1) & 1;
        let refused = refused(routes);
        let routed: Vec<_> = routes.iter().filter(|route| !refused.contains(&route.service)).collect();
        self.count(routed.iter().map(|route| route.service).collect());
        self.remove_others(snapshot, &written(&routed, snapshot))?;
        for route in routed {
            let Some(turns) = turns_of(route) else { continue };
            self.write(route, snapshot, turns)?;
        }
        switch.next();
        Ok(refused.into_iter().collect())
    }

    /// Gives each of these services a counter of its own. Beyond as many as there are, services share them.
    fn count(&mut self, services: HashSet<u64>) {
        self.counters.retain(|service, _| services.contains(service));
        let taken: HashSet<u32> = self.counters.values().copied().collect();
        let mut free = (0..COUNTERS).filter(|counter| !taken.contains(counter));
        for service in services {
            self.counters.entry(service).or_insert_with(|| free.next().unwrap_or(0));
        }
    }

    fn write(&mut self, route: &LaneRoute, snapshot: u64, turns: [Turn; TURNS_MAX]) -> Result<(), MapError> {
        let of = &mut self.written[parity(snapshot)];
        let key = RouteKey { service: route.service, snapshot };
        // Each is known before it is there, so that it is even if this fails in the middle.
        for leave in leaves(route, snapshot) {
            of.access.insert(leave);
            self.access.insert(leave, 1, 0)?;
        }
        let value = Route {
            policy: match route.pick {
                Pick::Turns => pick::TURNS,
                Pick::Least => pick::LEAST,
                Pick::Faster => pick::FASTER,
                Pick::Chance => pick::CHANCE,
            },
            access: if route.callers.is_some() { access::LISTED } else { access::OPEN },
            timeout_ms: route.timeout_ms,
            to_agent_per_million: route.to_agent_per_million,
            body_max: route.body_max,
            turns_len: len_of(route),
            turn: self.counters.get(&route.service).copied().unwrap_or(0),
            reserved: 0,
            turns,
        };
        of.routes.insert(key);
        self.routes.insert(key, value, 0)
    }

    /// Takes out what this snapshot had and will not have.
    fn remove_others(&mut self, snapshot: u64, now: &Written) -> Result<(), MapError> {
        let of = &mut self.written[parity(snapshot)];
        for key in of.routes.difference(&now.routes) {
            gone(self.routes.remove(key))?;
        }
        for leave in of.access.difference(&now.access) {
            gone(self.access.remove(leave))?;
        }
        of.routes.retain(|key| now.routes.contains(key));
        of.access.retain(|leave| now.access.contains(leave));
        Ok(())
    }
}

/// Services that have no turns, or a hash that is another's too, as the programs could not tell them apart; and those that a
/// snapshot has no room for.
fn refused(routes: &[LaneRoute]) -> BTreeSet<u64> {
    let mut seen = HashSet::new();
    let (mut services, mut leaves) = (0, 0);
    let cannot = |route: &&LaneRoute| {
        if !seen.insert(route.service) || turns_of(route).is_none() {
            return true;
        }
        let more = route.callers.as_ref().map_or(0, Vec::len);
        let fits = services < SERVICES_MAX && leaves + more <= LEAVES_MAX;
        (services, leaves) = if fits { (services + 1, leaves + more) } else { (services, leaves) };
        !fits
    };
    routes.iter().filter(cannot).map(|route| route.service).collect()
}

/// What these have in the maps.
fn written(routes: &[&LaneRoute], snapshot: u64) -> Written {
    Written {
        routes: routes.iter().map(|route| RouteKey { service: route.service, snapshot }).collect(),
        access: routes.iter().flat_map(|route| leaves(route, snapshot)).collect(),
    }
}

/// The leave of each caller that may call.
fn leaves(route: &LaneRoute, snapshot: u64) -> impl Iterator<Item = Leave> {
    let snapshot = u32::from(snapshot != 0);
    route.callers.iter().flatten().map(move |label| Leave { service: route.service, label: *label, snapshot })
}

/// What is taken out may be gone.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        removed => removed,
    }
}

fn parity(snapshot: u64) -> usize {
    usize::from(snapshot != 0)
}

/// The turns of a service's instances, repeated until the array is full: no program finds an entry that is nobody's.
fn turns_of(route: &LaneRoute) -> Option<[Turn; TURNS_MAX]> {
    let order = order_of(route)?;
    let turn = |at: usize| {
        let (lane, _, member) = route.instances[order[at % order.len()]];
        Turn { lane: lane.index, generation: lane.generation, member, reserved: 0 }
    };
    Some(std::array::from_fn(turn))
}

fn len_of(route: &LaneRoute) -> u32 {
    order_of(route).and_then(|order| u32::try_from(order.len()).ok()).unwrap_or(0)
}

fn order_of(route: &LaneRoute) -> Option<Vec<usize>> {
    if route.instances.iter().any(|(_, _, member)| *member >= MEMBERS_MAX) {
        return None;
    }
    let weights: Vec<u32> = route.instances.iter().map(|(_, weight, _)| *weight).collect();
    turns(&weights)
}
