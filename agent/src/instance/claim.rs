//! Taking a name: one agent has it, until it ends.

use std::{
    fs,
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};

use super::{Name, RunDir};

/// In an agent's folder: locked by the agent, and holds its process id.
const LOCK_FILE: &str = "agent.lock";
/// The longest path of a unix socket, without its last byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why an agent can't have its name.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The run directory is somebody else's, who could lead operators astray.
    #[error("the run directory {} is not this user's alone: remove it, or name another --run-dir", path.display())]
    NotOwn {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent has the name.
    #[error("an agent named {name} runs already (pid {pid}, {}); stop it, or give this one another --name", folder.display())]
    Taken {
        /// The name.
        name: Name,
        /// The agent that has it.
        pid: String,
        /// Its run directory.
        folder: PathBuf,
    },
    /// The path of the socket is longer than the kernel takes.
    #[error("the admin socket {} would have a path of more than {SOCKET_PATH_BYTES_MAX} bytes; name a shorter --run-dir", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A file can't be made.
    #[error("can't {what} {}: {source}; does this user own it? Name another --run-dir", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A name that this process holds. Dropping it removes the agent's folder and gives the name back.
#[derive(Debug)]
pub struct Claim {
    run_dir: RunDir,
    folder: PathBuf,
    /// The admin socket's path, at which nothing is left of an agent that was killed.
    pub socket: PathBuf,
    _lock: Flock<fs::File>,
}

impl Claim {
    /// Takes a name.
    ///
    /// # Errors
    /// Another agent has it, or its files can't be made.
    pub fn take(run_dir: &RunDir, name: &Name) -> Result<Self, ClaimError> {
        let folder = run_dir.folder(name);
        let socket = run_dir.socket(name);
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ClaimError::TooLong { path: socket });
        }
        let lock = loop {
            if let Some(lock) = try_lock(run_dir, name)? {
                break lock;
            }
        };
        match fs::remove_file(&socket) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ClaimError::File { what: "remove", path: socket, source })
            }
            _ => Ok(Self { run_dir: run_dir.clone(), folder, socket, _lock: lock }),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Nobody else has the name until the lock goes, so these files are nobody else's. What can't be removed is replaced by the next
        // agent of this name; a folder with anything else in it stays.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(self.folder.join(LOCK_FILE));
        let _ = fs::remove_dir(&self.folder);
        if !self.run_dir.named {
            let _ = fs::remove_dir(&self.run_dir.path);
        }
    }
}

/// Locks the file of a name; none if the file was removed meanwhile by the agent that had the name before.
fn try_lock(run_dir: &RunDir, name: &Name) -> Result<Option<Flock<fs::File>>, ClaimError> {
    let folder = run_dir.folder(name);
    let path = folder.join(LOCK_FILE);
    match fs::create_dir_all(&folder) {
        // Another agent ends at this moment, and removed the run directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        made => made.map_err(failed("make", &folder))?,
    }
    if !run_dir.named && !is_own(&run_dir.path) {
        return Err(ClaimError::NotOwn { path: run_dir.path.clone() });
    }
    let file = match fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", &path))?,
    };
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(ClaimError::Taken { name: name.clone(), pid: pid.trim().to_owned(), folder });
        }
        Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
    };
    let inode = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    if inode(lock.metadata()) != inode(fs::metadata(&path)) {
        return Ok(None);
    }
    write_pid(&mut lock).map_err(failed("write", &path))?;
    Ok(Some(lock))
}

/// Whether nobody but this user can put files there.
fn is_own(folder: &Path) -> bool {
    fs::symlink_metadata(folder)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == Uid::effective().as_raw() && meta.mode() & 0o022 == 0)
}

fn write_pid(file: &mut fs::File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    move |source| ClaimError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a valid name")
    }

    #[test]
    fn a_name_is_held_once_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = RunDir { path: folder.path().join("moa"), named: true };
        assert_eq!(run_dir.running(), []);
        let claim = Claim::take(&run_dir, &name("a")).expect("free");
        let second = Claim::take(&run_dir, &name("a")).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(second.starts_with(&format!("an agent named a runs already (pid {pid}, ")), "{second}");
        let other = Claim::take(&run_dir, &name("b")).expect("another name");
        let listener = UnixListener::bind(&other.socket).expect("bound");
        assert_eq!(run_dir.running(), [name("b")]);
        drop(listener);
        assert_eq!(run_dir.running(), []);
        drop(claim);
        drop(other);
        assert_eq!(fs::read_dir(&run_dir.path).expect("the run directory stays").count(), 0);
        drop(Claim::take(&run_dir, &name("a")).expect("free again"));
    }

    #[test]
    fn what_a_killed_agent_left_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = RunDir { path: folder.path().to_owned(), named: true };
        fs::create_dir_all(run_dir.folder(&name("a"))).expect("made");
        fs::write(run_dir.folder(&name("a")).join(LOCK_FILE), "1\n").expect("written");
        drop(UnixListener::bind(run_dir.socket(&name("a"))).expect("bound"));
        assert_eq!(run_dir.running(), []);
        let claim = Claim::take(&run_dir, &name("a")).expect("nobody has it");
        assert!(!claim.socket.exists());
    }

    #[test]
    fn a_socket_path_that_the_kernel_refuses_is_refused_with_advice() {
        let run_dir = RunDir { path: format!("/tmp/{}", "x".repeat(100)).into(), named: true };
        let error = Claim::take(&run_dir, &name("a")).expect_err("too long").to_string();
        assert!(error.contains("more than 107 bytes; name a shorter --run-dir"), "{error}");
    }

    #[test]
    fn a_run_directory_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = RunDir { path: folder.path().join("moa"), named: false };
        fs::create_dir(&run_dir.path).expect("made");
        fs::set_permissions(&run_dir.path, fs::Permissions::from_mode(0o777)).expect("opened to all");
        assert!(matches!(Claim::take(&run_dir, &name("a")), Err(ClaimError::NotOwn { .. })));
        fs::set_permissions(&run_dir.path, fs::Permissions::from_mode(0o755)).expect("closed");
        drop(Claim::take(&run_dir, &name("a")).expect("this user's own"));
        assert!(!run_dir.path.exists());
    }
}
