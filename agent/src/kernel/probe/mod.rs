//! Checks of this machine: what the agent and its kernel programs need, what is there, how to mend it.
//!
//! `moa doctor` prints them. All but the last read files below [`Roots`] only, and change nothing; the last one loads and
//! attaches the programs to a cgroup that it makes and removes.

mod machine;
mod programs;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Namespaces;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    pub mend: Option<String>,
}

/// Whether something is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The agent serves, but slower or fewer than it could.
    Warn,
    /// The agent is not made for this.
    Fail,
}

/// Where `/proc` and `/sys` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// Usually `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }
    }
}

/// Runs every check, in an order in which the later ones need what the earlier ones look at.
#[must_use]
pub fn all(roots: &Roots) -> Vec<Check> {
    vec![
        machine::kernel_version(roots),
        machine::capabilities(roots),
        programs::cgroup2(roots),
        programs::bpffs(roots),
        programs::btf(roots),
        machine::jit(roots),
        machine::file_limit(roots),
        machine::somaxconn(roots),
        programs::embedded(),
        programs::attach(roots),
        programs::trials(roots),
    ]
}

/// Whether the network namespaces of a configuration can be served.
#[must_use]
pub fn namespaces(roots: &Roots, config: &Namespaces) -> Check {
    machine::namespaces(roots, config)
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), mend: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}
