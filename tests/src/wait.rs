//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for what should happen soon: long enough for a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Probes until there is a value.
///
/// # Panics
/// After [`PATIENCE`], with `what` was awaited.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, probe)
}

/// Probes until there is a value, for as long as `limit`.
///
/// # Panics
/// After `limit`, with `what` was awaited.
pub fn until_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up after {limit:?} waiting for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Probes until it is true, or for as long as `limit`. Whether it is.
pub fn poll_within(limit: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !probe() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Probes until it is true.
///
/// # Panics
/// After [`PATIENCE`], with `what` was awaited.
pub fn until_true(what: &str, mut probe: impl FnMut() -> bool) {
    until(what, || probe().then_some(()));
}
