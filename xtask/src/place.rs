//! Where things are: the sources, what cargo builds, and what the tasks keep beside it.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The repository and its target folder.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The top of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Place {
    /// The repository that this binary was built from.
    pub(crate) fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { target: root.join(target), root }
    }

    /// The folder of the kernel programs: cargo's, and the object that the agent embeds.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.target.join("kernel")
    }

    /// The object that the agent embeds.
    pub(crate) fn kernel_object(&self) -> PathBuf {
        self.kernel().join("moa-kernel.o")
    }

    /// The `moa` binary.
    pub(crate) fn moa(&self, debug: bool) -> PathBuf {
        self.target.join(if debug { "debug" } else { "release" }).join("moa")
    }

    /// The `moa` binary as it is shipped.
    pub(crate) fn shipped_moa(&self) -> PathBuf {
        self.target.join("dist/moa")
    }

    /// Python with redis-py, for the tests.
    pub(crate) fn test_venv(&self) -> PathBuf {
        self.target.join("test-venv")
    }

    /// The folder of node-redis, for the tests.
    pub(crate) fn test_node(&self) -> PathBuf {
        self.target.join("test-node")
    }

    /// Python with Envoy's binary, for the benchmarks.
    pub(crate) fn bench_venv(&self) -> PathBuf {
        self.target.join("bench-venv")
    }
}

/// Finds a program as a shell would, and where Debian has daemons and cargo its programs, which are not in every path.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = [cargo_home().join("bin"), PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")];
    env::split_paths(&path).chain(more).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Where cargo installs programs, above `bin`.
pub(crate) fn cargo_home() -> PathBuf {
    home_of("CARGO_HOME", ".cargo")
}

/// Where rustup keeps toolchains.
pub(crate) fn rustup_home() -> PathBuf {
    home_of("RUSTUP_HOME", ".rustup")
}

fn home_of(variable: &str, folder: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(folder), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_the_workspace() {
        let place = Place::new();
        assert!(place.root.join("agent-ebpf/Cargo.toml").is_file(), "{}", place.root.display());
        assert!(place.target.is_absolute());
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(program("sh").is_some());
        assert_eq!(program("no-such-program-anywhere"), None);
    }
}
