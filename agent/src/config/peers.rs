//! The other agents: `[peers.<name>]`.

use toml::de::DeTable;

use super::{
    CheckedPeer, Config,
    check::{Check, is_own},
    key::KeyPath,
    load::{table, value},
    problem::{Finding, Problems},
};

/// The longest name.
const NAME_BYTES_MAX: usize = 64;

/// The peers of a file, sorted by name. Those without a good address are none of them any more.
pub(super) fn read(root: &DeTable<'_>, problems: &mut Problems<'_>) -> Vec<CheckedPeer> {
    let sections = table(root, "peers").into_iter().flatten();
    let peers = sections.filter_map(|(name, section)| {
        let address = section.get_ref().as_table()?.get("address")?.clone();
        let at = section_of(name.get_ref()).key("address");
        let address = value::<Option<_>>(address, &at, problems)?;
        let failover = section.get_ref().as_table()?.get("failover").cloned();
        let failover = failover.and_then(|value_of| value(value_of, &section_of(name.get_ref()).key("failover"), problems));
        let text = |key| section.get_ref().as_table()?.get(key)?.get_ref().as_str();
        let text = |key| text(key).unwrap_or_default().to_owned();
        let name = name.get_ref().to_string();
        Some(CheckedPeer { name, address, failover, zone: text("zone"), data_centre: text("data_centre") })
    });
    let mut peers: Vec<_> = peers.collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

fn section_of(name: &str) -> KeyPath {
    KeyPath::default().key("peers").key(name)
}

impl Check<'_, '_> {
    /// Checks the other agents.
    pub(super) fn peers(&mut self, peers: &[CheckedPeer], config: &Config) {
        for peer in peers.iter().filter(|peer| !is_name(&peer.name)) {
            let expected =
                format!("1 to {NAME_BYTES_MAX} lower-case letters, digits, `-` and `.`, the first one a letter or a digit");
            let found = format!("the name {:?}", peer.name);
            self.push(&section_of(&peer.name), Finding { found, expected, advice: "rename the section".into() });
        }
        for (n, peer) in peers.iter().enumerate() {
            let same = peers[..n].iter().find(|other| other.address == peer.address);
            if let Some(finding) = wrong_address(peer, same, config) {
                self.push(&section_of(&peer.name).key("address"), finding);
            }
            if let Some(finding) = wrong_failover(peer, &peers[..n], config) {
                self.push(&section_of(&peer.name).key("failover"), finding);
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with(['-', '.'])
}

/// What is wrong with where a peer takes applications.
fn wrong_failover(peer: &CheckedPeer, others: &[CheckedPeer], config: &Config) -> Option<Finding> {
    let address = peer.failover?;
    let same = others.iter().find(|other| other.failover == Some(address));
    let (found, advice) = if let Some(other) = same {
        (format!("{address}, which is that of `{}`", other.name), "correct one of the two".into())
    } else if is_own(config, address) {
        (format!("{address}, where this agent itself listens"), "applications would come back to it: remove the key".into())
    } else if address == peer.address {
        let advice = "write its `failover.listen`, usually port 13001".into();
        (format!("{address}, where it listens for other agents"), advice)
    } else if address.ip().is_unspecified() {
        (address.to_string(), "write the address of its node".into())
    } else {
        return None;
    };
    Some(Finding { found, expected: "the `failover.listen` of that agent, as it is reached from here".into(), advice })
}

/// What is wrong with a peer's address; `same` is another one that has it, too.
fn wrong_address(peer: &CheckedPeer, same: Option<&CheckedPeer>, config: &Config) -> Option<Finding> {
    let address = peer.address;
    let (found, expected, advice) = if let Some(other) = same {
        let found = format!("{address}, which is the address of `{}`", other.name);
        (found, "an address for each peer", "remove one of the two, or correct its address".into())
    } else if is_own(config, address) {
        let found = format!("{address}, where this agent itself listens");
        (found, "the address of another agent", "calls would go in circles: remove the section".into())
    } else if address.ip().is_unspecified() {
        (address.to_string(), "an address that can be called", format!("write 127.0.0.1:{}", address.port()))
    } else {
        return None;
    };
    Some(Finding { found, expected: expected.into(), advice })
}
