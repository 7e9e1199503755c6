//! `cargo xtask build`.

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

/// Builds the kernel programs, then the binary with them in it, and says where it is.
pub(crate) fn run(place: &Place, args: &Args) -> Result<()> {
    kernel_object(place);
    let mut build = cargo();
    build.args(["build", "--bin", "moa"]).current_dir(&place.root);
    if !args.debug {
        build.arg("--release");
    }
    command::run(&mut build).context("the binary cannot be built")?;
    println!("built {}", place.moa(args.debug).display());
    Ok(())
}

/// Builds what the binary embeds. The agent is whole without it, so that its lack is told and no error.
fn kernel_object(place: &Place) {
    let built = setup::ensure_kernel(place).and_then(|toolchain| kernel::build(place, &toolchain));
    if let Err(error) = built {
        println!("building without the kernel programs, so that calls go through userspace only: {error:#}");
    }
}
