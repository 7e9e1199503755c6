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

use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::{
    accept::{Door, Listener},
    frames::Side,
    path::KernelPath,
};

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

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
    drop(socket(address, false, false)?);
    bind_shared(address, workers, kernel, false)
}

/// As [`bind`], in the namespace of the calling thread, whose loopback may not be up yet.
pub(super) fn bind_inside(address: SocketAddr, workers: usize, kernel: Option<&dyn KernelPath>) -> io::Result<Vec<TcpListener>> {
    drop(socket(address, false, true)?);
    bind_shared(address, workers, kernel, true)
}

fn bind_shared(
    address: SocketAddr,
    workers: usize,
    kernel: Option<&dyn KernelPath>,
    early: bool,
) -> io::Result<Vec<TcpListener>> {
    let listener = || {
        let socket = socket(address, true, early)?;
        if let Some(Err(error)) = kernel.map(|kernel| kernel.listening(socket.as_fd(), address)) {
            warn!(%address, %error, "its connections do not go by way of the kernel");
        }
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..workers).map(|_| listener()).collect()
}

/// A socket that is bound, if `early` even if nobody has the address yet.
fn socket(address: SocketAddr, shared: bool, early: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(early)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(early)?,
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
