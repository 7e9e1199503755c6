//! Counting, on the CPU that the program runs on.

use agent_common::{Pass, Refusal, Sent, Verdicts};

use crate::{atomic, maps::VERDICTS};

/// Adds to a counter of [`Verdicts`].
#[inline(always)]
fn add(counter: impl FnOnce(*mut Verdicts) -> *mut u64, amount: u64) {
    if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
        unsafe { atomic::add(counter(verdicts), amount) };
    }
}

/// A socket was enrolled.
#[inline(always)]
pub(crate) fn enrolled() {
    // SAFETY: only the address is taken, here and below.
    add(|all| unsafe { &raw mut (*all).enrolled }, 1);
}

/// A connection was not.
#[inline(always)]
pub(crate) fn refused(why: Refusal) {
    // SAFETY: the index is one of the array's, as the numbers of both are the same.
    add(|all| unsafe { (&raw mut (*all).refusals).cast::<u64>().add(why as usize) }, 1);
}

/// A direction goes by TCP from now on, for the reason with this number.
#[inline(always)]
pub(crate) fn fell_back(why: u32) {
    const { assert!(Pass::ALL.len() == 8) };
    // SAFETY: as above, as the number is cut.
    add(|all| unsafe { (&raw mut (*all).passes).cast::<u64>().add(why as usize & 7) }, 1);
}

/// A message was redirected, towards the agent or by it.
#[inline(always)]
pub(crate) fn redirected(by_agent: bool, bytes: u64) {
    if by_agent {
        sent(|all| unsafe { &raw mut (*all).from_agent }, bytes)
    } else {
        sent(|all| unsafe { &raw mut (*all).to_agent }, bytes)
    }
}

/// A message was left to TCP.
#[inline(always)]
pub(crate) fn passed(bytes: u64) {
    sent(|all| unsafe { &raw mut (*all).passed }, bytes);
}

#[inline(always)]
fn sent(which: impl FnOnce(*mut Verdicts) -> *mut Sent, bytes: u64) {
    if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
        let sent = which(verdicts);
        // SAFETY: as above.
        unsafe {
            atomic::add(&raw mut (*sent).messages, 1);
            atomic::add(&raw mut (*sent).bytes, bytes);
        }
    }
}
