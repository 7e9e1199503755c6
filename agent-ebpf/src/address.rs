//! Addresses in the contexts of connects and of names of peers.

use core::mem::offset_of;

use agent_common::V4_MAPPED;
use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::bpf_get_netns_cookie,
    programs::SockAddrContext,
};

use crate::words;

const IP4: usize = offset_of!(bpf_sock_addr, user_ip4);
const IP6: usize = offset_of!(bpf_sock_addr, user_ip6);
const PORT: usize = offset_of!(bpf_sock_addr, user_port);
const SOURCE4: usize = offset_of!(bpf_sock, src_ip4);
const SOURCE6: usize = offset_of!(bpf_sock, src_ip6);

/// The address in the context, and its port in host order.
#[inline(always)]
pub(crate) fn named<const V6: bool>(ctx: &SockAddrContext) -> ([u32; 4], u32) {
    let from = ctx.sock_addr;
    // SAFETY: words of the context that the kernel passed.
    unsafe {
        let address = if V6 {
            [
                words::read::<IP6, _>(from),
                words::read::<{ IP6 + 4 }, _>(from),
                words::read::<{ IP6 + 8 }, _>(from),
                words::read::<{ IP6 + 12 }, _>(from),
            ]
        } else {
            [0, 0, V4_MAPPED, words::read::<IP4, _>(from)]
        };
        (address, swapped(words::read::<PORT, _>(from)))
    }
}

/// Puts another address in its place.
#[inline(always)]
pub(crate) fn name<const V6: bool>(ctx: &SockAddrContext, address: &[u32; 4], port: u32) {
    let to = ctx.sock_addr;
    // SAFETY: words of the context that the kernel passed, which programs of these kinds may write.
    unsafe {
        if V6 {
            words::write::<IP6, _>(to, address[0]);
            words::write::<{ IP6 + 4 }, _>(to, address[1]);
            words::write::<{ IP6 + 8 }, _>(to, address[2]);
            words::write::<{ IP6 + 12 }, _>(to, address[3]);
        } else {
            words::write::<IP4, _>(to, address[3]);
        }
        words::write::<PORT, _>(to, swapped(port));
    }
}

/// The address that a socket is bound to.
///
/// # Safety
/// `sk` is the context's socket and not null.
#[inline(always)]
pub(crate) unsafe fn source<const V6: bool>(sk: *const bpf_sock) -> [u32; 4] {
    // SAFETY: words of the socket.
    unsafe {
        if V6 {
            [
                words::read::<SOURCE6, _>(sk),
                words::read::<{ SOURCE6 + 4 }, _>(sk),
                words::read::<{ SOURCE6 + 8 }, _>(sk),
                words::read::<{ SOURCE6 + 12 }, _>(sk),
            ]
        } else {
            [0, 0, V4_MAPPED, words::read::<SOURCE4, _>(sk)]
        }
    }
}

/// Whether the address is an IPv4 one.
#[inline(always)]
pub(crate) const fn is_v4(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == V4_MAPPED
}

/// The socket of the context.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is the kernel's.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// The cookie of its namespace.
#[inline(always)]
pub(crate) fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// A port from network to host order, or back: the lower half of a word.
#[inline(always)]
const fn swapped(port: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    let port = port as u16;
    u16::from_be(port) as u32
}
