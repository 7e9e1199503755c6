//! The arrays `NAMES` and `CALLS` in the agent's memory: the calls in flight.
//!
//! A place has the name 0 while it is free. Whoever changes a call's name to 0, by an exchange that only one can make, has
//! taken the call out; until then the entry does not change.
#![expect(unsafe_code, reason = "membarrier(2) is called directly")]

use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{
        Ordering::{Acquire, Relaxed, SeqCst},
        fence,
    },
};

use agent_common::lane::{CALLS_MAX, Call, KERNEL_VIA, PLACE_MASK};
use nix::{
    errno::Errno,
    libc,
    unistd::{SysconfVar, sysconf},
};

use crate::kernel::mapped::Mapped;

/// The calls in flight.
pub(in crate::kernel) struct Calls {
    names: Mapped,
    calls: Mapped,
}

impl Calls {
    pub(in crate::kernel) fn map(names: impl AsFd, calls: impl AsFd) -> io::Result<Self> {
        let places = CALLS_MAX as usize;
        Ok(Self { names: Mapped::map(names, places * size_of::<u64>())?, calls: Mapped::map(calls, places * size_of::<Call>())? })
    }

    /// Takes a call out, if it is there.
    pub(super) fn take(&self, via: u64) -> Option<Call> {
        let call = self.look(via)?;
        let name = self.names.u64(place(via) * size_of::<u64>());
        name.compare_exchange(via, 0, SeqCst, Relaxed).is_ok().then_some(call)
    }

    /// A call, if it is there.
    pub(super) fn look(&self, via: u64) -> Option<Call> {
        let name = self.names.u64(place(via) * size_of::<u64>());
        if via & KERNEL_VIA == 0 || name.load(Acquire) != via {
            return None;
        }
        let call = self.entry(place(via));
        fence(Acquire);
        (name.load(Relaxed) == via).then_some(call)
    }

    /// Shows each call that was there before this began and still is, and perhaps others.
    pub(super) fn each(&self, each: &mut dyn FnMut(u64, &Call)) {
        for place in 0..CALLS_MAX as usize {
            let name = self.names.u64(place * size_of::<u64>());
            let mut via = name.load(Acquire);
            while via & KERNEL_VIA != 0 {
                if let Some(call) = self.look(via) {
                    each(via, &call);
                    break;
                }
                // Another has come to this place meanwhile, if any.
                via = name.load(Acquire);
            }
        }
    }

    fn entry(&self, place: usize) -> Call {
        let long = |offset: usize| self.calls.u64(place * size_of::<Call>() + offset).load(Relaxed);
        let word = |offset: usize| self.calls.u32(place * size_of::<Call>() + offset).load(Relaxed);
        Call {
            via: long(offset_of!(Call, via)),
            service: long(offset_of!(Call, service)),
            started_ns: long(offset_of!(Call, started_ns)),
            deadline_ns: long(offset_of!(Call, deadline_ns)),
            caller: word(offset_of!(Call, caller)),
            caller_generation: word(offset_of!(Call, caller_generation)),
            callee: word(offset_of!(Call, callee)),
            callee_generation: word(offset_of!(Call, callee_generation)),
            stream: word(offset_of!(Call, stream)),
            bytes: word(offset_of!(Call, bytes)),
            member: word(offset_of!(Call, member)),
            flags: word(offset_of!(Call, flags)),
        }
    }
}

/// Where a call of this name is.
fn place(via: u64) -> usize {
    usize::try_from(via & PLACE_MASK).unwrap_or(0)
}

/// Returns when every program has ended that ran when it was called.
///
/// # Errors
/// The kernel cannot wait for that (`nohz_full`), or does not, as there is one CPU only.
pub(super) fn programs_have_ended() -> io::Result<()> {
    if sysconf(SysconfVar::_NPROCESSORS_ONLN)? == Some(1) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    /// `MEMBARRIER_CMD_GLOBAL`: waits for a grace period of RCU, which programs are readers of.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: it takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) })?;
    Ok(())
}
