//! Whose connections come from where, when applications of other agents are taken.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::config::Checked;

/// The applications of `[failover]` by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    /// The narrowest first.
    networks: Vec<(IpNet, Arc<str>)>,
    /// Where other agents are, which look whether applications are taken.
    agents: BTreeSet<IpAddr>,
}

impl Foreign {
    pub(crate) fn new(checked: &Checked) -> Self {
        let networks = checked.config.failover.networks();
        let agents = checked.peers.iter().flat_map(|peer| peer.failover.into_iter().chain([peer.address]));
        Self {
            networks: networks.into_iter().map(|(network, name)| (network, name.into())).collect(),
            agents: agents.map(|address| address.ip().to_canonical()).collect(),
        }
    }

    /// Whether another agent is there.
    pub(crate) fn is_agent(&self, address: IpAddr) -> bool {
        self.agents.contains(&address.to_canonical())
    }

    /// The application that an address belongs to.
    pub(crate) fn application(&self, address: IpAddr) -> Option<Arc<str>> {
        let address = address.to_canonical();
        self.networks.iter().find(|(network, _)| network.contains(&address)).map(|(_, application)| application.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Given, parse};

    #[test]
    fn the_narrowest_network_counts() {
        let text = "[peers.b]\naddress = '10.0.0.2:13100'\nfailover = '10.0.1.2:13001'\n[failover.applications.shop]\naddresses = ['10.1.0.0/16', 'fd00::/8']\n\
                    [failover.applications.web]\naddresses = ['10.1.2.0/24', '10.9.9.9']\n";
        let foreign = Foreign::new(&parse(text, "f", &Given::default()).unwrap());
        let of = |address: &str| foreign.application(address.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(of("10.1.2.3").as_deref(), Some("web"));
        assert_eq!(of("::ffff:10.1.2.3").as_deref(), Some("web"));
        assert_eq!(of("10.1.3.3").as_deref(), Some("shop"));
        assert_eq!(of("fd12::1").as_deref(), Some("shop"));
        assert_eq!(of("10.9.9.9").as_deref(), Some("web"));
        let is_agent = |address: &str| foreign.is_agent(address.parse().unwrap());
        assert!(is_agent("10.0.0.2") && is_agent("::ffff:10.0.1.2") && !is_agent("10.0.0.3"));
        assert_eq!((of("10.2.0.1"), of("127.0.0.1"), of("::1")), (None, None, None));
    }
}
