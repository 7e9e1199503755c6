//! Words of contexts and sockets. Written out, as the verifier takes only whole words at fixed offsets, and the compiler
//! merges reads into wider ones, or into one at an offset that it computes.

use core::arch::asm;

/// Reads the word at an offset.
///
/// # Safety
/// `from` is a context that the kernel passed, or a socket of one, and has a readable word there.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a word was loaded, with zeros above it")]
pub(crate) unsafe fn read<const OFFSET: usize, T>(from: *const T) -> u32 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {offset})", out(reg) value, in(reg) from, offset = const OFFSET, options(readonly, nostack));
    }
    value as u32
}

/// Writes the word at an offset.
///
/// # Safety
/// `to` is a context that the kernel passed, and has a word there that may be written.
#[inline(always)]
pub(crate) unsafe fn write<const OFFSET: usize, T>(to: *mut T, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("*(u32 *)({0} + {offset}) = {1}", in(reg) to, in(reg) u64::from(value), offset = const OFFSET, options(nostack));
    }
}
