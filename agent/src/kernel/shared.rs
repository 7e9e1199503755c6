//! The one entry of the map `SHARED` in the agent's memory.

use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use agent_common::Shared;

use super::{mapped::Mapped, owner::Owner};

/// The mapped page.
pub(super) struct SharedPage(Mapped);

impl SharedPage {
    pub(super) fn map(map: impl AsFd) -> io::Result<Self> {
        Mapped::map(map, size_of::<Shared>()).map(Self)
    }

    /// Says that the agent lives.
    pub(super) fn set_alive(&self, now_ns: u64) {
        self.u64(offset_of!(Shared, alive_ns)).store(now_ns, Relaxed);
    }

    /// When the agent last said that it lives.
    pub(super) fn alive(&self) -> u64 {
        self.u64(offset_of!(Shared, alive_ns)).load(Relaxed)
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> Owner {
        Owner {
            start: self.u64(offset_of!(Shared, owner_start)).load(Relaxed),
            pid: self.u32(offset_of!(Shared, owner_pid)).load(Relaxed),
            pidns: self.u32(offset_of!(Shared, owner_pidns)).load(Relaxed),
        }
    }

    pub(super) fn set_owner(&self, owner: Owner) {
        self.u64(offset_of!(Shared, owner_start)).store(owner.start, Relaxed);
        self.u32(offset_of!(Shared, owner_pid)).store(owner.pid, Relaxed);
        self.u32(offset_of!(Shared, owner_pidns)).store(owner.pidns, Relaxed);
    }

    pub(super) fn bound(&self) -> u64 {
        self.u64(offset_of!(Shared, bound)).load(Relaxed)
    }

    pub(super) fn set_bound(&self, bytes: u64) {
        self.u64(offset_of!(Shared, bound)).store(bytes, Relaxed);
    }

    pub(super) fn mode(&self) -> u32 {
        self.u32(offset_of!(Shared, mode)).load(Relaxed)
    }

    pub(super) fn set_mode(&self, mode: u32) {
        self.u32(offset_of!(Shared, mode)).store(mode, Relaxed);
    }

    pub(super) fn generation(&self) -> u32 {
        self.u32(offset_of!(Shared, generation)).load(Relaxed)
    }

    /// Has all legs that are there go by TCP from now on.
    pub(super) fn next_generation(&self) {
        self.u32(offset_of!(Shared, generation)).fetch_add(1, Relaxed);
    }

    pub(super) fn fallbacks(&self) -> u64 {
        self.u64(offset_of!(Shared, fallbacks)).load(Relaxed)
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        self.0.u64(offset)
    }

    fn u32(&self, offset: usize) -> &AtomicU32 {
        self.0.u32(offset)
    }
}
