//! The processes of the example. None of them outlives this one, not even if it is killed.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::command::{self, show};

/// How long a process may take to end when it is told to.
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// A process with its log. Dropping it ends it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program that gets SIGTERM when this process ends, and no Ctrl-C from the terminal.
    ///
    /// The kernel sends it when the *thread* that started the program ends: call it from the main thread.
    pub(crate) fn start(program: &Path, args: &[String], log: &Path, stdout: Stdio) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program).args(args);
        // A pipe that is never written to: it closes when this process ends, however it ends.
        command.stdin(Stdio::piped()).stdout(stdout).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("{} cannot be started", show(&command)))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its number; it may have children of its own.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first line that it prints, as an address.
    pub(crate) fn printed_address(&mut self) -> Result<SocketAddr> {
        let output = self.child.stdout.take().context("its output is not ours")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("it printed no address; its log ends:\n{}", self.tail()))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        command::tail(&self.log)
    }

    /// Kills it, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Tells it to end, waits, and at last kills it; whether it ended by itself.
    pub(crate) fn stop(&mut self) -> Result<bool> {
        drop(self.child.stdin.take());
        let pid = i32::try_from(self.child.id()).context("a process without a number")?;
        let deadline = Instant::now() + STOP_WITHIN;
        let mut told = false;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                return Ok(false);
            }
            if !told {
                // It may have ended since: then there is nobody to tell.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                told = true;
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to tell that it did not end.
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, folder: &Path) -> Process {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Process::start(Path::new("sh"), &arguments, &folder.join("log"), Stdio::piped()).unwrap()
    }

    #[test]
    fn prints_an_address_and_ends_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = start("echo 127.0.0.1:4711; exec sleep 1000", folder.path());
        assert_eq!(process.printed_address().unwrap(), "127.0.0.1:4711".parse().unwrap());
        assert!(process.ended().unwrap().is_none());
        assert!(process.stop().unwrap());
    }

    #[test]
    fn none_outlives_what_started_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let starter = thread::spawn(move || {
            let mut process = start("echo 127.0.0.1:4711; exec sleep 1000", &path);
            process.printed_address().unwrap();
            // Not dropped, so that only the kernel ends it, when the thread does.
            std::mem::ManuallyDrop::new(process).child.id()
        });
        let process = PathBuf::from(format!("/proc/{}/stat", starter.join().unwrap()));
        let deadline = Instant::now() + Duration::from_secs(10);
        // A zombie is what is left of it, as nobody waits for it.
        while std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "it lives on");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn one_that_fails_shows_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = start("echo no such thing >&2; exit 1", folder.path());
        let error = process.printed_address().unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
