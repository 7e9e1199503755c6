//! The parent of the agent: a small process that keeps its rights, so that the agent need not keep them.
//!
//! It starts the agent, passes signals on, ends as it ends, opens sockets in other network namespaces for it, and resets what
//! a worker holds that hangs. It has one thread, no listener and no connection of its own, and knows nothing of the
//! configuration. Whoever dies, the other does not live on.

mod channel;
mod client;
mod protocol;
mod pulse;
mod reset;
mod run;
mod serve;
mod spawn;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use client::{Failed, Parent};
pub(crate) use protocol::{Ports, Tried};
pub(crate) use pulse::Pulse;
pub(crate) use run::run;
pub(crate) use spawn::adopt;
