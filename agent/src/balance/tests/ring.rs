//! Consistent hashing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;

use super::{
    super::{
        ketama::{Ring, hash},
        murmur3, *,
    },
    loads, members, options, rng,
};

/// Positions and picks of the real SDK.
const RECORDED: &str = include_str!("../vectors/ketama.json");

#[derive(Deserialize)]
struct Recorded {
    nodes: Vec<String>,
    pick: BTreeMap<String, String>,
    ring: BTreeMap<String, u32>,
    vnodes_per_node: usize,
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("10.{}.{}.{}:{}", i / 65536, i / 256 % 256, i % 256, 15_000 + i % 7)).collect()
}

#[test]
fn picks_are_the_sdk_s() {
    let recorded: Vec<Recorded> = serde_json::from_str(RECORDED).unwrap();
    assert!(!recorded.is_empty());
    for Recorded { nodes, pick, ring, vnodes_per_node } in recorded {
        assert_eq!(ring.len(), nodes.len() * vnodes_per_node);
        for (point, position) in &ring {
            assert_eq!(murmur3::first_word(point.as_bytes()), *position, "{point}");
        }
        let ours = Ring::new(&nodes);
        let backwards: Vec<_> = nodes.iter().rev().collect();
        let theirs = Ring::new(&backwards);
        assert_eq!(ours.arcs().count(), ring.len());
        for (key, node) in &pick {
            assert_eq!(&nodes[ours.owner(hash(key.as_bytes())).unwrap() as usize], node, "{key}");
            assert_eq!(backwards[theirs.owner(hash(key.as_bytes())).unwrap() as usize], node, "{key}");
        }
    }
}

#[test]
fn every_position_is_found_by_its_hash() {
    for n in [1, 2, 3, 7, 50, 301] {
        let ring = Ring::new(&names(n));
        let share: f64 = ring.arcs().map(|(_, arc)| arc).sum();
        assert!((share - 1.0).abs() < 1e-9);
        let mut points: BTreeMap<u32, u32> = BTreeMap::new();
        for (owner, name) in (0..).zip(names(n)) {
            for i in 0..2 * n {
                points.insert(hash(format!("{name}#{i}").as_bytes()), owner);
            }
        }
        let expected = |hash: u32| *points.range(hash..).next().or_else(|| points.first_key_value()).unwrap().1;
        let mut dice = StdRng::seed_from_u64(7);
        let near = points.keys().flat_map(|hash| [hash.wrapping_sub(1), *hash, hash.wrapping_add(1)]);
        for hash in near.chain([0, u32::MAX]).chain((0..1000).map(|_| dice.random())) {
            if points.len() == 2 * n * n {
                assert_eq!(ring.owner(hash), Some(expected(hash)), "{n} hosts, {hash}");
            }
        }
    }
    assert_eq!(Ring::new(&[] as &[&str]).owner(5), None);
}

#[test]
fn the_ring_of_many_hosts_is_bounded() {
    for n in [1_500, 20_000] {
        let started = Instant::now();
        let ring = Ring::new(&names(n));
        println!("{n} hosts: {} positions in {:?}", ring.arcs().count(), started.elapsed());
        assert!((4_000_000..=4 << 20).contains(&ring.arcs().count()));
        let mut shares = vec![0.0; n];
        ring.arcs().for_each(|(owner, arc)| shares[owner as usize] += arc * n as f64);
        let (least, most) = shares.iter().fold((f64::MAX, 0.0_f64), |(least, most), share| (least.min(*share), most.max(*share)));
        println!("shares of keys: {least:.3} to {most:.3} of the mean");
        assert!(least > 0.6 && most < 1.5);
    }
}

fn keyed(n: usize) -> Set {
    Set::new(options(Policy::Ketama), members(&vec![1; n]), Some(Arc::new(Ring::new(&names(n)))), Instant::now())
}

fn pick(set: &mut Set, key: u32, fit: impl FnMut(u32) -> Fit) -> Option<u32> {
    let now = Instant::now();
    set.pick(Pick { now, loads: &loads(0, now), key: Some(key), dice: &mut StdRng::seed_from_u64(1) }, fit)
}

#[test]
fn a_key_keeps_its_instance_when_another_cannot_be_used() {
    let mut dice = rng("a_key_keeps_its_instance");
    for n in [2_u32, 10, 100] {
        let mut set = keyed(n as usize);
        let keys: Vec<u32> = (0..2_000).map(|_| dice.random()).collect();
        let before: Vec<_> = keys.iter().map(|key| pick(&mut set, *key, |_| Fit::Ready).unwrap()).collect();
        let out = dice.random_range(0..n);
        let check = |set: &mut Set, fit: &dyn Fn(u32) -> Fit| {
            let mut to = vec![0; n as usize];
            for (key, before) in keys.iter().zip(&before) {
                let after = pick(set, *key, fit).unwrap();
                assert!(after == *before || *before == out, "{n}");
                assert_ne!(after, out);
                to[after as usize] += usize::from(*before == out);
            }
            to
        };
        // It can't be used, or only this call can't go there: the keys go to the same ones.
        let full = check(&mut set, &|index| if index == out { Fit::No } else { Fit::Slow });
        set.refresh(Instant::now(), |index| index != out);
        assert_eq!(check(&mut set, &|_| Fit::Ready), full);
        let shares: Vec<f64> = set.explain(Instant::now()).iter().map(|member| member.share).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares[out as usize] == 0.0);
        set.refresh(Instant::now(), |_| true);
        assert!(keys.iter().zip(&before).all(|(key, before)| pick(&mut set, *key, |_| Fit::Ready) == Some(*before)));
    }
}

/// The SDK's rule gives every host fewer positions when one goes: keys of hosts that stay move too.
#[test]
fn with_a_removed_host_few_keys_of_others_move() {
    for n in [3, 10, 30, 100, 300] {
        let names = names(n);
        let (with, without) = (Ring::new(&names), Ring::new(&names[..n - 1]));
        let mut dice = rng("with_a_removed_host");
        let (mut stayed, mut moved) = (0_u32, 0_u32);
        for _ in 0..100_000 {
            let key = dice.random();
            let (before, after) = (with.owner(key).unwrap(), without.owner(key).unwrap());
            if before as usize != n - 1 {
                stayed += 1;
                moved += u32::from(before != after);
            }
        }
        let share = f64::from(moved) / f64::from(stayed);
        println!("{n} hosts, one removed: {:.2} % of the others' keys move; 1/n is {:.2} %", share * 100.0, 100.0 / n as f64);
        // Of 2 n positions each, two go: one in n of the arcs has a new owner, at most.
        assert!(share < 2.0 / n as f64, "{n}: {share}");
    }
}

#[test]
fn a_key_among_few_usable_ones_is_served() {
    let mut set = keyed(500);
    set.refresh(Instant::now(), |index| index == 321);
    for key in [0, 1 << 20, u32::MAX] {
        assert_eq!(pick(&mut set, key, |_| Fit::Ready), Some(321));
    }
    // Without a key: by chance.
    set.refresh(Instant::now(), |_| true);
    let mut dice = rng("without a key");
    let now = Instant::now() + Duration::from_secs(1);
    let loads = loads(500, now);
    let mut draw = || set.pick(Pick { now, loads: &loads, key: None, dice: &mut dice }, |_| Fit::Ready).unwrap();
    let first = draw();
    assert!((0..50).any(|_| draw() != first));
}
