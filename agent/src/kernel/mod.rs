//! The kernel programs: finds where they can be attached, loads them, reads what they counted.
//!
//! The agent is whole without them ([`AttachError`] says why they are not there and how to mend it). They live as long as
//! the [`Kernel`] that attached them, and go with the process, however it ends: nothing is pinned.

mod cgroup;
mod error;
mod mounts;
mod netns;
mod object;
pub mod probe;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use agent_common::Counts;
use agent_common::{Listener, WATCHED};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{CgroupAttachMode, SockOps},
};

pub use self::error::{AttachError, ReadError};
use self::probe::Roots;

/// How the kernel programs are attached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The cgroup whose sockets they see: a folder of cgroup2. None: the whole of cgroup2, wherever it is mounted.
    pub cgroup: Option<PathBuf>,
    /// The agent's listeners, as they are bound, in the network namespace of the calling thread. Connections to anything
    /// else are not looked at.
    pub listeners: Vec<SocketAddr>,
}

/// The attached kernel programs. Dropping it detaches them.
pub struct Kernel {
    counts: PerCpuArray<MapData, Counts>,
    cgroup: PathBuf,
    /// Owns the programs and their links.
    _programs: Ebpf,
}

impl Kernel {
    /// Loads the programs and attaches them.
    ///
    /// # Errors
    /// Says what is missing and how to mend it; nothing stays behind.
    pub fn attach(options: &Options) -> Result<Self, AttachError> {
        let object = object::embedded()?;
        let cgroup = cgroup::choose(options.cgroup.as_deref(), &Roots::default())?;
        let mut programs = EbpfLoader::new().load(object).map_err(AttachError::load)?;
        watch(&mut programs, &options.listeners)?;
        let counts = programs.take_map("COUNTS").ok_or(AttachError::Incomplete { what: "the map COUNTS" })?;
        let counts = PerCpuArray::try_from(counts).map_err(|error| AttachError::map("COUNTS", error))?;
        attach_established(&mut programs, &cgroup)?;
        Ok(Self { counts, cgroup: cgroup.path, _programs: programs })
    }

    /// Connections to the agent's listeners since [`Kernel::attach`], over all CPUs.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn established(&self) -> Result<Counts, ReadError> {
        let per_cpu = self.counts.get(&0, 0).map_err(ReadError::new)?;
        Ok(per_cpu.iter().copied().sum())
    }

    /// The cgroup that the programs are attached to.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("cgroup", &self.cgroup).finish_non_exhaustive()
    }
}

/// Tells the programs which listeners are the agent's, before they see the first socket.
fn watch(programs: &mut Ebpf, listeners: &[SocketAddr]) -> Result<(), AttachError> {
    let map = programs.map_mut("LISTENERS").ok_or(AttachError::Incomplete { what: "the map LISTENERS" })?;
    let mut map: HashMap<_, Listener, u32> = map.try_into().map_err(|error| AttachError::map("LISTENERS", error))?;
    let netns = netns::cookie().map_err(|source| AttachError::Namespace { source })?;
    for listener in listeners {
        map.insert(Listener::new(netns, *listener), WATCHED, 0).map_err(|error| AttachError::map("LISTENERS", error))?;
    }
    Ok(())
}

fn attach_established(programs: &mut Ebpf, cgroup: &cgroup::Cgroup) -> Result<(), AttachError> {
    const NAME: &str = "established";
    let program = programs.program_mut(NAME).ok_or(AttachError::Incomplete { what: "the program established" })?;
    let program: &mut SockOps = program.try_into().map_err(|error| AttachError::program(NAME, error))?;
    program.load().map_err(|error| AttachError::program(NAME, error))?;
    // Links always leave room for other programs on the same cgroup, and take no flag that says so.
    program.attach(&cgroup.folder, CgroupAttachMode::Single).map(drop).map_err(|error| AttachError::attach(&cgroup.path, error))
}
