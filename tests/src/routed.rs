//! What an agent says of the calls that its kernel path routes from lane to lane.

use std::collections::BTreeMap;

use crate::{Agent, until_true};

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
