//! `moa completions` and `moa man`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Out};

/// Print a script that completes commands in a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example: moa completions bash > /etc/bash_completion.d/moa")]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Write manual pages into a folder.
#[derive(Debug, Args)]
#[command(after_help = "Example: moa man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// The folder, which is made if it is not there.
    dir: PathBuf,
}

impl Completions {
    pub(super) fn run(self, out: &Out) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "moa", &mut script);
        out.text(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Man {
    pub(super) fn run(self, out: &Out) -> Result<ExitCode> {
        let failed = || format!("can't write manual pages into {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).with_context(failed)?;
        out.show(&self.dir, |dir| format!("manual pages are in {}\n", dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
