//! Connects to this agent while it cannot take them: they go to its siblings, other agents that serve the same.
//!
//! The kernel decides at each connect, and [`hooks`] is how it is asked and told. Beforehand it is worked out who the siblings
//! of each application are (`siblings`), the kernel's gates are kept as they should be (`gates`), and siblings are looked at
//! (`probe`). The other side is `foreign`: whose applications are taken when another agent is gone.

mod foreign;
mod gates;
pub mod hooks;
mod probe;
mod siblings;

pub use self::hooks::{GateLook, Hooks, PeerLook};
pub(crate) use self::{foreign::Foreign, gates::Gates, siblings::Siblings};
