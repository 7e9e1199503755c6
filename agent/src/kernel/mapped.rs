//! An array of the kernel's in the agent's memory: written and read without a system call.
#![expect(unsafe_code, reason = "the kernel's memory is mapped")]

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// The mapped entries.
pub(crate) struct Mapped {
    memory: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the memory is shared with the kernel anyway, and only reached through atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps so many bytes of the entries. The kernel has whole pages of them.
    pub(crate) fn map(map: impl AsFd, bytes: usize) -> io::Result<Self> {
        /// The smallest there is.
        const PAGE: usize = 4096;
        let len = NonZeroUsize::new(bytes.next_multiple_of(PAGE)).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, which the kernel refuses if the entries have less than that.
        let memory = unsafe { mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)? };
        Ok(Self { memory, len })
    }

    /// The word at an offset.
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        self.check::<AtomicU64>(offset);
        // SAFETY: inside the mapping and aligned, as was checked, and mapped for as long as `self` lives.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    /// The half word at an offset.
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        self.check::<AtomicU32>(offset);
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    fn check<T>(&self, offset: usize) {
        assert!(
            offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.len.get(),
            "not of the array: {offset}"
        );
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it is mapped, and nobody refers to it any more. That it could not be unmapped costs its pages.
        let _ = unsafe { munmap(self.memory, self.len.get()) };
    }
}
