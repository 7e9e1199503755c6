//! What an agent says of its kernel path (`moa kernel --json`), read apart from the agent's own code, and what this
//! machine's kernel says of programs, maps and sockets.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Command};

use aya::{
    maps::MapInfo,
    programs::{loaded_links, loaded_programs},
};
use serde::Deserialize;

use crate::{
    agent::{Agent, Prepared},
    external,
};

/// What `moa kernel --json` printed.
#[derive(Debug, Clone, Deserialize)]
pub struct Look {
    /// The same as in `moa status`.
    pub status: Status,
    /// The cgroup whose sockets the programs see.
    pub cgroup: PathBuf,
    /// The folder of the pins.
    pub pins: Option<PathBuf>,
    /// Bytes that may wait at either end.
    pub leg_bytes_max: u64,
    /// Sockets that are enrolled.
    pub enrolled: u64,
    /// Sockets that ever were.
    pub enrolled_total: u64,
    /// Redirected to the agent.
    pub to_agent: Sent,
    /// Redirected from the agent.
    pub from_agent: Sent,
    /// Left to TCP, on enrolled sockets.
    pub tcp: Sent,
    /// All that the agent has read and written.
    pub bytes_total: u64,
    /// Directions that went over to TCP.
    pub fallbacks: BTreeMap<String, u64>,
    /// Connections that were not enrolled.
    pub refusals: BTreeMap<String, u64>,
    /// Programs.
    pub programs: Vec<Program>,
    /// Maps.
    pub maps: Vec<Map>,
    /// What was tried at the start.
    pub probes: Vec<Probe>,
}

/// The kernel path in short.
#[derive(Debug, Clone, Deserialize, PartialEq)]
pub struct Status {
    /// Whether the programs are there.
    pub attached: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Whether new connections are enrolled.
    pub on: bool,
    /// Bytes redirected since the programs were first attached.
    pub redirected_bytes: u64,
    /// Their share.
    pub share: f64,
    /// What was decided, and why.
    pub decision: Option<String>,
}

/// Messages and bytes.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
pub struct Sent {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A program.
#[derive(Debug, Clone, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
}

/// A map.
#[derive(Debug, Clone, Deserialize)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// What is in it.
    pub entries: Option<u64>,
}

/// A trial.
#[derive(Debug, Clone, Deserialize)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// Whether it went well.
    pub ok: bool,
}

/// Which way bytes went between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// Bytes redirected to the agent.
    pub to_agent: u64,
    /// Bytes redirected from the agent.
    pub from_agent: u64,
    /// Bytes left to TCP.
    pub tcp: u64,
    /// Sockets enrolled.
    pub enrolled: u64,
    /// Directions that went over to TCP, by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Connections that were not enrolled, by reason.
    pub refusals: BTreeMap<String, u64>,
}

/// An agent that uses the kernel path, whatever `MOA_TEST_KERNEL` says.
pub fn prepare(config: &str) -> Prepared {
    Agent::prepare(config).kernel("on")
}

/// Starts such an agent.
pub fn start(config: &str) -> Agent {
    prepare(config).start()
}

impl Look {
    /// Asks an agent.
    pub fn at(agent: &Agent) -> Self {
        let value = agent.json(&["kernel"]);
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("moa kernel --json: {error} in {value}"))
    }

    /// Which way bytes went since another look.
    pub fn since(&self, before: &Self) -> Way {
        Way {
            to_agent: self.to_agent.bytes - before.to_agent.bytes,
            from_agent: self.from_agent.bytes - before.from_agent.bytes,
            tcp: self.tcp.bytes - before.tcp.bytes,
            enrolled: self.enrolled_total - before.enrolled_total,
            fallbacks: grown(&self.fallbacks, &before.fallbacks),
            refusals: grown(&self.refusals, &before.refusals),
        }
    }

    /// Bytes redirected, both ways.
    pub fn redirected(&self) -> u64 {
        self.to_agent.bytes + self.from_agent.bytes
    }

    /// The number of a program.
    pub fn program(&self, name: &str) -> u32 {
        let found = self.programs.iter().find(|program| program.name == name);
        found.unwrap_or_else(|| panic!("no program {name}: {self:?}")).id
    }

    /// The numbers of its maps, by name, but for those of one process only: constants and the log.
    pub fn kept_maps(&self) -> BTreeMap<String, u32> {
        let kept = self.maps.iter().filter(|map| map.name.chars().all(|letter| letter.is_ascii_uppercase()));
        kept.filter(|map| !map.name.starts_with("AYA")).map(|map| (map.name.clone(), map.id)).collect()
    }

    /// What is in a map that is counted.
    pub fn entries(&self, map: &str) -> u64 {
        let found = self.maps.iter().find(|known| known.name == map);
        found.and_then(|map| map.entries).unwrap_or_else(|| panic!("no entries of {map}: {self:?}"))
    }
}

impl Way {
    /// Expects that every byte was redirected, both ways.
    ///
    /// # Panics
    /// If one was not, or there was none.
    pub fn expect_kernel_only(&self) {
        let only = self.tcp == 0 && self.fallbacks.is_empty() && self.refusals.is_empty();
        assert!(only && self.to_agent > 0 && self.from_agent > 0, "bytes did not all go by the kernel: {self:?}");
    }

    /// Expects that nothing was redirected or newly enrolled.
    ///
    /// # Panics
    /// If something was.
    pub fn expect_tcp_only(&self) {
        assert_eq!((self.to_agent, self.from_agent, self.enrolled), (0, 0, 0), "bytes went by the kernel: {self:?}");
    }
}

fn grown(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let growth = now.iter().map(|(why, count)| (why.clone(), count - before.get(why).copied().unwrap_or(0)));
    growth.filter(|(_, count)| *count > 0).collect()
}

/// Which of an agent's programs and maps the kernel still has, but for the program array: one that is looked at while it goes
/// stays for ever, as the kernel clears it each time that the last who looks has gone, and counts that twice.
pub fn left_of(look: &Look) -> Vec<String> {
    let programs = look.programs.iter().filter(|program| program_exists(program.id)).map(|program| program.name.clone());
    let maps = look.maps.iter().filter(|map| map.name != "SLOTS" && MapInfo::from_id(map.id).is_ok());
    programs.chain(maps.map(|map| map.name.clone())).collect()
}

/// Whether the kernel has a program with this number.
pub fn program_exists(id: u32) -> bool {
    // One that ends while it is looked at is passed over.
    loaded_programs().flatten().any(|program| program.id() == id)
}

/// How many links the kernel has of the program with this number.
pub fn links_of(program: u32) -> usize {
    loaded_links().flatten().filter(|link| link.program_id() == program).count()
}

/// Bytes that wait in the receive queues of the socket with these addresses, with what they cost; none if there is no
/// such socket. Unlike `/proc/net/tcp`, this knows of what was redirected.
pub fn receive_memory(own: SocketAddr, peer: SocketAddr) -> Option<u64> {
    let mut ss = Command::new("ss");
    ss.args(["-tmnH", "src", &own.to_string(), "dst", &peer.to_string()]);
    let shown = external::run(&mut ss);
    let (_, memory) = shown.split_once("skmem:(r")?;
    let digits: String = memory.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
