//! What the data plane asks of the kernel path, and tells it. Without one, all of this is TCP.

use std::{
    io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

pub use agent_common::End;

/// The kernel path, for those who read and write the agent's ends of it.
pub trait KernelPath: Send + Sync {
    /// Marks a listener, before it listens: what it accepts is enrolled.
    ///
    /// # Errors
    /// The kernel refused: its connections go by TCP.
    fn listening(&self, socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()>;

    /// Says that the agent is about to have sockets in the network namespace with this cookie, and gives it one that asks about
    /// those of others there (`sock_diag`).
    ///
    /// # Errors
    /// The kernel refused: what is written there goes by TCP at the bound.
    fn enter(&self, netns: u64, diag: OwnedFd) -> io::Result<()>;

    /// Says that nobody connects to the agent's listeners in the namespace with this cookie any more, and lets it go.
    fn leave(&self, netns: u64);

    /// Marks a socket that is about to be connected to a service: it is enrolled if the service is on this machine.
    ///
    /// # Errors
    /// As for [`KernelPath::listening`].
    fn dialling(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Says that a socket that was marked is connected: the other end is enrolled by now, or never will be.
    fn dialled(&self, socket: BorrowedFd<'_>);

    /// Whether the other end of an enrolled socket blocks, and only those that do not are wanted: then the bytes that it had
    /// redirected until that was seen. It is said once.
    fn other_blocks(&self, socket: BorrowedFd<'_>) -> Option<u64>;

    /// What an enrolled socket is; none if it is not enrolled.
    fn enrolled(&self, socket: BorrowedFd<'_>) -> Option<Enrolled>;

    /// Says how many bytes the agent has read from a socket since it was connected.
    fn publish(&self, end: &End, read: u64);

    /// The socket is closed: what was published of it is of no use any more.
    fn forget(&self, end: &End);

    /// Has what the agent writes to a socket go by TCP from now on, for life. `all_read`: the other end has certainly read
    /// everything, so that its socket can leave the path too.
    ///
    /// # Errors
    /// The kernel refused.
    fn keep_to_tcp(&self, socket: BorrowedFd<'_>, why: Fallback, all_read: bool) -> io::Result<()>;

    /// Bytes that the other end of a connection has not read, by the agent's own address and the other's, in the namespace of the
    /// agent's socket. None: the kernel knows no such socket, as it is closed, or bound to a device that the connection does not
    /// come by.
    ///
    /// # Errors
    /// The kernel did not say.
    fn unread(&self, socket: BorrowedFd<'_>, own: SocketAddr, other: SocketAddr) -> io::Result<Option<u64>>;

    /// How often a direction towards the agent fell back to TCP with bytes before it that were redirected. A reader that
    /// has seen it change reads until there is nothing more: what came by TCP waits behind the rest, and says so only once.
    fn fallbacks(&self) -> u64;

    /// Changes when the path is turned off: what was enrolled before then goes by TCP.
    fn generation(&self) -> u32;

    /// Bytes that may wait at either end of a connection.
    fn bound(&self) -> u64;
}

/// An enrolled socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enrolled {
    /// Its name.
    pub end: End,
    /// What is written to it goes by TCP.
    pub by_tcp: bool,
}

/// Why the agent has one of its own sockets go by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// The other end has not read as much as may wait for it.
    Bound,
    /// The path is turned off.
    Off,
    /// The other end's socket blocks.
    Blocking,
}
