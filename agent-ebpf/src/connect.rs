//! cgroup/connect4 and connect6: a connect to a gate of the agent's goes to a sibling while the agent cannot take it.
//!
//! The kernel runs them for every connect below the cgroup, under the lock of the socket, before it looks for a route.
//! Whatever they decide, they let it go on.

use core::{hint::black_box, mem::offset_of};

use agent_common::{
    Listener,
    failover::{Decision, Diverted, Failover, Gate, Peer, SIBLINGS_MAX, Sibling, WORKERS_MAX},
    role,
};
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, bpf_sock_tuple},
    helpers::{bpf_ktime_get_ns, generated::bpf_sk_lookup_tcp, generated::bpf_sk_release},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    address::{self, netns, socket},
    atomic, count, diverted,
    maps::{FAILOVER, GATES, PEERS},
    sock, words,
};

/// The number that lets a connect go on.
const GO_ON: i32 = 1;
/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// The loopback device of every namespace.
const LOOPBACK: u32 = 1;
/// None of the siblings is of a family that can be reached.
const UNREACHABLE: u32 = u32::MAX;
/// None of those that can be reached is believed alive.
const DOWN: u32 = u32::MAX - 1;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<false>(&ctx);
    GO_ON
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<true>(&ctx);
    GO_ON
}

#[inline(always)]
fn connect<const V6: bool>(ctx: &SockAddrContext) {
    // SAFETY: words of the context that the kernel passed.
    let (kind, protocol) = unsafe {
        (
            words::read::<{ offset_of!(bpf_sock_addr, type_) }, _>(ctx.sock_addr),
            words::read::<{ offset_of!(bpf_sock_addr, protocol) }, _>(ctx.sock_addr),
        )
    };
    if kind != STREAM || protocol != TCP {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    let to = destination::<V6>(ctx);
    let Some(gate) = gate(&to) else {
        // SAFETY: not null.
        unsafe { diverted::forget(sk, &to) };
        return;
    };
    let decision = decide::<V6>(ctx, sk, &to, gate);
    if !decision.is_diverted() {
        // SAFETY: not null.
        unsafe { diverted::forget(sk, &to) };
    }
    count::decided(decision);
}

/// Where it is going. To no address means to the loopback.
#[inline(always)]
fn destination<const V6: bool>(ctx: &SockAddrContext) -> Listener {
    let (mut address, port) = address::named::<V6>(ctx);
    if address[0] | address[1] | address[3] == 0 {
        if address::is_v4(&address) {
            address[3] = 0x7f00_0001_u32.to_be();
        } else if address[2] == 0 {
            address[3] = 1_u32.to_be();
        }
    }
    Listener::at(netns(ctx), address, port)
}

/// The gate there. A listener on every address is only known from a stranger's on another machine if the connection stays on
/// this one.
#[inline(always)]
fn gate(to: &Listener) -> Option<&'static Gate> {
    // SAFETY: a value that is replaced meanwhile is another's at worst, and as whole as this one.
    unsafe {
        if let Some(gate) = GATES.get(to) {
            return Some(gate);
        }
        if !to.is_loopback() {
            return None;
        }
        if to.is_v4()
            && let Some(gate) = GATES.get(to.any_v4())
        {
            return Some(gate);
        }
        GATES.get(to.any())
    }
}

#[inline(always)]
fn decide<const V6: bool>(ctx: &SockAddrContext, sk: *mut bpf_sock, to: &Listener, gate: &Gate) -> Decision {
    // SAFETY: not null.
    if unsafe { sock::leg(sk) }.is_some_and(|leg| leg.role == role::DIAL) {
        return Decision::Exempt;
    }
    let Some(failover) = FAILOVER.get_ptr(0) else { return Decision::Bypassed };
    // SAFETY: a word of a map's value, which is never freed while the program is loaded.
    if unsafe { (&raw const (*failover).on).read_volatile() } == 0 {
        return Decision::Bypassed;
    }
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(why) = shut::<V6>(ctx, to, failover, now) else { return Decision::Local };
    match divert::<V6>(ctx, sk, to, gate, now) {
        Ok(()) => why,
        Err(why) => why,
    }
}

