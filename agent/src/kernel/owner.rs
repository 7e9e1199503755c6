//! Whose the pins are.
//!
//! The names of agents are unique in a run directory, but pins are the machine's: containers that share bpffs might both have
//! an agent of the usual name.

use std::{fs, io, os::linux::fs::MetadataExt, path::Path};

use agent_common::LEASE_NS;

use crate::clock::now_ns;

/// A process, for all time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// When it began, in ticks since boot.
    pub(super) start: u64,
    pub(super) pid: u32,
    /// The namespace of that number.
    pub(super) pidns: u32,
}

impl Owner {
    /// This process.
    pub(super) fn this() -> io::Result<Self> {
        let namespace = fs::metadata("/proc/self/ns/pid")?.st_ino();
        let pid = std::process::id();
        Ok(Self { start: start(pid)?, pid, pidns: u32::try_from(namespace).unwrap_or(u32::MAX) })
    }

    /// Whether it lives and is not this process: by what it said last, if it cannot be seen from here.
    pub(super) fn is_another(self, alive_ns: u64) -> bool {
        match Self::this() {
            _ if self.pid == 0 => false,
            Ok(this) if this == self => false,
            Ok(this) if this.pidns == self.pidns => start(self.pid).is_ok_and(|start| start == self.start),
            _ => now_ns() < alive_ns.saturating_add(LEASE_NS),
        }
    }
}

fn start(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // Behind the name, which may hold anything, in brackets.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Nothing but its number is left until its parent asks how it ended.
    if fields.trim_start().starts_with(['Z', 'X']) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields.split_whitespace().nth(19).and_then(|start| start.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_that_lives_is_another() {
        let this = Owner::this().unwrap();
        assert!(this.start > 0 && !this.is_another(now_ns()));
        assert!(!Owner { pid: 0, ..this }.is_another(now_ns()));
        let init = Owner { pid: 1, start: start(1).unwrap(), ..this };
        assert!(init.is_another(0));
        assert!(!Owner { start: init.start + 1, ..init }.is_another(now_ns()));
        let elsewhere = Owner { pidns: this.pidns ^ 1, ..this };
        assert!(elsewhere.is_another(now_ns()) && !elsewhere.is_another(0));
    }
}
