//! sock_ops: finds the connections of the agent when they are established, counts them, and enrols both ends.
//!
//! The kernel runs it for every TCP socket below the cgroup, whoever's it is. It changes only those of connections to the
//! agent's own listeners, and of those that the agent opens itself, if both ends are on this machine.

use core::mem::offset_of;

use agent_common::{End, LEASE_NS, Leg, Listener, Pass, Refusal, V4_MAPPED, lane::kind, mode, role};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
    },
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns, generated::bpf_map_delete_elem},
    macros::sock_ops,
    programs::SockOpsContext,
};

use aya_log_ebpf::{debug, warn};

use crate::{
    atomic, count, diverted,
    maps::{COUNTS, DIALS, EXCLUDED, LISTENERS, SHARED, SOCKS},
    sock, words,
};

/// What the kernel says of a map that is full.
const E2BIG: i32 = -7;
/// And of a socket that is in a map with another program.
const EBUSY: i32 = -16;

/// `AF_INET`.
const V4: u32 = 2;
/// `AF_INET6`.
const V6: u32 = 10;

/// An IPv6 address of the context, word by word.
macro_rules! v6 {
    ($ctx:expr, $field:ident) => {{
        const AT: usize = offset_of!(bpf_sock_ops, $field);
        [word::<{ AT }>($ctx), word::<{ AT + 4 }>($ctx), word::<{ AT + 8 }>($ctx), word::<{ AT + 12 }>($ctx)]
    }};
}

/// Runs at every event of every socket. Those of connects matter for the ones that went to a sibling.
#[sock_ops]
pub(crate) fn established(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => socket(&ctx).map(|sk| diverted::begins(&ctx, sk)),
        BPF_SOCK_OPS_STATE_CB => socket(&ctx).map(|sk| diverted::changes(&ctx, sk)),
        BPF_SOCK_OPS_RTO_CB => socket(&ctx).map(|sk| diverted::waits(&ctx, sk)),
        _ => None,
    };
    0
}

/// The end that accepted: the agent's, by the mark that its listener left, or that of a service which the agent calls.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    let own = own_end(ctx)?;
    // SAFETY: not null.
    let mark = unsafe { sock::leg(sk) }.map_or(0, |leg| leg.role);
    if mark == role::LISTENER || watched(&own) || watched_by_wildcard(&own) {
        let counts = COUNTS.get_ptr_mut(0)?;
        // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
        unsafe { atomic::add(if own.is_v4() { &raw mut (*counts).passive_v4 } else { &raw mut (*counts).passive_v6 }, 1) };
    }
    let other = other_end(ctx)?;
    if mark == role::LISTENER {
        enrol(ctx, sk, &own, &other, role::AGENT);
        return Some(());
    }
    let dial = end(ctx, &own, &other).peer();
    // A connection that the agent has opened is here before its other end is.
    // SAFETY: only whether there is an entry is looked at.
    if unsafe { DIALS.get(dial) }.is_none() || !enrol(ctx, sk, &own, &other, role::OTHER) {
        return Some(());
    }
    // Last of all: when the agent finds it gone, it relies on this end being enrolled. If the agent took it, it did not wait.
    if DIALS.remove(dial).is_err() {
        forget_enrolled(sk);
    }
    Some(())
}

/// The end that connected: the agent's, by the mark that it left, or an application's. A listener on every address is only
/// known from a stranger with the same port on another machine if the connection stays on this one.
#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    diverted::succeeded(sk);
    forget_former(ctx, sk);
    let (own, other) = (own_end(ctx)?, other_end(ctx)?);
    // SAFETY: not null.
    if unsafe { sock::leg(sk) }.is_some_and(|leg| leg.role == role::DIAL) {
        if enrol(ctx, sk, &own, &other, role::AGENT) {
            // If it finds no room, the other end is not enrolled.
            let _ = DIALS.insert(end(ctx, &own, &other), 1, 0);
        }
        return Some(());
    }
    if !(watched(&other) || (stays_here(&own, &other) && watched_by_wildcard(&other))) {
        return None;
    }
    let counts = COUNTS.get_ptr_mut(0)?;
    // SAFETY: as above.
    unsafe { atomic::add(if other.is_v4() { &raw mut (*counts).active_v4 } else { &raw mut (*counts).active_v6 }, 1) };
    // Whoever blocks now waits for the connection, and will for its answers. One that only has a limit for connecting is told
    // at its first send.
    // SAFETY: not null.
    if SHARED.get(0).is_some_and(|shared| shared.mode & mode::NON_BLOCKING != 0) && unsafe { sock::blocks(sk) } {
        count::refused(Refusal::Blocking);
        return Some(());
    }
    enrol(ctx, sk, &own, &other, role::OTHER);
    Some(())
}

