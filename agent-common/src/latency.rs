//! Buckets of latencies, which the kernel programs and the agent count alike.

/// Octaves, from 2^10 ns (about 1 µs) to 2^36 ns (about 69 s), four buckets each.
pub const FIRST_OCTAVE: u32 = 10;
const OCTAVES: usize = 26;

/// How many buckets there are.
pub const BUCKETS: usize = OCTAVES * 4;

/// The bucket of a time in nanoseconds. The last one takes everything above.
#[inline(always)]
#[must_use]
pub const fn bucket(ns: u64) -> usize {
    let ns = if ns < 1 << FIRST_OCTAVE { 1 << FIRST_OCTAVE } else { ns };
    let octave = ns.ilog2();
    let quarter = (ns >> (octave - 2)) & 3;
    let bucket = (octave - FIRST_OCTAVE) as usize * 4 + quarter as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_quarters_of_octaves() {
        assert_eq!([0, 1023, 1024, 1279].map(bucket), [0; 4]);
        assert_eq!([1280, 1536, 1792, 2048, 2560].map(bucket), [1, 2, 3, 4, 5]);
        assert_eq!([(1 << 36) - 1, 1 << 36, u64::MAX].map(bucket), [BUCKETS - 1; 3]);
    }
}
