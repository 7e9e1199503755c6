//! Connects in the real kernel, in a network namespace of our own: plain sockets as agent, applications and siblings. Needs
//! root, and fails without it.

mod bed;
mod decided;
mod failing;
mod families;
mod lives;
mod measured;
mod names;
