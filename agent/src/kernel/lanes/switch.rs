//! The one entry of the map `ROUTING` in the agent's memory.

use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::Ordering::{Relaxed, SeqCst},
};

use agent_common::lane::Routing;
use rand::{TryRng as _, rngs::SysRng};

use crate::kernel::mapped::Mapped;

/// Whether calls are routed, and by which snapshot.
pub(in crate::kernel) struct Switch(Mapped);

impl Switch {
    pub(in crate::kernel) fn map(map: impl AsFd) -> io::Result<Self> {
        Mapped::map(map, size_of::<Routing>()).map(Self)
    }

    pub(super) fn set_on(&self, on: bool) {
        self.0.u64(offset_of!(Routing, on)).store(u64::from(on), SeqCst);
    }

    /// The snapshot in force.
    pub(super) fn snapshot(&self) -> u64 {
        self.0.u64(offset_of!(Routing, snapshot)).load(SeqCst)
    }

    /// The next one is in force: all of it is written.
    pub(super) fn next(&self) {
        self.0.u64(offset_of!(Routing, snapshot)).fetch_add(1, SeqCst);
    }

    /// Whose decisions are shown, by the service's hash; 0: nobody's.
    pub(super) fn set_traced(&self, service: u64) {
        self.0.u64(offset_of!(Routing, traced)).store(service, SeqCst);
    }

    /// Decisions that there was no room for.
    pub(super) fn untold(&self) -> u64 {
        self.0.u64(offset_of!(Routing, untold)).load(Relaxed)
    }

    #[cfg(test)]
    pub(in crate::kernel) fn key(&self) -> [u64; 2] {
        [0, 1].map(|at| self.0.u64(offset_of!(Routing, key) + at * size_of::<u64>()).load(Relaxed))
    }

    /// Takes a key, unless there is one. It is secret for as long as the maps live.
    pub(super) fn make_key(&self) -> io::Result<()> {
        let words = [0, 1].map(|at| self.0.u64(offset_of!(Routing, key) + at * size_of::<u64>()));
        if words.iter().any(|word| word.load(Relaxed) != 0) {
            return Ok(());
        }
        for word in words {
            word.store(SysRng.try_next_u64().map_err(io::Error::other)?, Relaxed);
        }
        Ok(())
    }
}
