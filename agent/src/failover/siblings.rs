//! Which agents take an application when its own is gone, and in which order.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{balance::murmur3, config::Checked};

/// The agents that take applications.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Siblings {
    peers: Vec<Peer>,
    /// Those of applications that not every peer serves.
    chosen: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Peer {
    name: String,
    address: SocketAddr,
    /// How far it is: 0 in this zone, or it does not say; 1 in this data centre; 2 elsewhere.
    level: u8,
}

impl Siblings {
    pub(crate) fn new(checked: &Checked) -> Self {
        let agent = &checked.config.agent;
        let level = |zone: &str, data_centre: &str| {
            if zone == agent.zone || zone.is_empty() || agent.zone.is_empty() {
                0
            } else if data_centre == agent.data_centre && !data_centre.is_empty() {
                1
            } else {
                2
            }
        };
        let peers = checked.peers.iter().filter_map(|peer| {
            let (address, level) = (peer.failover?, level(&peer.zone, &peer.data_centre));
            Some(Peer { name: peer.name.clone(), address, level })
        });
        let applications = checked.config.failover.applications.iter();
        let chosen = applications.filter(|(_, application)| !application.siblings.is_empty());
        Self {
            peers: peers.collect(),
            chosen: chosen.map(|(name, application)| (name.clone(), application.siblings.clone())).collect(),
        }
    }

    /// Those of an application: the near ones first, and among those that are as near in another order for each agent, which is
    /// called `own`, application and place, so that what one agent had spreads over all of them when it is gone.
    pub(crate) fn of(&self, own: &str, application: &str, place: &str) -> Vec<(&str, SocketAddr)> {
        let chosen = self.chosen.get(application);
        let mut peers: Vec<_> =
            self.peers.iter().filter(|peer| chosen.is_none_or(|chosen| chosen.contains(&peer.name))).collect();
        let score = |peer: &Peer| murmur3::first_word([own, application, place, &peer.name].join("\0").as_bytes());
        // The name decides where the hash does not.
        peers.sort_by_cached_key(|peer| (peer.level, score(peer), peer.name.clone()));
        peers.into_iter().map(|peer| (peer.name.as_str(), peer.address)).collect()
    }

    /// Where all of them take applications.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.iter().map(|peer| peer.address)
    }

    /// What the one at an address is called.
    pub(crate) fn name(&self, address: SocketAddr) -> Option<&str> {
        self.peers.iter().find(|peer| peer.address == address).map(|peer| peer.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Given, parse};

    /// An agent in zone `east` of `one`, with these peers.
    fn siblings(peers: &[(&str, &str)], more: &str) -> Siblings {
        let mut text = format!("[agent]\nzone = 'east'\ndata_centre = 'one'\n{more}\n");
        for (n, (name, place)) in peers.iter().enumerate() {
            text += &format!("[peers.{name}]\naddress = '10.0.0.{n}:13100'\nfailover = '10.0.0.{n}:13001'\n{place}\n");
        }
        Siblings::new(&parse(&text, "f", &Given::default()).unwrap())
    }

    fn names(siblings: &Siblings, application: &str, place: &str) -> Vec<String> {
        siblings.of("own", application, place).into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn the_near_ones_come_first() {
        let peers =
            [("far", "zone = 'x'\ndata_centre = 'two'"), ("dc", "zone = 'west'\ndata_centre = 'one'"), ("zone", "zone = 'east'")];
        let siblings = siblings(&peers, "[peers.none]\naddress = '10.9.9.9:13100'");
        assert_eq!(names(&siblings, "shop", "pod-a"), ["zone", "dc", "far"]);
        assert_eq!(siblings.addresses().count(), 3);
        assert_eq!(siblings.name("10.0.0.1:13001".parse().unwrap()), Some("dc"));
    }

    #[test]
    fn an_application_may_have_its_own() {
        let more = "[failover.applications.shop]\nsiblings = ['b']";
        let siblings = siblings(&[("a", ""), ("b", ""), ("c", "")], more);
        assert_eq!(names(&siblings, "shop", "pod-a"), ["b"]);
        assert_eq!(names(&siblings, "web", "pod-a").len(), 3);
    }

    #[test]
    fn what_a_dead_agent_had_spreads_evenly_and_the_order_of_the_others_stays() {
        let peers: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
        let peers: Vec<(&str, &str)> = peers.iter().map(|name| (name.as_str(), "")).collect();
        let (all, fewer) = (siblings(&peers, ""), siblings(&peers[1..], ""));
        let mut firsts = BTreeMap::<String, usize>::new();
        for pod in 0..800 {
            let order = names(&all, "shop", &format!("pod-{pod}"));
            let without: Vec<String> = order.iter().filter(|name| *name != "p0").cloned().collect();
            assert_eq!(names(&fewer, "shop", &format!("pod-{pod}")), without);
            *firsts.entry(order[0].clone()).or_default() += 1;
        }
        assert!(firsts.len() == 8 && firsts.values().all(|count| (60..140).contains(count)), "{firsts:?}");
    }
}
