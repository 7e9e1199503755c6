//! How long to wait before the next try.

use std::time::Duration;

/// A wait that is doubled with each failure, from the first bound up to the second, with half of it by chance.
pub(crate) fn backoff((least, most): (Duration, Duration), failures: u32) -> Duration {
    let full = least.saturating_mul(1 << failures.min(16)).min(most);
    full.mul_f64(rand::random_range(0.5..1.0))
}
