//! Connections that speak frames: applications that call and serve, other agents, other workers.

mod answers;
mod conn;
mod greet;
mod lane;
mod load;
mod relay;
mod requests;
mod streams;
mod task;
mod tunnel;
mod upstream;
mod ways;

pub(crate) use conn::{Bounds, FrameConn, Side};
pub(crate) use greet::Told;
pub(crate) use streams::Streams;
pub(crate) use task::{Handoff, start_in};
pub(crate) use tunnel::Tunnel;
pub(crate) use upstream::{Remote, Way};

/// How far a call may go, by where it came from: it never goes in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Anywhere.
    Mesh,
    /// To what is on this node.
    Node,
    /// To what has a connection to this worker.
    Worker,
}

impl Side {
    /// How far the calls that come by such a connection may go.
    pub(crate) const fn scope(self) -> Scope {
        match self {
            Self::App => Scope::Mesh,
            Self::AgentIn | Self::Out => Scope::Node,
            Self::Worker => Scope::Worker,
        }
    }
}
