//! What becomes of connects to this agent while it is away: siblings take them.

pub mod hooks;

pub use hooks::{Decisions, GateLook, Hooks, PeerLook};
