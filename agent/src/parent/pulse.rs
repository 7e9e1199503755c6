//! The page where each worker says that it lives: [`Failover`], in memory that the agent, its parent and perhaps the kernel
//! share.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use agent_common::failover::{Failover, WORKERS_MAX};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};

use crate::{
    clock::{nanos, now_ns},
    kernel::mapped::Mapped,
};

/// How often a worker says that it lives, of the time after which nobody believes it any more.
const BEATS: u32 = 5;
/// No worker says it more often, or less often.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// The page.
pub(crate) struct Pulse {
    page: Mapped,
    file: Arc<OwnedFd>,
}

impl Pulse {
    /// The page in a file, such as the kernel map `FAILOVER`.
    ///
    /// # Errors
    /// It can't be mapped.
    pub(crate) fn over(file: OwnedFd) -> io::Result<Self> {
        Ok(Self { page: Mapped::map(file.as_fd(), size_of::<Failover>())?, file: Arc::new(file) })
    }

    /// A page that no kernel program reads.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(workers: usize, stale: Duration) -> io::Result<Self> {
        let file = memfd_create(c"moa-pulse", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, i64::try_from(size_of::<Failover>()).map_err(io::Error::other)?)?;
        let pulse = Self::over(file)?;
        pulse.u32(offset_of!(Failover, workers)).store(u32::try_from(workers).unwrap_or(u32::MAX), Relaxed);
        pulse.u64(offset_of!(Failover, stale_ns)).store(nanos(stale), Relaxed);
        Ok(pulse)
    }

    /// Its file, for whoever watches.
    pub(super) fn file(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }

    /// Says that a worker lives.
    pub(crate) fn beat(&self, worker: usize) {
        if let Some(beat) = self.beat_of(worker) {
            beat.store(now_ns(), Relaxed);
        }
    }

    /// Says that a worker does not count any more.
    pub(crate) fn rest(&self, worker: usize) {
        if let Some(beat) = self.beat_of(worker) {
            beat.store(0, Relaxed);
        }
    }

    /// How long a worker may wait between two beats.
    pub(crate) fn interval(&self) -> Duration {
        (Duration::from_nanos(self.stale_ns()) / BEATS).clamp(INTERVAL.0, INTERVAL.1)
    }

    /// A beat that is older says that its worker hangs; 0: none does.
    pub(super) fn stale_ns(&self) -> u64 {
        self.u64(offset_of!(Failover, stale_ns)).load(Relaxed)
    }

    /// Until then no beat says anything.
    pub(super) fn hold_until_ns(&self) -> u64 {
        self.u64(offset_of!(Failover, hold_until_ns)).load(Relaxed)
    }

    /// Every beat.
    pub(super) fn beats(&self) -> Vec<u64> {
        let workers = usize::try_from(self.u32(offset_of!(Failover, workers)).load(Relaxed)).unwrap_or(WORKERS_MAX);
        let beats = (0..workers.min(WORKERS_MAX)).filter_map(|worker| self.beat_of(worker));
        beats.map(|beat| beat.load(Relaxed)).collect()
    }

    /// Has a worker not count any more, unless it has said meanwhile that it lives.
    pub(super) fn rest_if(&self, worker: usize, still: u64) {
        if let Some(beat) = self.beat_of(worker) {
            let _ = beat.compare_exchange(still, 0, AcqRel, Relaxed);
        }
    }

    /// Has beats say nothing until then.
    #[cfg(test)]
    pub(super) fn hold_until(&self, until_ns: u64) {
        self.u64(offset_of!(Failover, hold_until_ns)).store(until_ns, Relaxed);
    }

    fn beat_of(&self, worker: usize) -> Option<&AtomicU64> {
        (worker < WORKERS_MAX).then(|| self.u64(offset_of!(Failover, beats) + worker * size_of::<u64>()))
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        self.page.u64(offset)
    }

    fn u32(&self, offset: usize) -> &AtomicU32 {
        self.page.u32(offset)
    }
}
