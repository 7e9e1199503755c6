//! A connection between an application and an agent, both of them this thread.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::kernel::Kernel;

/// Nothing here takes so long, unless it never happens.
const PATIENCE: Duration = Duration::from_secs(1);

/// Both ends of a connection.
pub(super) struct Pair {
    pub(super) app: TcpStream,
    pub(super) agent: TcpStream,
}

impl Pair {
    /// A connection to a listener of the agent's.
    pub(super) fn accepted(kernel: &Kernel) -> io::Result<Self> {
        let (app, agent) = connect(|listener, address| kernel.path().listening(listener.as_fd(), address), |_| Ok(()))?;
        Ok(Self { app, agent })
    }

    /// A connection of the agent to a service.
    pub(super) fn dialled(kernel: &Kernel) -> io::Result<Self> {
        let (agent, app) = connect(|_, _| Ok(()), |socket| kernel.path().dialling(socket.as_fd()))?;
        Ok(Self { app, agent })
    }

    /// One that the programs do not know.
    pub(super) fn plain() -> io::Result<Self> {
        let (app, agent) = connect(|_, _| Ok(()), |_| Ok(()))?;
        Ok(Self { app, agent })
    }
}

/// The end that connected, and the one that accepted.
fn connect(
    listening: impl FnOnce(&Socket, SocketAddr) -> io::Result<()>,
    dialling: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<(TcpStream, TcpStream)> {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None);
    let listener = socket()?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    listening(&listener, address)?;
    listener.listen(1)?;
    let connected = socket()?;
    dialling(&connected)?;
    connected.connect_timeout(&address.into(), PATIENCE)?;
    let (accepted, _) = listener.accept()?;
    let ends: (TcpStream, TcpStream) = (connected.into(), accepted.into());
    for end in [&ends.0, &ends.1] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok(ends)
}

/// Sends and receives the same bytes again.
pub(super) fn pass(from: &mut TcpStream, to: &mut TcpStream, message: &mut [u8]) -> io::Result<()> {
    from.write_all(message)?;
    to.read_exact(message)
}
