//! Whether the kernel is short of memory for TCP.
//!
//! A redirected message needs memory at once, where TCP would wait for it: under pressure an application's `send` could fail
//! with ENOMEM. So nothing new is redirected then.

use std::{fs, path::Path};

/// Memory of all TCP sockets of the machine, and from how much on the kernel saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pressure {
    pub(super) pages: u64,
    pub(super) pressure_at: u64,
}

impl Pressure {
    /// What the kernel says, as far as it does.
    pub(super) fn read(proc: &Path) -> Option<Self> {
        let pages = used(&fs::read_to_string(proc.join("net/sockstat")).ok()?)?;
        let limits = fs::read_to_string(proc.join("sys/net/ipv4/tcp_mem")).ok()?;
        let pressure_at = limits.split_whitespace().nth(1)?.parse().ok()?;
        Some(Self { pages, pressure_at })
    }

    pub(super) fn is_high(self) -> bool {
        self.pages >= self.pressure_at
    }
}

/// `TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 2`.
fn used(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_this_kernel_says() {
        let pressure = Pressure::read(Path::new("/proc")).unwrap();
        assert!(pressure.pressure_at > 0 && !pressure.is_high(), "{pressure:?}");
    }

    #[test]
    fn knows_pressure_from_made_up_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Pressure::read(folder.path()), None);
        write("net/sockstat", "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem 300\nUDP: inuse 1 mem 1\n");
        write("sys/net/ipv4/tcp_mem", "100\t300\t600\n");
        assert_eq!(Pressure::read(folder.path()), Some(Pressure { pages: 300, pressure_at: 300 }));
        assert!(Pressure::read(folder.path()).unwrap().is_high());
        write("net/sockstat", "TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 299\n");
        assert!(!Pressure::read(folder.path()).unwrap().is_high());
    }
}
