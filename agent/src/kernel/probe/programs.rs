//! What the kernel programs need, and whether they load.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use super::{Check, Roots};
use crate::kernel::{AttachError, Kernel, Options, cgroup, mounts, object, trials};

pub(super) fn cgroup2(roots: &Roots) -> Check {
    const NAME: &str = "cgroup2";
    match cgroup::find(roots) {
        Ok(path) => Check::ok(NAME, format!("at {}", path.display())),
        Err(AttachError::NoCgroup2) => {
            let mend = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified";
            Check::warn(NAME, "not mounted: calls go through userspace only", mend)
        }
        Err(error) => Check::warn(NAME, error.to_string(), "mount /proc"),
    }
}

pub(super) fn bpffs(roots: &Roots) -> Check {
    const NAME: &str = "bpffs";
    let place = Path::new("/sys/fs/bpf");
    let mounts = match mounts::read(&roots.proc) {
        Ok(mounts) => mounts,
        Err(error) => return Check::warn(NAME, format!("the mounts cannot be read: {error}"), "mount /proc"),
    };
    if mounts.iter().any(|mount| mount.kind == "bpf" && mount.path == place) {
        return Check::ok(NAME, "at /sys/fs/bpf");
    }
    Check::warn(NAME, "not mounted at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf")
}

pub(super) fn btf(roots: &Roots) -> Check {
    const NAME: &str = "BTF";
    let path = roots.sys.join("kernel/btf/vmlinux");
    match fs::metadata(&path) {
        Ok(meta) => Check::ok(NAME, format!("{}, {} KiB", path.display(), meta.len() / 1024)),
        Err(error) => Check::warn(NAME, format!("{}: {error}", path.display()), "use a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

pub(super) fn embedded() -> Check {
    const NAME: &str = "kernel programs";
    match object::embedded() {
        Ok(object) => Check::ok(NAME, format!("in this binary, schema {}, {} KiB", agent_common::SCHEMA, object.len() / 1024)),
        Err(error) => Check::warn(NAME, error.to_string(), "cargo xtask build"),
    }
}

pub(super) fn attach(roots: &Roots) -> Check {
    const NAME: &str = "attaching";
    // What is missing has a check of its own, which says how to mend it.
    let needs = [embedded(), cgroup2(roots)];
    if let Some(missing) = needs.iter().find(|check| check.mend.is_some()) {
        return Check::warn(NAME, format!("not tried, for want of: {}", missing.name), "mend that first");
    }
    match try_attach(roots) {
        Ok(()) => Check::ok(NAME, "the programs load, and attach to a cgroup made for the purpose"),
        Err(Trial::Cgroup { path, source }) => {
            Check::warn(NAME, format!("the cgroup {} cannot be made: {source}", path.display()), "run as root")
        }
        Err(Trial::Attach(error @ AttachError::NotPermitted { .. })) => {
            Check::warn(NAME, error.to_string(), "run as root, or with CAP_BPF and CAP_NET_ADMIN")
        }
        Err(Trial::Attach(error)) => {
            let mend = "report it with the text and the kernel's version; until then the agent serves in userspace";
            Check::fail(NAME, error.to_string(), mend)
        }
    }
}

/// Whether this kernel does what the path relies on.
pub(super) fn trials(roots: &Roots) -> Check {
    const NAME: &str = "kernel path";
    if attach(roots).mend.is_some() {
        return Check::warn(NAME, "not tried, for want of: attaching", "mend that first");
    }
    match trials::run() {
        Ok(tried) => match tried.objection() {
            None => Check::ok(NAME, tried.summary()),
            Some(objection) => Check::warn(NAME, objection, "use another kernel; until then what is wrong goes by TCP"),
        },
        Err(error) => Check::warn(NAME, error.to_string(), "run as root"),
    }
}

/// Why the trial failed.
enum Trial {
    Cgroup { path: PathBuf, source: io::Error },
    Attach(AttachError),
}

fn try_attach(roots: &Roots) -> Result<(), Trial> {
    let root = cgroup::find(roots).map_err(Trial::Attach)?;
    let scratch = Scratch::new(&root)?;
    let options = Options { cgroup: Some(scratch.0.clone()), ..Options::default() };
    Kernel::attach(&options).map(drop).map_err(Trial::Attach)
}

/// A cgroup that nobody is in. Dropping it removes it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> Result<Self, Trial> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = root.join(format!("moa-doctor-{}-{}", process::id(), NUMBER.fetch_add(1, Relaxed)));
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(Trial::Cgroup { path, source }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The kernel refuses only if somebody else has put a process into it, who is then to remove it.
        let _ = fs::remove_dir(&self.0);
    }
}
