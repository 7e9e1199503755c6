//! How calls are spread over instances, and what keeps a failure small: pure code that knows nobody and never reads a clock.

pub(crate) mod backoff;
pub(crate) mod budget;
pub(crate) mod concurrency;
pub(crate) mod outlier;
pub(crate) mod rate;

#[cfg(test)]
mod outage;
#[cfg(test)]
mod seed;
