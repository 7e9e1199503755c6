//! Sockets of the network namespace that the calling thread is in.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// A socket that is bound, if `early` even if nobody has the address yet, and does not listen yet.
pub(crate) fn bound(address: SocketAddr, shared: bool, early: bool) -> io::Result<Socket> {
    let socket = stream(address.is_ipv6())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(early)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(early)?,
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A socket that is neither bound nor connected.
pub(crate) fn stream(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}
