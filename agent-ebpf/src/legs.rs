//! sk_msg: runs in the sender's `send`, under the lock of its socket, and decides whether the bytes go straight to the
//! other end or by TCP.
//!
//! A direction begins redirected and falls back to TCP once, for life. docs/kernel.md proves that no byte overtakes
//! another, and that no more waits than may.

use agent_common::{
    Leg, Pass, Shared,
    lane::{kind, slot},
    mode, role,
};
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_sock, sk_action::SK_PASS},
    helpers::bpf_msg_redirect_hash,
    macros::sk_msg,
    programs::SkMsgContext,
};

use crate::{
    atomic, count, frame, lane,
    maps::{BLOCKING, READS, SHARED, SLOTS, SOCKS},
    sock,
};

/// The program that stays attached to a socket for as long as the socket lives, and runs the one that is in the slot.
#[sk_msg]
pub(crate) fn stub(ctx: SkMsgContext) -> u32 {
    // SAFETY: the slots hold programs of this kind only.
    unsafe { SLOTS.tail_call(&ctx, slot::LEG) };
    undecided()
}

/// Nobody is there who could decide: it is TCP. What was redirected before may not be read yet.
#[inline(always)]
pub(crate) fn undecided() -> u32 {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
        unsafe { atomic::add(&raw mut (*shared).fallbacks, 1) };
    }
    SK_PASS
}

/// The program in slot 0.
#[sk_msg]
pub(crate) fn leg(ctx: SkMsgContext) -> u32 {
    // SAFETY: the context is the kernel's; its socket is the sender's, which is locked.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: checked above.
    let Some(leg) = (unsafe { sock::leg(sk) }) else { return SK_PASS };
    let bytes = frame::size(&ctx);
    if leg.tcp == 0 {
        match may_redirect(sk, leg) {
            Ok(()) => {
                if leg.role == role::OTHER && leg.lane != kind::STREAM && lane::is_one(&ctx, leg) {
                    // SAFETY: the slots hold programs of this kind only. Without one, the agent gets the message.
                    unsafe { SLOTS.tail_call(&ctx, slot::LANE) };
                }
                return to_other_end(&ctx, leg, bytes);
            }
            Err(why) => fall_back(leg, why),
        }
    }
    pass(leg, bytes)
}

/// The program in slot 2, for what a lane gives to the agent: nothing has changed since `leg` saw that it may be redirected,
/// as the socket is locked.
#[sk_msg]
pub(crate) fn stay(ctx: SkMsgContext) -> u32 {
    // SAFETY: as in `leg`.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: checked above.
    let Some(leg) = (unsafe { sock::leg(sk) }) else { return SK_PASS };
    to_other_end(&ctx, leg, frame::size(&ctx))
}

/// Whether anything of this direction may still be redirected.
#[inline(always)]
fn may_redirect(sk: *mut bpf_sock, leg: &mut Leg) -> Result<(), Pass> {
    // SAFETY: the caller checked it.
    let tcp = unsafe { sock::tcp(sk) }.ok_or(Pass::Unproven)?;
    if tcp.write_seq != leg.peer.receives {
        return Err(Pass::NotFirst);
    }
    if tcp.has_ulp {
        return Err(Pass::Ulp);
    }
    if tcp.zerocopy {
        return Err(Pass::ZeroCopy);
    }
    let shared: &Shared = SHARED.get(0).ok_or(Pass::Unproven)?;
    let is_agent = leg.role == role::AGENT;
    // What the agent has begun to redirect it ends itself, once that was read.
    if shared.generation != leg.generation && !(is_agent && leg.redirected > 0) {
        return Err(Pass::Off);
    }
    // SAFETY: the caller checked it.
    if !is_agent && shared.mode & mode::NON_BLOCKING != 0 && unsafe { sock::blocks(sk) } {
        // A map that displaces old entries has room.
        let _ = BLOCKING.insert(leg.peer, leg.redirected, 0);
        return Err(Pass::Blocking);
    }
    Ok(())
}

/// Sends the message to the other end, if so much may wait there, or else by TCP.
#[inline(always)]
fn to_other_end(ctx: &SkMsgContext, leg: &mut Leg, bytes: u64) -> u32 {
    // The agent knows itself how much may wait at the other end.
    let fits = if leg.role == role::AGENT { Ok(()) } else { within_bound(leg, bytes) };
    if let Err(why) = fits.and_then(|()| if redirect(ctx, leg, bytes) { Ok(()) } else { Err(Pass::NoPeer) }) {
        fall_back(leg, why);
        return pass(leg, bytes);
    }
    SK_PASS
}

/// Sends the message to the other end, if it is there.
#[inline(always)]
pub(crate) fn redirect(ctx: &SkMsgContext, leg: &mut Leg, bytes: u64) -> bool {
    let at = (&raw mut leg.peer).cast();
    // SAFETY: the key is one of the map's; a socket that is not in it gives no verdict to redirect.
    let found = unsafe { bpf_msg_redirect_hash(ctx.msg, (&raw const SOCKS).cast_mut().cast(), at, u64::from(BPF_F_INGRESS)) };
    let found = found == i64::from(SK_PASS);
    if found {
        leg.redirected += bytes;
        count::redirected(leg.role == role::AGENT, bytes);
    }
    found
}

/// Leaves the message to TCP.
#[inline(always)]
fn pass(leg: &mut Leg, bytes: u64) -> u32 {
    if leg.passed == 0 {
        count::fell_back(leg.why);
    }
    leg.passed += bytes;
    count::passed(bytes);
    SK_PASS
}

/// Whether so many bytes more may wait at the agent's end, by what the agent says that it has read.
#[inline(always)]
fn within_bound(leg: &mut Leg, bytes: u64) -> Result<(), Pass> {
    if leg.redirected + bytes <= leg.limit {
        return Ok(());
    }
    // SAFETY: the value is copied at once.
    let read = unsafe { READS.get(leg.peer) }.copied().unwrap_or(0);
    leg.limit = read + SHARED.get(0).ok_or(Pass::Unproven)?.bound;
    if leg.redirected + bytes <= leg.limit { Ok(()) } else { Err(Pass::Bound) }
}

/// From now on it is TCP. A reader that has taken all that was redirected might not look for what comes after it; and the
/// agent looks for ends that block only when it sees the counter move.
#[inline(always)]
fn fall_back(leg: &mut Leg, why: Pass) {
    leg.tcp = 1;
    leg.why = why as u32;
    if (leg.redirected > 0 || matches!(why, Pass::Blocking))
        && let Some(shared) = SHARED.get_ptr_mut(0)
    {
        // SAFETY: as in `stub`.
        unsafe { atomic::add(&raw mut (*shared).fallbacks, 1) };
    }
}
