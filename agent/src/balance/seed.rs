//! Seeds of randomised tests.

use std::env;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A random generator whose seed was printed, or came from `MOA_SEED`.
pub(crate) fn rng(test: &str) -> StdRng {
    let seed = match env::var("MOA_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("MOA_SEED is {text:?}: expected a whole number")),
        Err(_) => rand::rng().random::<u64>(),
    };
    println!("{test}: MOA_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// The time to the next of events that come by chance, `per_s` of them each second on average.
pub(crate) fn gap(dice: &mut StdRng, per_s: f64) -> std::time::Duration {
    std::time::Duration::from_secs_f64(-(1.0 - dice.random::<f64>()).ln() / per_s)
}
