//! What becomes of applications whose agent is gone: `[failover]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Checked,
    check::Check,
    key::KeyPath,
    namespaces::is_application,
    problem::Finding,
    schema::{APPLICATION_BYTES_MAX, DAY_MS, address_schema},
    suggestion,
};

/// An address as `failover.listen` could be.
const EXAMPLE_LISTEN: &str = "10.0.0.1:13001";
/// A network as an application could be in.
const EXAMPLE_NETWORK: &str = "10.244.1.0/24";

/// What becomes of applications when their agent is gone: they go to a sibling, another agent that serves them in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Failover {
    /// Where this agent takes applications of other agents: an address of its node, usually with port 13001. Without it, it takes
    /// none.
    #[schemars(schema_with = "address_schema", example = EXAMPLE_LISTEN)]
    pub listen: Option<SocketAddr>,
    /// How long a worker of this agent may give no sign of life before it counts as hung: then new connections go elsewhere, and
    /// those that it has are reset.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub stale_ms: u64,
    /// Time between two looks whether a sibling takes applications.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub probe_ms: u64,
    /// Applications that other agents may send here, and whose siblings are not all peers, by name.
    pub applications: BTreeMap<String, FailoverApplication>,
}

/// One application, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverApplication {
    /// Where its connections to `failover.listen` come from: addresses, and networks such as 10.244.1.0/24. Of several that fit,
    /// the narrowest counts. From anywhere else nobody is let in.
    #[schemars(extend("uniqueItems" = true), example = [EXAMPLE_NETWORK])]
    pub addresses: Vec<String>,
    /// The peers that serve it when this agent is gone, by name; every peer that has `failover` unless this says otherwise.
    #[schemars(extend("uniqueItems" = true))]
    pub siblings: Vec<String>,
}

impl Default for Failover {
    fn default() -> Self {
        Self { listen: None, stale_ms: 500, probe_ms: 1000, applications: BTreeMap::new() }
    }
}

impl Failover {
    /// How long a worker may give no sign of life.
    #[must_use]
    pub fn stale(&self) -> Duration {
        Duration::from_millis(self.stale_ms)
    }

    /// Whose connections come from where, the narrowest network first.
    #[must_use]
    pub fn networks(&self) -> Vec<(IpNet, &str)> {
        let all = self.applications.iter();
        let mut networks: Vec<(IpNet, &str)> =
            all.flat_map(|(name, one)| one.addresses.iter().filter_map(|text| Some((network(text)?, name.as_str())))).collect();
        networks.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        networks
    }
}

/// An address, or a network.
fn network(text: &str) -> Option<IpNet> {
    let network: Option<IpNet> = text.parse().ok();
    network.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|network| network.trunc())
}

impl Check<'_, '_> {
    /// Checks the applications of `[failover]`.
    pub(super) fn failover(&mut self, checked: &Checked) {
        let at = KeyPath::default().key("failover").key("applications");
        let mut seen: BTreeMap<IpNet, &str> = BTreeMap::new();
        for (name, application) in &checked.config.failover.applications {
            let at = at.key(name);
            if !is_application(name) {
                let expected = format!("the name of an application, of at most {APPLICATION_BYTES_MAX} bytes");
                self.push(&at, Finding { found: format!("the name {name:?}"), expected, advice: "rename the section".into() });
            }
            for (n, text) in application.addresses.iter().enumerate() {
                let finding = match network(text) {
                    None => Finding {
                        found: format!("{text:?}"),
                        expected: "an IP address, or a network".into(),
                        advice: format!("write it such as {EXAMPLE_NETWORK:?}"),
                    },
                    Some(network) => match seen.insert(network, name) {
                        Some(other) if other != name => Finding {
                            found: format!("{network}, which is that of `{other}`, too"),
                            expected: "addresses that belong to one application".into(),
                            advice: "remove it from one of the two".into(),
                        },
                        _ => continue,
                    },
                };
                self.push(&at.key("addresses").index(n), finding);
            }
            self.siblings(&application.siblings, checked, &at.key("siblings"));
        }
    }

