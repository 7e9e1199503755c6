//! Sockets whose connect went to a sibling: what is remembered of it, and what becomes of it.

use core::{mem::offset_of, ptr};

use agent_common::{
    Listener,
    failover::{Diverted, FAILED_FOR_NS},
};
use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
        bpf_sock, bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    },
    programs::SockOpsContext,
};

use crate::{
    atomic,
    maps::{DIVERTED, PEERS},
    sock, words,
};

/// What is remembered, if its connect was diverted.
///
/// # Safety
/// `sk` is the context's socket and not null. Programs change the value under the socket's lock only.
#[inline(always)]
pub(crate) unsafe fn of<'a>(sk: *mut bpf_sock) -> Option<&'a mut Diverted> {
    // SAFETY: the map and the socket are what the helper takes; it gives a value of the map, or null.
    unsafe {
        bpf_sk_storage_get(ptr::from_ref(&DIVERTED).cast_mut().cast(), sk.cast(), ptr::null_mut(), 0).cast::<Diverted>().as_mut()
    }
}

/// Remembers it. Without memory for that, the connect goes where it goes all the same.
///
/// # Safety
/// As for [`of`].
#[inline(always)]
pub(crate) unsafe fn remember(sk: *mut bpf_sock, value: &mut Diverted) {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let map = ptr::from_ref(&DIVERTED).cast_mut().cast();
    // SAFETY: as above. A value that was there already is not replaced by the helper.
    unsafe {
        if let Some(stored) = bpf_sk_storage_get(map, sk.cast(), ptr::from_mut(value).cast(), create).cast::<Diverted>().as_mut()
        {
            *stored = *value;
        }
    }
}

/// Forgets a former connect of the socket, which goes to `to` now. If that is where it was diverted to, another copy of the
/// program has just done that: both are attached for a moment when one replaces the other.
///
/// # Safety
/// As for [`of`].
#[inline(always)]
pub(crate) unsafe fn forget(sk: *mut bpf_sock, to: &Listener) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(former) = of(sk)
            && !(former.to == to.address && former.to_port == to.port)
        {
            bpf_sk_storage_delete(ptr::from_ref(&DIVERTED).cast_mut().cast(), sk.cast());
        }
    }
}

/// A connect begins: if it was diverted, this program is to be told what becomes of it.
#[inline(always)]
pub(crate) fn begins(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    const FLAGS: u32 = BPF_SOCK_OPS_RTO_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: not null.
    if unsafe { of(sk) }.is_some() {
        // Others may have theirs. Without it, that the sibling is gone is noticed by others alone.
        let _ = ctx.set_cb_flags((ctx.cb_flags() | FLAGS).cast_signed());
    }
}

/// A connection is established: whom it leads to lives.
#[inline(always)]
pub(crate) fn succeeded(sk: *mut bpf_sock) {
    // SAFETY: not null; and a word of a map's value, which is never freed while the program is loaded.
    unsafe {
        if let Some(trace) = of(sk)
            && let Some(peer) = PEERS.get_ptr_mut(trace.peer)
            && (&raw const (*peer).failed_until_ns).read_volatile() != 0
        {
            atomic::store(&raw mut (*peer).failed_until_ns, 0);
        }
    }
}

/// A socket goes from one state to another. What ends a connect before there was a connection is a failure only if the kernel
/// has an error to report: applications may give up as they like.
#[inline(always)]
pub(crate) fn changes(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    const ARGS: usize = offset_of!(bpf_sock_ops, __bindgen_anon_1);
    // SAFETY: words of the context that the kernel passed.
    let (from, to) = unsafe { (words::read::<ARGS, _>(ctx.ops), words::read::<{ ARGS + 4 }, _>(ctx.ops)) };
    // SAFETY: not null.
    if from == BPF_TCP_SYN_SENT && to == BPF_TCP_CLOSE && unsafe { sock::has_error(sk) } {
        failed(sk);
    }
}

/// What was sent was not answered in time.
#[inline(always)]
pub(crate) fn waits(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: a word of the context that the kernel passed.
    if unsafe { words::read::<{ offset_of!(bpf_sock_ops, state) }, _>(ctx.ops) } == BPF_TCP_SYN_SENT {
        failed(sk);
    }
}

/// For a while nothing more is sent to this sibling.
#[inline(always)]
fn failed(sk: *mut bpf_sock) {
    // SAFETY: not null; and words of a map's value, as above. The helper takes nothing.
    unsafe {
        let Some(trace) = of(sk) else { return };
        let Some(peer) = PEERS.get_ptr_mut(trace.peer) else { return };
        atomic::store(&raw mut (*peer).failed_until_ns, bpf_ktime_get_ns() + FAILED_FOR_NS);
        if trace.failed == 0 {
            trace.failed = 1;
            atomic::add(&raw mut (*peer).failed, 1);
        }
    }
}
