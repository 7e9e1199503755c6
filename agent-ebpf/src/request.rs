//! A call on a lane: who may make it, which instance gets it, and its entry in the table of calls in flight.
//!
//! Everything that is taken on the way is given back if it is not routed, and the agent gets the frame as it was sent.

use agent_common::{
    End, LEASE_NS,
    frame::Flags,
    lane::{
        BY_SHARE, Call, Lane, Leave, MEMBERS_MAX, RECEIPT_SHIFT, Route, RouteKey, Routing, TURNS_MAX, Turn, Unrouted, access,
        calls_and_bytes, lane_state, pick, work_of,
    },
    sip,
};
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action::SK_PASS},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    programs::SkMsgContext,
};

use crate::{
    atomic,
    calls::Place,
    count,
    frame::{Frame, Head, SKIPPED},
    lane::{Fate, Own, is_of},
    maps::{ACCESS, LANE, ROUTES, ROUTING, SHARED, SOCKS, TURNS},
    trace,
};

const MILLION: u64 = 1_000_000;
const NS_PER_MS: u64 = 1_000_000;
/// Of the entries of [`Route::turns`], which are a power of two.
const TURNS_MASK: usize = TURNS_MAX - 1;

/// What is known of a call before an instance is picked.
struct Asked {
    service: u64,
    snapshot: u64,
    now: u64,
    deadline_ns: u64,
    bytes: u64,
}

/// Room that was taken at an instance.
struct Reserved {
    lane: *mut Lane,
    index: u32,
    generation: u32,
    member: u32,
}

#[inline(always)]
pub(crate) fn route(ctx: &SkMsgContext, frame: Frame, head: &Head, own: &Own, bytes: u64) -> Fate {
    let Some(routing) = ROUTING.get(0) else { return Fate::Unrouted(Unrouted::Kernel) };
    acknowledge(routing, own, frame.receipt());
    if !head.has(Flags::END_STREAM) || head.has(Flags::ONE_WAY.with(Flags::SHADOW).with(Flags::SLOW_PATH)) {
        return Fate::Unrouted(Unrouted::Flags);
    }
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if routing.on == 0 || SHARED.get(0).is_none_or(|shared| shared.alive_ns + LEASE_NS < now) {
        return Fate::Unrouted(Unrouted::Off);
    }
    let (service, snapshot) = (frame.service(), snapshot(routing));
    // SAFETY: what is read of it counts only if the snapshot is the same afterwards: until then nobody changes it.
    let Some(route) = (unsafe { ROUTES.get(RouteKey { service, snapshot: snapshot & 1 }) }) else {
        return Fate::Unrouted(Unrouted::NoRoute);
    };
    if let Err(why) = may_go(route, head, own, service, snapshot) {
        if matches!(why, Unrouted::Share) {
            frame.set_receipt(BY_SHARE);
        }
        return Fate::Unrouted(why);
    }
    let timeout_ms = match frame.number() {
        0 => route.timeout_ms,
        asked => asked,
    };
    let asked = Asked { service, snapshot, now, deadline_ns: now + u64::from(timeout_ms) * NS_PER_MS, bytes };
    let taken = match reserve(picked(route), bytes) {
        Err(_) => reserve(picked(route), bytes),
        taken => taken,
    };
    match taken {
        Ok(taken) => send(ctx, frame, head, own, routing, &asked, &taken),
        Err(why) => Fate::Unrouted(why),
    }
}

/// Takes a receipt of answers that the caller has read: everything before it is no longer waiting.
#[inline(always)]
fn acknowledge(routing: &Routing, own: &Own, receipt: u32) {
    if receipt == 0 {
        return;
    }
    // SAFETY: the pointer is to a map's value, which is never freed while the program is loaded. Only this lane's own sends,
    // which are under its socket's lock, change `acked`.
    let (delivered, acked) =
        unsafe { ((&raw const (*own.lane).delivered).read_volatile(), (&raw const (*own.lane).acked).read_volatile()) };
    let newest = delivered >> RECEIPT_SHIFT;
    // The newest one with this low byte.
    let back = newest.wrapping_sub(u64::from(receipt >> 24)) & 0xff;
    let epoch = newest.wrapping_sub(back);
    if back > newest
        || epoch <= acked >> RECEIPT_SHIFT
        || crate::response::receipt(routing, own.index, own.generation, epoch) != receipt
    {
        return;
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*own.lane).acked).write_volatile(epoch << RECEIPT_SHIFT) };
}

