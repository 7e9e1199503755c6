//! A service's instances in the order in which they are called.

use agent_common::lane::TURNS_MAX;

/// How far an instance's share may be from what its weight says, as the share is made of whole turns: a quarter.
const OFF_PERCENT_MAX: u64 = 25;

/// Whose turn it is, one after the other, by the places of these weights. Each is there as often as its weight says, as evenly
/// as can be. None: there are no weights, or too many, or 64 turns are not enough to give each its share.
pub(super) fn turns(weights: &[u32]) -> Option<Vec<usize>> {
    let counts = counts(weights)?;
    let total: i64 = counts.iter().sum();
    let mut due = vec![0; counts.len()];
    let next = |_| {
        due.iter_mut().zip(&counts).for_each(|(due, count)| *due += count);
        // The first of those that have waited longest.
        let at = (0..due.len()).rev().max_by_key(|at| due[*at]).unwrap_or(0);
        due[at] -= total;
        at
    };
    Some((0..total).map(next).filter(|at| counts[*at] > 0).collect())
}

/// How many turns each gets: exactly by weight if there are turns enough, else as near as can be.
fn counts(weights: &[u32]) -> Option<Vec<i64>> {
    let with_weight = weights.iter().filter(|weight| **weight > 0).count();
    if with_weight == 0 || with_weight > TURNS_MAX {
        return None;
    }
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    if weights.iter().map(|weight| u64::from(weight / divisor)).sum::<u64>() <= TURNS_MAX as u64 {
        return Some(weights.iter().map(|weight| i64::from(weight / divisor)).collect());
    }
    let candidates = (with_weight..=TURNS_MAX).filter_map(|turns| shared_out(weights, turns as u64));
    candidates.min_by_key(|(off, _)| *off).filter(|(off, _)| *off <= OFF_PERCENT_MAX).map(|(_, counts)| counts)
}

/// So many turns by weight, and by how many percent the worst share is off.
fn shared_out(weights: &[u32], turns: u64) -> Option<(u64, Vec<i64>)> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let exact = |weight: u32| u64::from(weight) * turns;
    let mut counts: Vec<u64> = weights.iter().map(|weight| (exact(*weight) / total).max(u64::from(*weight > 0))).collect();
    let mut left = turns.checked_sub(counts.iter().sum())?;
    let mut by_rest: Vec<usize> = (0..weights.len()).collect();
    by_rest.sort_by_key(|at| std::cmp::Reverse(exact(weights[*at]) % total));
    for at in by_rest {
        if left > 0 && counts[at] * total < exact(weights[at]) {
            counts[at] += 1;
            left -= 1;
        }
    }
    if left > 0 {
        return None;
    }
    let off = |(weight, count): (&u32, &u64)| match exact(*weight) {
        0 => 0,
        exact => (count * total).abs_diff(exact) * 100 / exact,
    };
    let worst = weights.iter().zip(&counts).map(off).max()?;
    Some((worst, counts.into_iter().map(|count| i64::try_from(count).unwrap_or(0)).collect()))
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_alternate() {
        assert_eq!(turns(&[1, 1, 1]).unwrap(), [0, 1, 2]);
        assert_eq!(turns(&[100, 100]).unwrap(), [0, 1]);
        assert_eq!(turns(&[5, 1, 1]).unwrap(), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(&[0, 7, 0]).unwrap(), [1]);
    }

    #[test]
    fn shares_that_turns_cannot_give_are_refused() {
        assert_eq!(turns(&[]), None);
        assert_eq!(turns(&[0, 0]), None);
        assert_eq!(turns(&[1; 65]), None);
        assert_eq!(turns(&[1; 64]).map(|turns| turns.len()), Some(64));
        assert_eq!(turns(&[10_000, 1]), None);
        assert!(turns(&[97, 89, 83]).is_some());
    }

    proptest! {
        #[test]
        fn everybody_has_his_share(weights in proptest::collection::vec(0..200_u32, 1..20)) {
            let total: u32 = weights.iter().sum();
            if let Some(turns) = turns(&weights) {
                prop_assert!(turns.len() <= TURNS_MAX);
                for (at, weight) in weights.iter().enumerate() {
                    let had = turns.iter().filter(|turn| **turn == at).count() as f64 / turns.len() as f64;
                    let due = f64::from(*weight) / f64::from(total);
                    prop_assert!((had - due).abs() <= due * 0.26 + 1e-9, "{had} of {due}");
                }
            }
        }
    }
}
