//! The clock that agent and kernel programs have in common.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, as the kernel programs read it.
pub(crate) fn now_ns() -> u64 {
    // A clock that cannot be read is one that the kernel does not have.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
