//! The kernel path as the data plane sees it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use agent_common::{End, Leg, Listener, Pass, WATCHED, role};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, SkStorage, SockHash};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::{diag::Diag, shared::SharedPage};
use crate::proxy::{Enrolled, Fallback, KernelPath};

/// The maps and the page through which agent and programs talk about single connections. None of it is on the way of a
/// call: it is used when connections are opened and closed, and once for every so many bytes.
pub(super) struct Legs {
    pub(super) shared: SharedPage,
    pub(super) legs: Mutex<SkStorage<MapData, Leg>>,
    pub(super) reads: Mutex<HashMap<MapData, End, u64>>,
    pub(super) listeners: Mutex<HashMap<MapData, Listener, u32>>,
    pub(super) socks: Mutex<SockHash<MapData, End>>,
    pub(super) diag: Mutex<Diag>,
    /// Whether a socket is taken out of the map when what it is sent goes over to TCP. Some kernels answer `FIONREAD` with 0
    /// for what comes by TCP to a socket that is in one.
    pub(super) unenrols: AtomicBool,
    /// The namespace that the agent's sockets are in.
    pub(super) netns: u64,
}

impl Legs {
    /// Forgets every listener: nobody is found by their addresses any more.
    pub(super) fn clear_listeners(&self) -> Result<(), MapError> {
        clear(&mut lock(&self.listeners))
    }

    /// Forgets what was read: all connections that it was read from have ended.
    pub(super) fn clear_reads(&self) -> Result<(), MapError> {
        clear(&mut lock(&self.reads))
    }

    fn mark(&self, socket: BorrowedFd<'_>, role: u32) -> io::Result<()> {
        // What waits in front of TCP's bytes counts as theirs does: with room for both, TCP never finds none.
        let bound = usize::try_from(self.shared.bound()).unwrap_or(usize::MAX);
        setsockopt(&socket, RcvBufForce, &bound)?;
        lock(&self.legs).insert(&socket.as_raw_fd(), Leg::mark(role), 0).map_err(io::Error::other)
    }
}

impl KernelPath for Legs {
    fn listening(&self, socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
        self.mark(socket, role::LISTENER)?;
        lock(&self.listeners).insert(Listener::new(self.netns, address), WATCHED, 0).map_err(io::Error::other)
    }

    fn dialling(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.mark(socket, role::DIAL)
    }

    fn enrolled(&self, socket: BorrowedFd<'_>) -> Option<Enrolled> {
        let leg = lock(&self.legs).get(&socket.as_raw_fd(), 0).ok()?;
        leg.is_enrolled().then(|| Enrolled { end: leg.peer.peer(), by_tcp: leg.tcp != 0 })
    }

    fn publish(&self, end: &End, read: u64) {
        // Without room for it, the connection falls back at its bound.
        let _ = lock(&self.reads).insert(end, read, 0);
    }

    fn forget(&self, end: &End) {
        let _ = lock(&self.reads).remove(end);
    }

    fn keep_to_tcp(&self, socket: BorrowedFd<'_>, why: Fallback) -> io::Result<()> {
        let mut legs = lock(&self.legs);
        // Nobody changes it meanwhile: the program runs when this very thread sends.
        let leg = legs.get(&socket.as_raw_fd(), 0).map_err(io::Error::other)?;
        let why = match why {
            Fallback::Bound => Pass::AgentBound,
            Fallback::Off => Pass::Off,
        };
        legs.insert(&socket.as_raw_fd(), Leg { tcp: 1, why: why as u32, ..leg }, 0).map_err(io::Error::other)?;
        if self.unenrols.load(Relaxed) {
            // Its queue is empty, and nobody but this end could have filled it. One that is closed is gone already.
            let _ = lock(&self.socks).remove(&leg.peer);
        }
        Ok(())
    }

    fn unread(&self, own: SocketAddr, other: SocketAddr) -> io::Result<u64> {
        // A socket that is gone has nothing left to read.
        Ok(lock(&self.diag).receive_bytes(other, own)?.map_or(0, u64::from))
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

fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<(), MapError> {
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
