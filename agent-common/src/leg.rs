//! What is known of an enrolled socket, and what all of them share.

use crate::End;

/// What a socket is to the programs: [`Leg::role`].
pub mod role {
    /// One of the agent's listeners: marked by the agent, and copied to each socket that it accepts.
    pub const LISTENER: u32 = 1;
    /// A connection that the agent is about to open: marked by the agent.
    pub const DIAL: u32 = 2;
    /// The agent's end of an enrolled connection.
    pub const AGENT: u32 = 3;
    /// An application's or a service's end of one.
    pub const OTHER: u32 = 4;
}

/// Bits of [`Shared::mode`].
pub mod mode {
    /// What applications and services send to the agent is redirected.
    pub const TO_AGENT: u32 = 1;
    /// What the agent sends to them is redirected.
    pub const FROM_AGENT: u32 = 2;
    /// Only between sockets that do not block: a `recv` that waits may end early with EAGAIN on the kernel path.
    pub const NON_BLOCKING: u32 = 4;
}

/// One socket's storage (map `LEGS`): the direction in which it sends.
///
/// Only the program changes it, under the socket's lock, but for two things: the agent marks its own sockets before they
/// are connected, and sets [`Leg::tcp`] of its own ends, whose only sender it is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leg {
    /// The other end.
    pub peer: End,
    /// See [`role`].
    pub role: u32,
    /// [`Shared::generation`] when it was enrolled.
    pub generation: u32,
    /// Not 0: what it sends goes by TCP, for life.
    pub tcp: u32,
    /// Why, as a number of [`crate::Pass`].
    pub why: u32,
    /// Bytes that were redirected to the other end.
    pub redirected: u64,
    /// What `redirected` may reach before the agent is asked what it has read.
    pub limit: u64,
    /// Bytes that went by TCP since it was enrolled.
    pub passed: u64,
    /// Whether it is a lane: see [`crate::lane::kind`].
    pub lane: u32,
    /// Which one.
    pub lane_index: u32,
    /// Its generation when the socket was found to be one: the place may be another's by now.
    pub lane_generation: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Leg>() == 112 && align_of::<Leg>() == 8);

impl Leg {
    /// A mark on one of the agent's own sockets.
    #[must_use]
    pub fn mark(role: u32) -> Self {
        Self { role, ..Self::default() }
    }

    /// Whether the socket is enrolled, and not only marked.
    #[must_use]
    pub const fn is_enrolled(&self) -> bool {
        self.role >= role::AGENT
    }
}

/// The one entry of the map `SHARED`, which the agent maps into its memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// When the agent last said that it lives, in nanoseconds of the monotonic clock. Written by the agent.
    pub alive_ns: u64,
    /// Bytes that may wait at an agent's end. Written by the agent.
    pub bound: u64,
    /// What is redirected: bits of [`mode`]. Nothing: nothing is enrolled. Written by the agent.
    pub mode: u32,
    /// One more each time that the path is turned off: legs of a former generation go by TCP. Written by the agent.
    pub generation: u32,
    /// Directions that fell back to TCP after bytes were redirected. Written by the programs.
    pub fallbacks: u64,
    /// When the agent's process began, in ticks of the kernel since boot. Written by the agent.
    pub owner_start: u64,
    /// The agent's process.
    pub owner_pid: u32,
    /// The namespace in which that is its number.
    pub owner_pidns: u32,
}

const _: () = assert!(size_of::<Shared>() == 48 && align_of::<Shared>() == 8);

/// An agent that has not said for so long that it lives does not: nothing is enrolled.
pub const LEASE_NS: u64 = 3_000_000_000;

/// Where the kernel keeps what the programs look up in its own structures, as its type information says.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// `tcp_sock.inet_conn.icsk_ulp_ops`.
    pub ulp_ops: u32,
    /// `sock.sk_flags`.
    pub flags: u32,
    /// The number of the bit `SOCK_ZEROCOPY` in it.
    pub zerocopy: u32,
    /// `sock.sk_socket`.
    pub socket: u32,
    /// `socket.file`.
    pub file: u32,
    /// `file.f_flags`.
    pub file_flags: u32,
    /// `sock.sk_err`.
    pub err: u32,
}

const _: () = assert!(size_of::<Offsets>() == 32);