/// Takes the socket among those whose bytes are redirected, or counts why not.
#[inline(always)]
fn enrol(ctx: &SockOpsContext, sk: *mut bpf_sock, own: &Listener, other: &Listener, role: u32) -> bool {
    if is_enrolled(ctx, sk) {
        return false;
    }
    match try_enrol(ctx, sk, own, other, role) {
        Ok(()) => {
            count::enrolled();
            debug!(ctx, "enrolled: role {}, port {} to port {}", role, own.port, other.port);
            true
        }
        Err(why) => {
            // SAFETY: not null.
            unsafe { sock::forget_leg(sk) };
            count::refused(why);
            match why {
                Refusal::Full | Refusal::Busy | Refusal::Kernel => {
                    warn!(ctx, "not enrolled: port {} to port {}, reason {}", own.port, other.port, why as u32);
                }
                _ => debug!(ctx, "not enrolled: port {} to port {}, reason {}", own.port, other.port, why as u32),
            }
            false
        }
    }
}

/// Takes a socket out of the map that was disconnected (`connect` to `AF_UNSPEC`) and connects again. What the former
/// connection left unread goes with it, as it does with TCP, and would otherwise be read on this one.
#[inline(always)]
fn forget_former(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: not null.
    let Some(leg) = (unsafe { sock::leg(sk) }) else { return };
    if leg.is_enrolled() && !is_enrolled(ctx, sk) {
        forget_enrolled(sk);
    }
}

/// Takes a socket out of the map.
#[inline(always)]
fn forget_enrolled(sk: *mut bpf_sock) {
    // SAFETY: not null.
    let Some(leg) = (unsafe { sock::leg(sk) }) else { return };
    let mut former = leg.peer.peer();
    // SAFETY: the key is one of the map's. That it is not there is as good.
    unsafe { bpf_map_delete_elem((&raw const SOCKS).cast_mut().cast(), (&raw mut former).cast()) };
    // SAFETY: not null.
    unsafe { sock::forget_leg(sk) };
}

/// Whether another copy of this program has enrolled the socket for this connection, as both are attached for a moment
/// when one replaces the other.
#[inline(always)]
fn is_enrolled(ctx: &SockOpsContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: not null.
    unsafe { sock::leg(sk) }.is_some_and(|leg| {
        leg.is_enrolled()
            && leg.peer.receives == word::<{ offset_of!(bpf_sock_ops, snd_nxt) }>(ctx)
            && leg.peer.sends == word::<{ offset_of!(bpf_sock_ops, rcv_nxt) }>(ctx)
    })
}

#[inline(always)]
fn try_enrol(ctx: &SockOpsContext, sk: *mut bpf_sock, own: &Listener, other: &Listener, role: u32) -> Result<(), Refusal> {
    may_enrol(sk, own, other)?;
    let shared = SHARED.get(0).ok_or(Refusal::Kernel)?;
    let end = end(ctx, own, other);
    let direction = if role == role::AGENT { mode::FROM_AGENT } else { mode::TO_AGENT };
    let mut leg = Leg {
        peer: end.peer(),
        role,
        generation: shared.generation,
        tcp: u32::from(shared.mode & direction == 0),
        why: Pass::Off as u32,
        redirected: 0,
        limit: shared.bound,
        passed: 0,
        lane: kind::NEW,
        lane_index: 0,
        lane_generation: 0,
        reserved: 0,
    };
    // SAFETY: not null.
    if !unsafe { sock::set_leg(sk, &mut leg) } {
        return Err(Refusal::Kernel);
    }
    let mut key = end;
    // SAFETY: the context is the kernel's.
    let updated = SOCKS.update(&mut key, unsafe { &mut *ctx.ops }, 0);
    updated.map_err(|error| match error {
        E2BIG => Refusal::Full,
        EBUSY => Refusal::Busy,
        _ => Refusal::Kernel,
    })
}

