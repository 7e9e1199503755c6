//! `agent::wire` against references, with random texts, with the bytes of real peers, and with the seeds of the fuzz
//! targets.
//!
//! `MOA_SEED` repeats a run; `MOA_CASES` says how many random cases each property gets.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may panic; its numbers are small")]

mod check;
mod properties;
mod replay;