/// Why the agent does not take it, if it does not.
#[inline(always)]
fn shut<const V6: bool>(ctx: &SockAddrContext, to: &Listener, failover: *const Failover, now: u64) -> Option<Decision> {
    if !is_listened_to::<V6>(ctx, to) {
        return Some(Decision::NoListener);
    }
    // SAFETY: words of a map's value, as above.
    let (hold_until, away_until) = unsafe {
        ((&raw const (*failover).hold_until_ns).read_volatile(), (&raw const (*failover).away_until_ns).read_volatile())
    };
    if now >= hold_until && moa_hangs(now) != 0 {
        return Some(Decision::Stale);
    }
    (now < away_until).then_some(Decision::Away)
}

/// Whether the socket that would take it is the agent's: of several with one port, on every address or not, the kernel finds
/// the one that it would give the connection to.
#[inline(always)]
fn is_listened_to<const V6: bool>(ctx: &SockAddrContext, to: &Listener) -> bool {
    /// `BPF_F_CURRENT_NETNS`.
    const HERE: u64 = u64::MAX;
    // Ports have 16 bits.
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    let port = (to.port as u16).to_be();
    // SAFETY: integers only.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if !V6 || to.is_v4() {
        tuple.__bindgen_anon_1.ipv4.daddr = to.address[3];
        tuple.__bindgen_anon_1.ipv4.dport = port;
        // SAFETY: the member that was written.
        size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv4 })
    } else {
        tuple.__bindgen_anon_1.ipv6.daddr = to.address;
        tuple.__bindgen_anon_1.ipv6.dport = port;
        // SAFETY: as above.
        size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv6 })
    };
    #[expect(clippy::cast_possible_truncation, reason = "some bytes")]
    let size = size as u32;
    // SAFETY: the helper takes the context of this program, and a tuple of one of its two sizes.
    let found = unsafe { bpf_sk_lookup_tcp(ctx.sock_addr.cast(), &raw mut tuple, size, HERE, 0) };
    if found.is_null() {
        return false;
    }
    // SAFETY: not null, and ours until it is released, which is done once.
    unsafe {
        let is_ours = sock::leg(found).is_some_and(|leg| leg.role == role::LISTENER);
        bpf_sk_release(found.cast());
        is_ours
    }
}

/// Not 0 if a worker has not said for too long that it lives.
///
/// A function of its own, with a name that is seen outside, as the verifier looks at such a one once, and not on each of the
/// ways that lead to it: inlined, it is almost more than the verifier has patience for.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn moa_hangs(now: u64) -> u32 {
    /// Beats that are looked at without a branch, of which the verifier would follow both ways.
    const TOGETHER: usize = 8;
    let Some(failover) = FAILOVER.get_ptr(0) else { return 0 };
    // SAFETY: words of a map's value, as above.
    let (workers, stale, beats) = unsafe {
        (
            u64::from((&raw const (*failover).workers).read_volatile()),
            (&raw const (*failover).stale_ns).read_volatile(),
            (&raw const (*failover).beats).cast::<u64>(),
        )
    };
    // What is less than that, after 1 was taken away, is stale, but for 0. (A clock runs for centuries before it has 63 bits.)
    let limit = now.saturating_sub(stale).saturating_sub(1);
    for group in 0..WORKERS_MAX / TOGETHER {
        let first = group * TOGETHER;
        if first as u64 >= workers {
            break;
        }
        let at = black_box(first) & (WORKERS_MAX - TOGETHER);
        let mut stale = 0;
        for one in 0..TOGETHER {
            // SAFETY: one of the beats.
            let beat = unsafe { beats.add(at + one).read_volatile() }.wrapping_sub(1);
            // The highest bit says of each difference whether it is negative.
            stale |= beat.wrapping_sub(limit) & !beat & ((first + one) as u64).wrapping_sub(workers);
        }
        if stale >> 63 != 0 {
            return 1;
        }
    }
    0
}

