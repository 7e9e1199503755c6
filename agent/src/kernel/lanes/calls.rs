//! The map `CALLS`, by system calls that the loader has no names for.
#![expect(unsafe_code, reason = "bpf(2) and membarrier(2) are called directly")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use agent_common::lane::Call;
use aya::maps::MapData;
use nix::{
    errno::Errno,
    libc::{self, c_int, c_long},
};

/// `BPF_MAP_LOOKUP_ELEM`.
const LOOKUP: c_int = 1;
/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`.
const LOOKUP_AND_DELETE: c_int = 21;
/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: c_int = 24;

/// Calls that are read at once. The kernel gives whole buckets, of which the largest has some ten.
const BATCH: usize = 1024;
/// And at most, if somebody has made larger ones.
const BATCH_MAX: usize = 1 << 17;

/// The part of `union bpf_attr` for one entry.
#[repr(C)]
struct One {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part for many.
#[repr(C)]
struct Many {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// The calls in flight.
pub(in crate::kernel) struct Calls(pub(in crate::kernel) MapData);

impl Calls {
    /// Takes a call out, if it is there.
    pub(super) fn take(&self, via: u64) -> Option<Call> {
        self.one(LOOKUP_AND_DELETE, via)
    }

    /// A call, if it is there.
    pub(super) fn look(&self, via: u64) -> Option<Call> {
        self.one(LOOKUP, via)
    }

    fn one(&self, command: c_int, via: u64) -> Option<Call> {
        let mut call = Call::default();
        let mut attr =
            One { map: self.descriptor(), reserved: 0, key: (&raw const via) as u64, value: (&raw mut call) as u64, flags: 0 };
        // SAFETY: the kernel reads a key and writes a value, of the sizes of these, while the call lasts.
        unsafe { bpf(command, &mut attr) }.is_ok().then_some(call)
    }

    /// Shows each call that was there before this began and still is, and perhaps others. The kernel holds a bucket while it
    /// copies it, so that none is overlooked.
    pub(super) fn each(&self, each: &mut dyn FnMut(u64, &Call)) -> io::Result<()> {
        let mut size = BATCH;
        let (mut keys, mut calls) = (vec![0; size], vec![Call::default(); size]);
        let mut position = None;
        loop {
            match self.batch(&mut position, &mut keys, &mut calls) {
                Ok((count, last)) => {
                    keys.iter().zip(&calls).take(count).for_each(|(via, call)| each(*via, call));
                    if last {
                        return Ok(());
                    }
                }
                // A bucket has more than there is room for.
                Err(Errno::ENOSPC) if size < BATCH_MAX => {
                    size *= 4;
                    keys.resize(size, 0);
                    calls.resize(size, Call::default());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads the next buckets; how many calls they had, and whether they were the last.
    fn batch(&self, position: &mut Option<u32>, keys: &mut [u64], calls: &mut [Call]) -> Result<(usize, bool), Errno> {
        let (from, mut to) = (position.unwrap_or(0), 0_u32);
        let mut attr = Many {
            from: position.map_or(0, |_| (&raw const from) as u64),
            to: (&raw mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: calls.as_mut_ptr() as u64,
            count: u32::try_from(keys.len().min(calls.len())).unwrap_or(u32::MAX),
            map: self.descriptor(),
            entry_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys and values, and one position, while the call lasts.
        let last = match unsafe { bpf(LOOKUP_BATCH, &mut attr) } {
            Ok(()) => false,
            Err(Errno::ENOENT) => true,
            Err(errno) => return Err(errno),
        };
        *position = Some(to);
        Ok((attr.count as usize, last))
    }

    fn descriptor(&self) -> u32 {
        u32::try_from(self.0.fd().as_fd().as_raw_fd()).unwrap_or(u32::MAX)
    }
}

/// Returns when every program has ended that ran when it was called.
///
/// # Errors
/// The kernel cannot wait for that (`nohz_full`).
pub(super) fn programs_have_ended() -> io::Result<()> {
    /// `MEMBARRIER_CMD_GLOBAL`: waits for a grace period of RCU, which programs are readers of.
    const GLOBAL: c_int = 1;
    // SAFETY: it takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) })?;
    Ok(())
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` is what the command takes, and what it points to can be read and written as the command does.
unsafe fn bpf<T>(command: c_int, attr: &mut T) -> Result<(), Errno> {
    let size = c_long::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the caller's promise.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, (&raw mut *attr).cast::<libc::c_void>(), size) }).map(drop)
}
