//! Any bytes as the commands of a client, whole and in pieces, against the reference.
#![no_main]

#[expect(dead_code, reason = "each target uses a part")]
#[path = "../../../agent/tests/wire/check/mod.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::resp::check(data));
