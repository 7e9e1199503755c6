//! Where maps, programs and links outlive the process: a folder of bpffs for each agent and schema.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use agent_common::SCHEMA;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{AttachError, link::Link};

/// Where bpffs is.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// The maps that are pinned. What is not among them is made anew with every load: the log, and constants.
pub(super) const MAPS: [&str; 27] = [
    "LISTENERS",
    "EXCLUDED",
    "COUNTS",
    "VERDICTS",
    "SHARED",
    "SOCKS",
    "DIALS",
    "READS",
    "BLOCKING",
    "SLOTS",
    "LEGS",
    "LANES",
    "LANE",
    "ROUTES",
    "ACCESS",
    "CALLS",
    "NAMES",
    "TURNS",
    "MEMBERS",
    "ROUTING",
    "ROUTED",
    "TRACE",
    "GATES",
    "PEERS",
    "FAILOVER",
    "DECISIONS",
    "DIVERTED",
];

/// The programs at connects, whose links are pinned by their names. While one that diverts is there, so is one that hides it.
pub(super) const CONNECTS: [&str; 4] = ["getpeername4", "getpeername6", "connect4", "connect6"];

/// The program that enrols, whose link is pinned by its name.
const ESTABLISHED: &str = "established";

/// The folder of one agent's pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pins {
    agent: PathBuf,
    folder: PathBuf,
}

impl Pins {
    /// Those of the agent with this name, in this schema.
    pub(super) fn of(bpffs: &Path, name: &str) -> Self {
        let agent = bpffs.join("moa").join(name);
        Self { folder: agent.join(format!("v{SCHEMA}")), agent }
    }

    /// Makes the folder, and mounts bpffs where it usually is if it is not.
    pub(super) fn make(&self) -> Result<(), AttachError> {
        if self.folder.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .map_err(|source| AttachError::NoBpffs { source: source.into() })?;
        }
        fs::create_dir_all(&self.folder).map_err(|source| AttachError::Pins { path: self.folder.clone(), source })
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The stub that is attached to the sockets' map.
    pub(super) fn stub(&self) -> PathBuf {
        self.folder.join("stub")
    }

    /// The link of the program that enrols.
    pub(super) fn link(&self) -> PathBuf {
        self.folder.join(ESTABLISHED)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether anything is pinned.
    pub(super) fn exist(&self) -> bool {
        fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Removes what is pinned in this schema, links first: nothing is diverted or enrolled while the rest goes.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_folder(&self.folder)?;
        // Other schemas may be there, and other agents.
        let _ = fs::remove_dir(&self.agent);
        if let Some(all) = self.agent.parent() {
            let _ = fs::remove_dir(all);
        }
        Ok(())
    }

    /// The folders of former schemas.
    pub(super) fn former(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.agent).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| *path != self.folder && path.is_dir()).collect()
    }
}

/// Removes a folder of pins.
pub(super) fn remove_folder(folder: &Path) -> io::Result<()> {
    remove_links(folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes the links in a folder of pins: from now on nothing is diverted or enrolled.
pub(super) fn remove_links(folder: &Path) -> io::Result<()> {
    remove_connects(folder)?;
    remove_link(&folder.join(ESTABLISHED))
}

/// Removes those of the programs at connects.
pub(super) fn remove_connects(folder: &Path) -> io::Result<()> {
    CONNECTS.iter().rev().try_for_each(|name| remove_link(&folder.join(name)))
}

fn remove_link(path: &Path) -> io::Result<()> {
    // If that fails, it goes a moment later.
    let _ = Link::open(path).and_then(Link::detach);
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