    fn siblings(&mut self, siblings: &[String], checked: &Checked, at: &KeyPath) {
        for (n, sibling) in siblings.iter().enumerate() {
            let section = KeyPath::default().key("peers").key(sibling);
            if self.problems.concern(&section) {
                continue;
            }
            let peer = checked.peers.iter().find(|peer| peer.name == *sibling);
            let (found, advice) = match peer {
                Some(peer) if peer.failover.is_some() => continue,
                Some(_) => {
                    (format!("the agent {sibling:?}, which takes no applications"), format!("add `failover` to [{section}]"))
                }
                None => {
                    let advice = suggestion(sibling, checked.peers.iter().map(|peer| peer.name.as_str()));
                    let add = || format!("add [{section}] with its addresses, or remove it");
                    (format!("the agent {sibling:?}, which has no section"), advice.unwrap_or_else(add))
                }
            };
            self.push(&at.index(n), Finding { found, expected: "the name of a peer that has `failover`".into(), advice });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Checked, Given, parse};

    fn read(text: &str) -> Result<Checked, String> {
        parse(text, "f", &Given::default()).map_err(|report| report.to_string())
    }

    #[test]
    fn a_whole_section() {
        let text = "[failover]\nlisten = '10.0.0.1:13001'\nstale_ms = 300\n\
                    [failover.applications.shop]\naddresses = ['10.1.0.0/16', '10.2.3.4']\nsiblings = ['b']\n\
                    [failover.applications.web]\naddresses = ['10.1.2.0/24', 'fd00::/8']\n\
                    [peers.b]\naddress = '10.0.0.2:13100'\nfailover = '10.0.0.2:13001'\n[peers.c]\naddress = '10.0.0.3:13100'\n";
        let checked = read(text).unwrap();
        let failover = &checked.config.failover;
        assert_eq!((failover.stale().as_millis(), failover.probe_ms), (300, 1000));
        assert_eq!(checked.peers[0].failover, Some("10.0.0.2:13001".parse().unwrap()));
        assert_eq!(checked.peers[1].failover, None);
        let networks: Vec<_> = failover.networks().into_iter().map(|(network, name)| format!("{network} {name}")).collect();
        assert_eq!(networks, ["10.2.3.4/32 shop", "10.1.2.0/24 web", "10.1.0.0/16 shop", "fd00::/8 web"]);
    }

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let b = "[peers.b]\naddress = '10.0.0.2:13100'\n";
        let cases = [
            ("[failover]\nlisten = '10.0.0.1'\n".to_owned(), "failover.listen"),
            ("[failover]\nstale_ms = 1\n".to_owned(), "failover.stale_ms"),
            ("[failover]\nlisten = '127.0.0.1:13000'\n".to_owned(), "give one of them another port"),
            ("[failover.applications.a]\naddresses = ['10.0.0.0/33']\n".to_owned(), "10.244.1.0/24"),
            (
                "[failover.applications.a]\naddresses = ['10.0.0.1']\n[failover.applications.b]\naddresses = ['10.0.0.1/32']\n"
                    .to_owned(),
                "which is that of `a`, too",
            ),
            ("[failover.applications.a]\nsiblings = ['b']\n".to_owned(), "add [peers.b]"),
            (format!("[failover.applications.a]\nsiblings = ['b']\n{b}"), "add `failover` to [peers.b]"),
            (format!("{b}failover = '10.0.0.2:13100'\n"), "usually port 13001"),
            (format!("{b}failover = '127.0.0.1:13000'\n"), "where this agent itself listens"),
            (format!("{b}failover = '0.0.0.0:13001'\n"), "write the address of its node"),
            (
                format!("{b}failover = '10.0.0.2:13001'\n[peers.c]\naddress = '10.0.0.3:13100'\nfailover = '10.0.0.2:13001'\n"),
                "correct one of the two",
            ),
        ];
        for (text, expected) in cases {
            let report = read(&text).unwrap_err();
            assert!(report.contains(expected), "{expected}: {report}");
        }
    }
}