/// Whether the call is one that may be routed.
#[inline(always)]
fn may_go(route: &Route, head: &Head, own: &Own, service: u64, snapshot: u64) -> Result<(), Unrouted> {
    if head.body > route.body_max {
        return Err(Unrouted::TooLarge);
    }
    // SAFETY: as in `acknowledge`.
    let leave = Leave { service, label: unsafe { (*own.lane).label }, snapshot: (snapshot & 1) as u32 };
    // SAFETY: only whether there is an entry is looked at.
    if route.access != access::OPEN && unsafe { ACCESS.get(leave) }.is_none() {
        return Err(Unrouted::Denied);
    }
    if route.to_agent_per_million > 0 && chance(MILLION) < u64::from(route.to_agent_per_million) {
        return Err(Unrouted::Share);
    }
    Ok(())
}

/// The instance whose turn it is, by the route's policy.
#[inline(always)]
fn picked(route: &Route) -> Turn {
    let len = u64::from(route.turns_len);
    if route.policy == pick::TURNS {
        // SAFETY: as in `acknowledge`.
        let turn = TURNS.get_ptr_mut(route.turn).map_or(0, |turn| unsafe { atomic::fetch_add(turn, 1) });
        return entry(route, if len == 0 { 0 } else { turn % len });
    }
    let at = chance(len);
    let one = entry(route, at);
    if route.policy == pick::CHANCE || len < 2 {
        return one;
    }
    let other = entry(route, (at + 1 + chance(len - 1)) % len);
    let by_latency = route.policy == pick::FASTER;
    if load(&other, by_latency) < load(&one, by_latency) { other } else { one }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "programs have 64 bits")]
fn entry(route: &Route, at: u64) -> Turn {
    let at = (core::hint::black_box(at) as usize) & TURNS_MASK;
    // SAFETY: the index is below the array's length, which the verifier must see and the compiler would check once more.
    unsafe { *route.turns.as_ptr().add(at) }
}

/// What an instance has to do. One that is over has nothing to do, and is not picked by that: it takes no call.
#[inline(always)]
fn load(turn: &Turn, by_latency: bool) -> u64 {
    let Some(lane) = LANE.get(turn.lane) else { return u64::MAX };
    if lane.generation != turn.generation || lane.state != lane_state::OPEN {
        return u64::MAX;
    }
    let (in_flight, _) = calls_and_bytes(lane.work);
    if by_latency { (in_flight + 1).wrapping_mul(lane.latency_ns.min(1 << 36)) } else { in_flight }
}

/// A number below another one, by chance.
#[inline(always)]
fn chance(below: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    (u64::from(unsafe { bpf_get_prandom_u32() }) * below) >> 32
}

/// Takes room for a call at an instance, if it has any.
#[inline(always)]
fn reserve(turn: Turn, bytes: u64) -> Result<Reserved, Unrouted> {
    let lane = LANE.get_ptr_mut(turn.lane).ok_or(Unrouted::NoInstance)?;
    // SAFETY: as in `acknowledge`.
    let (generation, state, calls_max, bound) =
        unsafe { ((*lane).generation, (*lane).state, u64::from((*lane).calls_max), (*lane).bound) };
    if generation != turn.generation || state != lane_state::OPEN {
        return Err(Unrouted::NoInstance);
    }
    // SAFETY: as above.
    let (in_flight, queued) = calls_and_bytes(unsafe { atomic::fetch_add(&raw mut (*lane).work, work_of(bytes)) });
    if in_flight >= calls_max || queued + bytes > bound {
        release(lane, bytes);
        return Err(if in_flight >= calls_max { Unrouted::CalleeCalls } else { Unrouted::CalleeBytes });
    }
    Ok(Reserved { lane, index: turn.lane, generation, member: turn.member & (MEMBERS_MAX - 1) })
}

