/// The 64-bit FNV-1a hash of a service: its URI, and behind a zero byte its group if it has one.
///
/// It is an index, not a proof: who receives it compares the URI and the group of the metadata too.
#[must_use]
pub const fn service_hash(uri: &[u8], group: &[u8]) -> u64 {
    let hash = add(0xcbf2_9ce4_8422_2325, uri);
    if group.is_empty() { hash } else { add(add(hash, &[0]), group) }
}

const fn add(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_fnv_1a() {
        // From the reference's published test vectors.
        assert_eq!(service_hash(b"", b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(service_hash(b"a", b""), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(service_hash(b"foobar", b""), 0x8594_4171_f739_67e8);
        assert_eq!(service_hash(b"a", b"b"), service_hash(b"a\0b", b""));
    }
}
