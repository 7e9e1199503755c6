//! The kernel path as the data plane sees it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use agent_common::{End, Leg, Listener, Pass, WATCHED, mode, role};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, SkStorage, SockHash};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::shared::SharedPage;
use crate::{
    diag::Diag,
    netns::thread::cookie_of_socket,
    proxy::{Enrolled, Fallback, KernelPath},
};

/// The maps and the page through which agent and programs talk about single connections. None of it is on the way of a
/// call: it is used when connections are opened and closed, and once for every so many bytes.
pub(super) struct Legs {
    pub(super) shared: SharedPage,
    pub(super) legs: Mutex<SkStorage<MapData, Leg>>,
    pub(super) reads: Mutex<HashMap<MapData, End, u64>>,
    pub(super) blocking: Mutex<HashMap<MapData, End, u64>>,
    pub(super) dials: Mutex<HashMap<MapData, End, u32>>,
    pub(super) listeners: Mutex<HashMap<MapData, Listener, u32>>,
    pub(super) socks: Mutex<SockHash<MapData, End>>,
    /// For each namespace that the agent has sockets in, by cookie.
    pub(super) diags: Mutex<std::collections::HashMap<u64, Diag>>,
    /// Whether a socket is taken out of the map when what it is sent goes over to TCP. Some kernels answer `FIONREAD` with 0
    /// for what comes by TCP to a socket that is in one.
    pub(super) unenrols: AtomicBool,
}

impl Legs {
    /// Forgets every listener: nobody is found by their addresses any more.
    pub(super) fn clear_listeners(&self) -> Result<(), MapError> {
        clear(&mut lock(&self.listeners))
    }

    /// Forgets what is known of connections that have all ended.
    pub(super) fn clear_ended(&self) -> Result<(), MapError> {
        clear(&mut lock(&self.reads))?;
        clear(&mut lock(&self.blocking))
    }

    fn mark(&self, socket: BorrowedFd<'_>, role: u32) -> io::Result<()> {
        lock(&self.legs).insert(&socket.as_raw_fd(), Leg::mark(role), 0).map_err(io::Error::other)
    }

    /// What waits in front of TCP's bytes counts as theirs does: with room for both, TCP never finds none.
    fn make_room(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let bound = usize::try_from(self.shared.bound()).unwrap_or(usize::MAX);
        Ok(setsockopt(&socket, RcvBufForce, &bound)?)
    }

    /// What is known of an enrolled socket of the agent's.
    pub(super) fn leg(&self, socket: BorrowedFd<'_>) -> Option<Leg> {
        lock(&self.legs).get(&socket.as_raw_fd(), 0).ok().filter(Leg::is_enrolled)
    }
}

impl KernelPath for Legs {
    fn listening(&self, socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
        self.make_room(socket)?;
        self.mark(socket, role::LISTENER)?;
        let netns = cookie_of_socket(socket)?;
        lock(&self.listeners).insert(Listener::new(netns, address), WATCHED, 0).map_err(io::Error::other)
    }

    fn enter(&self, netns: u64, diag: OwnedFd) -> io::Result<()> {
        let diag = Diag::over(diag)?;
        lock(&self.diags).insert(netns, diag);
        Ok(())
    }

    fn leave(&self, netns: u64) {
        lock(&self.diags).remove(&netns);
        let mut listeners = lock(&self.listeners);
        let own: Vec<Listener> = listeners.keys().flatten().filter(|listener| listener.netns == netns).collect();
        for listener in own {
            // Nobody connects to it any more: what stays there takes room, and nothing else.
            let _ = listeners.remove(&listener);
        }
    }

    fn dialling(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.mark(socket, role::DIAL)
    }

    fn dialled(&self, socket: BorrowedFd<'_>) {
        let Some(leg) = self.leg(socket) else { return };
        // Room for what is redirected to it can only fail for lack of rights, which the path would not be there without.
        let _ = self.make_room(socket);
        // Still there: whoever accepted the connection has not taken it, and finds nothing any more.
        if lock(&self.dials).remove(&leg.peer.peer()).is_ok() {
            let late = Leg { tcp: 1, why: Pass::NoPeer as u32, ..leg };
            let _ = lock(&self.legs).insert(&socket.as_raw_fd(), late, 0);
        }
    }

    fn other_blocks(&self, socket: BorrowedFd<'_>) -> Option<u64> {
        if self.shared.mode() & mode::NON_BLOCKING == 0 {
            return None;
        }
        let own = self.leg(socket)?.peer.peer();
        let mut blocking = lock(&self.blocking);
        let redirected = blocking.get(&own, 0).ok()?;
        let _ = blocking.remove(&own);
        Some(redirected)
    }

    fn enrolled(&self, socket: BorrowedFd<'_>) -> Option<Enrolled> {
        self.leg(socket).map(|leg| Enrolled { end: leg.peer.peer(), by_tcp: leg.tcp != 0 })
    }

    fn publish(&self, end: &End, read: u64) {
        // Without room for it, the connection falls back at its bound.
        let _ = lock(&self.reads).insert(end, read, 0);
    }

    fn forget(&self, end: &End) {
        let _ = lock(&self.reads).remove(end);
    }

    fn keep_to_tcp(&self, socket: BorrowedFd<'_>, why: Fallback, all_read: bool) -> io::Result<()> {
        let mut legs = lock(&self.legs);
        // Nobody changes it meanwhile: the program runs when this very thread sends.
        let leg = legs.get(&socket.as_raw_fd(), 0).map_err(io::Error::other)?;
        let why = match why {
            Fallback::Bound => Pass::AgentBound,
            Fallback::Off => Pass::Off,
            Fallback::Blocking => Pass::Blocking,
        };
        let leaves = all_read && (why == Pass::Blocking || self.unenrols.load(Relaxed));
        legs.insert(&socket.as_raw_fd(), Leg { tcp: 1, why: why as u32, ..leg }, 0).map_err(io::Error::other)?;
        drop(legs);
        if leaves {
            // Its queue is empty, and nobody but this end could have filled it. One that is closed is gone already.
            let _ = lock(&self.socks).remove(&leg.peer);
        }
        Ok(())
    }

    fn unread(&self, socket: BorrowedFd<'_>, own: SocketAddr, other: SocketAddr) -> io::Result<Option<u64>> {
        let netns = cookie_of_socket(socket)?;
        let diags = lock(&self.diags);
        let diag = diags.get(&netns).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(diag.receive_bytes(other, own)?.map(u64::from))
    }

    fn fallbacks(&self) -> u64 {
        self.shared.fallbacks()
    }

    fn generation(&self) -> u32 {
        self.shared.generation()
    }

    fn bound(&self) -> u64 {
        self.shared.bound()
    }
}

/// Takes out all entries.
pub(super) fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<(), MapError> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        match map.remove(&key) {
            Err(MapError::KeyNotFound) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One counter a CPU, added up.
pub(super) fn sum<T: aya::Pod + std::iter::Sum>(counters: &PerCpuArray<MapData, T>) -> Result<T, MapError> {
    Ok(counters.get(&0, 0)?.iter().copied().sum())
}
