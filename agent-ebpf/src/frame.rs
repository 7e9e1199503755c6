//! The header of a frame, where it lies in the message.
//!
//! Fields are read and written at their offsets, in the frame's own order of bytes. The verifier has seen that the whole
//! header is there; helpers that might move it are not called while a `Frame` is used.

use core::{arch::asm, mem::offset_of, ptr};

use agent_common::frame::{FRAME_MAX, Flags, HEAD_MAX, HEADER_LEN, Kind, MAGIC, VERSION, offset};
use aya_ebpf::{bindings::sk_msg_md, helpers::bpf_msg_pull_data, programs::SkMsgContext};

/// The number of a kind that everybody skips.
pub(crate) const SKIPPED: u8 = 0xff;

/// A message that begins with a header.
#[derive(Clone, Copy)]
pub(crate) struct Frame(*mut u8);

/// What the header of a frame says, without what tells what it belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) flags: u16,
    pub(crate) body: u32,
    pub(crate) stream: u32,
}

/// Bytes of the message. Written out, as the verifier takes only fixed offsets from the context, and the compiler keeps the
/// address of the member.
#[inline(always)]
pub(crate) fn size(ctx: &SkMsgContext) -> u64 {
    let size: u64;
    // SAFETY: a word in the context that the kernel passed.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {at})", out(reg) size, in(reg) ctx.msg, at = const offset_of!(sk_msg_md, size), options(readonly, nostack));
    }
    size
}

/// Whether the message begins with a frame of this kind, as far as it can be seen without moving anything.
#[inline(always)]
pub(crate) fn begins_with(ctx: &SkMsgContext, kind: Kind) -> bool {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + 4 > end {
        return false;
    }
    let [m, o] = MAGIC;
    // SAFETY: the verifier has seen that four bytes are there.
    let first = unsafe { ptr::read_volatile(data as *const u32) };
    first == u32::from_ne_bytes([m, o, VERSION, kind as u8])
}

impl Frame {
    /// The message in one piece, which is what makes queueing it all or nothing. None if the kernel has no memory for that.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the size of a message is a word")]
    pub(crate) fn pull(ctx: &SkMsgContext, bytes: u64) -> Option<Self> {
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_msg_pull_data(ctx.msg, 0, bytes as u32, 0) } != 0 {
            return None;
        }
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + HEADER_LEN > end { None } else { Some(Self(data as *mut u8)) }
    }

    /// What it says, if the message is one whole frame as everybody accepts it.
    #[inline(always)]
    pub(crate) fn head(self, bytes: u64) -> Option<Head> {
        let [m, o] = MAGIC;
        let [.., version, kind] = self.word(offset::MAGIC).to_ne_bytes();
        let meta = u16::from_be(self.half(offset::META_LEN));
        let body = u32::from_be(self.word(offset::BODY_LEN));
        let head =
            Head { kind, flags: u16::from_be(self.half(offset::FLAGS)), body, stream: u32::from_be(self.word(offset::STREAM)) };
        let len = HEADER_LEN as u64 + u64::from(meta) + u64::from(body);
        let whole = self.half(offset::MAGIC) == u16::from_ne_bytes([m, o]) && version == VERSION && len == bytes;
        let small = HEADER_LEN as u64 + u64::from(meta) <= HEAD_MAX as u64 && len <= FRAME_MAX as u64;
        (whole && small && head.is_sound()).then_some(head)
    }

    #[inline(always)]
    pub(crate) fn via(self) -> u64 {
        u64::from_be(self.long(offset::VIA))
    }

    #[inline(always)]
    pub(crate) fn set_via(self, via: u64) {
        // SAFETY: inside the header.
        unsafe { ptr::write_volatile(self.0.add(offset::VIA).cast(), via.to_be()) };
    }

    #[inline(always)]
    pub(crate) fn service(self) -> u64 {
        u64::from_be(self.long(offset::SERVICE))
    }

    /// The timeout, or the status.
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        u32::from_be(self.word(offset::WORD))
    }

    #[inline(always)]
    pub(crate) fn receipt(self) -> u32 {
        u32::from_be(self.word(offset::RECEIPT))
    }

    #[inline(always)]
    pub(crate) fn set_receipt(self, receipt: u32) {
        // SAFETY: inside the header.
        unsafe { ptr::write_volatile(self.0.add(offset::RECEIPT).cast(), receipt.to_be()) };
    }

    #[inline(always)]
    pub(crate) fn set_flags(self, flags: u16) {
        // SAFETY: inside the header.
        unsafe { ptr::write_volatile(self.0.add(offset::FLAGS).cast(), flags.to_be()) };
    }

    #[inline(always)]
    pub(crate) fn set_kind(self, kind: u8) {
        // SAFETY: inside the header.
        unsafe { ptr::write_volatile(self.0.add(offset::KIND), kind) };
    }

    #[inline(always)]
    fn half(self, at: usize) -> u16 {
        // SAFETY: inside the header.
        unsafe { ptr::read_volatile(self.0.add(at).cast()) }
    }

    #[inline(always)]
    fn word(self, at: usize) -> u32 {
        // SAFETY: inside the header.
        unsafe { ptr::read_volatile(self.0.add(at).cast()) }
    }

    #[inline(always)]
    fn long(self, at: usize) -> u64 {
        // SAFETY: inside the header.
        unsafe { ptr::read_volatile(self.0.add(at).cast()) }
    }
}

impl Head {
    #[inline(always)]
    pub(crate) fn has(&self, flags: Flags) -> bool {
        self.flags & flags.0 != 0
    }

    /// Whether the kind may have these fields. What the program does not look at is for the agent to check.
    #[inline(always)]
    fn is_sound(&self) -> bool {
        match self.kind {
            REQUEST => self.stream != 0 && !self.has(Flags::TO_CALLER),
            RESPONSE => self.has(Flags::TO_CALLER) && !self.has(Flags::ONE_WAY),
            kind => kind != 0 && (kind <= Kind::GoAway as u8 || kind >= Kind::SKIPPABLE),
        }
    }
}

pub(crate) const REQUEST: u8 = Kind::Request as u8;
pub(crate) const RESPONSE: u8 = Kind::Response as u8;
