//! Counting, on the CPU that the program runs on.

use core::mem::offset_of;

use agent_common::{
    Pass, REASONS, Refusal, Sent, Verdicts,
    failover::{DECISIONS_MAX, Decision, Decisions},
    lane::{Routed, Unrouted},
};

use crate::{
    atomic,
    maps::{DECISIONS, ROUTED, VERDICTS},
};

/// A socket was enrolled.
#[inline(always)]
pub(crate) fn enrolled() {
    add(offset_of!(Verdicts, enrolled), 1);
}

/// A connection was not.
#[inline(always)]
pub(crate) fn refused(why: Refusal) {
    add(offset_of!(Verdicts, refusals) + why as usize * size_of::<u64>(), 1);
}

/// A direction goes by TCP from now on, for the reason with this number.
#[inline(always)]
pub(crate) fn fell_back(why: u32) {
    const { assert!(Pass::ALL.len() <= REASONS && REASONS == 16) };
    add(offset_of!(Verdicts, passes) + (why as usize & 15) * size_of::<u64>(), 1);
}

/// A message was redirected, towards the agent or by it.
#[inline(always)]
pub(crate) fn redirected(by_agent: bool, bytes: u64) {
    sent(if by_agent { offset_of!(Verdicts, from_agent) } else { offset_of!(Verdicts, to_agent) }, bytes);
}

/// A message was left to TCP.
#[inline(always)]
pub(crate) fn passed(bytes: u64) {
    sent(offset_of!(Verdicts, passed), bytes);
}

/// A call was routed.
#[inline(always)]
pub(crate) fn called() {
    routed(offset_of!(Routed, calls));
}

/// An answer was, which has so many bytes with its call.
#[inline(always)]
pub(crate) fn answered(bytes: u64) {
    if let Some(counters) = ROUTED.get_ptr_mut(0) {
        // SAFETY: as in `add`, and looked up once for both.
        unsafe {
            atomic::add(&raw mut (*counters).answers, 1);
            atomic::add(&raw mut (*counters).bytes, bytes);
        }
    }
}

/// A message on a lane was not.
#[inline(always)]
pub(crate) fn unrouted(why: Unrouted) {
    const { assert!(Unrouted::ALL.len() <= 32) };
    routed(offset_of!(Routed, unrouted) + (why as usize & 31) * size_of::<u64>());
}

/// Something was decided about a connect.
#[inline(always)]
pub(crate) fn decided(what: Decision) {
    const { assert!(DECISIONS_MAX.is_power_of_two()) };
    if let Some(counters) = DECISIONS.get_ptr_mut(0) {
        let at = offset_of!(Decisions, counts) + (what as usize & (DECISIONS_MAX - 1)) * size_of::<u64>();
        // SAFETY: as in `add`.
        unsafe { atomic::add(counters.cast::<u8>().add(at).cast(), 1) };
    }
}

/// Adds one to the counter at this offset of [`Routed`].
#[inline(always)]
fn routed(at: usize) {
    if let Some(counters) = ROUTED.get_ptr_mut(0) {
        // SAFETY: as in `add`.
        unsafe { atomic::add(counters.cast::<u8>().add(at).cast(), 1) };
    }
}

#[inline(always)]
fn sent(at: usize, bytes: u64) {
    if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
        // SAFETY: as in `add`, and looked up once for both.
        unsafe {
            let sent: *mut Sent = verdicts.cast::<u8>().add(at).cast();
            atomic::add(&raw mut (*sent).messages, 1);
            atomic::add(&raw mut (*sent).bytes, bytes);
        }
    }
}

/// Adds to the counter at this offset of [`Verdicts`].
#[inline(always)]
fn add(at: usize, amount: u64) {
    if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
        // SAFETY: the offset is that of a counter in this map's value, which is never freed while the program is loaded.
        unsafe { atomic::add(verdicts.cast::<u8>().add(at).cast(), amount) };
    }
}
