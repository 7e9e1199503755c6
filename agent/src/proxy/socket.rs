//! A connection's socket: TCP, or a unix socket, which never goes by way of the kernel path.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{
    io::AsyncWrite,
    net::{TcpStream, UnixStream},
};
use tokio_util::io::poll_read_buf;

/// Bytes that may wait in the kernel before they are sent to another agent.
const UNSENT_MAX: u32 = 128 * 1024;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// A process of this machine.
    Unix,
}

/// A connected socket of a worker.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Given away.
    Gone,
}

/// A socket on its way to another worker.
#[derive(Debug)]
pub(crate) enum Loose {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Socket {
    /// Takes it out of its worker.
    pub(crate) fn loosen(self) -> io::Result<Loose> {
        match self {
            Self::Tcp(tcp) => tcp.into_std().map(Loose::Tcp),
            Self::Unix(unix) => unix.into_std().map(Loose::Unix),
            Self::Gone => Err(gone()),
        }
    }

    /// Has little wait in the kernel, where a small call cannot overtake a large one any more.
    pub(crate) fn send_in_turns(&self) -> io::Result<()> {
        self.tcp().map_or(Ok(()), |tcp| SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_MAX))
    }

    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        if let Self::Tcp(tcp) = self { Some(tcp) } else { None }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => poll_read_buf(Pin::new(tcp), cx, buffer),
            Self::Unix(unix) => poll_read_buf(Pin::new(unix), cx, buffer),
            Self::Gone => Poll::Ready(Err(gone())),
        }
    }

    /// Writes slices at once; one alone by the cheaper call.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => write(Pin::new(tcp), cx, slices),
            Self::Unix(unix) => write(Pin::new(unix), cx, slices),
            Self::Gone => Poll::Ready(Err(gone())),
        }
    }

    /// Writes what there is room for at once.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_write(bytes),
            Self::Unix(unix) => unix.try_write(bytes),
            Self::Gone => Err(gone()),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}

fn write<T: AsyncWrite>(socket: Pin<&mut T>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
    match slices {
        [one] => socket.poll_write(cx, one),
        _ => socket.poll_write_vectored(cx, slices),
    }
}

impl Loose {
    /// Gives it to the worker that this is called in.
    pub(crate) fn fasten(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(tcp) => Socket::Tcp(TcpStream::from_std(tcp)?),
            Self::Unix(unix) => Socket::Unix(UnixStream::from_std(unix)?),
        })
    }
}
