//! The cgroup that the tests of this process are in while one of them has the programs attached. They do not share the root
//! with others, as the kernel takes no more than 64 programs of a kind at one cgroup.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many tests are inside.
static INSIDE: Mutex<usize> = Mutex::new(0);

/// Keeps the process inside.
pub struct Inside(PathBuf);

impl Inside {
    /// Makes the cgroup and enters it, unless another test did.
    ///
    /// # Panics
    /// Without cgroup2, or the rights for it.
    pub fn enter() -> Self {
        let mut inside = lock();
        let folder = root().join(format!("moa-legs-{}", process::id()));
        if *inside == 0 {
            match fs::create_dir(&folder) {
                // A child of this process was still in it when the last test left.
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    panic!("{}: {error}: run this test as root", folder.display())
                }
                _ => enter(&folder),
            }
        }
        *inside += 1;
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut inside = lock();
        *inside -= 1;
        if *inside == 0 {
            enter(&root());
            // What is left of it is an empty folder.
            let _ = fs::remove_dir(&self.0);
        }
    }
}

fn lock() -> MutexGuard<'static, usize> {
    INSIDE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enter(folder: &Path) {
    let procs = folder.join("cgroup.procs");
    fs::write(&procs, process::id().to_string()).unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
}

/// Where cgroup2 is mounted.
///
/// # Panics
/// If it is not.
pub fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let mut all = mounts.lines().map(|line| line.split(' '));
    let cgroup2 = all.find_map(|mut mount| mount.nth(1).filter(|_| mount.next() == Some("cgroup2")).map(PathBuf::from));
    cgroup2.expect("this test needs cgroup2: mount -t cgroup2 none /sys/fs/cgroup/unified")
}
