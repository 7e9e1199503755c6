//! MOA Mesh's agent: a local data plane between applications and services, and the operator's command line.
//!
//! `wire` and `balance` know nobody; `proxy` knows `wire`; `kernel` knows `proxy`'s types; `admin` and `cli` see all.
#![deny(unsafe_code)]

pub mod admin;
pub mod api;
mod balance;
pub mod cli;
pub mod config;
pub mod instance;
pub mod kernel;
pub mod logging;
pub mod proxy;
pub mod wire;
