//! `cargo xtask check`: what needs no running program.

use anyhow::{Context, Result};

use crate::{
    command::{self, cargo},
    kernel,
    place::Place,
    setup::{self, Purpose},
};

/// Formatting, lints and documentation, with every warning an error.
pub(crate) fn run(place: &Place) -> Result<()> {
    setup::ensure(place, Purpose::Check)?;
    step(place, "formatting", &["fmt", "--all", "--check"]).context("run `cargo fmt --all`")?;
    // The profile of the tests, so that what is compiled for one is there for the other.
    step(place, "lints", &["clippy", "--release", "--all-targets", "--", "-D", "warnings"])?;
    println!("check: lints of the kernel programs");
    kernel::clippy(place, &setup::ensure_kernel(place)?)?;
    docs(place)?;
    println!("check: all is well");
    Ok(())
}

fn step(place: &Place, what: &str, args: &[&str]) -> Result<()> {
    println!("check: {what}");
    command::run(cargo().args(args).current_dir(&place.root)).with_context(|| format!("check: {what}"))
}

fn docs(place: &Place) -> Result<()> {
    println!("check: documentation");
    let mut doc = cargo();
    doc.args(["doc", "--release", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings");
    command::run(doc.current_dir(&place.root)).context("check: documentation")
}