/// Gives back the room that a call has taken.
#[inline(always)]
pub(crate) fn release(lane: *mut Lane, bytes: u64) {
    // SAFETY: as in `acknowledge`.
    unsafe { atomic::add(&raw mut (*lane).work, work_of(bytes).wrapping_neg()) };
}

/// Enters the call into the table, and sends it, unless something has changed meanwhile.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
fn send(ctx: &SkMsgContext, frame: Frame, head: &Head, own: &Own, routing: &Routing, asked: &Asked, to: &Reserved) -> Fate {
    let Some(place) = Place::take(own.index) else {
        release(to.lane, asked.bytes);
        return Fate::Unrouted(Unrouted::CallsFull);
    };
    // SAFETY: the helper takes nothing.
    let words = [asked.now, u64::from(own.index) << 32 | u64::from(unsafe { bpf_get_prandom_u32() })];
    let (via, before, receipt) = (place.via(sip(routing.key, words)), frame.via(), frame.receipt());
    let call = Call {
        via: before,
        service: asked.service,
        started_ns: asked.now,
        deadline_ns: asked.deadline_ns,
        caller: own.index,
        caller_generation: own.generation,
        callee: to.index,
        callee_generation: to.generation,
        stream: head.stream,
        bytes: asked.bytes as u32,
        member: to.member,
        flags: u32::from(head.flags),
    };
    // SAFETY: as in `acknowledge`. What is read of it counts only if the generation is the same afterwards.
    let mut end: End = unsafe { (&raw const (*to.lane).end).read_volatile() };
    // A full barrier, which is what the proof needs here: whoever ends a lane changes its generation, and then looks at all
    // calls. Either it sees this one, or its new generation is seen here.
    place.enter(via, call);
    // SAFETY: as in `acknowledge`.
    unsafe { atomic::add(&raw mut (*own.lane).made, 1) };
    if !own.lives() || !is_of(to.lane, to.generation) || snapshot(routing) != asked.snapshot {
        return undo(frame, own, to, asked, (place, via), Unrouted::Changed);
    }
    frame.set_via(via);
    frame.set_flags(head.flags & !Flags::VERIFIED.0);
    frame.set_receipt(0);
    if redirect(ctx, &mut end) {
        count::called();
        trace::called(routing, &call, asked.bytes);
        return Fate::Routed;
    }
    frame.set_via(before);
    frame.set_flags(head.flags);
    frame.set_receipt(receipt);
    undo(frame, own, to, asked, (place, via), Unrouted::NoInstance)
}

/// Takes back a call that was entered and not sent. If somebody else has taken it, he answers it: then the agent must not
/// take the frame for a second call, and gets one that it skips.
#[inline(always)]
fn undo(frame: Frame, own: &Own, to: &Reserved, asked: &Asked, (place, via): (Place, u64), why: Unrouted) -> Fate {
    if !place.take_out(via) {
        frame.set_kind(SKIPPED);
    }
    // SAFETY: as in `acknowledge`.
    unsafe { atomic::add(&raw mut (*own.lane).made, 1_u64.wrapping_neg()) };
    release(to.lane, asked.bytes);
    Fate::Unrouted(why)
}

/// Sends the message to an application, if its socket is there.
#[inline(always)]
pub(crate) fn redirect(ctx: &SkMsgContext, end: &mut End) -> bool {
    SOCKS.redirect_msg(ctx, end, u64::from(BPF_F_INGRESS)) == i64::from(SK_PASS)
}

/// The snapshot in force at this moment.
#[inline(always)]
fn snapshot(routing: &Routing) -> u64 {
    // SAFETY: a reference; volatile, as the agent changes it.
    unsafe { (&raw const routing.snapshot).read_volatile() }
}
