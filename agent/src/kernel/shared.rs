//! The one entry of the map `SHARED` in the agent's memory: written and read without a system call.
#![expect(unsafe_code, reason = "the kernel's memory is mapped")]

use std::{
    io,
    mem::offset_of,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use agent_common::Shared;
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::owner::Owner;

/// The mapped page.
pub(super) struct SharedPage(NonNull<c_void>);

/// The kernel maps whole pages, and one is more than the entry needs, whatever their size.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

// SAFETY: the memory is shared with the kernel anyway, and only reached through atomics.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    pub(super) fn map(map: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new mapping, of a file that is longer than what is reached through it.
        let page = unsafe { mmap(None, PAGE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)? };
        Ok(Self(page))
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
        // SAFETY: inside the page, aligned as in the structure, and mapped for as long as `self` lives.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().cast::<u8>().add(offset).cast()) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: it is mapped, and nobody refers to it any more. That it could not be unmapped costs a page.
        let _ = unsafe { munmap(self.0, PAGE.get()) };
    }
}
