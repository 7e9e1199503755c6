//! `cargo xtask build`.

use std::fs;

use anyhow::{Context, Result};

use crate::{
    command::{self, cargo},
    kernel,
    place::Place,
    setup,
};

/// What to build
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// Without optimisation
    #[arg(long)]
    debug: bool,
}

/// Builds everything, and says where it is.
pub(crate) fn run(place: &Place, args: &Args) -> Result<()> {
    moa(place, args.debug)?;
    println!("built {}", place.moa(args.debug).display());
    Ok(())
}

/// Builds the kernel programs, then the binary with them in it.
pub(crate) fn moa(place: &Place, debug: bool) -> Result<()> {
    with_profile(place, if debug { "dev" } else { "release" })
}

/// As [`moa`], as it is shipped: a minute slower to build.
pub(crate) fn shipped(place: &Place) -> Result<()> {
    with_profile(place, "dist")
}

fn with_profile(place: &Place, profile: &str) -> Result<()> {
    match setup::ensure_kernel(place) {
        Ok(toolchain) => kernel::build(place, &toolchain)?,
        // The agent is whole without them, so that a lack of rights or of a network is told, and no error.
        Err(error) => eprintln!("building {}: {error:#}", without(place)),
    }
    let mut build = cargo();
    build.args(["build", "--bin", "moa", "--profile", profile]).current_dir(&place.root);
    command::run(&mut build).context("the binary cannot be built")
}

/// What the binary will have in place of kernel programs of today.
fn without(place: &Place) -> &'static str {
    if fs::metadata(place.kernel_object()).is_ok_and(|object| object.len() > 0) {
        "with the kernel programs that were built before"
    } else {
        "without the kernel programs, so that calls go through userspace only"
    }
}
