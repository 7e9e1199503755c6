//! Any bytes as a connection's frames, whole and in pieces, and as metadata and HELLO, against the reference.
#![no_main]

#[expect(dead_code, reason = "each target uses a part")]
#[path = "../../../agent-common/tests/codec/check/mod.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::frame::check(data));
