//! Where the subjects' files are, and how their processes start. Nothing of either outlives a run, however it ends.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::cpu::{self, Cpus};
use crate::run::{children::Process, signals::Signals};

/// Longer than any program that is waited for takes.
const END_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// The folder of a run.
pub(super) struct Workshop(TempDir);

/// A program with its arguments.
pub(super) struct Program {
    pub(super) file: PathBuf,
    pub(super) args: Vec<String>,
}

impl Workshop {
    /// From here on Ctrl-C and its kind end the run, and with it what it has started.
    pub(super) fn open() -> Result<Self> {
        let folder = TempDir::with_prefix("moa-bench-").context("no folder for the subjects' files")?;
        let (signals, path) = (Signals::take()?, folder.path().to_owned());
        thread::spawn(move || {
            while !signals.within(Duration::from_secs(60)) {}
            // Best effort: it is in the system's temporary folder. The processes end with this one.
            let _ = fs::remove_dir_all(path);
            std::process::exit(130);
        });
        Ok(Self(folder))
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Starts a program on some CPUs.
    pub(super) fn start(&self, name: &str, program: &Program, cpus: Cpus) -> Result<Process> {
        let output = File::create(self.output(name)).with_context(|| format!("no file for what {name} prints"))?;
        let log = self.path().join(format!("{name}.log"));
        cpu::bound(cpus, || Process::start(&program.file, &program.args, &log, Stdio::from(output)))
    }

    /// Runs a program to its end; what it printed.
    pub(super) fn run(&self, name: &str, program: &Program) -> Result<String> {
        let mut process = self.start(name, program, Cpus::All)?;
        let status = end(&mut process).context(name.to_owned())?;
        let printed = fs::read_to_string(self.output(name)).with_context(|| format!("what {name} printed is not text"))?;
        if !status.success() {
            bail!("{name} ended with {status}:\n{printed}{}", process.tail());
        }
        Ok(printed)
    }

    fn output(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.out"))
    }
}

fn end(process: &mut Process) -> Result<ExitStatus> {
    let deadline = Instant::now() + END_WITHIN;
    loop {
        if let Some(status) = process.ended()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("it has not ended within {END_WITHIN:?}: are its calls answered?");
        }
        thread::sleep(LOOK);
    }
}
