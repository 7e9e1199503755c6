//! Near and far.

use std::time::Instant;

use proptest::prelude::*;

use super::{
    super::{
        levels::{Count, choose, shares},
        *,
    },
    count, options, rng,
};

fn counts(pairs: [(u32, u32); 4]) -> [Count; 4] {
    pairs.map(|(usable, all)| Count { all, usable })
}

fn assert_shares(got: [f64; 4], expected: [f64; 4]) {
    let near = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.005);
    assert!(near, "{got:.3?} instead of {expected:.3?}");
}

#[test]
fn load_overflows_as_in_envoy() {
    let over = |pairs| shares(&counts(pairs), 140, None);
    assert_shares(over([(10, 10), (10, 10), (0, 0), (0, 0)]), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(over([(72, 100), (10, 10), (0, 0), (0, 0)]), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(over([(71, 100), (10, 10), (0, 0), (0, 0)]), [0.994, 0.006, 0.0, 0.0]);
    assert_shares(over([(50, 100), (10, 10), (0, 0), (0, 0)]), [0.7, 0.3, 0.0, 0.0]);
    assert_shares(over([(0, 100), (10, 10), (0, 0), (0, 0)]), [0.0, 1.0, 0.0, 0.0]);
    // Envoy's documentation: 25 % and 25 % of two levels that can be used are 35 % each, so half and half.
    assert_shares(over([(25, 100), (25, 100), (0, 0), (0, 0)]), [0.5, 0.5, 0.0, 0.0]);
    assert_shares(over([(25, 100), (50, 100), (25, 100), (0, 0)]), [0.35, 0.65, 0.0, 0.0]);
    // Levels without instances are left out.
    assert_shares(over([(0, 0), (5, 10), (0, 0), (1, 1)]), [0.0, 0.7, 0.0, 0.3]);
    assert_shares(over([(0, 9), (0, 0), (0, 1), (0, 3)]), [0.0; 4]);
}

#[test]
fn a_weighted_share_stays_here() {
    let here = |pairs, percent| shares(&counts(pairs), 140, Some(percent));
    assert_shares(here([(5, 5), (5, 5), (5, 5), (0, 0)], 80), [0.8, 0.2, 0.0, 0.0]);
    assert_shares(here([(5, 5), (5, 10), (5, 5), (0, 0)], 80), [0.8, 0.14, 0.06, 0.0]);
    // It can carry half of that.
    assert_shares(here([(5, 14), (5, 5), (0, 0), (0, 0)], 80), [0.4, 0.6, 0.0, 0.0]);
    assert_shares(here([(0, 14), (5, 5), (0, 0), (0, 0)], 80), [0.0, 1.0, 0.0, 0.0]);
    assert_shares(here([(5, 14), (0, 5), (0, 0), (0, 0)], 80), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(here([(5, 5), (5, 5), (0, 0), (0, 0)], 0), [0.0, 1.0, 0.0, 0.0]);
    assert_shares(here([(5, 5), (5, 5), (0, 0), (0, 0)], 100), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(here([(0, 0), (5, 5), (0, 0), (0, 0)], 80), [0.0, 1.0, 0.0, 0.0]);
}

proptest! {
    #[test]
    fn shares_add_up(all: [u8; 4], parts in prop::array::uniform4(0_u32..=100), over in 100_u16..=1000, local in prop::option::of(0_u8..=100), draw in 0.0..1.0) {
        let counts: [Count; 4] = std::array::from_fn(|i| Count { all: all[i].into(), usable: u32::from(all[i]) * parts[i] / 100 });
        let shares = shares(&counts, over, local);
        let usable = counts.iter().any(|count| count.usable > 0);
        let sum: f64 = shares.iter().sum();
        prop_assert!((sum - f64::from(u8::from(usable))).abs() < 1e-9, "{:?} {:?}", counts, shares);
        for (share, count) in shares.iter().zip(counts) {
            prop_assert!(*share >= 0.0 && (*share == 0.0 || count.usable > 0));
        }
        match choose(&shares, draw) {
            Some(level) => prop_assert!(counts[level].usable > 0),
            None => prop_assert!(!usable),
        }
    }
}

/// Ten instances on each level.
fn leveled() -> Vec<Member> {
    (0_u8..40).map(|index| Member { index: index.into(), weight: 1, level: index / 10, since: None }).collect()
}

fn by_level(options: Options, usable: impl Fn(u32) -> bool, fit: impl Fn(u32) -> Fit) -> [f64; 4] {
    let mut dice = rng("by_level");
    let mut set = Set::new(options, leveled(), None, Instant::now());
    set.refresh(Instant::now(), usable);
    let counts = count(&mut set, 40, 100_000, &mut dice, &fit);
    let shares = std::array::from_fn(|level| f64::from(counts[level * 10..level * 10 + 10].iter().sum::<u32>()) / 100_000.0);
    let mut explained = [0.0; 4];
    for member in set.explain(Instant::now()) {
        explained[usize::from(member.level)] += member.share;
    }
    if counts.iter().zip(0..).all(|(count, index)| *count == 0 || fit(index) == Fit::Ready) && fit(0) == Fit::Ready {
        assert_shares(shares, explained);
    }
    shares
}

#[test]
fn a_set_shares_calls_by_level() {
    let all = |_| true;
    let ready = |_| Fit::Ready;
    let policy = Policy::PeakEwma;
    assert_shares(by_level(options(policy), all, ready), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(by_level(options(policy), |index| index >= 5, ready), [0.7, 0.3, 0.0, 0.0]);
    assert_shares(by_level(options(policy), |index| index >= 10, ready), [0.0, 1.0, 0.0, 0.0]);
    let weighted = Options { local: Local::Weighted(60), ..options(policy) };
    assert_shares(by_level(weighted, all, ready), [0.6, 0.4, 0.0, 0.0]);
    let never = Options { local: Local::Never, ..options(policy) };
    assert_shares(by_level(never, all, ready), [0.5, 0.5, 0.0, 0.0]);
    let flat = Options { failover: false, ..options(policy) };
    assert_shares(by_level(flat, all, ready), [0.25; 4]);
    // Those that can be used but are full: the next level takes the calls.
    assert_shares(by_level(options(policy), all, |index| if index < 20 { Fit::No } else { Fit::Ready }), [0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn in_a_panic_all_are_used() {
    let ready = |_| Fit::Ready;
    let panicking = |panic| Options { panic, ..options(Policy::Random) };
    // 19 of 40 are usable.
    let usable = |index| index >= 21;
    assert_shares(by_level(panicking(50), usable, ready), [1.0, 0.0, 0.0, 0.0]);
    assert_shares(by_level(panicking(47), usable, ready), [0.0, 0.0, 1.0, 0.0]);
    assert_shares(by_level(panicking(0), usable, ready), [0.0, 0.0, 1.0, 0.0]);
    assert_shares(by_level(panicking(1), |_| false, ready), [1.0, 0.0, 0.0, 0.0]);

    let mut set = Set::new(panicking(50), leveled(), None, Instant::now());
    set.refresh(Instant::now(), usable);
    assert!(set.explain(Instant::now()).iter().all(|member| member.panic && member.used));
    set.refresh(Instant::now(), |_| true);
    assert!(set.explain(Instant::now()).iter().all(|member| !member.panic && member.used));
}
