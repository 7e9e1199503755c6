//! Routing in the real kernel, in a network namespace of our own: plain sockets as applications, and nothing of the data
//! plane. Needs root, and fails without it.

mod bed;
mod bounds;
mod changes;
mod forged;
mod measured;
mod namespaces;
mod once;
mod routed;
mod whole;
