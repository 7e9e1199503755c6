//! Connects to this agent while it cannot take them: they go to its siblings, other agents that serve the same.

pub mod hooks;

pub use self::hooks::{GateLook, Hooks, PeerLook};
