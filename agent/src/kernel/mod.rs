//! The kernel programs: finds where they can be attached, loads them, keeps them over restarts, speaks with them.
//!
//! The agent is whole without them ([`AttachError`] says why they are not there and how to mend it). With a name, their
//! maps and links are pinned, so that an agent that was killed finds them again; without, they go with the process.

mod btf;
mod cgroup;
mod connects;
mod describe;
mod error;
mod gates;
mod lanes;
mod legs;
mod link;
mod load;
pub(crate) mod mapped;
mod mounts;
mod object;
mod owner;
mod pins;
mod pressure;
pub mod probe;
mod remove;
mod shared;
#[cfg(test)]
mod tests;
pub mod trials;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

pub use agent_common::{Counts, Pass, REASONS, Refusal, Sent, Verdicts};
use agent_common::{End, mode};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, SockHash},
    programs::{SkMsg, links::PinnedLink},
};
use aya_log::EbpfLogger;

pub use self::{
    error::{AttachError, ReadError},
    remove::{RemoveError, unhook, uninstall},
};
use self::{
    gates::Gates,
    lanes::Lanes,
    legs::{Legs, lock, sum},
    owner::Owner,
    pins::Pins,
    probe::Roots,
    trials::{Speed, TrialError, Tried},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    clock::now_ns,
    failover::Hooks,
    proxy::{KernelPath, LanePath},
};

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
    /// Sockets that are enrolled at most, two for a connection. None: as many as the programs say. Of no effect on a map
    /// that is adopted.
    pub sockets_max: Option<u32>,
}

