//! Listening sockets, one for each worker, all of them bound before anything is served.

use std::{
    fs::{self, Permissions},
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

use socket2::Socket;
use tracing::warn;

use super::{
    accept::{Door, Listener},
    frames::Side,
    path::KernelPath,
};
use crate::netns::sockets::bound;

/// The kernel cuts it to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 65_535;

/// The listening sockets of one worker.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) app: TcpListener,
    pub(crate) agents: TcpListener,
    pub(crate) unix: Option<UnixListener>,
    /// For applications of other agents.
    pub(crate) foreign: Option<TcpListener>,
}

impl Listeners {
    /// Gives them to the worker that this is called in.
    pub(crate) fn fasten(self) -> io::Result<Vec<(Listener, Door)>> {
        let tcp = |listener| tokio::net::TcpListener::from_std(listener).map(Listener::Tcp);
        let mut listeners = vec![(tcp(self.app)?, Door::Any(Side::App)), (tcp(self.agents)?, Door::Any(Side::AgentIn))];
        if let Some(unix) = self.unix {
            listeners.push((Listener::Unix(tokio::net::UnixListener::from_std(unix)?), Door::Any(Side::App)));
        }
        if let Some(foreign) = self.foreign {
            listeners.push((tcp(foreign)?, Door::Foreign));
        }
        Ok(listeners)
    }
}

/// Binds a unix socket in the place of one that nobody listens on any more. Any process that reaches it may connect, as with
/// the address.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_stale = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).err().is_some_and(is_stale) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Binds an address once for each worker; the kernel spreads connections over them.
pub(super) fn bind(address: SocketAddr, workers: usize, kernel: Option<&dyn KernelPath>) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would let another agent of the same user share the port in silence: see first that it is free.
    drop(bound(address, false, false)?);
    let sockets = (0..workers).map(|_| bound(address, true, false));
    listen(sockets.collect::<io::Result<_>>()?, address, kernel)
}

/// Listens with sockets that are bound to an address.
pub(super) fn listen(sockets: Vec<Socket>, address: SocketAddr, kernel: Option<&dyn KernelPath>) -> io::Result<Vec<TcpListener>> {
    let listener = |socket: Socket| {
        if let Some(Err(error)) = kernel.map(|kernel| kernel.listening(socket.as_fd(), address)) {
            warn!(%address, %error, "its connections do not go by way of the kernel");
        }
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    sockets.into_iter().map(listener).collect()
}
