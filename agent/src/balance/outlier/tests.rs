use proptest::{prelude::*, sample::Index};
use rand::{RngExt, rngs::StdRng};

use super::*;
use crate::balance::seed;

fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn policy() -> Policy {
    Policy {
        consecutive: 5,
        success_rate_deviations: 190,
        latency_percent: 300,
        calls_min: 100,
        instances_min: 5,
        ejection: s(30),
        ejection_max: s(300),
        ejected_max_percent: 50,
    }
}

/// So many calls of `ms` each.
fn sample(calls: u64, failures: u64, ms: u64) -> Sample {
    Sample { calls, failures, latency_sum: Duration::from_millis(calls * ms) }
}

fn ejected(changes: &[Change]) -> Vec<(u32, &str)> {
    let of = |change| match change {
        &Change::Ejected { index, ref reason, .. } => (index, reason.as_str()),
        Change::Returned { index } => panic!("{index} returned"),
    };
    changes.iter().map(of).collect()
}

#[test]
fn failures_in_a_row() {
    let (mut outliers, start) = (Outliers::new(policy(), 3), Instant::now());
    let change = outliers.failed_in_a_row(start, 1).unwrap();
    assert_eq!(change, Change::Ejected { index: 1, until: start + s(30), reason: "5 failures in a row".to_owned() });
    assert_eq!(outliers.out(1), Some((start + s(30), "5 failures in a row")));
    assert_eq!(outliers.failed_in_a_row(start, 1), None, "is out already");
    assert_eq!(outliers.failed_in_a_row(start, 0), None, "half of three is one");
    assert_eq!(outliers.failed_in_a_row(start, 7), None, "there is none such");
    assert_eq!(outliers.release(start + s(30) - Duration::from_nanos(1)), []);
    assert_eq!(outliers.release(start + s(30)), [Change::Returned { index: 1 }]);
    assert_eq!(outliers.ejected(), 0);
}

#[test]
fn off_is_off() {
    let off = Policy { consecutive: 0, success_rate_deviations: 0, latency_percent: 0, ..policy() };
    let (mut outliers, start) = (Outliers::new(off.clone(), 10), Instant::now());
    let mut samples = vec![sample(1000, 0, 1); 10];
    samples[3] = sample(1000, 1000, 1000);
    assert_eq!(outliers.failed_in_a_row(start, 1), None);
    assert_eq!(outliers.check(start, &samples), []);
    let mut on = Outliers::new(policy(), 10);
    on.failed_in_a_row(start, 1).unwrap();
    assert_eq!(on.follow(off, 10, (0..10).map(|i| (i, i))).ejected(), 0, "turned off: all return");
}

#[test]
fn success_rate() {
    let (mut outliers, start) = (Outliers::new(policy(), 100), Instant::now());
    let mut samples = vec![sample(1000, 2, 10); 100];
    samples[7] = sample(1000, 290, 10);
    samples[8] = sample(1000, 310, 10);
    samples[9] = sample(50, 50, 10);
    let changes = outliers.check(start, &samples);
    assert_eq!(
        ejected(&changes),
        [(8, "success rate 69.0 % against 99.2 % on average"), (7, "success rate 71.0 % against 99.2 % on average")]
    );
    let few: Vec<_> = (0..100).map(|i| if i < 4 { samples[i + 7] } else { Sample::default() }).collect();
    assert_eq!(Outliers::new(policy(), 100).check(start, &few), [], "too few instances had enough calls");
}

#[test]
fn one_failure_of_a_hundred_calls_is_chance() {
    let (mut outliers, start) = (Outliers::new(policy(), 5), Instant::now());
    let mut samples = vec![sample(100, 0, 10); 5];
    samples[0].failures = 1;
    assert_eq!(outliers.check(start, &samples), [], "although it is two standard deviations");
    samples[0].failures = 10;
    assert_eq!(outliers.check(start, &samples), [], "ten of a hundred could be chance where two are expected");
    samples[0].failures = 15;
    assert_eq!(ejected(&outliers.check(start, &samples)), [(0, "success rate 85.0 % against 97.0 % on average")]);
}

/// Instances that are all alike are hardly ever taken out, whatever their failure rate.
#[test]
fn instances_that_are_alike_stay() {
    let mut dice = seed::rng("instances_that_are_alike_stay");
    let (start, mut looks, mut out) = (Instant::now(), 0_u32, 0);
    for rate in [0.0005, 0.01, 0.1, 0.5] {
        for _ in 0..50 {
            let failures = |dice: &mut StdRng| (0..500).filter(|_| dice.random_bool(rate)).count() as u64;
            let samples: Vec<_> = (0..100).map(|_| sample(500, failures(&mut dice), 10)).collect();
            let policy = Policy { latency_percent: 0, ..policy() };
            out += Outliers::new(policy, 100).check(start, &samples).len();
            looks += 100;
        }
    }
    println!("{out} of {looks} healthy instances were taken out");
    assert!(out <= 2, "{out} of {looks}");
}

#[test]
fn latency() {
    let (mut outliers, start) = (Outliers::new(policy(), 10), Instant::now());
    let mut samples = vec![sample(1000, 0, 9); 10];
    samples[4] = sample(1000, 0, 27);
    assert_eq!(outliers.check(start, &samples), [], "three times the median is allowed");
    samples[4] = sample(1000, 0, 120);
    let changes = outliers.check(start, &samples);
    assert_eq!(ejected(&changes), [(4, "mean latency 120 ms against a median of 9.0 ms")]);
    assert_eq!(Time(Duration::from_micros(250)).to_string(), "250 µs");
    assert_eq!(Time(s(12)).to_string(), "12.0 s");
}

