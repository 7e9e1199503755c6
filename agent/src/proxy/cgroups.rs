//! Who calls from the agent's own namespace, by the cgroup that the caller's socket was made in.
//!
//! The kernel says the number of that cgroup, which no other one ever has. Which path has which number is found by walking
//! what is below the configured paths, once for each number that is not known yet.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tracing::warn;

use super::{
    board::lock,
    place::{Place, Source},
    socket::{Peer, Socket},
    worker::Worker,
};
use crate::diag::Diag;

/// Numbers that are remembered; beyond that all are forgotten, and found again.
const KNOWN_MAX: usize = 65_536;
/// Folders that are walked below one path.
const FOLDERS_MAX: usize = 65_536;

/// Applications by cgroup.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    /// Where cgroup2 is; none if it is not mounted.
    root: Option<PathBuf>,
    is_on: AtomicBool,
    warned: AtomicBool,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    applications: Arc<BTreeMap<String, String>>,
    /// By the numbers of cgroups; none for those that are nobody's.
    known: HashMap<u64, Option<Arc<str>>>,
}

impl Cgroups {
    pub(crate) fn new(root: Option<PathBuf>, applications: &BTreeMap<String, String>) -> Arc<Self> {
        let cgroups = Arc::new(Self { root, ..Self::default() });
        cgroups.configure(applications);
        cgroups
    }

    /// Follows a new configuration.
    pub(crate) fn configure(&self, applications: &BTreeMap<String, String>) {
        if *lock(&self.table).applications != *applications {
            let known = self.walk(applications).into_iter().map(|(id, application)| (id, Some(application))).collect();
            *lock(&self.table) = Table { applications: Arc::new(applications.clone()), known };
        }
        if !applications.is_empty() && self.root.is_none() {
            warn!("cgroup2 is not mounted, so nobody is known by cgroup: mount -t cgroup2 none /sys/fs/cgroup");
        }
        self.is_on.store(!applications.is_empty() && self.root.is_some(), Relaxed);
    }

    /// Whether any application is known by its cgroup.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Who is in the cgroup with this number, if it was looked for before.
    pub(crate) fn known(&self, id: u64) -> Option<Option<Arc<str>>> {
        lock(&self.table).known.get(&id).cloned()
    }

    /// Who is in the cgroup with this number, if anybody is known to be. Looks for it if it is new.
    pub(crate) fn application(&self, id: u64) -> Option<Arc<str>> {
        loop {
            let applications = {
                let table = lock(&self.table);
                if let Some(known) = table.known.get(&id) {
                    return known.clone();
                }
                table.applications.clone()
            };
            // Nobody waits for it.
            let found = self.walk(&applications);
            let mut table = lock(&self.table);
            if Arc::ptr_eq(&table.applications, &applications) {
                if table.known.len() >= KNOWN_MAX {
                    table.known.clear();
                }
                table.known.extend(found.into_iter().map(|(id, application)| (id, Some(application))));
                return table.known.entry(id).or_default().clone();
            }
        }
    }

    /// Looks for the numbers of all cgroups that are somebody's.
    fn walk(&self, applications: &BTreeMap<String, String>) -> HashMap<u64, Arc<str>> {
        let mut found = HashMap::new();
        let Some(root) = &self.root else { return found };
        // A path comes before those below it, which count more.
        for (path, application) in applications {
            let application: Arc<str> = application.as_str().into();
            let mut folders = vec![root.join(path.trim_start_matches('/'))];
            let mut left = FOLDERS_MAX;
            while let Some(folder) = folders.pop()
                && left > 0
            {
                left -= 1;
                // One that is not there, or goes meanwhile, is nobody's.
                let Ok(metadata) = fs::metadata(&folder) else { continue };
                found.insert(metadata.ino(), application.clone());
                let below = fs::read_dir(&folder).into_iter().flatten().flatten();
                let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                folders.extend(below.map(|entry| entry.path()));
            }
        }
        found
    }

    fn warn_once(&self, error: &io::Error) {
        if !self.warned.swap(true, Relaxed) {
            warn!(%error, "can't tell by cgroup who calls: such callers have no name until it can be");
        }
    }
}

impl Worker {
    /// Takes a connection whose caller may be known by its cgroup.
    pub(super) fn accepted_from_cgroup(self: &Rc<Self>, socket: Socket, mut from: Source) {
        let (Peer::Tcp(peer), Some(tcp)) = (from.peer, socket.tcp()) else { return self.accepted(socket, from) };
        let Ok(own) = tcp.local_addr() else { return };
        let id = match self.cgroup_of(peer, own) {
            Ok(Some(id)) => id,
            // Who has gone already is not taken for somebody else.
            Ok(None) if is_here(peer) => return,
            Ok(None) => return self.accepted(socket, from),
            Err(error) => {
                self.cgroups.warn_once(&error);
                from.place = Some(Place::unknown());
                return self.accepted(socket, from);
            }
        };
        if let Some(known) = self.cgroups.known(id) {
            from.place = Some(Place::in_cgroup(id, known));
            return self.accepted(socket, from);
        }
        let (worker, cgroups) = (self.clone(), self.cgroups.clone());
        tokio::task::spawn_local(async move {
            let found = tokio::task::spawn_blocking(move || cgroups.application(id)).await;
            from.place = Some(found.map_or_else(|_| Place::unknown(), |application| Place::in_cgroup(id, application)));
            worker.turn_begins();
            worker.accepted(socket, from);
        });
    }

    /// The cgroup of the socket at this address of this machine; none if there is none.
    fn cgroup_of(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        let mut diag = self.diag.borrow_mut();
        if diag.is_none() {
            *diag = Some(Diag::open()?);
        }
        diag.as_ref().map_or(Ok(None), |diag| diag.cgroup(local, remote))
    }
}

/// Whether an address is one of this namespace.
fn is_here(address: SocketAddr) -> bool {
    address.ip().is_loopback() || UdpSocket::bind((address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_counts_and_what_comes_later_is_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let make = |path: &str| {
            fs::create_dir_all(at(path)).unwrap();
            fs::metadata(at(path)).unwrap().ino()
        };
        let (a, b, other) = (make("a"), make("a/b"), make("other"));
        let applications = [("/a", "shop"), ("/a/b/c", "cart"), ("/late", "late")];
        let applications: BTreeMap<_, _> = applications.map(|(path, name)| (path.to_owned(), name.to_owned())).into();
        let cgroups = Cgroups::new(Some(root.path().to_owned()), &applications);
        assert!(cgroups.is_on());
        assert_eq!(cgroups.known(a).flatten().as_deref(), Some("shop"));
        assert_eq!(cgroups.known(other), None);
        let names = |ids: &[u64]| ids.iter().map(|id| cgroups.application(*id)).collect::<Vec<_>>();
        let shown =
            |names: &[Option<Arc<str>>]| names.iter().map(|name| name.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(&names(&[a, b, other])), "shop shop -");
        let (c, d, late) = (make("a/b/c"), make("a/b/c/d"), make("late/x"));
        assert_eq!(shown(&names(&[a, b, c, d, late])), "shop shop cart cart late");
        cgroups.configure(&[("/other".to_owned(), "x".to_owned())].into());
        assert_eq!(shown(&names(&[a, other])), "- x");
        cgroups.configure(&BTreeMap::new());
        assert!(!cgroups.is_on());
    }
}
