//! What the agent asks of its parent, and what it is told: one packet each, as JSON, with descriptors beside it.

use std::{net::SocketAddr, os::fd::RawFd};

use serde::{Deserialize, Serialize};

/// Both ends are one binary, unless its file is replaced while it starts: then it does not go on.
pub(super) const VERSION: u32 = 1;
/// Bytes of a packet: enough for the timers of as many workers as there may be.
pub(super) const BYTES_MAX: usize = 16 * 1024;
/// Descriptors of a packet; the kernel takes 253.
pub(super) const DESCRIPTORS_MAX: usize = 64;

/// What every request begins with, whatever its version.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    /// The answer has the same.
    pub(super) id: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    #[serde(flatten)]
    pub(super) head: Head,
    pub(super) ask: Ask,
}

/// Each comes with one descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// So many sockets, at most [`DESCRIPTORS_MAX`], that are bound to an address in a namespace and do not listen yet.
    Listen {
        address: SocketAddr,
        count: usize,
        /// See first that nobody else has the address.
        first: bool,
    },
    /// A socket in a namespace that is not connected yet.
    Socket { v6: bool },
    /// What asks the kernel about the sockets of a namespace.
    Diag,
    /// Watch the workers that write to this page.
    Watch {
        /// For each worker the number of a timer in its epoll, by which that is found.
        timers: Vec<RawFd>,
        ports: Ports,
    },
}

/// Where the agent listens: connections that were accepted there are reset when their worker hangs, no others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    /// In its own network namespace.
    pub(crate) here: Vec<u16>,
    /// In others.
    pub(crate) elsewhere: Vec<u16>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    /// None: it is done, and the descriptors are with it.
    pub(super) failure: Option<Failure>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) tried: Tried,
    pub(super) errno: i32,
}

/// What could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tried {
    /// To ask the parent, or to understand what was asked.
    Ask,
    /// To enter the namespace.
    Enter,
    /// To bind a socket.
    Bind,
    /// To open a socket.
    Open,
    /// To watch the workers.
    Watch,
}

impl Tried {
    /// For the text of an error.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Ask => "the parent can't be asked",
            Self::Enter => "the namespace can't be entered",
            Self::Bind => "the address can't be bound",
            Self::Open => "a socket can't be opened",
            Self::Watch => "the workers can't be watched",
        }
    }
}
