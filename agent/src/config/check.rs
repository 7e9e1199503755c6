//! What no schema can say: keys that must fit each other, and services as a whole.

use std::net::SocketAddr;

use toml::de::DeTable;

use super::{
    CheckedService, Config,
    key::KeyPath,
    problem::{Finding, Problems},
    source::{find, find_nearest},
};

/// The longest URI of a service.
const URI_BYTES_MAX: usize = 255;

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
        if overlap(config.app.listen, config.metrics.listen) {
            let conflict = Conflict {
                keys: &["metrics.listen", "app.listen"],
                found: format!("{} for applications and {} for metrics", config.app.listen, config.metrics.listen),
                expected: "two addresses that differ".into(),
                advice: "give one of them another port".into(),
            };
            self.conflicts(&top, vec![conflict], true);
        }
    }

    /// Checks one service.
    pub(super) fn service(&mut self, service: &CheckedService, config: &Config) {
        let at = KeyPath::default().key("services").key(&service.uri);
        if let Some(wrong) = wrong_uri(&service.uri) {
            let expected = format!("a URI such as \"/service/user\", of at most {URI_BYTES_MAX} bytes");
            self.push(&at, Finding { found: wrong, expected, advice: "rename the section".into() });
        }
        self.instances(service, config, &at.key("instances"));
        self.conflicts(&at, service.policy.conflicts(), false);
        // What `[defaults]` lack is a conflict of the service that does not add it, so the section itself is good enough a place.
        let health = service.policy.health.conflicts();
        self.conflicts(&at, health, true);
    }

    fn instances(&mut self, service: &CheckedService, config: &Config, at: &KeyPath) {
        if service.instances.is_empty() && !self.problems.concern(at) {
            let advice = r#"add instances = ["10.0.0.1:5000"]"#.into();
            self.push(at, Finding { found: "no instances".into(), expected: "a list of at least one address".into(), advice });
        }
        for (n, &instance) in service.instances.iter().enumerate() {
            let finding = if service.instances[..n].contains(&instance) {
                Finding {
                    found: format!("{instance} for the second time"),
                    expected: "every instance once".into(),
                    advice: "remove it".into(),
                }
            } else if is_own(config.app.listen, instance) || is_own(config.metrics.listen, instance) {
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

    fn push(&mut self, at: &KeyPath, finding: Finding) {
        self.problems.push(find_nearest(self.root, at), at, finding);
    }
}

fn wrong_uri(uri: &str) -> Option<String> {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || "\"'`\\".contains(c);
    if !uri.starts_with('/') || uri.len() == 1 {
        Some(format!("the URI {uri:?}, which does not begin with `/` and a name"))
    } else if uri.len() > URI_BYTES_MAX {
        Some(format!("a URI of {} bytes", uri.len()))
    } else {
        uri.contains(unfit).then(|| format!("the URI {uri:?} with a space, a quote, a backslash or a control character"))
    }
}

/// Whether two listeners would be in each other's way.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Whether a connection to `address` would reach a listener of this agent.
fn is_own(listen: SocketAddr, address: SocketAddr) -> bool {
    listen == address || listen.port() == address.port() && listen.ip().is_unspecified() && address.ip().is_loopback()
}
