//! sk_msg: what is sent on lanes. One message that is one whole frame goes straight to the socket of the application that
//! it is for; everything else to the agent's end, as on any leg.

use agent_common::{
    Leg,
    frame::Kind,
    lane::{Lane, Unrouted, kind, lane_state, slot},
};
use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_msg,
    programs::SkMsgContext,
};

use crate::{
    atomic, count,
    frame::{self, Frame, REQUEST, RESPONSE},
    legs,
    maps::{LANE, LANES, SLOTS},
    request, response, sock, trace,
};

/// What became of a message.
pub(crate) enum Fate {
    /// It goes to another application.
    Routed,
    /// It goes to the agent, as it was.
    Unrouted(Unrouted),
    /// It goes to the agent, as it was, by a verdict that stands in the message and must be replaced.
    Taken,
}

/// The lane that a message is sent on.
pub(crate) struct Own {
    pub(crate) lane: *mut Lane,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Whether the socket is a lane, by how it has begun. Ordinary connections pay for this with their first two messages.
#[inline(always)]
pub(crate) fn is_one(ctx: &SkMsgContext, leg: &mut Leg) -> bool {
    if leg.lane == kind::LANE {
        return true;
    }
    if leg.lane == kind::NEW {
        leg.lane = if frame::begins_with(ctx, Kind::Hello) { kind::GREETED } else { kind::STREAM };
        return false;
    }
    leg.lane = kind::STREAM;
    let own = leg.peer.peer();
    // SAFETY: the value is copied at once.
    let Some(index) = unsafe { LANES.get(own) }.copied() else { return false };
    let Some(lane) = LANE.get_ptr_mut(index) else { return false };
    // A place that is found here is not given to another while this program runs; one that is closed has another generation
    // only after its state says so.
    // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
    let generation = unsafe { (&raw const (*lane).generation).read_volatile() };
    barrier(lane);
    if !is_of(lane, generation) {
        return false;
    }
    leg.lane_index = index;
    leg.lane_generation = generation;
    leg.lane = kind::LANE;
    true
}

/// The program in slot 1.
#[sk_msg]
pub(crate) fn lane(ctx: SkMsgContext) -> u32 {
    // SAFETY: the context is the kernel's; its socket is the sender's, which is locked.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: checked above.
    let Some(leg) = (unsafe { sock::leg(sk) }) else { return SK_PASS };
    let bytes = frame::size(&ctx);
    match route(&ctx, leg, bytes) {
        Fate::Routed => return SK_PASS,
        Fate::Taken => {
            count::unrouted(Unrouted::Unknown);
            // However much waits there: this happens once for a call that the agent takes at this moment. Nobody waits for
            // the answer any more, so that it is no loss if the agent's end is gone.
            return if legs::redirect(&ctx, leg, bytes) { SK_PASS } else { SK_DROP };
        }
        Fate::Unrouted(why) => {
            count::unrouted(why);
            if matches!(why, Unrouted::NotWhole) {
                leg.lane = kind::STREAM;
            }
        }
    }
    // SAFETY: the slots hold programs of this kind only.
    unsafe { SLOTS.tail_call(&ctx, slot::STAY) };
    legs::undecided()
}

#[inline(always)]
fn route(ctx: &SkMsgContext, leg: &Leg, bytes: u64) -> Fate {
    if bytes < agent_common::frame::HEADER_LEN as u64 || bytes > agent_common::frame::FRAME_MAX as u64 {
        return Fate::Unrouted(Unrouted::NotWhole);
    }
    let Some(frame) = Frame::pull(ctx, bytes) else { return Fate::Unrouted(Unrouted::Kernel) };
    let Some(head) = frame.head(bytes) else { return Fate::Unrouted(Unrouted::NotWhole) };
    if head.kind != REQUEST && head.kind != RESPONSE {
        return Fate::Unrouted(Unrouted::ForAgent);
    }
    let (index, generation) = (leg.lane_index, leg.lane_generation);
    let Some(lane) = LANE.get_ptr_mut(index) else { return Fate::Unrouted(Unrouted::Kernel) };
    let own = Own { lane, index, generation };
    if !own.lives() {
        return Fate::Unrouted(Unrouted::CallerGone);
    }
    let fate = if head.kind == REQUEST {
        request::route(ctx, frame, &head, &own, bytes)
    } else {
        response::route(ctx, frame, &head, &own, bytes)
    };
    match fate {
        Fate::Unrouted(why) => trace::unrouted(frame, &head, &own, bytes, why),
        Fate::Taken => trace::unrouted(frame, &head, &own, bytes, Unrouted::Unknown),
        Fate::Routed => {}
    }
    fate
}

impl Own {
    /// Whether it is not over.
    #[inline(always)]
    pub(crate) fn lives(&self) -> bool {
        is_of(self.lane, self.generation)
    }
}

/// Whether the lane at this place is that of this generation, and not over.
#[inline(always)]
pub(crate) fn is_of(lane: *const Lane, generation: u32) -> bool {
    // SAFETY: as above; volatile, as the agent may change them at any moment.
    let (now, state) = unsafe { ((&raw const (*lane).generation).read_volatile(), (&raw const (*lane).state).read_volatile()) };
    now == generation && (state == lane_state::OPEN || state == lane_state::PAUSED)
}

/// What was written before is seen by whoever reads what is read after it, and the other way round.
#[inline(always)]
fn barrier(lane: *mut Lane) {
    // SAFETY: as above.
    unsafe { atomic::fetch_add(&raw mut (*lane).made, 0) };
}
