//! The clock that agent and kernel programs have in common.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, as the kernel programs read it.
pub(crate) fn now_ns() -> u64 {
    // A clock that cannot be read is one that the kernel does not have.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    nanos(now)
}

/// The time on it in a while; at the end of all times if it cannot be said.
pub(crate) fn in_ns(time: Duration) -> u64 {
    now_ns().saturating_add(nanos(time))
}

/// A time in its unit.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