/// The attached kernel programs. Dropping it detaches them, unless they are pinned.
pub struct Kernel {
    counts: PerCpuArray<MapData, Counts>,
    verdicts: PerCpuArray<MapData, Verdicts>,
    /// For looking at it without being in anybody's way.
    socks: SockHash<MapData, End>,
    legs: Arc<Legs>,
    lanes: Arc<Lanes>,
    gates: Arc<Gates>,
    cgroup: PathBuf,
    pinned: Option<(Pins, PinnedLink)>,
    /// The directions that are redirected when the path is on.
    mode: u32,
    /// It is off only for as long as the kernel is short of memory.
    relieved: AtomicBool,
    /// Bytes that were redirected for a former process.
    redirected_before: u64,
    /// The stub, if a former process has loaded it.
    stub: Option<SkMsg>,
    /// What was tried at the start.
    tried: Option<Tried>,
    /// What was measured then.
    speed: Option<Speed>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
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
        let mut kernel = load::load(object, cgroup, pins, options)?;
        let verdicts = kernel.verdicts().unwrap_or_default();
        kernel.redirected_before = verdicts.to_agent.bytes + verdicts.from_agent.bytes;
        kernel.legs.clear_listeners().map_err(|error| AttachError::map("LISTENERS", error))?;
        kernel.legs.clear_ended().map_err(|error| AttachError::map("READS", error))?;
        kernel.lanes.forget_former().map_err(|source| AttachError::Lanes { source })?;
        kernel.gates.begin();
        kernel.legs.shared.set_bound(options.bound);
        kernel.sweep_former();
        kernel.beat();
        kernel.turn_on();
        Ok(kernel)
    }

    /// The kernel path, for the data plane.
    #[must_use]
    pub fn path(&self) -> Arc<dyn KernelPath> {
        self.legs.clone()
    }

    /// The part of it that routes calls, for the data plane. Routing is off until it is turned on.
    #[must_use]
    pub fn lanes(&self) -> Arc<dyn LanePath> {
        self.lanes.clone()
    }

    /// The part of it that sends connects to siblings. It is off until it is turned on.
    #[must_use]
    pub fn hooks(&self) -> Arc<dyn Hooks> {
        self.gates.clone()
    }

    /// Says that the agent lives; without it for some seconds, nothing more is enrolled. And looks whether the kernel is short
    /// of memory: while it is, everything goes by TCP.
    pub fn beat(&self) {
        self.relieve();
        self.legs.shared.set_alive(now_ns());
    }

    fn relieve(&self) {
        let (was_high, bound) = (self.relieved.load(Relaxed), self.legs.shared.bound());
        let high = pressure::is_high(&Roots::default(), bound, was_high);
        if high && self.is_on() {
            tracing::warn!(
                "memory for TCP is short (net.ipv4.tcp_mem, or the limit of the agent's cgroup): the kernel path is off until it is not"
            );
            self.turn_off();
            self.relieved.store(true, Relaxed);
        } else if !high && was_high {
            tracing::info!("the kernel path is on again");
            self.turn_on();
        }
    }

    /// Enrols new connections from now on, and redirects what the kernel has been seen to redirect rightly.
    pub fn turn_on(&self) {
        self.relieved.store(false, Relaxed);
        self.legs.shared.set_mode(self.mode);
    }

    /// Has everything go by TCP: what is enrolled, for life, and what comes. Nobody loses a byte, or is taken out of a map with
    /// anything unread.
    pub fn turn_off(&self) {
        self.relieved.store(false, Relaxed);
        self.legs.shared.set_mode(0);
        self.legs.shared.next_generation();
    }

    /// Whether new connections are enrolled.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.legs.shared.mode() != 0
    }

    /// As [`Kernel::attach`], after trying what this kernel does, and if asked for, only if it is faster than TCP.
    ///
    /// # Errors
    /// As for [`Kernel::attach`], or nothing could be tried.
    pub fn begin(options: &Options, if_it_pays: bool) -> Result<Self, TrialError> {
        let tried = trials::run()?;
        let speed = if_it_pays.then(trials::measure).transpose()?;
        let mut kernel = Self::attach(options)?;
        // By itself the path is only used where no application can tell the difference.
        kernel.mode = if if_it_pays && tried.mode != 0 { tried.mode | mode::NON_BLOCKING } else { tried.mode };
        kernel.tried = Some(tried);
        kernel.speed = speed;
        if kernel.tried.as_ref().is_some_and(|tried| tried.unenrols) {
            kernel.unenrol_after_fallback();
        }
        if speed.is_none_or(|speed| speed.pays()) {
            kernel.turn_on();
        } else {
            kernel.turn_off();
        }
        Ok(kernel)
    }

    /// Why the path, or a direction of it, is not used with this kernel.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        self.tried.as_ref()?.objection()
    }

    /// What was measured to decide whether it is used.
    #[must_use]
    pub fn decision(&self) -> Option<String> {
        if self.relieved.load(Relaxed) {
            return Some("the kernel is short of memory for TCP".into());
        }
        self.speed.map(|speed| speed.to_string())
    }

    /// The log of the programs, once.
    pub fn take_log(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        self.log.take()
    }

    /// Removes what agents of this name with another schema have left, unless somebody has not read everything of it. The
    /// next start looks again.
    fn sweep_former(&self) {
        for folder in self.pinned.iter().flat_map(|(pins, _)| pins.former()) {
            if let Err(error) = remove::remove(&folder, &lock(&self.legs.diags), Duration::ZERO, false) {
                tracing::info!(folder = %folder.display(), "pins of another version stay for now: {error}");
            }
        }
    }

    /// Takes a socket out of the map when what it is sent has gone over to TCP.
    fn unenrol_after_fallback(&self) {
        self.legs.unenrols.store(true, Relaxed);
    }

    fn unenrols_after_fallback(&self) -> bool {
        self.legs.unenrols.load(Relaxed)
    }

    /// Bytes that were redirected before this process attached the programs.
    #[must_use]
    pub fn redirected_before(&self) -> u64 {
        self.redirected_before
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

    /// Detaches the programs and removes what is pinned. If connects could go to siblings, all stays as after a kill, but
    /// turned off: connects go to siblings while nobody is there.
    ///
    /// # Errors
    /// Somebody had not read everything after `within`: then all stays pinned, as removing it would lose those bytes.
    pub fn detach(self, within: Duration) -> Result<(), RemoveError> {
        self.turn_off();
        // What is left of it is of nobody who connects.
        let _ = self.legs.clear_listeners();
        self.legs.shared.set_owner(Owner { start: 0, pid: 0, pidns: 0 });
        let Some((pins, link)) = self.pinned else { return Ok(()) };
        drop(link);
        if self.gates.have_siblings() {
            return Ok(());
        }
        remove::remove(pins.folder(), &lock(&self.legs.diags), within, false)?;
        Ok(pins.remove()?)
    }
}

/// Where cgroup2 is mounted, if it is.
#[must_use]
pub fn cgroup2() -> Option<PathBuf> {
    cgroup::find(&Roots::default()).ok()
}

/// Hands on what the programs log, for as long as they are attached.
pub async fn log(log: EbpfLogger<&'static dyn log::Log>) {
    // Without it nothing is lost but words.
    #[expect(deprecated, reason = "the logger keeps its descriptor open, but does not say so by AsFd")]
    let Ok(mut log) = AsyncFd::with_interest(log, Interest::READABLE) else { return };
    while let Ok(mut readable) = log.readable_mut().await {
        readable.get_inner_mut().flush();
        readable.clear_ready();
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("cgroup", &self.cgroup).finish_non_exhaustive()
    }
}
