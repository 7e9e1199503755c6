//! MurmurHash3 x86_128, of which MOA's SDK uses the first word.

const C1: u32 = 0x239b_961b;
const C2: u32 = 0xab0e_9789;
const C3: u32 = 0x38b3_4ae5;
const C4: u32 = 0xa1e3_8b93;

/// The first 32 bits of the hash of `data` with seed 0.
pub(crate) fn first_word(data: &[u8]) -> u32 {
    let mut h = [0_u32; 4];
    let (blocks, tail) = data.as_chunks::<16>();
    for block in blocks {
        mix(&mut h, block);
    }
    if !tail.is_empty() {
        let mut last = [0; 16];
        last[..tail.len()].copy_from_slice(tail);
        mix_tail(&mut h, &last);
    }
    // The algorithm takes the length as 32 bits; a key is never so long.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    for word in &mut h {
        *word ^= length;
    }
    add(&mut h);
    h = h.map(avalanche);
    add(&mut h);
    h[0]
}

fn words(block: &[u8; 16]) -> [u32; 4] {
    let word = |i: usize| u32::from_le_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

fn mix(h: &mut [u32; 4], block: &[u8; 16]) {
    let k = words(block);
    let step = |h: u32, next: u32, left: u32, by: u32| h.rotate_left(left).wrapping_add(next).wrapping_mul(5).wrapping_add(by);
    h[0] = step(h[0] ^ scramble(k[0], C1, 15, C2), h[1], 19, 0x561c_cd1b);
    h[1] = step(h[1] ^ scramble(k[1], C2, 16, C3), h[2], 17, 0x0bca_a747);
    h[2] = step(h[2] ^ scramble(k[2], C3, 17, C4), h[3], 15, 0x96cd_1c35);
    h[3] = step(h[3] ^ scramble(k[3], C4, 18, C1), h[0], 13, 0x32ac_3b17);
}

/// The rest, filled up with zeros: a word of zeros changes nothing.
fn mix_tail(h: &mut [u32; 4], block: &[u8; 16]) {
    let k = words(block);
    h[0] ^= scramble(k[0], C1, 15, C2);
    h[1] ^= scramble(k[1], C2, 16, C3);
    h[2] ^= scramble(k[2], C3, 17, C4);
    h[3] ^= scramble(k[3], C4, 18, C1);
}

fn scramble(k: u32, before: u32, left: u32, after: u32) -> u32 {
    k.wrapping_mul(before).rotate_left(left).wrapping_mul(after)
}

fn add(h: &mut [u32; 4]) {
    h[0] = h[0].wrapping_add(h[1]).wrapping_add(h[2]).wrapping_add(h[3]);
    for i in 1..4 {
        h[i] = h[i].wrapping_add(h[0]);
    }
}

fn avalanche(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
