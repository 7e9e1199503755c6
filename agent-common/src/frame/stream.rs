/// The number of the next call after `stream`: one more, and never 0.
#[must_use]
pub const fn next_stream(stream: u32) -> u32 {
    match stream.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

/// Whether `stream` comes after `other`, in serial-number arithmetic: numbers go round, and half the circle is ahead.
#[must_use]
pub const fn is_after(stream: u32, other: u32) -> bool {
    let ahead = stream.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_without_zero() {
        assert_eq!(next_stream(u32::MAX), 1);
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1));
        assert!(is_after(2, 1) && !is_after(1, 1));
    }
}
