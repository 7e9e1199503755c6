//! Any bytes as operations on one connection, against plain lists of messages.
#![no_main]

#[path = "../../../agent-common/tests/model/check/mod.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
