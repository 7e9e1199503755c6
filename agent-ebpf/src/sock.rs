//! Sockets, as both kinds of programs see them: their storage, and what the kernel knows of them beyond the context.

use core::{arch::asm, ffi::c_void, ptr};

use agent_common::{Leg, Offsets};
use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_tcp_sock},
};

use crate::maps::LEGS;

/// Where the kernel that runs this keeps its members. The agent fills it in when it loads the programs, and the kernel
/// takes it for constants.
#[unsafe(no_mangle)]
static MOA_OFFSETS: Offsets =
    Offsets { write_seq: 0, ulp_ops: 0, flags: 0, zerocopy: 0, socket: 0, file: 0, file_flags: 0, err: 0 };

/// What the socket's storage holds, if anything.
///
/// # Safety
/// `sk` is the context's socket and not null. Nothing else changes the value meanwhile but the agent, which replaces it as
/// a whole, so that this one is then not seen any more.
#[inline(always)]
pub(crate) unsafe fn leg<'a>(sk: *mut bpf_sock) -> Option<&'a mut Leg> {
    // SAFETY: the map and the socket are what the helper takes; it gives a value of the map, or null.
    unsafe { bpf_sk_storage_get(ptr::from_ref(&LEGS).cast_mut().cast(), sk.cast(), ptr::null_mut(), 0).cast::<Leg>().as_mut() }
}

/// Puts a value into the socket's storage.
///
/// # Safety
/// As for [`leg`].
#[inline(always)]
pub(crate) unsafe fn set_leg(sk: *mut bpf_sock, value: &mut Leg) -> bool {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above.
    let stored = unsafe {
        bpf_sk_storage_get(ptr::from_ref(&LEGS).cast_mut().cast(), sk.cast(), ptr::from_mut(value).cast(), create).cast::<Leg>()
    };
    // SAFETY: as above. A value that was there already is not replaced by the helper.
    unsafe { stored.as_mut() }.map(|stored| *stored = *value).is_some()
}

/// Forgets what the socket's storage holds.
///
/// # Safety
/// As for [`leg`].
#[inline(always)]
pub(crate) unsafe fn forget_leg(sk: *mut bpf_sock) {
    // SAFETY: as above. That there was nothing is as good.
    unsafe { bpf_sk_storage_delete(ptr::from_ref(&LEGS).cast_mut().cast(), sk.cast()) };
}

/// What the kernel knows of a TCP socket.
pub(crate) struct Tcp {
    /// The sequence number that the next byte gets which is given to TCP.
    pub(crate) write_seq: u32,
    /// Whether a protocol is on top of it.
    pub(crate) has_ulp: bool,
    /// Whether it waits for completions of `MSG_ZEROCOPY`.
    pub(crate) zerocopy: bool,
}

/// Looks into the kernel's own structures. None if they are not known.
///
/// # Safety
/// As for [`leg`].
#[inline(always)]
pub(crate) unsafe fn tcp(sk: *mut bpf_sock) -> Option<Tcp> {
    // SAFETY: a static of this object; volatile, as the value is not the one of the source.
    let at = unsafe { ptr::read_volatile(&raw const MOA_OFFSETS) };
    if at.write_seq == 0 {
        return None;
    }
    // SAFETY: the helper takes the context's socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast::<c_void>()) }.cast::<u8>();
    if tcp.is_null() {
        return None;
    }
    // SAFETY: the verifier knows the structure, and refuses an offset at which there is no such member.
    unsafe {
        let flags: u64 = ptr::read_volatile(tcp.add(at.flags as usize).cast());
        Some(Tcp {
            write_seq: ptr::read_volatile(tcp.add(at.write_seq as usize).cast()),
            has_ulp: is_set(ptr::read_volatile(tcp.add(at.ulp_ops as usize).cast())),
            zerocopy: (flags >> at.zerocopy) & 1 != 0,
        })
    }
}

/// Whether the socket has an error to report.
///
/// # Safety
/// As for [`leg`].
#[inline(always)]
pub(crate) unsafe fn has_error(sk: *mut bpf_sock) -> bool {
    // SAFETY: as in `tcp`.
    unsafe {
        let at = ptr::read_volatile(&raw const MOA_OFFSETS);
        let tcp = bpf_skc_to_tcp_sock(sk.cast::<c_void>()).cast::<u8>();
        !tcp.is_null() && ptr::read_volatile(tcp.add(at.err as usize).cast::<u32>()) != 0
    }
}

/// `O_NONBLOCK`, as on every architecture that Rust's standard library supports but MIPS and SPARC.
const O_NONBLOCK: u32 = 0o4000;

/// Whether calls on the socket wait, as the program that has it opened says now.
///
/// # Safety
/// As for [`leg`].
#[inline(always)]
pub(crate) unsafe fn blocks(sk: *mut bpf_sock) -> bool {
    // SAFETY: as in `tcp`.
    let at = unsafe { ptr::read_volatile(&raw const MOA_OFFSETS) };
    // SAFETY: as in `tcp`. Each pointer is one of the structure that the verifier knows, and is looked at only if there is one.
    unsafe {
        let tcp = bpf_skc_to_tcp_sock(sk.cast::<c_void>()).cast::<u8>();
        if tcp.is_null() {
            return true;
        }
        let socket: *const u8 = ptr::read_volatile(tcp.add(at.socket as usize).cast());
        if socket.is_null() {
            return true;
        }
        let file: *const u8 = ptr::read_volatile(socket.add(at.file as usize).cast());
        if file.is_null() {
            return true;
        }
        let flags: u32 = ptr::read_volatile(file.add(at.file_flags as usize).cast());
        flags & O_NONBLOCK == 0
    }
}

/// Whether a pointer is not null. Written out, as the verifier takes nothing else of a pointer than such a branch, and the
/// compiler makes arithmetic of it.
#[inline(always)]
fn is_set(pointer: u64) -> bool {
    let set: u64;
    // SAFETY: registers only.
    unsafe {
        asm!("{0} = 1", "if {1} != 0 goto +1", "{0} = 0", out(reg) set, in(reg) pointer, options(nomem, nostack, pure));
    }
    set != 0
}
