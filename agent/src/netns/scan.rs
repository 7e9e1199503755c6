//! Looks which files of namespaces there are, without holding any of them open.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    libc::O_NONBLOCK,
    sys::statfs::{NSFS_MAGIC, Statfs, fstatfs, statfs},
};

use super::Id;
use crate::config;

/// Files of a folder that are looked at.
const FILES_MAX: usize = 16_384;

/// Where files of namespaces are.
#[derive(Debug, Clone)]
pub(crate) struct Sources(Arc<config::Checked>);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Why there is no folder, if there should be one.
    pub(crate) absent: Option<String>,
    pub(crate) files: Vec<Seen>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What it is called in the configuration: the file's name, or for one that is listed its path.
    pub(crate) name: Arc<str>,
    pub(crate) path: PathBuf,
    /// The namespace, or what it is instead.
    pub(crate) is: Result<Id, String>,
}

impl Sources {
    pub(crate) fn new(checked: Arc<config::Checked>) -> Self {
        Self(checked)
    }

    pub(crate) fn config(&self) -> &config::Namespaces {
        &self.0.config.namespaces
    }

    /// Looks at all files.
    ///
    /// # Errors
    /// The folder can't be read, so that nothing is known of its files.
    pub(crate) fn scan(&self) -> Result<Scan, String> {
        let mut scan = Scan::default();
        if let Some(folder) = &self.config().folder {
            match fs::read_dir(folder) {
                Ok(entries) => {
                    for entry in entries.take(FILES_MAX) {
                        let entry = entry.map_err(|error| unreadable(folder, &error))?;
                        let name = entry.file_name();
                        let name = name.to_string_lossy();
                        if self.config().counts(&name) {
                            scan.files.extend(look(&name, entry.path()));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    scan.absent = Some(format!("{} isn't there yet (namespaces.folder)", folder.display()));
                }
                Err(error) => return Err(unreadable(folder, &error)),
            }
        }
        let listed = self.config().paths.iter();
        scan.files.extend(listed.filter_map(|path| look(&path.to_string_lossy(), path.clone())));
        Ok(scan)
    }
}

fn unreadable(folder: &Path, error: &io::Error) -> String {
    format!("can't read {} ({error}): let the agent read it, or correct namespaces.folder", folder.display())
}

/// What a file is; none if it is not there.
fn look(name: &str, path: PathBuf) -> Option<Seen> {
    let is = match id_of(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(format!("it can't be looked at: {error}")),
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err("it is no namespace's file".to_owned()),
    };
    Some(Seen { name: name.into(), path, is })
}

fn id_of(path: &Path) -> io::Result<Option<Id>> {
    let metadata = fs::metadata(path)?;
    Ok(is_nsfs(&statfs(path)?).then(|| Id { device: metadata.dev(), inode: metadata.ino() }))
}

fn is_nsfs(file_system: &Statfs) -> bool {
    file_system.filesystem_type() == NSFS_MAGIC
}

/// Opens the file of a namespace, if it still is that one's.
///
/// # Errors
/// It is not, or can't be opened.
pub(crate) fn open(path: &Path, id: Id) -> io::Result<OwnedFd> {
    // Whatever it has become meanwhile, opening it does not wait.
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if is_nsfs(&fstatfs(&file)?) && metadata.dev() == id.device && metadata.ino() == id.inode {
        Ok(file.into())
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the file is another one's by now"))
    }
}

/// The agent's own namespace.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn host() -> io::Result<Id> {
    let metadata = fs::metadata("/proc/thread-self/ns/net")?;
    Ok(Id { device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{Given, parse};

    fn sources(text: &str) -> Sources {
        Sources::new(Arc::new(parse(text, "f", &Given::default()).unwrap()))
    }

    #[test]
    fn files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "[namespaces]\nfolder = {:?}\nexclude = ['not-*']\npaths = ['/proc/self/ns/net', '/proc/self/ns/nothing']\n",
            folder.path()
        );
        fs::write(at("plain"), "").unwrap();
        fs::write(at("not-this"), "").unwrap();
        symlink("/proc/self/ns/net", at("link")).unwrap();
        symlink("/nowhere", at("broken")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut scan = sources(&config).scan().unwrap();
        scan.files.sort_by(|a, b| a.name.cmp(&b.name));
        let host = host().unwrap();
        let no = || Err("it is no namespace's file".to_owned());
        let found: Vec<_> = scan.files.iter().map(|seen| (&*seen.name, seen.is.clone())).collect();
        assert_eq!(found, [("/proc/self/ns/net", Ok(host)), ("fifo", no()), ("link", Ok(host)), ("plain", no())]);
        assert_eq!(scan.absent, None);
        assert!(open(&at("link"), host).is_ok());
        let former = Id { inode: host.inode + 1, ..host };
        for (name, id) in [("link", former), ("plain", host), ("fifo", host)] {
            assert!(open(&at(name), id).is_err(), "{name}");
        }
    }

    #[test]
    fn an_absent_folder_is_not_one_that_cannot_be_read() {
        let scan = sources("[namespaces]\nfolder = '/nowhere/netns'\n").scan().unwrap();
        assert!(scan.absent.unwrap().contains("/nowhere/netns isn't there"), "it may come");
        let error = sources("[namespaces]\nfolder = '/proc/self/status'\n").scan().unwrap_err();
        assert!(error.contains("correct namespaces.folder"), "{error}");
    }
}
