//! The codec of frames against a slow, plain reference, with random frames and bytes, and with the seeds of the fuzz target.
//!
//! `MOA_SEED` repeats a run; `MOA_CASES` says how many random cases each property gets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod properties;
mod seeds;
