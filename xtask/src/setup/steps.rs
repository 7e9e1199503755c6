//! What no package manager of the system has.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{
    items::{Get, Item},
    progress::Progress,
};
use crate::{command::cargo, place::Place};

/// Gets an item, unless its packages were all there is to it.
pub(super) fn get(place: &Place, progress: &Progress, item: &Item) -> Result<()> {
    match item.get {
        Get::Apt(_) => Ok(()),
        Get::BpfLinker => bpf_linker(progress),
        Get::Python { venv, package } => python(progress, &venv(place), package),
        Get::Node { package } => node(progress, &place.test_node(), package),
    }
}

/// Linked to Debian's LLVM, which reads what Debian's compiler writes.
fn bpf_linker(progress: &Progress) -> Result<()> {
    let mut install = cargo();
    install.args(["install", "bpf-linker", "--version", "0.13.0", "--locked", "--no-default-features", "--features", "llvm-22"]);
    // Variables of the cargo that runs this task are not meant for this build.
    install.env("LLVM_PREFIX", "/usr/lib/llvm-22").env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    progress.run("building bpf-linker (a minute or two)", &mut install)
}

fn python(progress: &Progress, venv: &Path, package: &str) -> Result<()> {
    progress.run("making an environment for Python", Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    let pip = venv.join("bin/pip");
    progress.run(&format!("installing {package} for Python"), Command::new(pip).args(["install", "--quiet", package]))
}

fn node(progress: &Progress, folder: &Path, package: &str) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder).arg(package);
    progress.run(&format!("installing {package} for Node"), &mut npm)
}
