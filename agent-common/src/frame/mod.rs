//! The MOA frame protocol: what a frame looks like, and the rules that both ends of a connection keep.
//!
//! `docs/protocol.md` says it in words, complete enough to implement from. Everything here is plain code without sockets
//! or clocks. The header is the same for the kernel programs, which have no standard library; the rest needs `std`.

mod flags;
#[cfg(feature = "std")]
mod flow;
mod header;
#[cfg(feature = "std")]
mod hello;
#[cfg(feature = "std")]
mod inbox;
mod kind;
#[cfg(feature = "std")]
mod meta;
#[cfg(feature = "std")]
mod outbox;
mod service;
pub mod status;
mod stream;

pub use flags::Flags;
#[cfg(feature = "std")]
pub use flow::{Overrun, ReceiveWindow, SendWindow};
pub use header::{Broken, Header, offset};
#[cfg(feature = "std")]
pub use hello::{BadHello, Hello, Lane, Offer, Role, Traits, WEIGHT_MAX, Windows};
#[cfg(feature = "std")]
pub use inbox::{Inbox, Violation};
pub use kind::Kind;
#[cfg(feature = "std")]
pub use meta::{BadMeta, Entries, MetaBuilder, entries, find, id, property};
#[cfg(feature = "std")]
pub use outbox::{COPY_BELOW, Flooded, Frame, Message, Outbox, Released};
pub use service::service_hash;
pub use stream::{is_after, next_stream};

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"MO";
/// The version of the fixed header.
pub const VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// A frame is at most this long in all; a longer message goes on in DATA frames.
pub const FRAME_MAX: usize = 64 * 1024;
/// What header and metadata may have together, so that there is always room for a body.
pub const HEAD_MAX: usize = FRAME_MAX / 2;
/// The smallest window that may be announced: one frame of any size always fits into a fresh window.
pub const WINDOW_MIN: u32 = 64 * 1024;
/// The largest window, so that a credit can never overflow what counts it.
pub const WINDOW_MAX: u32 = 1 << 30;
