//! What an agent says of the calls that its kernel path routes from lane to lane.

use std::{collections::BTreeMap, mem::offset_of};

use agent_common::lane::{LANES_MAX, Lane, calls_and_bytes, lane_state};
use aya::maps::{Array, Map, MapData};

use crate::{Agent, kernel::Look, until_true};

/// What the kernel has routed, and what not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routed {
    /// Lanes that are open.
    pub lanes: u64,
    /// Calls in flight.
    pub in_flight: u64,
    /// Calls that were routed.
    pub calls: u64,
    /// Answers that were.
    pub answers: u64,
    /// Frames that were not, by reason.
    pub unrouted: BTreeMap<String, u64>,
    /// The services, and why the calls of one are not routed.
    pub services: BTreeMap<String, Option<String>>,
}

impl Routed {
    /// Asks an agent.
    ///
    /// # Panics
    /// If it does not say.
    pub fn at(agent: &Agent) -> Self {
        let routing = agent.json(&["kernel"])["routing"].clone();
        let number = |name: &str| routing[name].as_u64().expect("a number");
        let unrouted: BTreeMap<String, u64> = serde_json::from_value(routing["unrouted"].clone()).expect("reasons");
        let services = routing["services"].as_array().expect("services").iter().map(|service| {
            let text = |name: &str| service[name].as_str().map(str::to_owned);
            (text("service").expect("a name"), text("why_not"))
        });
        Self {
            lanes: number("lanes"),
            in_flight: number("in_flight"),
            calls: number("calls"),
            answers: number("answers"),
            unrouted: unrouted.into_iter().filter(|(_, count)| *count > 0).collect(),
            services: services.collect(),
        }
    }

    /// Whether the calls of a service are routed.
    pub fn routes(&self, uri: &str) -> bool {
        self.services.get(uri) == Some(&None)
    }
}

/// Waits until the kernel routes the calls of a service.
pub fn await_routed(agent: &Agent, uri: &str) {
    until_true(&format!("{uri} to be routed"), || Routed::at(agent).routes(uri));
}

/// Waits until an agent has so many lanes, and no others.
pub fn await_lanes(agent: &Agent, count: u64) {
    until_true(&format!("{count} lanes"), || Routed::at(agent).lanes == count);
}

/// Waits until no call is in flight, neither in the kernel nor by way of the agent.
pub fn await_idle(agent: &Agent) {
    until_true("nothing to be in flight", || {
        Routed::at(agent).in_flight == 0 && agent.json(&["status"])["calls"]["in_flight"] == 0
    });
}

/// What is reserved at a lane that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Its place.
    pub lane: u32,
    /// Calls that it was given and has not answered.
    pub in_flight: u64,
    /// Bytes of them.
    pub queued: u64,
}

/// The lanes that something is reserved at, by the word of the kernel's own map.
///
/// # Panics
/// If it cannot be read.
pub fn reserved(agent: &Agent) -> Vec<Reserved> {
    let pins = Look::at(agent).pins.expect("pins");
    let map = Map::from_map_data(MapData::from_pin(pins.join("LANE")).expect("the pin of the lanes")).expect("a map");
    let lanes: Array<_, [u8; size_of::<Lane>()]> = Array::try_from(map).expect("the lanes");
    let of = |lane: u32| {
        let bytes = lanes.get(&lane, 0).expect("a lane");
        let long = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().expect("a number"));
        let state = u32::from_ne_bytes(*bytes[offset_of!(Lane, state)..].first_chunk().expect("a number"));
        let (in_flight, queued) = calls_and_bytes(long(offset_of!(Lane, work)));
        let is_open = state == lane_state::OPEN || state == lane_state::PAUSED;
        (is_open && (in_flight, queued) != (0, 0)).then_some(Reserved { lane, in_flight, queued })
    };
    (0..LANES_MAX).filter_map(of).collect()
}

/// Waits until nothing is in flight, and nothing is reserved at any lane.
///
/// # Panics
/// With what is reserved, if it stays.
pub fn await_unreserved(agent: &Agent) {
    await_idle(agent);
    let mut left = Vec::new();
    let given_back = crate::wait::poll_within(crate::PATIENCE, || {
        left = reserved(agent);
        left.is_empty()
    });
    assert!(given_back, "not given back: {left:?}");
}
