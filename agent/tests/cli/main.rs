//! The `moa` binary from the outside: what its verbs print, how they end, and what an agent does from its start to its end.

mod admin;
mod calls;
mod lifecycle;
mod offline;
mod running;
mod support;
