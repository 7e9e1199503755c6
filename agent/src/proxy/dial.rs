//! Connections that the agent opens, in its own network namespace or from inside another.

use std::{
    fmt, io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::AsFd,
    sync::Arc,
};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tracing::debug;

use super::path::KernelPath;
use crate::netns::{Namespace, Namespaces, absent};

/// Where a server of Redis is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// What the configuration calls the namespace that it is in; none for the agent's own.
    pub(crate) namespace: Option<Arc<str>>,
}

/// A connection to a server.
pub(super) struct Dialled {
    pub(super) stream: TcpStream,
    /// What it keeps alive.
    pub(super) namespace: Option<Arc<Namespace>>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            None => self.address.fmt(f),
            Some(namespace) => write!(f, "{} in {namespace}", self.address),
        }
    }
}

impl Server {
    /// Opens a connection to it, by way of the kernel if there is one.
    pub(super) async fn connect(&self, namespaces: &Namespaces, kernel: Option<&dyn KernelPath>) -> io::Result<Dialled> {
        let address = self.address;
        let Some(name) = &self.namespace else {
            return Ok(Dialled { stream: connect(address, kernel).await?, namespace: None });
        };
        let is_absent = || io::Error::new(io::ErrorKind::NotFound, absent(name));
        let namespace = namespaces.find(name).ok_or_else(is_absent)?;
        let connected = async {
            let socket = namespace.socket(address.is_ipv6()).await?;
            open(TcpSocket::from_std_stream(StdStream::from(socket)), address, kernel).await
        };
        let stream = tokio::select! {
            biased;
            () = namespace.gone() => return Err(is_absent()),
            connected = connected => connected?,
        };
        Ok(Dialled { stream, namespace: Some(namespace) })
    }
}

/// Opens a connection, by way of the kernel if there is one.
pub(super) async fn connect(address: SocketAddr, kernel: Option<&dyn KernelPath>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    open(socket, address, kernel).await
}

async fn open(socket: TcpSocket, address: SocketAddr, kernel: Option<&dyn KernelPath>) -> io::Result<TcpStream> {
    if let Some(Err(error)) = kernel.map(|kernel| kernel.dialling(socket.as_fd())) {
        debug!(%address, %error, "not by way of the kernel");
    }
    let stream = socket.connect(address).await?;
    if let Some(kernel) = kernel {
        kernel.dialled(stream.as_fd());
    }
    if stream.local_addr()? == stream.peer_addr()? {
        // A port of the range that the kernel takes for outgoing connections can be connected to itself.
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_keepalive(true)?;
    Ok(stream)
}
