//! Why the kernel programs are not there, in words that say how to mend it.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

use nix::libc::{E2BIG, EPERM};

use super::btf::BtfError;

/// Why the kernel programs could not be attached. The agent serves in userspace all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The object was not there when the binary was built.
    #[error("this binary was built without the kernel programs: run cargo xtask build")]
    NotBuilt,
    /// The object that was embedded is of another version than the code that loads it.
    #[error("the kernel programs in this binary have schema {}, this agent needs {}: run cargo xtask build", show(*found), agent_common::SCHEMA)]
    Schema {
        /// What the object says.
        found: Option<u32>,
    },
    /// There is no cgroup2 to attach to.
    #[error(
        "cgroup2 is not mounted: run mount -t cgroup2 none /sys/fs/cgroup/unified (or at /sys/fs/cgroup), or name a mounted one"
    )]
    NoCgroup2,
    /// The mounts could not be read, so cgroup2 was not found.
    #[error("{path} cannot be read, so cgroup2 was not found ({source}): mount /proc, or name the cgroup")]
    Mounts {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroup that was named or found cannot be opened.
    #[error("the cgroup {path} cannot be opened ({source}): name a folder of cgroup2 that this process may read")]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was named is no folder of cgroup2.
    #[error("{path} is not a folder of cgroup2: name one (mount | grep cgroup2 shows where it is)")]
    NotCgroup2 {
        /// The folder.
        path: PathBuf,
    },
    /// The kernel refused for lack of rights.
    #[error("not permitted to {what}: run as root, or with CAP_BPF and CAP_NET_ADMIN (moa doctor shows which is missing)")]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel has no type information, and did not take the programs.
    #[error(
        "the kernel has no BTF (/sys/kernel/btf/vmlinux) and refuses the programs: use one with CONFIG_DEBUG_INFO_BTF=y: {source}"
    )]
    NoBtf {
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The network namespace of this process could not be told from others.
    #[error("the cookie of the network namespace cannot be read ({source}): use kernel 5.15 or later")]
    Namespace {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel attaches programs only for as long as a process holds them.
    #[error("the kernel has no links for cgroups that outlive a process: use kernel 5.15 or later")]
    NoLinks,
    /// Another agent has these pins.
    #[error("another agent of the name {name} lives on this machine and has the kernel path: give this one another --name")]
    InUse {
        /// The name of both.
        name: String,
    },
    /// This process cannot be told from others.
    #[error("/proc/self cannot be read ({source}): mount /proc")]
    Process {
        /// What the kernel said.
        source: io::Error,
    },
    /// No more programs fit on the cgroup.
    #[error(
        "the cgroup {path} has as many programs as it can have: bpftool cgroup show {path} lists them; what agents that were \
         killed have left goes with moa kernel uninstall --name NAME (ls /sys/fs/bpf/moa)"
    )]
    Crowded {
        /// The cgroup.
        path: PathBuf,
    },
    /// Where the kernel keeps its members is not known.
    #[error("{source}")]
    Btf {
        /// What is wrong with its type information.
        source: BtfError,
    },
    /// What a former process has left of calls that it routed cannot be removed.
    #[error("the lanes of the agent that ran before cannot be closed ({source}): run moa kernel uninstall, then start again")]
    Lanes {
        /// What the kernel said.
        source: io::Error,
    },
    /// bpffs is not mounted.
    #[error("bpffs is not mounted at /sys/fs/bpf and cannot be ({source}): run mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs {
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder of the pins cannot be used.
    #[error("the pins in {path} cannot be used ({source}): run as root, or remove them with moa kernel uninstall")]
    Pins {
        /// The folder, or one of its files.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something could not be pinned.
    #[error("{path} cannot be pinned ({source}): run as root, or remove what is there with moa kernel uninstall")]
    Pin {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: PinError,
    },
    /// The page that the agent shares with the programs cannot be mapped.
    #[error("the map SHARED cannot be mapped ({source}): use kernel 5.15 or later")]
    Mapping {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel cannot be asked about sockets.
    #[error("sockets cannot be asked about ({source}): load the kernel modules tcp_diag and inet_diag")]
    Diag {
        /// What the kernel said.
        source: io::Error,
    },
    /// A network namespace that is to be left alone cannot be found.
    #[error("the network namespace {path} cannot be entered ({source}): correct kernel.exclude_namespaces, and run as root")]
    OtherNamespace {
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object lacks something that this agent knows of.
    #[error("the kernel programs in this binary lack {what}: run cargo xtask build")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// The kernel refused the object, a map or a program.
    #[error("the kernel refuses {what} (moa doctor checks the machine): {source}")]
    Refused {
        /// What it refused.
        what: String,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl AttachError {
    pub(super) fn load(error: EbpfError) -> Self {
        Self::refused("to load the kernel programs", "the kernel programs", error)
    }

    pub(super) fn map(name: &str, error: MapError) -> Self {
        Self::refused(&format!("to use the map {name}"), &format!("the map {name}"), error)
    }

    pub(super) fn program(name: &str, error: ProgramError) -> Self {
        Self::refused(&format!("to load the program {name}"), &format!("the program {name}"), error)
    }

    pub(super) fn pin(path: &Path, source: PinError) -> Self {
        Self::Pin { path: path.to_path_buf(), source }
    }

    pub(super) fn attach(cgroup: &Path, error: ProgramError) -> Self {
        if raw_error(&error) == Some(E2BIG) {
            return Self::Crowded { path: cgroup.to_path_buf() };
        }
        let cgroup = cgroup.display();
        Self::refused(&format!("to attach to the cgroup {cgroup}"), &format!("to attach to the cgroup {cgroup}"), error)
    }

    fn refused(tried: &str, what: &str, error: impl Error + Send + Sync + 'static) -> Self {
        if denied(&error) {
            return Self::NotPermitted { what: tried.trim_start_matches("to ").to_owned(), source: Box::new(error) };
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Self::NoBtf { source: Box::new(error) };
        }
        Self::Refused { what: what.to_owned(), source: Box::new(error) }
    }
}

/// Why the counts could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the counters of the kernel programs cannot be read: {source}")]
pub struct ReadError {
    source: MapError,
}

impl ReadError {
    pub(super) const fn new(source: MapError) -> Self {
        Self { source }
    }
}

/// Whether the cause of all is a lack of rights. The other error of that kind, EACCES, is what the verifier says of a program
/// that it refuses.
fn denied(error: &(dyn Error + 'static)) -> bool {
    raw_error(error) == Some(EPERM)
}

/// What the kernel said, if that is the cause of all.
fn raw_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

fn show(schema: Option<u32>) -> String {
    schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string())
}