/// Sends the connect to the best sibling that it can reach, or says why not.
#[inline(always)]
fn divert<const V6: bool>(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    to: &Listener,
    gate: &Gate,
    now: u64,
) -> Result<(), Decision> {
    if gate.count == 0 {
        return Err(Decision::NoSibling);
    }
    let reach = reach::<V6>(sk, to).ok_or(Decision::Bound)?;
    let (sibling, peer) = choose(gate, &reach, now)?;
    address::name::<V6>(ctx, &sibling.address, sibling.port);
    let mut trace = Diverted {
        from: to.address,
        to: sibling.address,
        from_port: to.port,
        to_port: sibling.port,
        peer: sibling.peer,
        failed: 0,
    };
    // SAFETY: not null; and a counter in a map's value.
    unsafe {
        diverted::remember(sk, &mut trace);
        atomic::add(&raw mut (*peer).diverted, 1);
    }
    Ok(())
}

/// The families that a socket can reach.
struct Reach {
    v4: bool,
    v6: bool,
}

/// None if it is bound to the loopback, by address or by device.
#[inline(always)]
fn reach<const V6: bool>(sk: *mut bpf_sock, to: &Listener) -> Option<Reach> {
    // SAFETY: words of a socket that is not null.
    let (source, device) = unsafe { (address::source::<V6>(sk), words::read::<{ offset_of!(bpf_sock, bound_dev_if) }, _>(sk)) };
    if device == LOOPBACK || Listener::at(0, source, 0).is_loopback() {
        return None;
    }
    let is_free = source[0] | source[1] | source[2] | source[3] == 0;
    Some(Reach { v4: !V6 || to.is_v4() || is_free, v6: V6 && !to.is_v4() })
}

/// The first sibling that is believed alive, with what is known of it.
#[inline(always)]
fn choose(gate: &Gate, reach: &Reach, now: u64) -> Result<(Sibling, *mut Peer), Decision> {
    let chosen = moa_choose(gate, u32::from(reach.v4), u32::from(reach.v6), now);
    if chosen == UNREACHABLE {
        return Err(Decision::NoSibling);
    }
    if chosen as usize >= SIBLINGS_MAX {
        return Err(Decision::AllDown);
    }
    // SAFETY: one of the siblings.
    let sibling = unsafe { gate.siblings.as_ptr().add(chosen as usize & (SIBLINGS_MAX - 1)).read_volatile() };
    let peer = PEERS.get_ptr_mut(sibling.peer).ok_or(Decision::AllDown)?;
    Ok((sibling, peer))
}

/// The number of the first sibling that is believed alive. A function of its own as [`moa_hangs`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn moa_choose(gate: *const Gate, v4: u32, v6: u32, now: u64) -> u32 {
    if gate.is_null() {
        return UNREACHABLE;
    }
    let mut none = UNREACHABLE;
    for at in 0..SIBLINGS_MAX {
        // SAFETY: the gate is there, and this one of its siblings.
        let sibling = unsafe {
            if at >= (&raw const (*gate).count).read_volatile() as usize {
                break;
            }
            (&raw const (*gate).siblings).cast::<Sibling>().add(at).read_volatile()
        };
        if (if sibling.is_v4() { v4 } else { v6 }) == 0 {
            continue;
        }
        none = DOWN;
        let Some(peer) = PEERS.get_ptr(sibling.peer) else { continue };
        // SAFETY: words of a map's value, as above.
        let (told, failed) = unsafe {
            ((&raw const (*peer).told_down_until_ns).read_volatile(), (&raw const (*peer).failed_until_ns).read_volatile())
        };
        if told <= now && failed <= now {
            #[expect(clippy::cast_possible_truncation, reason = "one of eight")]
            return at as u32;
        }
    }
    none
}
