//! What no schema can say: keys that must fit each other, and services as a whole.

mod traffic;

use std::{collections::HashSet, net::SocketAddr};

use toml::de::DeTable;

use self::traffic::Scope;
use super::{
    Checked, CheckedPeer, CheckedService, Config,
    key::KeyPath,
    load::table,
    problem::{Finding, Problems},
    source::{find, find_nearest},
    words,
};

/// The longest URI of a service.
const URI_BYTES_MAX: usize = 255;
/// The longest group.
const GROUP_BYTES_MAX: usize = 255;

/// Keys of one section that do not fit each other.
pub(super) struct Conflict {
    /// The keys below the section; the first one that is written is where the conflict is shown.
    pub(super) keys: &'static [&'static str],
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) advice: String,
}

/// A file that has been read, with what is wrong with it so far.
pub(super) struct Check<'a, 'text> {
    pub(super) root: &'a DeTable<'text>,
    pub(super) problems: &'a mut Problems<'text>,
}

impl Check<'_, '_> {
    /// Checks the sections that describe the agent.
    pub(super) fn config(&mut self, config: &Config) {
        let top = KeyPath::default();
        self.conflicts(&top.key("app"), config.app.conflicts(), true);
        self.conflicts(&top.key("defaults"), config.defaults.conflicts(), true);
        self.conflicts(&top.key("tunnel"), config.tunnel.conflicts(), true);
        self.conflicts(&top.key("tracing"), config.tracing.conflicts(), true);
        self.namespaces(config);
        self.listeners(config);
    }

    fn listeners(&mut self, config: &Config) {
        let app = (config.app.listen, "applications");
        let tunnel = (config.tunnel.listen, "other agents");
        let metrics = (config.metrics.listen, "metrics");
        let mut pairs: Vec<(&[&str], _, _)> = vec![
            (&["metrics.listen", "app.listen"], app, metrics),
            (&["tunnel.listen", "app.listen"], app, tunnel),
            (&["metrics.listen", "tunnel.listen"], tunnel, metrics),
        ];
        if let Some(failover) = config.failover.listen {
            let failover = (failover, "applications of other agents");
            pairs.push((&["failover.listen", "app.listen"], app, failover));
            pairs.push((&["failover.listen", "tunnel.listen"], tunnel, failover));
            pairs.push((&["failover.listen", "metrics.listen"], metrics, failover));
        }
        for (keys, (one, who), (other, who_else)) in pairs {
            if overlap(one, other) {
                let conflict = Conflict {
                    keys,
                    found: format!("{one} for {who} and {other} for {who_else}"),
                    expected: "two addresses that differ".into(),
                    advice: "give one of them another port".into(),
                };
                self.conflicts(&KeyPath::default(), vec![conflict], true);
            }
        }
    }

    /// Checks the services, and the rules of `[defaults]`.
    pub(super) fn services(&mut self, checked: &Checked) {
        let top = KeyPath::default();
        let (root, at) = (self.root, top.key("services"));
        let names = table(root, "services").into_iter().flatten().filter(|(_, section)| section.get_ref().is_table());
        let names: Vec<KeyPath> = names.map(|(name, _)| at.key(name.get_ref())).collect();
        for (at, service) in names.iter().zip(&checked.services) {
            self.service(service, checked, at);
        }
        let defaults = top.key("defaults");
        self.rules(&checked.config.defaults, Scope { at: &defaults, own: None, services: &checked.services });
        // Codes may stand here for services that say when they count, and the other way round.
        let adds = |at: &KeyPath| ["retry.on", "retry.codes"].iter().any(|key| find(root, &at.dotted(key)).is_some());
        if !names.iter().any(adds) {
            self.conflicts(&defaults, checked.config.defaults.retry.codes_conflict().into_iter().collect(), true);
        }
    }

    fn service(&mut self, service: &CheckedService, checked: &Checked, at: &KeyPath) {
        if let Some(found) = wrong_uri(&service.uri) {
            let expected = format!("a URI such as \"/service/user\", of at most {URI_BYTES_MAX} bytes");
            self.push(at, Finding { found, expected, advice: "rename the section".into() });
        } else if at.last_key().contains('#')
            && let Some(found) = wrong_group(&service.group)
        {
            let expected = format!("a group of at most {GROUP_BYTES_MAX} bytes behind the `#`, as in \"/service/user#blue\"");
            self.push(at, Finding { found, expected, advice: "rename the section".into() });
        }
        self.instances(service, &checked.config, &at.key("instances"));
        self.agents(service, &checked.peers, &at.key("agents"));
        self.conflicts(at, service.policy.conflicts(), false);
        self.conflicts(at, service.policy.retry.codes_conflict().into_iter().collect(), false);
        self.rules(&service.policy, Scope { at, own: Some(service), services: &checked.services });
        // What `[defaults]` lack is a conflict of the service that does not add it, so the section itself is good enough a place.
        self.conflicts(at, service.policy.health.conflicts(), true);
    }

