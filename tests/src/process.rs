//! A child process whose output is kept, and which never outlives the test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{PATIENCE, until_within};

/// A child process.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let second = file.try_clone().expect("a second handle of the log");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(second).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Self { child, name: name.to_owned(), log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end, for as long as `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        until_within(limit, &what, || self.child.try_wait().expect("the state of a child"))
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- output of {} ---\n{}--- end ---", self.name, self.log());
        }
    }
}

/// Kills a process after `limit`, unless it is cancelled before.
pub fn kill_after(pid: u32, limit: Duration) -> Watch {
    let (cancel, cancelled) = mpsc::channel();
    let thread = thread::spawn(move || {
        if cancelled.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Fails only if it has ended already.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    });
    Watch { cancel, thread }
}

/// What [`kill_after`] started.
pub struct Watch {
    cancel: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    /// Leaves the process alone from now on.
    pub fn cancel(self) {
        drop(self.cancel);
        self.thread.join().expect("the thread that watches a process");
    }
}
