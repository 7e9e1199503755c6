//! Listening sockets, one for each worker, all of them bound before anything is served.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::path::KernelPath;

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Binds an address once for each worker; the kernel spreads connections over them.
pub(super) fn bind(address: SocketAddr, workers: usize, kernel: Option<&dyn KernelPath>) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would let another agent of the same user share the port in silence: see first that it is free.
    drop(socket(address, false)?);
    let listener = || {
        let socket = socket(address, true)?;
        if let Some(Err(error)) = kernel.map(|kernel| kernel.listening(socket.as_fd(), address)) {
            warn!(%address, %error, "its connections do not go by way of the kernel");
        }
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..workers).map(|_| listener()).collect()
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
