//! The kernel programs: finds where they can be attached, loads them, keeps them over restarts, speaks with them.
//!
//! The agent is whole without them ([`AttachError`] says why they are not there and how to mend it). With a name, their
//! maps and links are pinned, so that an agent that was killed finds them again; without, they go with the process.

mod btf;
mod cgroup;
mod diag;
mod error;
mod legs;
mod load;
mod mounts;
mod netns;
mod object;
mod pins;
pub mod probe;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub use agent_common::{Counts, Pass, Refusal, Sent, Verdicts};
use agent_common::{End, mode};
use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, SockHash},
    programs::links::PinnedLink,
};
use nix::time::{ClockId, clock_gettime};

pub use self::error::{AttachError, ReadError};
use self::{
    legs::{Legs, sum},
    pins::Pins,
    probe::Roots,
};
use crate::proxy::KernelPath;

/// How the kernel programs are attached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The cgroup whose sockets they see: a folder of cgroup2. None: the whole of cgroup2, wherever it is mounted.
    pub cgroup: Option<PathBuf>,
    /// The agent whose pins are made, or adopted. None: nothing is pinned.
    pub name: Option<String>,
    /// Bytes that may wait at either end of a connection.
    pub bound: u64,
    /// Files of network namespaces whose connections are left alone.
    pub exclude_namespaces: Vec<PathBuf>,
}

/// The attached kernel programs. Dropping it detaches them, unless they are pinned.
pub struct Kernel {
    counts: PerCpuArray<MapData, Counts>,
    verdicts: PerCpuArray<MapData, Verdicts>,
    socks: SockHash<MapData, End>,
    legs: Arc<Legs>,
    cgroup: PathBuf,
    pinned: Option<(Pins, PinnedLink)>,
    /// Owns the programs, and their links if those are not pinned.
    programs: Ebpf,
}

impl Kernel {
    /// Loads the programs and attaches them, or adopts what another process of the same agent has left.
    ///
    /// # Errors
    /// Says what is missing and how to mend it; nothing stays behind that was not there.
    pub fn attach(options: &Options) -> Result<Self, AttachError> {
        let object = object::embedded()?;
        let cgroup = cgroup::choose(options.cgroup.as_deref(), &Roots::default())?;
        let pins = options.name.as_deref().map(|name| Pins::of(Path::new(pins::BPFFS), name));
        let kernel = load::load(object, cgroup, pins, options)?;
        kernel.legs.clear_listeners().map_err(|error| AttachError::map("LISTENERS", error))?;
        kernel.legs.clear_reads().map_err(|error| AttachError::map("READS", error))?;
        kernel.legs.shared.set_bound(options.bound);
        kernel.beat();
        kernel.turn_on(mode::TO_AGENT | mode::FROM_AGENT);
        Ok(kernel)
    }

    /// The kernel path, for the data plane.
    #[must_use]
    pub fn path(&self) -> Arc<dyn KernelPath> {
        self.legs.clone()
    }

    /// Says that the agent lives; without it for some seconds, nothing more is enrolled.
    pub fn beat(&self) {
        // A clock that cannot be read is one that the kernel does not have.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.legs.shared.set_alive(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Enrols new connections from now on, and redirects these directions of them.
    pub fn turn_on(&self, mode: u32) {
        self.legs.shared.set_mode(mode);
    }

    /// Has everything go by TCP: what is enrolled, for life, and what comes. Nothing is taken out of a map.
    pub fn turn_off(&self) {
        self.legs.shared.set_mode(0);
        self.legs.shared.next_generation();
    }

    /// Whether new connections are enrolled.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.legs.shared.mode() != 0
    }

    /// Connections to the agent's listeners, over all CPUs.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn established(&self) -> Result<Counts, ReadError> {
        sum(&self.counts).map_err(ReadError::new)
    }

    /// What was enrolled and sent, over all CPUs.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn verdicts(&self) -> Result<Verdicts, ReadError> {
        sum(&self.verdicts).map_err(ReadError::new)
    }

    /// Sockets that are enrolled now.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn enrolled(&self) -> Result<usize, ReadError> {
        self.socks.keys().try_fold(0, |count, key| key.map(|_| count + 1)).map_err(ReadError::new)
    }

    /// The cgroup that the programs are attached to.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Detaches the programs and removes what is pinned, once no application has anything left to read. False if some had
    /// after that long: then all stays pinned, as removing it would lose those bytes.
    pub fn detach(self, within: Duration) -> bool {
        self.turn_off();
        // Best effort: what is left of it is of nobody who connects.
        let _ = self.legs.clear_listeners();
        let Some((pins, link)) = self.pinned else { return true };
        drop(link.unpin());
        let deadline = Instant::now() + within;
        while is_empty(&self.socks).is_ok_and(|empty| !empty) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        pins.remove().is_ok()
    }
}

fn is_empty(socks: &SockHash<MapData, End>) -> Result<bool, MapError> {
    socks.keys().next().transpose().map(|first| first.is_none())
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("cgroup", &self.cgroup).finish_non_exhaustive()
    }
}
