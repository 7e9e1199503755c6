//! Whether the kernel is short of memory for TCP, on the machine or in the agent's own memory cgroup.
//!
//! A redirected message needs memory at once, where TCP would wait for it: under pressure an application's `send` could fail
//! with ENOMEM. It is charged to the receiver, and so to the agent's cgroup for what is sent to it. So nothing new is
//! redirected when memory runs out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::probe::Roots;

/// Connections that must be able to reach their bound at once.
const BOUNDS: u64 = 4;

/// Whether memory is short; once it is, until there is clearly more.
pub(super) fn is_high(roots: &Roots, bound: u64, was_high: bool) -> bool {
    // An eighth of it, so that the path is not turned on and off every second.
    let eased = |limit: u64| if was_high { limit - limit / 8 } else { limit };
    let machine = machine(&roots.proc).is_some_and(|memory| memory.used >= eased(memory.limit));
    let needed = bound.saturating_mul(if was_high { 2 * BOUNDS } else { BOUNDS });
    machine || cgroups(roots).iter().any(|memory| memory.limit.saturating_sub(memory.used) < needed)
}

/// Memory, and how much of it there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    used: u64,
    limit: u64,
}

/// Pages of all TCP sockets of the machine, and from how many on the kernel saves; as far as it says so.
fn machine(proc: &Path) -> Option<Memory> {
    let used = used(&fs::read_to_string(proc.join("net/sockstat")).ok()?)?;
    let limits = fs::read_to_string(proc.join("sys/net/ipv4/tcp_mem")).ok()?;
    Some(Memory { used, limit: limits.split_whitespace().nth(1)?.parse().ok()? })
}

/// `TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 2`.
fn used(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

/// Bytes of the cgroups that this process is in, of both versions, if they have a limit.
fn cgroups(roots: &Roots) -> Vec<Memory> {
    let own = fs::read_to_string(roots.proc.join("self/cgroup")).unwrap_or_default();
    let read = |folder: PathBuf, used: &str, limit: &str| {
        let number = |file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        Some(Memory { used: number(used)?.saturating_sub(cached(&folder)), limit: number(limit)? })
    };
    let version = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let root = roots.sys.join("fs/cgroup");
        match controllers {
            "" => read(root.join(path), "memory.current", "memory.max")
                .or_else(|| read(root.join("unified").join(path), "memory.current", "memory.max")),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let folder = root.join("memory").join(path);
                read(folder, "memory.kmem.tcp.usage_in_bytes", "memory.kmem.tcp.limit_in_bytes")
            }
            _ => None,
        }
    };
    own.lines().filter_map(version).collect()
}

/// Bytes of files that nobody has used lately, which the kernel gives up before anything else. Version 1 counts TCP alone.
fn cached(folder: &Path) -> u64 {
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let of_files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
    of_files.filter(|_| folder.join("memory.current").exists()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: u64 = 1000;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = machine.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            machine
        }

        fn is_high(&self, was_high: bool) -> bool {
            let roots = Roots { proc: self.0.path().join("proc"), sys: self.0.path().join("sys") };
            is_high(&roots, BOUND, was_high)
        }
    }

    #[test]
    fn this_machine_has_enough() {
        assert!(machine(Path::new("/proc")).is_some_and(|memory| memory.limit > 0));
        assert!(!is_high(&Roots::default(), 1 << 20, false));
    }

    #[test]
    fn a_machine_is_short_from_its_mark_on_until_clearly_below() {
        let machine = |used: &str| {
            let sockstat = format!("sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem {used}\nUDP: inuse 1 mem 1\n");
            Machine::with(&[("proc/net/sockstat", &sockstat), ("proc/sys/net/ipv4/tcp_mem", "100\t800\t900\n")])
        };
        assert!(machine("800").is_high(false));
        assert!(!machine("799").is_high(false));
        assert!(machine("799").is_high(true) && machine("700").is_high(true));
        assert!(!machine("699").is_high(true));
        assert!(!Machine::with(&[]).is_high(true));
    }

    #[test]
    fn a_cgroup_is_short_when_some_bounds_do_not_fit() {
        let second = |used: &str, limit: &str| {
            let folder = "sys/fs/cgroup/pod/agent/memory";
            Machine::with(&[
                ("proc/self/cgroup", "0::/pod/agent\n"),
                (&format!("{folder}.current"), used),
                (&format!("{folder}.max"), limit),
            ])
        };
        assert!(!second("6000\n", "10000\n").is_high(false));
        assert!(second("6001\n", "10000\n").is_high(false));
        assert!(second("6000\n", "10000\n").is_high(true));
        assert!(!second("6001\n", "max\n").is_high(false));
        let cached = second("9000\n", "10000\n");
        fs::write(cached.0.path().join("sys/fs/cgroup/pod/agent/memory.stat"), "anon 1\ninactive_file 3000\n").unwrap();
        assert!(!cached.is_high(false));
        let first = Machine::with(&[
            ("proc/self/cgroup", "3:cpu:/\n2:hugetlb,memory:/own\n0::/\n"),
            ("sys/fs/cgroup/memory/own/memory.kmem.tcp.usage_in_bytes", "9000"),
            ("sys/fs/cgroup/memory/own/memory.kmem.tcp.limit_in_bytes", "10000"),
        ]);
        assert!(first.is_high(false));
    }
}
