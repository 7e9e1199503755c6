//! Options of sockets that nix does not have.

use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// How many connections may wait whose first bytes came with the SYN.
    TcpFastOpen,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_FASTOPEN,
    i32
);

sockopt_impl!(
    /// Whether `MSG_ZEROCOPY` may be used.
    ZeroCopy,
    Both,
    libc::SOL_SOCKET,
    libc::SO_ZEROCOPY,
    i32
);

sockopt_impl!(
    /// How many bytes must be there before a read gives them.
    ReceiveLowWater,
    Both,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32
);
