//! Random operations.

use std::time::{SystemTime, UNIX_EPOCH};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

use crate::check::check;

/// Runs the model on random operations; the seed is printed, and taken from `MOA_SEED` if that is set.
fn for_all(strategy: impl Strategy<Value = Vec<[u8; 4]>>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("MOA_SEED").unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
    println!("MOA_SEED={seed}");
    let cases = u32::try_from(number("MOA_CASES").unwrap_or(2000)).unwrap();
    let config = Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |operations| {
        check(operations.as_flattened());
        Ok(())
    });
    if let Err(error) = result {
        panic!("MOA_SEED={seed}: {error}");
    }
}

#[test]
fn every_message_arrives_once_and_in_order_or_is_a_prefix_if_it_was_cancelled() {
    for_all(vec(any::<[u8; 4]>(), 3..150));
}

#[test]
fn so_it_does_where_windows_are_small_and_many_messages_wait() {
    let sending = prop_oneof![2 => 0..=5_u8, 1 => 6..=14_u8];
    let operation = (sending, any::<bool>(), any::<[u8; 3]>());
    let operation = operation.prop_map(|(kind, side, [a, b, c])| [kind | u8::from(side) << 7, a, b, c]);
    for_all((vec(operation, 3..150), any::<[u8; 4]>()).prop_map(|(mut operations, [a, b, c, settings])| {
        operations[0] = [a % 3, b, c % 3, settings];
        operations
    }));
}
