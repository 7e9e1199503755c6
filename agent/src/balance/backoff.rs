//! How long to wait before the next try.

use std::time::Duration;

use rand::{Rng, RngExt};

/// A wait that is doubled with each failure, from the first bound up to the second, with up to half of it taken off by chance.
pub(crate) fn backoff((least, most): (Duration, Duration), failures: u32, dice: &mut impl Rng) -> Duration {
    let full = least.saturating_mul(1 << failures.min(30)).min(most);
    full.mul_f64(dice.random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

    #[test]
    fn doubles_up_to_the_longest() {
        let mut dice = StdRng::seed_from_u64(1);
        for (failures, full) in [(0, 10), (1, 20), (2, 40), (3, 80), (4, 160), (5, 250), (6, 250), (31, 250), (u32::MAX, 250)] {
            let waits: Vec<_> = (0..1000).map(|_| backoff(BOUNDS, failures, &mut dice)).collect();
            let full = Duration::from_millis(full);
            assert!(waits.iter().all(|wait| (full / 2..full).contains(wait)), "{failures}");
            let mean = waits.iter().sum::<Duration>() / 1000;
            assert!((full.mul_f64(0.72)..full.mul_f64(0.78)).contains(&mean), "{failures}: {mean:?}");
        }
    }

    #[test]
    fn odd_bounds_are_no_trouble() {
        let mut dice = StdRng::seed_from_u64(2);
        assert_eq!(backoff((Duration::ZERO, BOUNDS.1), 40, &mut dice), Duration::ZERO);
        assert!(backoff((BOUNDS.1, BOUNDS.0), 3, &mut dice) <= BOUNDS.0);
        assert!(backoff((Duration::MAX, Duration::MAX), 3, &mut dice) <= Duration::MAX);
    }
}
