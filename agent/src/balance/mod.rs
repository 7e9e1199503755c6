//! Which instance gets a call, and what keeps a failure small: pure code that knows nobody, and to which time is an argument.
//!
//! `balance` never reads a clock and never allocates for a call.

mod alias;
mod backoff;
mod budget;
mod concurrency;
mod dice;
mod edf;
mod ewma;
pub(crate) mod ketama;
mod level;
mod levels;
mod loads;
pub(crate) mod murmur3;
pub(crate) mod outlier;
pub(crate) mod overload;
mod rate;
mod set;

#[cfg(test)]
mod benchmark;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod seed;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod stalls;
#[cfg(test)]
mod tests;

pub(crate) use backoff::backoff;
pub(crate) use budget::Budget;
pub(crate) use concurrency::Adaptive;
pub(crate) use ketama::{Ring, hash};
pub(crate) use loads::Loads;
pub(crate) use rate::{Limiter, Options as RateLimits, Share};
pub(crate) use set::{Explained, Fit, Local, Member, Options, Pick, Policy, Set};
