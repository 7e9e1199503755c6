//! Network namespaces: which there are, and sockets in them.
//!
//! A namespace lives as long as anything of it is open: a socket, its file, a thread that is in it. So everything here that
//! holds one is let go as soon as its file goes.

mod namespaces;
mod scan;
pub(crate) mod sockets;
mod state;
pub(crate) mod thread;
mod watch;

pub(crate) use namespaces::{Namespace, Namespaces, absent};
pub(crate) use scan::{Sources, host, open};
pub(crate) use state::{Action, Names, Policy, State};
pub(crate) use watch::Watcher;

/// A namespace as the kernel numbers it. The number is given again when nothing holds the namespace any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    /// The device of nsfs.
    pub(crate) device: u64,
    pub(crate) inode: u64,
}
