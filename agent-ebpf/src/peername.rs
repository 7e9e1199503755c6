//! cgroup/getpeername4 and getpeername6: an application whose connect was diverted is told the address that it asked for.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    address::{self, socket},
    diverted,
};

/// The only number that there is.
const GO_ON: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    peername::<false>(&ctx);
    GO_ON
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    peername::<true>(&ctx);
    GO_ON
}

#[inline(always)]
fn peername<const V6: bool>(ctx: &SockAddrContext) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: not null.
    let Some(trace) = (unsafe { diverted::of(sk) }) else { return };
    if address::named::<V6>(ctx) == (trace.to, trace.to_port) {
        address::name::<V6>(ctx, &trace.from, trace.from_port);
    }
}