    fn instances(&mut self, service: &CheckedService, config: &Config, at: &KeyPath) {
        let mut seen = HashSet::new();
        for (n, one) in service.instances.iter().enumerate() {
            let instance = one.address;
            let is_own = match one.namespace {
                None => is_own(config, instance),
                Some(_) => instance == config.namespaces.listen,
            };
            let finding = if !seen.insert((instance, &one.namespace)) {
                Finding {
                    found: format!("{instance} for the second time"),
                    expected: "every instance once".into(),
                    advice: "remove it".into(),
                }
            } else if is_own {
                let expected = "the address of a server of the service".into();
                Finding {
                    found: format!("{instance}, where this agent itself listens"),
                    expected,
                    advice: "calls would go in circles: remove it".into(),
                }
            } else if instance.ip().is_unspecified() {
                let expected = "an address that can be called".into();
                Finding { found: instance.to_string(), expected, advice: format!("write 127.0.0.1:{}", instance.port()) }
            } else {
                continue;
            };
            self.push(&at.index(n), finding);
        }
        self.namespaces_of(service, config, at);
    }

    fn agents(&mut self, service: &CheckedService, peers: &[CheckedPeer], at: &KeyPath) {
        for (n, agent) in service.agents.iter().enumerate() {
            let section = KeyPath::default().key("peers").key(agent);
            let finding = if peers.iter().any(|peer| peer.name == *agent) || self.problems.concern(&section) {
                continue;
            } else {
                let advice = words::suggestion(agent, peers.iter().map(|peer| peer.name.as_str()));
                Finding {
                    found: format!("the agent {agent:?}, which has no section"),
                    expected: "the name of a peer".into(),
                    advice: advice.unwrap_or_else(|| format!("add [{section}] with its address, or remove it")),
                }
            };
            self.push(&at.index(n), finding);
        }
    }

    /// Reports conflicts where one of their keys is written; elsewhere only if `inherited` ones count, too.
    fn conflicts(&mut self, section: &KeyPath, conflicts: Vec<Conflict>, inherited: bool) {
        for conflict in conflicts {
            let keys: Vec<KeyPath> = conflict.keys.iter().map(|key| section.dotted(key)).collect();
            if keys.iter().any(|key| self.problems.concern(key)) {
                continue;
            }
            let written = keys.iter().find(|key| find(self.root, key).is_some());
            let at = match written {
                Some(key) => key,
                None if inherited => &keys[0],
                None => continue,
            };
            self.push(at, Finding { found: conflict.found, expected: conflict.expected, advice: conflict.advice });
        }
    }

    pub(super) fn push(&mut self, at: &KeyPath, finding: Finding) {
        self.problems.push(find_nearest(self.root, at), at, finding);
    }
}

/// What is wrong with a service's URI, configured or offered.
pub(crate) fn wrong_uri(uri: &str) -> Option<String> {
    if !uri.starts_with('/') || uri.len() == 1 {
        Some(format!("the URI {uri:?}, which does not begin with `/` and a name"))
    } else if uri.len() > URI_BYTES_MAX {
        Some(format!("a URI of {} bytes", uri.len()))
    } else {
        uri.contains(unfit).then(|| format!("the URI {uri:?} with a space, a quote, a backslash or a control character"))
    }
}

/// What is wrong with a service's group, which has a name.
fn wrong_group(group: &str) -> Option<String> {
    if group.is_empty() {
        Some("an empty group".into())
    } else if group.len() > GROUP_BYTES_MAX {
        Some(format!("a group of {} bytes", group.len()))
    } else {
        let wrong = group.contains(unfit) || group.contains('#');
        wrong.then(|| format!("the group {group:?} with a space, a quote, a backslash, a `#` or a control character"))
    }
}

/// Whether a character would make names hard to tell apart, or to write.
fn unfit(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'`\\".contains(c)
}

/// Whether two listeners would be in each other's way.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Whether a connection to `address` would reach a listener of this agent.
pub(super) fn is_own(config: &Config, address: SocketAddr) -> bool {
    let reaches = |listen: SocketAddr| {
        listen == address || listen.port() == address.port() && listen.ip().is_unspecified() && address.ip().is_loopback()
    };
    [config.app.listen, config.tunnel.listen, config.metrics.listen].into_iter().chain(config.failover.listen).any(reaches)
}
