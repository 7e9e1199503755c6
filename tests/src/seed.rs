//! Seeds of randomised tests.

use std::env;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A random generator whose seed was printed, or came from `MOA_SEED`.
pub fn rng(test: &str) -> StdRng {
    let seed = match env::var("MOA_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("MOA_SEED is {text:?}: expected a whole number")),
        Err(_) => rand::rng().random::<u64>(),
    };
    println!("{test}: MOA_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A random generator for what need not differ from run to run.
pub fn fixed(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Whether the full counts are wanted (`MOA_TEST_LONG=1`).
pub fn long() -> bool {
    env::var("MOA_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `quick`, or `full` if the full counts are wanted.
pub fn count(quick: usize, full: usize) -> usize {
    if long() { full } else { quick }
}
