//! Atomic additions, with and without a result.

use core::arch::asm;

/// Adds to a counter that others may add to at the same time: another CPU, or a softirq that preempts this very program,
/// which is why per-CPU counters need it too.
///
/// Written out, as the compiler has been seen to turn a relaxed `fetch_add` into an instruction that does not fetch.
/// This one gives no result, and costs less than [`fetch_add`].
///
/// # Safety
/// `counter` points into a map's value that holds an aligned `u64`.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount) }
}

/// Adds to a counter that others may add to at the same time, and gives what it was before. Nothing that this program reads
/// or writes is moved over it, in either direction.
///
/// Written out for the same reason: the instruction is the one with BPF_FETCH, which the kernel makes a full barrier.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, amount: u64) -> u64 {
    let mut value = amount;
    // SAFETY: the caller's promise.
    unsafe { asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) counter, inout(reg) value) }
    value
}

/// Puts `new` in the place of `old`, if that is there. Gives what was there, and is a full barrier if it was `old`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn exchange_if(word: *mut u64, old: u64, new: u64) -> u64 {
    let mut was = old;
    // SAFETY: the caller's promise. The instruction takes and gives in this register.
    unsafe { asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) new, inout("r0") was) }
    was
}

/// Writes a word. Nothing that this program reads or writes is moved over it, in either direction.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn store(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("{1} = xchg_64({0} + 0, {1})", in(reg) word, inout(reg) value => _) }
}
