//! SipHash-1-3 of sixteen bytes: numbers that nobody can guess who does not know the key.

/// Hashes two words.
#[inline(always)]
#[must_use]
pub const fn sip(key: [u64; 2], words: [u64; 2]) -> u64 {
    /// The length of the message, in the top byte of its last word.
    const LEN: u64 = 16 << 56;
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v = absorb(v, words[0]);
    v = absorb(v, words[1]);
    v = absorb(v, LEN);
    v[2] ^= 0xff;
    v = round(round(round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(v);
    v[0] ^= word;
    v
}

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    #[test]
    fn it_is_siphash() {
        // The standard library's is this one, under the key 0.
        for words in [[0, 0], [1, 2], [u64::MAX, 0x0123_4567_89ab_cdef]] {
            let mut hasher = DefaultHasher::new();
            words.iter().for_each(|word: &u64| hasher.write(&word.to_le_bytes()));
            assert_eq!(sip([0; 2], words), hasher.finish(), "{words:?}");
        }
    }

    #[test]
    fn keys_matter() {
        let of = |key| sip(key, [1, 2]);
        assert!(of([0, 0]) != of([1, 0]) && of([0, 0]) != of([0, 1]) && of([1, 0]) != of([0, 1]));
    }
}
