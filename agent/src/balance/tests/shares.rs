//! Weights, slow start, latency and calls in flight: who gets how much.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};

use super::{super::*, count, loads, members, options, rng};

/// Within five standard deviations and half a percent.
fn assert_share(policy: Policy, counts: &[u32], weights: &[u32]) {
    let (calls, total) = (f64::from(counts.iter().sum::<u32>()), f64::from(weights.iter().sum::<u32>()));
    for (got, weight) in counts.iter().zip(weights) {
        let share = f64::from(*weight) / total;
        let error = 5.0 * (share * (1.0 - share) * calls).sqrt() + 0.005 * share * calls;
        assert!((f64::from(*got) - share * calls).abs() <= error, "{policy:?}: {counts:?} for {weights:?}");
    }
}

fn weights(dice: &mut StdRng, n: usize) -> Vec<u32> {
    let most = [1, 3, 100, 10_000][dice.random_range(0..4)];
    (0..n).map(|_| dice.random_range(1..=most)).collect()
}

#[test]
fn weights_hold() {
    let mut dice = rng("weights_hold");
    for policy in [Policy::PeakEwma, Policy::Random, Policy::LeastRequest, Policy::RoundRobin] {
        for _ in 0..20 {
            let n = dice.random_range(1..40);
            let weights = weights(&mut dice, n);
            let mut set = Set::new(options(policy), members(&weights), None, Instant::now());
            let counts = count(&mut set, n, 20_000, &mut dice, |_| Fit::Ready);
            assert_share(policy, &counts, &weights);
        }
    }
}

#[test]
fn round_robin_is_exact_over_every_cycle() {
    let mut dice = rng("round_robin_is_exact_over_every_cycle");
    for _ in 0..200 {
        let n = dice.random_range(1..30);
        let weights: Vec<u32> = weights(&mut dice, n).into_iter().map(|weight| weight % 200 + 1).collect();
        let mut set = Set::new(options(Policy::RoundRobin), members(&weights), None, Instant::now());
        let skipped = dice.random_range(0..1000);
        count(&mut set, n, skipped, &mut dice, |_| Fit::Ready);
        for _ in 0..3 {
            let counts = count(&mut set, n, weights.iter().sum(), &mut dice, |_| Fit::Ready);
            assert_eq!(counts, weights);
        }
    }
}

