//! An agent's name, and what derives from it: its run directory, its admin socket, its ports.
//!
//! Several agents live on one machine under different names. A name is held by a lock, so that no two agents share one.

mod claim;

use std::{
    env, fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::unistd::Uid;

pub use claim::{Claim, ClaimError};

/// The name of an agent that was not given one.
pub const DEFAULT_NAME: &str = "default";
/// Where root's agents have their files.
const SYSTEM_RUN_DIR: &str = "/run/moa";
/// The longest name.
const NAME_BYTES_MAX: usize = 32;
/// The first port of the instance `default`.
const DEFAULT_PORTS: u16 = 13_000;
/// How many ports belong to one name.
const BLOCK: u16 = 1_000;
/// Blocks of the names that are not `default`: 14000 to 31000, all below the ephemeral ports.
const BLOCKS: u64 = 18;
/// Where other agents connect to in a block.
const TUNNEL_OFFSET: u16 = 100;
/// Where metrics are in a block.
const METRICS_OFFSET: u16 = 900;

/// The name of an agent: lower-case letters, digits and `-`, at most 32.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {NAME_BYTES_MAX} lower-case letters, digits and `-`, and begins with a letter or a digit")]
pub struct NameError;

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-');
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// The first of the thousand ports that belong to this name, always the same ones; other names can have them, too.
    #[must_use]
    pub fn port_base(&self) -> u16 {
        if self.0 == DEFAULT_NAME {
            return DEFAULT_PORTS;
        }
        let block = u16::try_from(fnv1a(self.0.as_bytes()) % BLOCKS).unwrap_or(0);
        DEFAULT_PORTS + BLOCK * (1 + block)
    }
}

/// Where an agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    /// For applications.
    pub app: SocketAddr,
    /// For other agents.
    pub tunnel: SocketAddr,
    /// For metrics and health.
    pub metrics: SocketAddr,
}

/// Where an agent listens in a block of ports, on the loopback address.
///
/// # Errors
/// There are not enough ports above `base`.
pub fn listeners(base: u16) -> Result<Listeners, String> {
    if !(1..=u16::MAX - METRICS_OFFSET).contains(&base) {
        return Err(format!("--port-base {base} is not from 1 to {}", u16::MAX - METRICS_OFFSET));
    }
    let at = |offset| (Ipv4Addr::LOCALHOST, base + offset).into();
    Ok(Listeners { app: at(0), tunnel: at(TUNNEL_OFFSET), metrics: at(METRICS_OFFSET) })
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where the agents of this machine, or of this user, have their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    /// Whether the operator named it. One that was not named is made and removed, and must be this user's own.
    named: bool,
}

impl RunDir {
    /// What was named, else `/run/moa` for root, else `moa` in the directory of the user's session, else one below `/tmp`.
    #[must_use]
    pub fn choose(named: Option<PathBuf>) -> Self {
        if let Some(path) = named {
            return Self { path, named: true };
        }
        let uid = Uid::effective();
        let session = env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let path = match session {
            _ if uid.is_root() => PathBuf::from(SYSTEM_RUN_DIR),
            Some(session) => Path::new(&session).join("moa"),
            None => env::temp_dir().join(format!("moa-{uid}")),
        };
        Self { path, named: false }
    }

    /// Where the agent of a name is to be found: as [`RunDir::choose`] has it, or else where root's agents are.
    #[must_use]
    pub fn of_agent(named: Option<PathBuf>, name: &Name) -> Self {
        let own = Self::choose(named);
        let system = Self { path: SYSTEM_RUN_DIR.into(), named: false };
        if !own.named && !own.socket(name).exists() && system.socket(name).exists() { system } else { own }
    }

    /// The folder of one agent.
    #[must_use]
    pub fn folder(&self, name: &Name) -> PathBuf {
        self.path.join(&name.0)
    }

    /// The admin socket of one agent.
    #[must_use]
    pub fn socket(&self, name: &Name) -> PathBuf {
        self.folder(name).join("agent.sock")
    }

    /// The names of the agents that run now, sorted.
    #[must_use]
    pub fn running(&self) -> Vec<Name> {
        let folders = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = folders.filter_map(|folder| folder.file_name().to_str()?.parse().ok());
        let mut names: Vec<Name> = names.filter(|name| self.is_running(name)).collect();
        names.sort();
        names
    }

    /// Whether somebody listens. Trying the lock instead would keep an agent that starts at this moment from its name.
    fn is_running(&self, name: &Name) -> bool {
        let gone = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        UnixStream::connect(self.socket(name)).err().is_none_or(|error| !gone.contains(&error.kind()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["default", "a", "b-2", &"x".repeat(32)] {
            assert_eq!(name(good).to_string(), good);
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", "ü", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Name>(), Err(NameError), "{bad}");
        }
    }

    #[test]
    fn ports_belong_to_names() {
        assert_eq!(name("default").port_base(), 13_000);
        for n in 0..1000 {
            let base = name(&format!("agent-{n}")).port_base();
            assert!((14_000..=31_000).contains(&base) && base.is_multiple_of(1000), "{base}");
        }
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(listeners(65_000), Err("--port-base 65000 is not from 1 to 64635".into()));
        assert_eq!(listeners(0), Err("--port-base 0 is not from 1 to 64635".into()));
        let Listeners { app, tunnel, metrics } = listeners(14_000).expect("enough ports");
        assert_eq!(
            [app, tunnel, metrics].map(|address| address.to_string()),
            ["127.0.0.1:14000", "127.0.0.1:14100", "127.0.0.1:14900"]
        );
    }
}
