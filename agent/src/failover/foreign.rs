//! Whose connections come from where, when applications of other agents are taken.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::config::Failover;

/// The applications of `[failover]` by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    /// The narrowest first.
    networks: Vec<(IpNet, Arc<str>)>,
}

impl Foreign {
    pub(crate) fn new(config: &Failover) -> Self {
        Self { networks: config.networks().into_iter().map(|(network, name)| (network, name.into())).collect() }
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
        let text = "[failover.applications.shop]\naddresses = ['10.1.0.0/16', 'fd00::/8']\n\
                    [failover.applications.web]\naddresses = ['10.1.2.0/24', '10.9.9.9']\n";
        let foreign = Foreign::new(&parse(text, "f", &Given::default()).unwrap().config.failover);
        let of = |address: &str| foreign.application(address.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(of("10.1.2.3").as_deref(), Some("web"));
        assert_eq!(of("::ffff:10.1.2.3").as_deref(), Some("web"));
        assert_eq!(of("10.1.3.3").as_deref(), Some("shop"));
        assert_eq!(of("fd12::1").as_deref(), Some("shop"));
        assert_eq!(of("10.9.9.9").as_deref(), Some("web"));
        assert_eq!((of("10.2.0.1"), of("127.0.0.1"), of("::1")), (None, None, None));
    }
}
