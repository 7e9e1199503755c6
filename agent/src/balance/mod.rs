//! Which instance gets a call: pure code that knows nobody, and to which time is an argument.
//!
//! `balance` never reads a clock and never allocates for a call.

mod alias;
mod dice;
mod edf;
mod ewma;
pub(crate) mod ketama;
mod level;
mod levels;
mod loads;
mod murmur3;
mod set;

#[cfg(test)]
mod benchmark;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub(crate) use ketama::Ring;
pub(crate) use loads::{Loads, Saved};
pub(crate) use set::{Explained, Fit, Local, Member, Options, Pick, Policy, Set};
