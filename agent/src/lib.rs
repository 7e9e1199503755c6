//! MOA Mesh's agent: a local data plane between applications and services, and the operator's command line.
//!
//! `wire`, `balance` and `trace` know nobody, `rules`, `netns` and `failover` only the configuration; `parent` is the other
//! process, and the way to it; `proxy` knows them all; `kernel` knows `proxy`'s types and `failover`'s; `admin` and `cli` see
//! all.
#![deny(unsafe_code)]

pub mod admin;
pub mod api;
mod balance;
pub mod cli;
mod clock;
pub mod config;
mod diag;
pub mod failover;
pub mod instance;
pub mod kernel;
pub mod logging;
#[cfg(test)]
mod measure;
mod memory;
mod netns;
mod parent;
pub mod proxy;
mod rules;
pub mod trace;
pub mod wire;
