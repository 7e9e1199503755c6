//! Which cgroup the programs are attached to.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::{AttachError, mounts, probe::Roots};

/// Where cgroup2 usually is, alone or beside version 1.
const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A folder of cgroup2, open.
#[derive(Debug)]
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
    pub(super) folder: File,
}

/// Opens the named cgroup, or the root of cgroup2.
pub(super) fn choose(named: Option<&Path>, roots: &Roots) -> Result<Cgroup, AttachError> {
    let path = match named {
        Some(path) => path.to_path_buf(),
        None => find(roots)?,
    };
    let folder = File::open(&path).map_err(|source| AttachError::Cgroup { path: path.clone(), source })?;
    let kind = fstatfs(&folder).map_err(|error| AttachError::Cgroup { path: path.clone(), source: io::Error::from(error) })?;
    if kind.filesystem_type() == CGROUP2_SUPER_MAGIC {
        Ok(Cgroup { path, folder })
    } else {
        Err(AttachError::NotCgroup2 { path })
    }
}

/// Where cgroup2 is mounted.
pub(super) fn find(roots: &Roots) -> Result<PathBuf, AttachError> {
    let mounts = mounts::read(&roots.proc).map_err(|source| AttachError::Mounts { path: mounts::file(&roots.proc), source })?;
    let all: Vec<PathBuf> = mounts.into_iter().filter(|mount| mount.kind == "cgroup2").map(|mount| mount.path).collect();
    let usual = all.iter().find(|path| USUAL.iter().any(|usual| path.as_path() == Path::new(usual)));
    usual.or(all.first()).cloned().ok_or(AttachError::NoCgroup2)
}