#[test]
fn round_robin_keeps_its_turns_when_another_comes_and_goes() {
    let mut dice = rng("round_robin_keeps_its_turns");
    for weights in [vec![1; 10], vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] {
        let mut set = Set::new(options(Policy::RoundRobin), members(&weights), None, Instant::now());
        let mut total = vec![0; 10];
        // The last one flaps every three calls: the others still get their shares, and not the first ones everything.
        for round in 0..6_000 {
            set.refresh(Instant::now(), |index| index != 9 || round % 2 == 0);
            let counts = count(&mut set, 10, 3, &mut dice, |_| Fit::Ready);
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        let calls = f64::from(total[..9].iter().sum::<u32>());
        let sum = f64::from(weights[..9].iter().sum::<u32>());
        for (got, weight) in total.iter().zip(&weights).take(9) {
            let expected = calls * f64::from(*weight) / sum;
            assert!((f64::from(*got) / expected - 1.0).abs() < 0.15, "{total:?} for {weights:?}");
        }
    }
}

#[test]
fn a_starting_instance_gets_a_growing_share() {
    let mut dice = rng("a_starting_instance_gets_a_growing_share");
    let start = Instant::now();
    for policy in [Policy::PeakEwma, Policy::Random, Policy::LeastRequest, Policy::RoundRobin] {
        for (seconds, expected) in [(0, 0.1), (20, 0.2), (50, 0.5), (80, 0.8), (100, 1.0), (1000, 1.0)] {
            let options = Options { slow_start: Duration::from_secs(100), ..options(policy) };
            let mut members = members(&[1; 10]);
            members[3].since = Some(start);
            let mut set = Set::new(options, members, None, start);
            let loads = loads(10, start);
            let now = start + Duration::from_secs(seconds);
            let counts = (0..50_000).fold([0_u32; 10], |mut counts, _| {
                let call = Pick { now, loads: &loads, key: None, dice: &mut dice };
                counts[set.pick(call, |_| Fit::Ready).unwrap() as usize] += 1;
                counts
            });
            let other = f64::from(50_000 - counts[3]) / 9.0;
            let share = f64::from(counts[3]) / other;
            assert!((share - expected).abs() < 0.05, "{policy:?} after {seconds} s: {share}");
        }
    }
}

#[test]
fn what_is_explained_is_what_happens() {
    let mut dice = rng("what_is_explained_is_what_happens");
    let now = Instant::now();
    let mut members = members(&[1, 2, 3, 4, 5]);
    members[4].since = Some(now - Duration::from_secs(50));
    members[3].since = Some(now - Duration::from_secs(500));
    for policy in [Policy::Random, Policy::RoundRobin, Policy::LeastRequest, Policy::PeakEwma] {
        let options = Options { slow_start: Duration::from_secs(100), ..options(policy) };
        let mut set = Set::new(options, members.clone(), None, now);
        set.refresh(now, |index| index != 1);
        let explained = set.explain(now);
        let used: Vec<bool> = explained.iter().map(|member| member.used).collect();
        let weights: Vec<f64> = explained.iter().map(|member| member.weight_now).collect();
        assert_eq!(used, [true, false, true, true, true]);
        assert_eq!(weights, [1.0, 2.0, 3.0, 4.0, 2.5]);
        let loads = loads(5, now);
        let mut counts = [0_u32; 5];
        for _ in 0..50_000 {
            let call = Pick { now, loads: &loads, key: None, dice: &mut dice };
            counts[set.pick(call, |_| Fit::Ready).unwrap() as usize] += 1;
        }
        for (member, count) in explained.iter().zip(counts) {
            let share = f64::from(count) / 50_000.0;
            assert!((share - member.share).abs() < 0.015, "{policy:?} {member:?} {share}");
        }
    }
    // No slow start is none, whatever was said of one.
    let set = Set::new(options(Policy::Random), vec![Member { since: Some(now), ..members[0] }], None, now);
    assert_eq!(set.explain(now)[0].weight_now, 1.0);
}

/// Calls that overlap: so many at once, each as long as its instance takes.
fn overlapping(set: &mut Set, took_ms: &[u64], at_once: u64, dice: &mut StdRng) -> Vec<u32> {
    let start = Instant::now();
    let loads = loads(took_ms.len(), start);
    let mut counts = vec![0; took_ms.len()];
    let mut flying = std::collections::BinaryHeap::new();
    let mut now = start;
    for call in 0..50_000 {
        if call >= at_once {
            let (std::cmp::Reverse(end), index) = flying.pop().unwrap();
            now = end;
            loads.end(index);
            loads.observe(index, Duration::from_millis(took_ms[index as usize]), now);
        }
        let index = set.pick(Pick { now, loads: &loads, key: None, dice }, |_| Fit::Ready).unwrap();
        loads.begin(index);
        counts[index as usize] += 1;
        flying.push((std::cmp::Reverse(now + Duration::from_millis(took_ms[index as usize])), index));
    }
    counts
}

#[test]
fn weights_hold_with_calls_in_flight() {
    let mut dice = rng("weights_hold_with_calls_in_flight");
    for policy in [Policy::PeakEwma, Policy::LeastRequest] {
        for at_once in [1, 4, 20, 100, 1000] {
            let weights = [1, 1, 2, 4, 8];
            let mut set = Set::new(options(policy), members(&weights), None, Instant::now());
            let counts = overlapping(&mut set, &[10; 5], at_once, &mut dice);
            let shares: Vec<f64> = counts
                .iter()
                .zip(weights)
                .map(|(count, weight)| f64::from(*count) * 16.0 / 50_000.0 / f64::from(weight))
                .collect();
            println!("{policy:?}, {at_once} at once: {shares:.2?} of what weights say");
            assert!(shares.iter().all(|share| (0.6..2.0).contains(share)), "{shares:?}");
        }
    }
}

#[test]
fn a_slow_instance_gets_few() {
    let mut dice = rng("a_slow_instance_gets_few");
    let took = [10, 10, 10, 10, 10, 10, 10, 10, 10, 200];
    for at_once in [1, 20, 200] {
        let mut set = Set::new(options(Policy::PeakEwma), members(&[1; 10]), None, Instant::now());
        let counts = overlapping(&mut set, &took, at_once, &mut dice);
        println!("{at_once} at once: {} of 50000 calls to the slow one", counts[9]);
        assert!(counts[9] < 500, "{counts:?}");
    }
}

#[test]
fn an_unknown_instance_is_tried_with_one_call() {
    let mut dice = rng("an_unknown_instance_is_tried_with_one_call");
    let now = Instant::now();
    let loads = loads(10, now);
    for index in 0..9 {
        loads.observe(index, Duration::from_millis(5), now);
    }
    let mut set = Set::new(options(Policy::PeakEwma), members(&[1; 10]), None, now);
    let mut to_unknown = 0;
    for _ in 0..1000 {
        let index = set.pick(Pick { now, loads: &loads, key: None, dice: &mut dice }, |_| Fit::Ready).unwrap();
        loads.begin(index);
        to_unknown += u32::from(index == 9);
    }
    assert_eq!(to_unknown, 1);
}

#[test]
fn what_was_seen_fades_and_is_carried_over() {
    let start = Instant::now();
    let seen = loads(3, start);
    let ms = Duration::from_millis;
    seen.observe(1, ms(100), start);
    assert!(seen.ewma(1, start).abs_diff(ms(100)) < Duration::from_micros(1));
    assert_eq!(seen.ewma(0, start), Duration::ZERO);
    let later = start + Duration::from_secs(10);
    let third = seen.ewma(1, later).as_secs_f64();
    assert!((third - 0.1 / std::f64::consts::E).abs() < 1e-4, "{third}");
    // A peak counts at once, a fall slowly.
    seen.observe(1, ms(300), later);
    assert!(seen.ewma(1, later).abs_diff(ms(300)) < Duration::from_micros(1));
    seen.observe(1, ms(10), later + ms(100));
    assert_eq!(seen.ewma(1, later + ms(100)).as_millis(), 297);
    // Each failure counts for more than the one before it, up to a second.
    let counted = [10, 80, 640, 1_000, 1_000].map(|expected| {
        seen.fail(2, ms(3), later);
        (seen.ewma(2, later).as_millis(), expected)
    });
    assert!(counted.iter().all(|(found, expected)| found.abs_diff(*expected) <= 1), "{counted:?}");

    seen.begin(1);
    seen.begin(1);
    seen.end(1);
    assert!(seen.is_busy(1));
    seen.begin_anew(7);
    assert_eq!((seen.in_flight(1), seen.in_flight(7), seen.in_flight(99)), (1, 0, 0));
    seen.end(1);
    seen.end(1);
    assert_eq!(seen.in_flight(1), 0);
    seen.begin_anew(1);
    assert_eq!(seen.ewma(1, later), Duration::ZERO);
}
