//! The kernel programs: which toolchain builds them, and building them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, cargo, show},
    place::{self, Place},
};

const TARGET: &str = "bpfel-unknown-none";
/// Debian's own compiler, which has a ready-made `core` for the target.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";

/// What builds the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// `rustc-web` with `libstd-rust-web-dev-bpf`.
    Debian,
    /// A nightly of rustup's with `rust-src`, by name; it builds `core` itself.
    Nightly(String),
}

impl Toolchain {
    /// The one that is there, linker included.
    pub(crate) fn find() -> Option<Self> {
        linker()?;
        if has_debian() {
            return Some(Self::Debian);
        }
        nightly(&place::rustup_home()).map(Self::Nightly)
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = cargo();
                // Its compiler is a stable one, of which the kernel programs use what is not.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly(name) => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", name, "cargo"]).env_remove("RUSTC").env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        }
    }

    /// A cargo command for the kernel crate, with the flags that bpf-linker needs.
    fn command(&self, verb: &str, place: &Place) -> Command {
        let mut cargo = self.cargo();
        cargo.arg(verb).args(["--quiet", "--locked", "--package", "agent-ebpf", "--profile", "kernel", "--target", TARGET]);
        cargo.arg("--target-dir").arg(place.kernel()).current_dir(&place.root);
        if matches!(self, Self::Nightly(_)) {
            cargo.args(["-Z", "build-std=core"]);
        }
        let linker = linker().unwrap_or_else(|| PathBuf::from("bpf-linker"));
        let flags = [
            format!("-Clinker={}", linker.display()),
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            "-Ctarget-cpu=v3".to_owned(),
        ];
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env_remove("RUSTFLAGS");
        cargo
    }
}

/// Whether Debian's compiler is there, with its `core` for the target.
pub(crate) fn has_debian() -> bool {
    Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_CORE).is_dir()
}

/// Whether there is a linter for the toolchain.
pub(crate) fn has_clippy(toolchain: &Toolchain) -> bool {
    match toolchain {
        Toolchain::Debian => Path::new(DEBIAN_CLIPPY).is_file(),
        Toolchain::Nightly(name) => place::rustup_home().join("toolchains").join(name).join("bin/clippy-driver").is_file(),
    }
}

/// Builds the object, and puts it where the agent's build finds it, touching it only if it is another.
pub(crate) fn build(place: &Place, toolchain: &Toolchain) -> Result<()> {
    command::run(&mut toolchain.command("build", place)).context("the kernel programs cannot be built")?;
    let built = place.kernel().join(TARGET).join("kernel/moa-kernel");
    let object = fs::read(&built).with_context(|| format!("{} cannot be read", built.display()))?;
    let at = place.kernel_object();
    if fs::read(&at).is_ok_and(|old| old == object) {
        return Ok(());
    }
    fs::write(&at, object).with_context(|| format!("{} cannot be written", at.display()))
}

/// Lints the kernel programs, with warnings denied.
pub(crate) fn clippy(place: &Place, toolchain: &Toolchain) -> Result<()> {
    let mut command = match toolchain {
        Toolchain::Debian => {
            // cargo-clippy would bring the driver of another compiler.
            let mut check = toolchain.command("check", place);
            check.env("RUSTC_WORKSPACE_WRAPPER", DEBIAN_CLIPPY).env("CLIPPY_ARGS", "-Dwarnings");
            check
        }
        Toolchain::Nightly(_) => {
            let mut clippy = toolchain.command("clippy", place);
            clippy.args(["--", "-D", "warnings"]);
            clippy
        }
    };
    if let Err(error) = command::run(&mut command) {
        bail!("the kernel programs are not clean ({}): {error:#}", show(&command));
    }
    Ok(())
}

fn linker() -> Option<PathBuf> {
    place::program("bpf-linker")
}

/// The first nightly with the sources of `core`, which rustup keeps at a fixed place in it.
fn nightly(rustup_home: &Path) -> Option<String> {
    let toolchains = fs::read_dir(rustup_home.join("toolchains")).ok()?;
    let mut names: Vec<String> = toolchains.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let has_core = |name: &str| rustup_home.join("toolchains").join(name).join("lib/rustlib/src/rust/library/core").is_dir();
    names.into_iter().find(|name| name.starts_with("nightly") && has_core(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_counts_only_with_its_sources() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(nightly(home.path()), None);
        let core = |name: &str| home.path().join("toolchains").join(name).join("lib/rustlib/src/rust/library/core");
        fs::create_dir_all(core("stable-x86_64-unknown-linux-gnu")).unwrap();
        fs::create_dir_all(home.path().join("toolchains/nightly-x86_64-unknown-linux-gnu/lib")).unwrap();
        assert_eq!(nightly(home.path()), None);
        fs::create_dir_all(core("nightly-x86_64-unknown-linux-gnu")).unwrap();
        assert_eq!(nightly(home.path()).as_deref(), Some("nightly-x86_64-unknown-linux-gnu"));
    }
}
