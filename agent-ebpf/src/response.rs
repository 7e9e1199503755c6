//! An answer on a lane: which call it is of, and whether its caller still wants it.

use agent_common::{
    End,
    frame::Flags,
    lane::{Call, KERNEL_VIA, Lane, MEMBERS_MAX, RECEIPT_SHIFT, Routing, Unrouted},
    latency, sip,
};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SkMsgContext};

use crate::{
    atomic,
    calls::Place,
    count,
    frame::{Frame, Head},
    lane::{Fate, Own, is_of},
    maps::{LANE, MEMBERS, ROUTING},
    request::{redirect, release},
    trace,
};

#[inline(always)]
pub(crate) fn route(ctx: &SkMsgContext, frame: Frame, head: &Head, own: &Own, bytes: u64) -> Fate {
    let via = frame.via();
    if via & KERNEL_VIA == 0 {
        return Fate::Unrouted(Unrouted::ForAgent);
    }
    if !head.has(Flags::END_STREAM) {
        return Fate::Unrouted(Unrouted::Flags);
    }
    let Some((place, call)) = Place::find(via) else { return Fate::Unrouted(Unrouted::Unknown) };
    if call.callee != own.index
        || call.callee_generation != own.generation
        || call.stream != head.stream
        || call.service != frame.service()
    {
        return Fate::Unrouted(Unrouted::NotOwn);
    }
    if frame.number() != 0 {
        return Fate::Unrouted(Unrouted::Error);
    }
    let Some(caller) = LANE.get_ptr_mut(call.caller) else { return Fate::Unrouted(Unrouted::Kernel) };
    let Some(routing) = ROUTING.get(0) else { return Fate::Unrouted(Unrouted::Kernel) };
    // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
    let (mut end, bound): (End, u64) = unsafe { ((&raw const (*caller).end).read_volatile(), (*caller).bound) };
    // SAFETY: as above. What was read before counts only if the generation is right after it.
    let before = unsafe { atomic::fetch_add(&raw mut (*caller).delivered, bytes) };
    if !is_of(caller, call.caller_generation) {
        take_back(caller, bytes);
        return Fate::Unrouted(Unrouted::CallerGone);
    }
    // SAFETY: as above; volatile, as the caller's sends change it.
    let acked = unsafe { (&raw const (*caller).acked).read_volatile() };
    // As numbers with a sign: what was given back may have been acknowledged with the rest.
    if (before + bytes).wrapping_sub(acked) as i64 > bound as i64 {
        take_back(caller, bytes);
        return Fate::Unrouted(Unrouted::CallerBytes);
    }
    if !redirect(ctx, &mut end) {
        take_back(caller, bytes);
        return Fate::Unrouted(Unrouted::CallerGone);
    }
    // Whoever takes it out owns the answer.
    if !place.take_out(via) {
        take_back(caller, bytes);
        return Fate::Taken;
    }
    frame.set_via(call.via);
    frame.set_receipt(stamp(routing, caller, &call, before >> RECEIPT_SHIFT));
    release(own.lane, u64::from(call.bytes));
    answered(own, &call, u64::from(call.bytes) + bytes);
    trace::answered(routing, &call, bytes);
    Fate::Routed
}

/// The receipt of this epoch: the one that the caller's last answer had, or a new one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
fn stamp(routing: &Routing, caller: *mut Lane, call: &Call, epoch: u64) -> u32 {
    // SAFETY: as in `route`. One word, so that a receipt is seen with its epoch; volatile, as other programs change it.
    let last = unsafe { (&raw const (*caller).receipt).read_volatile() };
    if last as u32 != 0 && last >> 32 == u64::from(epoch as u32) {
        return last as u32;
    }
    let next = receipt(routing, call.caller, call.caller_generation, epoch);
    // SAFETY: as above.
    unsafe { (&raw mut (*caller).receipt).write_volatile(epoch << 32 | u64::from(next)) };
    next
}

/// What proves that a caller has read an answer of this epoch.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
pub(crate) fn receipt(routing: &Routing, index: u32, generation: u32, epoch: u64) -> u32 {
    let hash = sip(routing.key, [u64::from(index) << 32 | u64::from(generation), epoch]);
    ((epoch & 0xff) << 24) as u32 | (hash & 0x00ff_ffff) as u32
}

/// An answer is not given to the caller after all.
#[inline(always)]
fn take_back(caller: *mut Lane, bytes: u64) {
    // SAFETY: as in `route`.
    unsafe { atomic::add(&raw mut (*caller).delivered, bytes.wrapping_neg()) };
}

/// Counts an answer, which has so many bytes with its call.
#[inline(always)]
fn answered(own: &Own, call: &Call, bytes: u64) {
    count::answered(bytes);
    // SAFETY: the helper takes nothing.
    let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(call.started_ns);
    // SAFETY: as in `route`. Only this lane's own sends, which are under its socket's lock, change it.
    unsafe {
        let latency = (&raw const (*own.lane).latency_ns).read_volatile();
        let next = if took >= latency { took } else { latency - ((latency - took) >> 3) };
        (&raw mut (*own.lane).latency_ns).write_volatile(next);
    }
    if let Some(member) = MEMBERS.get_ptr_mut(call.member & (MEMBERS_MAX - 1)) {
        let bucket = core::hint::black_box(latency::bucket(took)).min(latency::BUCKETS - 1);
        // SAFETY: as in `route`.
        unsafe {
            atomic::add(&raw mut (*member).sum_ns, took);
            atomic::add(&raw mut (*member).bytes, bytes);
            atomic::add((&raw mut (*member).took).cast::<u64>().add(bucket), 1);
        }
    }
}
