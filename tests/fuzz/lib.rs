//! The part of the agent that is fuzzed.
#![forbid(unsafe_code)]

#[path = "../../agent/src/wire/mod.rs"]
pub mod wire;
