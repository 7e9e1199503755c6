//! Shares of calls, by chance and by hash key.

use std::{collections::HashMap, env};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const CALLS: u32 = 100_000;

/// A random generator whose seed was printed, or came from `MOA_SEED`.
fn rng(test: &str) -> StdRng {
    let seed = env::var("MOA_SEED").map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    println!("{test}: MOA_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// That `found` of [`CALLS`] is a chance of `share`: within six standard deviations, so wrong once in a billion tests; and four more,
/// as a very small share is no bell curve.
fn is_about(found: u32, share: f64, what: &str) {
    let expected = f64::from(CALLS) * share;
    let deviation = (f64::from(CALLS) * share * (1.0 - share)).sqrt();
    assert!((f64::from(found) - expected).abs() <= 6.0 * deviation + 4.0, "{what}: {found} of {CALLS} instead of {expected}");
}

/// How many of [`CALLS`] calls, each with its own dice, are so.
fn count(rng: &mut StdRng, mut is_so: impl FnMut(u32) -> bool) -> u32 {
    (0..CALLS).map(|_| u32::from(is_so(rng.random()))).sum()
}

/// A route to `pre` and `grey` with these weights, and one for what goes on as it would.
fn split(weights: [u32; 3], sticky: bool) -> Plan {
    let [pre, grey, none] = weights;
    plan(&format!(
        "routes = [{{ name = 'a', sticky = {sticky}, split = [{{ weight = {pre}, to = {{ environment = 'pre' }} }},
            {{ weight = {none} }}, {{ weight = {grey}, to = {{ environment = 'grey' }} }}] }}]"
    ))
}

#[test]
fn percentages_hold() {
    let mut rng = rng("percentages_hold");
    for per_10k in [0, 1, 100, 2_500, 9_999, 10_000] {
        let rules = format!("faults = [{{ code = 501, per_10k = {per_10k} }}]\nshadows = [{{ to = {{}}, per_10k = {per_10k} }}]");
        let (rules, mesh) = (plan(&rules), plan(&format!("mesh_per_10k = {per_10k}")));
        let share = f64::from(per_10k) / 10_000.0;
        let call = call(&[]);
        is_about(count(&mut rng, |dice| rules.fault(&call, dice).is_some()), share, "faults");
        is_about(count(&mut rng, |dice| rules.shadows(&call, dice).count() == 1), share, "shadows");
        is_about(count(&mut rng, |dice| !mesh.route(&call, dice).plain), share, "mesh");
    }
}

#[test]
fn rules_have_dice_of_their_own() {
    let mut rng = rng("rules_have_dice_of_their_own");
    let policy = r#"
        mesh_per_10k = 5_000
        routes = [{ name = "a", split = [{ to = { environment = "pre" } }, { }] }]
        faults = [{ name = "a", code = 501, per_10k = 5_000 }]
        shadows = [{ name = "a", to = { }, per_10k = 5_000 }, { name = "a", to = { }, per_10k = 5_000 }]
    "#;
    let plan = plan(policy);
    let mut seen: HashMap<_, u32> = HashMap::new();
    for _ in 0..CALLS {
        let dice = rng.random();
        let call = call(&[]);
        let routed = plan.route(&call, dice);
        let copies: Vec<_> = plan.shadows(&call, dice).map(|shadow| shadow.index).collect();
        *seen.entry((routed.plain, routed.subset, plan.fault(&call, dice).is_some(), copies)).or_default() += 1;
    }
    assert_eq!(seen.len(), 17, "half of the calls are plain, the others have all combinations");
    for ((plain, ..), found) in seen {
        is_about(found, if plain { 0.5 } else { 1.0 / 32.0 }, "combination");
    }
}

#[test]
fn shares_hold_by_chance_and_over_many_keys() {
    let mut rng = rng("shares_hold_by_chance_and_over_many_keys");
    for weights in [[1, 1, 1], [5, 10, 985], [0, 30, 70], [1_000_000, 0, 1]] {
        let sum = f64::from(weights.iter().sum::<u32>());
        for sticky in [false, true] {
            let plan = split(weights, sticky);
            let mut found = [0; 3];
            for key in 0..CALLS {
                let call = call(&[("hashid", &format!("user-{key}"))]);
                let environment = plan.subsets()[plan.route(&call, rng.random()).subset].environment.as_deref();
                found[match environment {
                    Some("pre") => 0,
                    Some(_) => 1,
                    None => 2,
                }] += 1;
            }
            for (found, weight) in found.into_iter().zip(weights) {
                is_about(found, f64::from(weight) / sum, &format!("{weights:?}, sticky: {sticky}"));
            }
        }
    }
}

#[test]
fn without_a_key_a_sticky_route_goes_by_chance() {
    let mut rng = rng("without_a_key_a_sticky_route_goes_by_chance");
    let plan = split([1, 0, 3], true);
    is_about(count(&mut rng, |dice| plan.route(&call(&[("user", "7")]), dice).subset != DEFAULT_SUBSET), 0.25, "pre");
}

#[test]
fn keys_of_two_routes_have_nothing_to_do_with_each_other() {
    let half = |name| {
        plan(&format!("routes = [{{ name = '{name}', sticky = true, split = [{{ to = {{ environment = 'pre' }} }}, {{}}] }}]"))
    };
    let (one, other) = (half("one"), half("other"));
    let same = (0..CALLS).filter(|key| {
        let call = call(&[("hash_key", &key.to_string())]);
        one.route(&call, 0).subset == other.route(&call, 0).subset
    });
    is_about(u32::try_from(same.count()).unwrap(), 0.5, "the same share of both");
}

proptest! {
    #[test]
    fn a_key_always_has_the_same_share(key in ".{0,20}", weights: [u16; 3], dice: [u32; 8]) {
        let plan = split(weights.map(u32::from), true);
        let call = call(&[("hashid", &key)]);
        let expected = plan.route(&call, 0);
        prop_assert!(dice.into_iter().all(|dice| plan.route(&call, dice) == expected));
    }

    #[test]
    fn a_share_that_grows_keeps_its_keys_and_only_wins(
        before in [0..1000_u32, 0..1000_u32, 0..1000_u32], grown in 0..3_usize, by in 1..1000_u32, keys: [u32; 64],
    ) {
        let mut after = before;
        after[grown] += by;
        prop_assume!(before != [0; 3]);
        let (old, new) = (split(before, true), split(after, true));
        let winner = ["pre", "grey", ""][grown];
        for key in keys {
            let call = call(&[("hashid", &key.to_string())]);
            let share = |plan: &Plan| plan.subsets()[plan.route(&call, 0).subset].environment.as_deref().unwrap_or("").to_owned();
            let (from, to) = (share(&old), share(&new));
            prop_assert!(from == to || to == winner, "{from:?} to {to:?} as {winner:?} grew");
        }
    }

    #[test]
    fn of_percentages_the_one_that_grows_keeps_its_keys(pre in 1..50_u32, grey in 1..50_u32, by in 1..50_u32, keys: [u32; 64]) {
        let rest = 100 - pre - grey;
        prop_assume!(by <= rest);
        let (old, new) = (split([pre, grey, rest], true), split([pre + by, grey, rest - by], true));
        for key in keys {
            let call = call(&[("hashid", &key.to_string())]);
            let of_pre = |plan: &Plan| plan.subsets()[plan.route(&call, 0).subset].environment.as_deref() == Some("pre");
            prop_assert!(!of_pre(&old) || of_pre(&new));
        }
    }
}
