//! Which network namespace a thread is in, or a socket.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
    thread,
};

use nix::{
    getsockopt_impl, libc,
    sched::{CloneFlags, setns, unshare},
    sockopt_impl,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, getsockopt, recv, send, socket},
};

// The option is newer than the names that the C library has for options.
sockopt_impl!(
    /// The cookie of the socket's network namespace.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64
);

/// From `asm-generic/socket.h`, as on every architecture that Rust's standard library supports but SPARC and PA-RISC.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's namespace, unique since boot.
pub(crate) fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}

/// The cookie of the namespace that a socket is in.
pub(crate) fn cookie_of_socket(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(getsockopt(&socket, NetnsCookie)?)
}

/// The cookie of the namespace that a file stands for, as in `/run/netns`.
pub(crate) fn cookie_of(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // A thread is in a namespace of its own as soon as it says so.
    let asked = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        cookie()
    });
    asked.join().map_err(|_| io::Error::other("the thread that asked for it ended"))?
}

/// Moves the calling thread into a namespace that nobody else is in, with a loopback that works. It goes with its sockets.
pub(crate) fn enter_new() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    raise_loopback()
}

/// Sets the flag of the loopback device that says that it is up.
fn raise_loopback() -> io::Result<()> {
    /// The first device of every namespace.
    const LOOPBACK: i32 = 1;
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    const FLAGS: u16 = 1 | 4;
    /// `IFF_UP`.
    const UP: u32 = 1;
    let mut message = Vec::new();
    // A header of netlink: length, type, flags, sequence number, sender; then what is changed (`struct ifinfomsg`).
    message.extend(32_u32.to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // Behind the header, the number of the error.
    match answer.get(16..20).filter(|_| len >= 20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(cookie, super::cookie().unwrap());
    }
}