#[test]
fn the_worst_first() {
    let few = Policy { ejected_max_percent: 20, success_rate_deviations: 50, ..policy() };
    let (mut outliers, start) = (Outliers::new(few, 10), Instant::now());
    let samples: Vec<_> = (0..10).map(|i| sample(1000, if i % 2 == 1 { i * 50 } else { 0 }, 10)).collect();
    let changes = outliers.check(start, &samples);
    assert_eq!(ejected(&changes).iter().map(|(index, _)| *index).collect::<Vec<_>>(), [9, 7]);
}

#[test]
fn grows_while_it_fails_and_falls_while_it_behaves() {
    let (mut outliers, mut now) = (Outliers::new(policy(), 2), Instant::now());
    let mut eject = |now: &mut Instant, behaves: u64| {
        *now += s(behaves);
        let Some(Change::Ejected { until, .. }) = outliers.failed_in_a_row(*now, 0) else { panic!("stays") };
        let out = until - *now;
        *now = until;
        assert_eq!(outliers.release(*now), [Change::Returned { index: 0 }]);
        out.as_secs()
    };
    let growing: Vec<_> = (0..12).map(|_| eject(&mut now, 5)).collect();
    assert_eq!(growing, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    assert_eq!(eject(&mut now, 30 * 9), 120, "nine of twelve times are forgotten");
    assert_eq!(eject(&mut now, 29), 150);
    assert_eq!(eject(&mut now, 3600), 30);
}

#[test]
fn follows_the_instances() {
    let (mut outliers, start) = (Outliers::new(policy(), 6), Instant::now());
    for (after, index) in [(0, 1), (1, 3), (2, 5)] {
        outliers.failed_in_a_row(start + s(after), index).unwrap();
    }
    let next = outliers.follow(policy(), 5, [(0, 4), (3, 1), (5, 0)]);
    let out = |outliers: &Outliers| (0..6).filter(|i| outliers.out(*i).is_some()).collect::<Vec<_>>();
    assert_eq!(out(&next), [0, 1]);
    let fewer = outliers.follow(policy(), 3, [(1, 0), (3, 1), (5, 2)]);
    assert_eq!(out(&fewer), [2], "those that would have returned first are back");
    assert_eq!((fewer.ejected(), fewer.out(2).map(|(until, _)| until)), (1, Some(start + s(32))));
}

#[test]
fn who_is_pardoned_is_back_at_once() {
    let (mut outliers, start) = (Outliers::new(policy(), 4), Instant::now());
    outliers.failed_in_a_row(start, 2).unwrap();
    assert_eq!(outliers.pardon(start + s(1), 2), Some(Change::Returned { index: 2 }));
    assert_eq!((outliers.pardon(start + s(1), 2), outliers.pardon(start, 9), outliers.ejected()), (None, None, 0));
    assert!(outliers.failed_in_a_row(start + s(2), 2).is_some());
}

proptest! {
    /// Whatever happens, never are more out than may be, and nobody for longer than allowed.
    #[test]
    fn never_more_than_the_maximum(
        n in 1_usize..40,
        percent in 0_u8..=100,
        events in proptest::collection::vec((0_u64..40, any::<Index>(), 0_u8..4, any::<u64>()), 1..200),
    ) {
        let policy = Policy { ejected_max_percent: percent, calls_min: 10, instances_min: 2, ..policy() };
        let most = policy.ejected_max(n);
        prop_assert_eq!(most, if n < 2 { 0 } else { (n * usize::from(percent) / 100).max(1) });
        let (mut outliers, mut now) = (Outliers::new(policy.clone(), n), Instant::now());
        let mut out = vec![false; n];
        for (after, index, what, random) in events {
            now += s(after);
            let index = u32::try_from(index.index(n)).unwrap();
            let changes = match what {
                0 => outliers.release(now),
                1 => {
                    let bits = |i: u64| random.rotate_left(u32::try_from(i * 7 % 64).unwrap());
                    let samples: Vec<_> = (0..n as u64).map(|i| sample(bits(i) % 200, bits(i) % 50, bits(i) % 90)).collect();
                    outliers.check(now, &samples)
                }
                2 => {
                    outliers = outliers.follow(policy.clone(), n, (0..u32::try_from(n).unwrap()).map(|i| (i, i)));
                    Vec::new()
                }
                _ => outliers.failed_in_a_row(now, index).into_iter().collect(),
            };
            for change in changes {
                let (index, is_out) = match change {
                    Change::Ejected { index, until, reason } => {
                        prop_assert!(until >= now + policy.ejection && until <= now + policy.ejection_max);
                        prop_assert!(!reason.is_empty());
                        (index, true)
                    }
                    Change::Returned { index } => (index, false),
                };
                prop_assert_ne!(std::mem::replace(&mut out[index as usize], is_out), is_out);
            }
            let count = out.iter().filter(|out| **out).count();
            prop_assert!(count <= most);
            prop_assert_eq!(count, outliers.ejected());
            prop_assert!((0_u32..).zip(&out).all(|(i, is_out)| outliers.out(i).is_some() == *is_out));
        }
    }
}
