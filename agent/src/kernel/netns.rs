//! Which network namespace this thread is in.

use std::{fs::File, io, path::Path, thread};

use nix::{
    getsockopt_impl, libc,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
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
pub(super) fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}

/// The cookie of the namespace that a file stands for, as in `/run/netns`.
pub(super) fn cookie_of(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // A thread is in a namespace of its own as soon as it says so.
    let asked = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        cookie()
    });
    asked.join().map_err(|_| io::Error::other("the thread that asked for it ended"))?
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
