//! Atomic additions.

use core::arch::asm;

/// Adds to a counter that others may add to at the same time: another CPU, or a softirq that preempts this very program,
/// which is why per-CPU counters need it too.
///
/// Written out, as the compiler has been seen to turn a relaxed `fetch_add` into an instruction that does not fetch.
/// This one gives no result, so that nobody can rely on one.
///
/// # Safety
/// `counter` points into a map's value that holds an aligned `u64`.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount) }
}
