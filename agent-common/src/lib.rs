//! What the kernel programs and user space agree on: map keys, map values and constants.
//!
//! Everything here crosses a boundary between two programs that were perhaps not built together, so the layout of every
//! type is asserted, and a change of any of them is a new [`SCHEMA`].
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

mod counts;
mod end;
pub mod failover;
pub mod frame;
pub mod lane;
pub mod latency;
mod leg;
mod listener;
#[cfg(feature = "aya")]
mod pod;
#[cfg(feature = "sdk")]
pub mod sdk;
mod sip;
mod verdict;

pub use counts::Counts;
pub use end::End;
pub use leg::{LEASE_NS, Leg, Offsets, Shared, mode, role};
pub use listener::{Listener, V4_MAPPED, WATCHED};
pub use sip::sip;
pub use verdict::{Pass, REASONS, Refusal, Sent, Verdicts};

/// The version of the maps' names, keys and values. One more with every change: pins and objects of another schema are
/// refused, never reinterpreted.
pub const SCHEMA: u32 = 5;

/// How the schema is marked in an object file, in a section of its own: the prefix, then [`SCHEMA`] in little-endian.
pub const SCHEMA_MARK: [u8; 16] = {
    let [a, b, c, d] = SCHEMA.to_le_bytes();
    let [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11] = SCHEMA_PREFIX;
    [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, a, b, c, d]
};

/// What precedes the schema in [`SCHEMA_MARK`].
pub const SCHEMA_PREFIX: [u8; 12] = *b"moa-schema:\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_prefix_and_the_schema() {
        assert_eq!(SCHEMA_MARK[..12], SCHEMA_PREFIX);
        assert_eq!(SCHEMA_MARK[12..], SCHEMA.to_le_bytes());
    }
}
