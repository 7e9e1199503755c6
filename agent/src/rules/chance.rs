//! Shares of calls: by dice, or by a key that always has the same share.

/// What all shares in hundredths of a percent are of.
pub(crate) const WHOLE: u32 = 10_000;

/// 64-bit FNV-1a over several texts, with a zero byte behind each.
pub(crate) fn hash(texts: &[&[u8]]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.iter().chain(&[0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Each bit of the result depends on each bit of `value` (the finaliser of splitmix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Dice of one rule's own, from those of the call.
pub(crate) fn own(dice: u32, salt: u64) -> u64 {
    mix(u64::from(dice) ^ salt)
}

/// Whether these dice are within the share.
pub(crate) fn hits(dice: u64, per_10k: u32) -> bool {
    scaled(dice, u64::from(WHOLE)) < u64::from(per_10k)
}

/// The position whose weight these dice fall on; none if all weights are 0.
pub(crate) fn by_dice(dice: u64, weights: impl Iterator<Item = u32> + Clone) -> Option<usize> {
    let mut left = scaled(dice, weights.clone().map(u64::from).sum());
    weights.enumerate().find_map(|(at, weight)| {
        let weight = u64::from(weight);
        let found = left < weight;
        left = left.saturating_sub(weight);
        found.then_some(at)
    })
}

/// The position that a key has; none if all weights are 0. Each position has its share of the keys, and a key leaves its position
/// only for one whose weight has grown by a greater factor (weighted rendezvous hashing).
pub(crate) fn by_key(key: u64, shares: impl Iterator<Item = (u64, u32)>) -> Option<usize> {
    let waits = shares.enumerate().filter(|(_, (_, weight))| *weight > 0);
    // Each position waits for an exponential time, with its weight as the rate: the first one to come is it with its share's
    // probability, and a greater weight makes only its own wait shorter.
    let waits = waits.map(|(at, (salt, weight))| (at, -unit(mix(key ^ salt)).ln() / f64::from(weight)));
    waits.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(at, _)| at)
}

/// `dice` as a part of `whole`.
fn scaled(dice: u64, whole: u64) -> u64 {
    u64::try_from((u128::from(dice) * u128::from(whole)) >> 64).unwrap_or(u64::MAX)
}

/// Strictly between 0 and 1.
fn unit(bits: u64) -> f64 {
    // 52 bits, so that the half can be told too.
    ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_and_none_are_exact() {
        for dice in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(hits(dice, WHOLE));
            assert!(hits(dice, u32::MAX));
            assert!(!hits(dice, 0));
        }
        assert!(hits(0, 1));
        assert!(!hits(u64::MAX, WHOLE - 1));
    }

    #[test]
    fn weights_of_nothing_are_nobodys() {
        assert_eq!(by_dice(7, [].into_iter()), None);
        assert_eq!(by_dice(7, [0, 0].into_iter()), None);
        assert_eq!(by_key(7, [(1, 0)].into_iter()), None);
        assert_eq!(by_dice(u64::MAX, [0, u32::MAX, u32::MAX, 0].into_iter()), Some(2));
        assert_eq!(by_dice(0, [0, 1, 1].into_iter()), Some(1));
    }

    #[test]
    fn ends_of_the_unit_interval_are_out() {
        assert!(unit(0) > 0.0);
        assert!(unit(u64::MAX) < 1.0);
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(prop_oneof![Just(0), 1..100_u32, 1..=1_000_000_u32, Just(u32::MAX)], 1..6)
    }

    proptest! {
        #[test]
        fn nobody_without_weight_is_picked(weights in weights(), dice: u64) {
            let shares = weights.iter().map(|weight| (u64::from(*weight), *weight));
            for at in [by_dice(dice, weights.iter().copied()), by_key(dice, shares)] {
                prop_assert_eq!(at.is_none(), weights.iter().all(|weight| *weight == 0));
                prop_assert!(at.is_none_or(|at| weights[at] > 0));
            }
        }

        #[test]
        fn keys_move_only_to_what_grew_by_a_greater_factor(
            before in prop::collection::vec(0..100_u32, 2..6), after in prop::collection::vec(0..100_u32, 6), keys: [u64; 32],
        ) {
            let pick = |key, weights: &[u32]| by_key(key, (0..).map(mix).zip(weights.iter().copied()).take(before.len()));
            for key in keys {
                if let (Some(from), Some(to)) = (pick(key, &before), pick(key, &after)) {
                    prop_assert!(from == to || after[to] * before[from] > after[from] * before[to]);
                }
            }
        }
    }
}
