//! `cargo xtask setup`: installs what is missing, and says what and why.
//!
//! Every item is looked for where it would be, which takes no time, before any package manager is asked.

mod apt;
mod items;
mod progress;
mod steps;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use self::{items::Item, progress::Progress};
use crate::{
    kernel::Toolchain,
    place::{self, Place},
};

/// What to set up
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What for; each purpose includes those before it, but `bench` leaves out `check`
    #[arg(value_enum, default_value_t = Purpose::Test)]
    purpose: Purpose,
}

/// What something is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Purpose {
    /// The kernel programs and the binary
    Build,
    /// The example
    Run,
    /// The tests, with other people's clients
    Test,
    /// Lints of the kernel programs
    Check,
    /// Other proxies to measure against
    Bench,
}

/// The verb: sets up everything for a purpose, or fails.
pub(crate) fn run(place: &Place, args: &Args) -> Result<()> {
    ensure_kernel(place)?;
    ensure(place, args.purpose)?;
    println!(
        "setup: everything for `{}` is there",
        args.purpose.to_possible_value().context("a purpose without a name")?.get_name()
    );
    Ok(())
}

/// Installs what is missing for a purpose, but for the toolchain of the kernel programs, which can be done without.
pub(crate) fn ensure(place: &Place, purpose: Purpose) -> Result<()> {
    let missing = items::all().into_iter().filter(|item| item.is_for(purpose) && !item.is_there(place)).collect::<Vec<_>>();
    install(place, &missing)
}

/// Installs what builds the kernel programs, unless it is there; else says what is missing and how to get it.
pub(crate) fn ensure_kernel(place: &Place) -> Result<Toolchain> {
    if let Some(toolchain) = Toolchain::find() {
        return Ok(toolchain);
    }
    if place::program("apt-get").is_none() {
        bail!(
            "no toolchain for the kernel programs: run `rustup toolchain install nightly --component rust-src`, and install bpf-linker"
        );
    }
    let missing = items::kernel().into_iter().filter(|item| !item.is_there(place)).collect::<Vec<_>>();
    install(place, &missing)?;
    Toolchain::find().context("the toolchain of the kernel programs was installed, but is not found")
}

fn install(place: &Place, missing: &[Item]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    for item in missing {
        println!("setup: {} is missing, needed {}", item.name, item.why);
    }
    let packages: Vec<&str> = missing.iter().flat_map(|item| item.get.packages().iter().copied()).collect();
    let progress = Progress::new(place)?;
    if !packages.is_empty() {
        apt::install(&progress, &packages)?;
    }
    for item in missing {
        steps::get(place, &progress, item).with_context(|| format!("{} cannot be installed", item.name))?;
    }
    let still: Vec<&str> = missing.iter().filter(|item| !item.is_there(place)).map(|item| item.name).collect();
    if !still.is_empty() {
        bail!("installed, but still not found: {} (the log is {})", still.join(", "), progress.log().display());
    }
    Ok(())
}
