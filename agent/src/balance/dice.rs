//! Small draws, cheap enough for every call.

use rand::Rng;

/// Uniform in `0..n`, to within n / 2^32.
pub(crate) fn below(word: u32, n: u32) -> u32 {
    ((u64::from(word) * u64::from(n)) >> 32) as u32
}

/// Two independent words.
pub(crate) fn two(dice: &mut impl Rng) -> (u32, u32) {
    let both = dice.next_u64();
    ((both >> 32) as u32, (both & 0xffff_ffff) as u32)
}

/// Spreads a number over all words.
pub(crate) fn mix(number: u64) -> u32 {
    let number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (number.wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 32) as u32
}
