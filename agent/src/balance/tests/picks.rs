//! Who is found when others can't take the call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{super::*, POLICIES, loads, options, rng};
use crate::measure::allocations;

fn ring(n: usize) -> Arc<Ring> {
    Arc::new(Ring::new(&(0..n).map(|i| format!("10.0.0.{i}:80")).collect::<Vec<_>>()))
}

fn one_pick(set: &mut Set, n: usize, dice: &mut StdRng, fit: impl FnMut(u32) -> Fit) -> Option<u32> {
    let now = Instant::now();
    let loads = loads(n, now);
    let key = dice.random_bool(0.7).then(|| dice.random());
    set.pick(Pick { now, loads: &loads, key, dice }, fit)
}

fn spread_members(n: usize, dice: &mut StdRng) -> Vec<Member> {
    let equal = dice.random_bool(0.5);
    let weight = |dice: &mut StdRng| if equal { 7 } else { dice.random_range(1..=10_000) };
    (0..).take(n).map(|index| Member { index, weight: weight(dice), level: dice.random_range(0..4), since: None }).collect()
}

proptest! {
    #[test]
    fn the_only_one_that_can_take_it_is_found(seed: u64, n in 1_usize..=64, slow: bool, failover: bool) {
        let mut dice = StdRng::seed_from_u64(seed);
        let ring = ring(n);
        for policy in POLICIES {
            let options = Options { failover, ..options(policy) };
            let mut set = Set::new(options, spread_members(n, &mut dice), Some(ring.clone()), Instant::now());
            let last = dice.random_range(0..u32::try_from(n).unwrap());
            let fit = if slow { Fit::Slow } else { Fit::Ready };
            let mut asked = 0;
            let picked = one_pick(&mut set, n, &mut dice, |index| {
                asked += 1;
                if index == last { fit } else { Fit::No }
            });
            prop_assert_eq!(picked, Some(last), "{:?}", policy);
            prop_assert!(asked <= 128, "{:?} asked {}", policy, asked);
            prop_assert_eq!(one_pick(&mut set, n, &mut dice, |_| Fit::No), None);
        }
    }

    #[test]
    fn the_only_usable_one_is_found_among_many(seed: u64, n in 1_usize..300) {
        let mut dice = StdRng::seed_from_u64(seed);
        let ring = ring(n);
        for policy in POLICIES {
            let mut set = Set::new(options(policy), spread_members(n, &mut dice), Some(ring.clone()), Instant::now());
            let last = dice.random_range(0..u32::try_from(n).unwrap());
            set.refresh(Instant::now(), |index| index == last);
            prop_assert_eq!(one_pick(&mut set, n, &mut dice, |_| Fit::Ready), Some(last), "{:?}", policy);
            set.refresh(Instant::now(), |_| false);
            prop_assert_eq!(one_pick(&mut set, n, &mut dice, |_| Fit::Ready), None);
            set.refresh(Instant::now(), |_| true);
            prop_assert!(one_pick(&mut set, n, &mut dice, |_| Fit::Ready).is_some());
        }
    }

    #[test]
    fn nobody_who_cannot_is_picked(seed: u64, n in 1_usize..200, usable_percent in 1_u32..100) {
        let mut dice = StdRng::seed_from_u64(seed);
        let usable: Vec<bool> = (0..n).map(|_| dice.random_range(0..100) < usable_percent).collect();
        let fits: Vec<Fit> = (0..n).map(|_| [Fit::Ready, Fit::Slow, Fit::No][dice.random_range(0..3)]).collect();
        let ring = ring(n);
        for policy in POLICIES {
            let mut set = Set::new(options(policy), spread_members(n, &mut dice), Some(ring.clone()), Instant::now());
            set.refresh(Instant::now(), |index| usable[index as usize]);
            for _ in 0..10 {
                if let Some(index) = one_pick(&mut set, n, &mut dice, |index| fits[index as usize]) {
                    prop_assert!(usable[index as usize] && fits[index as usize] != Fit::No);
                }
            }
        }
    }
}

#[test]
fn one_that_is_ready_comes_before_one_that_is_not_connected() {
    let mut dice = rng("one_that_is_ready_comes_first");
    for policy in [Policy::PeakEwma, Policy::RoundRobin, Policy::LeastRequest, Policy::Random] {
        let members: Vec<_> = (0..16).map(|index| Member { index, weight: 1, level: 1, since: None }).collect();
        let mut set = Set::new(options(policy), members, None, Instant::now());
        for _ in 0..1000 {
            let fit = |index| if index == 5 { Fit::Ready } else { Fit::Slow };
            assert_eq!(one_pick(&mut set, 16, &mut dice, fit), Some(5), "{policy:?}");
        }
    }
}

#[test]
fn calls_of_one_that_is_full_go_to_all_others() {
    let mut dice = rng("calls_of_one_that_is_full_go_to_all_others");
    for policy in [Policy::PeakEwma, Policy::Random] {
        let members: Vec<_> = (0..10).map(|index| Member { index, weight: 1, level: 1, since: None }).collect();
        let mut set = Set::new(options(policy), members, None, Instant::now());
        let counts = super::count(&mut set, 10, 90_000, &mut dice, |index| if index == 5 { Fit::No } else { Fit::Ready });
        assert!(counts.iter().enumerate().all(|(i, count)| i == 5 || (9_300..10_700).contains(count)), "{policy:?} {counts:?}");
    }
}

#[test]
fn a_pick_allocates_nothing() {
    let mut dice = rng("a_pick_allocates_nothing");
    for (policy, n, slow_start) in POLICIES.into_iter().flat_map(|policy| [(policy, 5, 0), (policy, 300, 0), (policy, 300, 10)]) {
        let now = Instant::now();
        let loads = loads(n, now);
        let mut members = spread_members(n, &mut dice);
        members.iter_mut().for_each(|member| member.since = Some(now));
        let options = Options { slow_start: Duration::from_secs(slow_start), ..options(policy) };
        let mut set = Set::new(options, members, Some(ring(n)), now);
        let before = allocations();
        for i in 0..3_000 {
            let now = now + Duration::from_millis(i * 10);
            let key = (i % 2 == 0).then(|| dice.random());
            let pick = set.pick(Pick { now, loads: &loads, key, dice: &mut dice }, |index| match index % 4 {
                0 => Fit::No,
                1 => Fit::Slow,
                _ => Fit::Ready,
            });
            let index = pick.unwrap();
            loads.begin(index);
            loads.end(index);
            loads.observe(index, Duration::from_millis(index.into()), now);
        }
        assert_eq!(allocations(), before, "{policy:?} with {n}");
    }
}
