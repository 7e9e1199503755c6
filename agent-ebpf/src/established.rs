//! sock_ops: counts the connections to the agent's listeners when they are established.
//!
//! The kernel runs it for every TCP socket below the cgroup, whoever's it is. It changes none of them.

use core::{arch::asm, mem::offset_of};

use agent_common::{Listener, V4_MAPPED};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_ops},
    helpers::bpf_get_netns_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};

use crate::{
    atomic,
    maps::{COUNTS, LISTENERS},
};

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

/// Runs at every event of every socket; two of the events matter.
#[sock_ops]
pub(crate) fn established(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        _ => None,
    };
    0
}

/// The agent's end: its own address is the listener's.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    let own = own_end(ctx)?;
    if !(watched(&own) || watched_by_wildcard(&own)) {
        return None;
    }
    let counts = COUNTS.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this map's value, which is never freed while the program is loaded.
    unsafe { atomic::add(if own.is_v4() { &raw mut (*counts).passive_v4 } else { &raw mut (*counts).passive_v6 }, 1) };
    Some(())
}

/// An application's end: the other address is the listener's. One that listens on every address is only known from a
/// stranger with the same port on another machine if the connection stays on this one.
#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let other = other_end(ctx)?;
    if !(watched(&other) || (stays_here(ctx, &other)? && watched_by_wildcard(&other))) {
        return None;
    }
    let counts = COUNTS.get_ptr_mut(0)?;
    // SAFETY: as above.
    unsafe { atomic::add(if other.is_v4() { &raw mut (*counts).active_v4 } else { &raw mut (*counts).active_v6 }, 1) };
    Some(())
}

/// A connection to one of the machine's own addresses comes from that address, unless its socket was bound to another.
#[inline(always)]
fn stays_here(ctx: &SockOpsContext, other: &Listener) -> Option<bool> {
    Some(other.is_loopback() || own_end(ctx)?.address == other.address)
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

/// Reads the word at an offset of the context. Written out, as the verifier takes only whole words at fixed offsets, and
/// the compiler merges reads into wider ones, or into one at an offset that it computes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a word was loaded, with zeros above it")]
fn word<const OFFSET: usize>(ctx: &SockOpsContext) -> u32 {
    let value: u64;
    // SAFETY: the offset is that of a word in the context that the kernel passed.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {offset})", out(reg) value, in(reg) ctx.ops, offset = const OFFSET, options(readonly, nostack));
    }
    value as u32
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}
