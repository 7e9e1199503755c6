//! Any bytes as a call and as a reply's body, against serde_json.
#![no_main]

#[expect(dead_code, reason = "each target uses a part")]
#[path = "../../../agent/tests/wire/check/mod.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::envelope::check(data));
