//! Shows what is being done: a spinner on a terminal, plain lines otherwise; the programs' own words go to a log.

use std::{
    fs::{self, File, OpenOptions},
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    command::{show, tail},
    place::Place,
};

/// Where progress is shown, and the log.
pub(super) struct Progress {
    log: PathBuf,
}

impl Progress {
    pub(super) fn new(place: &Place) -> Result<Self> {
        fs::create_dir_all(&place.target).with_context(|| format!("{} cannot be made", place.target.display()))?;
        Ok(Self { log: place.target.join("setup.log") })
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Runs a program while it says what for.
    pub(super) fn run(&self, what: &str, command: &mut Command) -> Result<()> {
        let started = Instant::now();
        let spinner = spinner(what);
        let out = self.open()?;
        let status = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).status();
        let status = status.with_context(|| format!("{} cannot be started", show(command)))?;
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        if !status.success() {
            bail!("{} ended with {status}:\n{}\n(all of it: {})", show(command), tail(&self.log), self.log.display());
        }
        println!("setup: {what}: done in {:.0} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    fn open(&self) -> Result<File> {
        let open = OpenOptions::new().create(true).append(true).open(&self.log);
        open.with_context(|| format!("{} cannot be written", self.log.display()))
    }
}

fn spinner(what: &str) -> Option<ProgressBar> {
    if !stdout().is_terminal() {
        println!("setup: {what} …");
        return None;
    }
    let style =
        ProgressStyle::with_template("setup: {spinner} {msg} ({elapsed})").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    Some(spinner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place { root: folder.path().to_path_buf(), target: folder.path().join("target") };
        let progress = Progress::new(&place).unwrap();
        progress.run("something that works", Command::new("sh").args(["-c", "echo fine"])).unwrap();
        let error = progress.run("something else", Command::new("sh").args(["-c", "seq 100; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("\n100\n") && !error.contains("\n50\n"), "{error}");
        assert!(error.contains("setup.log"), "{error}");
    }
}