#[inline(always)]
fn may_enrol(sk: *mut bpf_sock, own: &Listener, other: &Listener) -> Result<(), Refusal> {
    let shared = SHARED.get(0).ok_or(Refusal::Kernel)?;
    if !stays_here(own, other) {
        return Err(Refusal::Remote);
    }
    if shared.mode == 0 {
        return Err(Refusal::Off);
    }
    // SAFETY: the helper takes nothing.
    if shared.alive_ns + LEASE_NS < unsafe { bpf_ktime_get_ns() } {
        return Err(Refusal::Stale);
    }
    // SAFETY: only whether there is an entry is looked at.
    if unsafe { EXCLUDED.get(own.netns) }.is_some() {
        return Err(Refusal::Excluded);
    }
    // SAFETY: not null.
    if unsafe { (*sk).bound_dev_if } != 0 {
        return Err(Refusal::Special);
    }
    // SAFETY: not null.
    match unsafe { sock::tcp(sk) } {
        Some(tcp) if !tcp.has_ulp && !tcp.zerocopy => Ok(()),
        Some(_) => Err(Refusal::Special),
        None => Err(Refusal::Kernel),
    }
}

/// The socket, unless the event concerns less than a whole one.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is the kernel's.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

#[inline(always)]
fn end(ctx: &SockOpsContext, own: &Listener, other: &Listener) -> End {
    End {
        netns: own.netns,
        own: own.address,
        other: other.address,
        own_port: own.port,
        other_port: other.port,
        sends: word::<{ offset_of!(bpf_sock_ops, snd_nxt) }>(ctx),
        receives: word::<{ offset_of!(bpf_sock_ops, rcv_nxt) }>(ctx),
    }
}

/// A connection to one of the machine's own addresses comes from that address, unless its socket was bound to another.
#[inline(always)]
fn stays_here(own: &Listener, other: &Listener) -> bool {
    other.is_loopback() || own.address == other.address
}

#[inline(always)]
fn watched(end: &Listener) -> bool {
    // SAFETY: only whether there is an entry is looked at.
    unsafe { LISTENERS.get(end).is_some() }
}

#[inline(always)]
fn watched_by_wildcard(end: &Listener) -> bool {
    (end.is_v4() && watched(&end.any_v4())) || watched(&end.any())
}

#[inline(always)]
fn own_end(ctx: &SockOpsContext) -> Option<Listener> {
    let address = match ctx.family() {
        V4 => [0, 0, V4_MAPPED, word::<{ offset_of!(bpf_sock_ops, local_ip4) }>(ctx)],
        V6 => v6!(ctx, local_ip6),
        _ => return None,
    };
    Some(Listener::at(netns(ctx), address, ctx.local_port()))
}

#[inline(always)]
fn other_end(ctx: &SockOpsContext) -> Option<Listener> {
    let address = match ctx.family() {
        V4 => [0, 0, V4_MAPPED, word::<{ offset_of!(bpf_sock_ops, remote_ip4) }>(ctx)],
        V6 => v6!(ctx, remote_ip6),
        _ => return None,
    };
    // This port is in network order, unlike the local one.
    Some(Listener::at(netns(ctx), address, u32::from_be(ctx.remote_port())))
}

/// The word at an offset of the context.
#[inline(always)]
fn word<const OFFSET: usize>(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the offset is that of a word in the context that the kernel passed.
    unsafe { words::read::<OFFSET, _>(ctx.ops) }
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}
