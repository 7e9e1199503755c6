//! Shows what was decided about the messages of the one service that somebody traces. While nobody does, a message costs one
//! load and one comparison.

use agent_common::{
    frame::Flags,
    lane::{Call, NOBODY, Routing, Traced, Unrouted},
};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::{
    atomic,
    frame::{Frame, Head, RESPONSE},
    lane::Own,
    maps::{ROUTING, TRACE},
};

/// Whether somebody traces this service.
#[inline(always)]
fn is_wanted(routing: &Routing, service: u64) -> bool {
    // SAFETY: a reference; volatile, as the agent changes it.
    let traced = unsafe { (&raw const routing.traced).read_volatile() };
    traced == service && traced != 0
}

/// A call was routed to this lane.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
pub(crate) fn called(routing: &Routing, call: &Call, bytes: u64) {
    if is_wanted(routing, call.service) {
        tell(Traced { took_ns: 0, bytes: bytes as u32, verdict: 0, answer: 0, ..of(call, call.started_ns) });
    }
}

/// The answer to this call was routed.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
pub(crate) fn answered(routing: &Routing, call: &Call, bytes: u64) {
    if is_wanted(routing, call.service) {
        // SAFETY: the helper takes nothing.
        let now = unsafe { bpf_ktime_get_ns() };
        let took_ns = now.saturating_sub(call.started_ns);
        tell(Traced { took_ns, bytes: bytes as u32, verdict: 0, answer: 1, ..of(call, now) });
    }
}

/// A message was not routed.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
pub(crate) fn unrouted(frame: Frame, head: &Head, own: &Own, bytes: u64, why: Unrouted) {
    let Some(routing) = ROUTING.get(0) else { return };
    let service = frame.service();
    if !is_wanted(routing, service) {
        return;
    }
    let (is_answer, nobody) = (head.kind == RESPONSE || head.has(Flags::TO_CALLER), (NOBODY, 0));
    let sender = (own.index, own.generation);
    let (caller, callee) = if is_answer { (nobody, sender) } else { (sender, nobody) };
    tell(Traced {
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
        service,
        took_ns: 0,
        caller: caller.0,
        caller_generation: caller.1,
        callee: callee.0,
        callee_generation: callee.1,
        stream: head.stream,
        bytes: bytes as u32,
        verdict: Traced::verdict_of(why),
        answer: u32::from(is_answer),
    });
}

#[inline(always)]
fn of(call: &Call, at_ns: u64) -> Traced {
    Traced {
        at_ns,
        service: call.service,
        took_ns: 0,
        caller: call.caller,
        caller_generation: call.caller_generation,
        callee: call.callee,
        callee_generation: call.callee_generation,
        stream: call.stream,
        bytes: 0,
        verdict: 0,
        answer: 0,
    }
}

#[inline(always)]
fn tell(traced: Traced) {
    if let Some(mut entry) = TRACE.reserve::<Traced>(0) {
        entry.write(traced);
        entry.submit(0);
    } else if let Some(routing) = ROUTING.get_ptr_mut(0) {
        // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
        unsafe { atomic::add(&raw mut (*routing).untold, 1) };
    }
}
