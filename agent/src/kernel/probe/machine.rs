//! What the machine is: its kernel, its limits, our rights.

use std::{fs, io, path::Path};

use super::{Check, Roots};
use crate::config::Namespaces;

/// The cookie of a network namespace can be read in a program since then.
const KERNEL_LEAST: (u32, u32) = (5, 15);
/// Files that a node with many applications needs.
const FILES_GOOD: u64 = 65_536;
/// Files below which the agent cannot serve.
const FILES_LEAST: u64 = 256;
/// The kernel's own default since 5.4.
const SOMAXCONN_GOOD: u64 = 4096;
/// What loading, attaching and reading the programs takes, with the bit of each; the last one stands for all others.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
const CAP_SYS_ADMIN: u32 = 21;

pub(super) fn kernel_version(roots: &Roots) -> Check {
    const NAME: &str = "kernel version";
    let found = match read(&roots.proc.join("sys/kernel/osrelease")) {
        Ok(found) => found,
        Err(error) => return Check::fail(NAME, error, "mount /proc"),
    };
    let (major, minor) = KERNEL_LEAST;
    match version(&found) {
        Some(version) if version >= KERNEL_LEAST => Check::ok(NAME, found),
        Some(_) => Check::fail(NAME, found, format!("use a kernel of {major}.{minor} or later")),
        None => Check::warn(NAME, found, format!("the version is not readable: make sure that it is {major}.{minor} or later")),
    }
}

pub(super) fn capabilities(roots: &Roots) -> Check {
    const NAME: &str = "capabilities";
    let effective = match effective(roots) {
        Ok(effective) => effective,
        Err((found, mend)) => return Check::warn(NAME, found, mend),
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return Check::ok(NAME, "CAP_SYS_ADMIN, which includes what the kernel programs need");
    }
    let missing: Vec<&str> = CAPABILITIES.iter().filter(|(_, bit)| !has(*bit)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Check::ok(NAME, "CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF");
    }
    let found = format!("without {}: calls go through userspace only", missing.join(", "));
    Check::warn(NAME, found, format!("run as root, or grant {} (AmbientCapabilities= in a unit)", missing.join(", ")))
}

/// The capabilities of this process; else what is wrong with `/proc`, and how to mend it.
fn effective(roots: &Roots) -> Result<u64, (String, &'static str)> {
    let status = read(&roots.proc.join("self/status")).map_err(|error| (error, "mount /proc"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.ok_or_else(|| ("no CapEff in /proc/self/status".to_owned(), "mount the kernel's own /proc"))
}

pub(super) fn namespaces(roots: &Roots, config: &Namespaces) -> Check {
    const NAME: &str = "namespaces";
    match effective(roots) {
        Ok(effective) if effective >> CAP_SYS_ADMIN & 1 == 1 => {}
        Ok(_) => {
            let mend = "run as root, or grant CAP_SYS_ADMIN (AmbientCapabilities= in a unit)";
            return Check::fail(NAME, "without CAP_SYS_ADMIN: no network namespace can be entered", mend);
        }
        Err((found, mend)) => return Check::warn(NAME, found, mend),
    }
    let Some(folder) = &config.folder else { return Check::ok(NAME, format!("{} files are listed", config.paths.len())) };
    match fs::read_dir(folder) {
        Ok(files) => {
            let counting = files.flatten().filter(|file| config.counts(&file.file_name().to_string_lossy())).count();
            Check::ok(NAME, format!("{} has {counting} files that count", folder.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mend = "make it, or correct namespaces.folder; an agent that runs takes it up when it is there";
            Check::warn(NAME, format!("{} isn't there", folder.display()), mend)
        }
        Err(error) => Check::fail(
            NAME,
            format!("can't read {}: {error}", folder.display()),
            "let the agent read it, or correct namespaces.folder",
        ),
    }
}

pub(super) fn jit(roots: &Roots) -> Check {
    const NAME: &str = "BPF JIT";
    match read(&roots.proc.join("sys/net/core/bpf_jit_enable")).as_deref() {
        Ok("0") => Check::warn(NAME, "off: the kernel programs are interpreted", "sysctl net.core.bpf_jit_enable=1"),
        Ok("2") => Check::warn(NAME, "on, and writes every program to the log", "sysctl net.core.bpf_jit_enable=1"),
        Ok(found) => Check::ok(NAME, format!("on ({found})")),
        Err(error) => Check::warn(NAME, error.as_str(), "use a kernel with CONFIG_BPF_JIT=y"),
    }
}

pub(super) fn file_limit(roots: &Roots) -> Check {
    const NAME: &str = "open files";
    let limits = match read(&roots.proc.join("self/limits")) {
        Ok(limits) => limits,
        Err(error) => return Check::warn(NAME, error, "mount /proc"),
    };
    let Some((soft, hard)) = open_files(&limits) else {
        return Check::warn(NAME, "no limit in /proc/self/limits", "mount the kernel's own /proc");
    };
    let found = format!("soft {}, hard {}: each connection takes one", show(soft), show(hard));
    let mend = "raise it: LimitNOFILE=1048576 in a unit, nofile in /etc/security/limits.conf, --ulimit for a container";
    match hard {
        _ if hard < FILES_LEAST => Check::fail(NAME, found, mend),
        _ if hard < FILES_GOOD => Check::warn(NAME, found, mend),
        _ => Check::ok(NAME, found),
    }
}

pub(super) fn somaxconn(roots: &Roots) -> Check {
    const NAME: &str = "listen backlog";
    let found = match read(&roots.proc.join("sys/net/core/somaxconn")) {
        Ok(found) => found,
        Err(error) => return Check::warn(NAME, error, "mount /proc"),
    };
    if found.parse::<u64>().is_ok_and(|backlog| backlog >= SOMAXCONN_GOOD) {
        return Check::ok(NAME, found);
    }
    let mend = format!("sysctl net.core.somaxconn={SOMAXCONN_GOOD}, or many applications that connect at once wait a second");
    Check::warn(NAME, found, mend)
}

/// Major and minor of a release like `5.15.0-91-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The soft and the hard limit from the table of `/proc/self/limits`; `u64::MAX` is none.
fn open_files(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut columns = line.split_whitespace().map(|limit| if limit == "unlimited" { Some(u64::MAX) } else { limit.parse().ok() });
    Some((columns.next()??, columns.next()??))
}

fn show(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

/// A small file without its last newline, or why it cannot be read.
fn read(path: &Path) -> Result<String, String> {
    let read: io::Result<String> = fs::read_to_string(path);
    read.map(|text| text.trim_end().to_owned()).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}
