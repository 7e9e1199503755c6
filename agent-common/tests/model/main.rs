//! Two ends of a connection, with random operations and random cuts of their bytes, against plain lists of messages.
//!
//! `MOA_SEED` repeats a run; `MOA_CASES` says how many random cases each property gets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod properties;
mod seeds;
