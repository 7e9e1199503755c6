//! The parent's life: from the start of the agent to its end.

use std::{
    io,
    os::fd::AsFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{channel::Channel, serve::Desk, spawn};

/// What a shell adds to the number of the signal that ended a program.
const BY_SIGNAL: i32 = 128;

/// How soon a child that has closed its end of the channel is looked for again.
const ENDING: Duration = Duration::from_millis(50);

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The parent lacks what it needs.
    #[error("can't get ready to start the agent: {0}")]
    Ready(#[source] io::Error),
    /// There can't be another process.
    #[error("can't start the agent's process from /proc/self/exe: {0}; is /proc mounted, and may this user have more processes?")]
    Start(#[source] io::Error),
    /// It was started, and can't be waited for.
    #[error("can't wait for the agent: {0}")]
    Wait(#[source] io::Error),
}

/// The signals that are passed on, and the one that tells of the child's end.
pub(super) fn heeded() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect()
}

/// Starts the agent, serves it, and ends as it ends.
///
/// # Errors
/// It can't be started.
pub(crate) fn run() -> Result<ExitCode, RunError> {
    let ready = || {
        let signals = heeded();
        // Before there is a child, so that no signal is lost.
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok((signals, Channel::pair()?))
    };
    let (signals, (own, agents)) = ready().map_err(RunError::Ready)?;
    let child = spawn::start(agents).map_err(RunError::Start)?;
    // Nothing else of it is of use, and dropping it neither ends the child nor waits for it.
    let agent = Pid::from_raw(child.id().cast_signed());
    drop(child);
    let desk = Desk::new(agent).map_err(RunError::Ready)?;
    Life { agent, signals, channel: Some(own), desk }.live().map_err(RunError::Wait)
}

struct Life {
    agent: Pid,
    signals: SignalFd,
    /// Until the agent closes it, as it does when it ends.
    channel: Option<Channel>,
    desk: Desk,
}

impl Life {
    fn live(mut self) -> io::Result<ExitCode> {
        loop {
            let (signal, request) = self.wait()?;
            if signal {
                self.forward()?;
            }
            // Whoever started this process may have it told nothing of its children.
            if (signal || self.channel.is_none())
                && let Some(end) = self.reap()?
            {
                return Ok(end);
            }
            if request && self.channel.as_ref().is_some_and(|channel| !self.desk.serve(channel)) {
                self.channel = None;
            }
            if let Some(watchdog) = &mut self.desk.watchdog {
                watchdog.look_if_due(Instant::now());
            }
        }
    }

    /// Waits until there is a signal, a request, or time to look.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        sources.extend(self.channel.iter().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        let look = self.desk.watchdog.as_ref().map(|watchdog| watchdog.due_in(Instant::now()));
        let timeout = if self.channel.is_none() { Some(ENDING) } else { look };
        let timeout = timeout.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The end of the channel shows as an error of it.
        let mut has = sources.iter().map(|source| source.revents().is_some_and(|events| !events.is_empty()));
        Ok((has.next().unwrap_or(false), has.next().unwrap_or(false)))
    }

    /// Passes signals on.
    fn forward(&self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) {
                // It may have ended at this moment.
                let _ = kill(self.agent, signal);
            }
        }
        Ok(())
    }

    /// How the child ended, if it has. Others are left to this process if it is the first of a container.
    fn reap(&self) -> io::Result<Option<ExitCode>> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.agent => return Ok(Some(exit_code(code))),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.agent => {
                    tracing::error!(%pid, "the agent was killed by {signal}; if nobody did that, see the kernel's log (dmesg)");
                    return Ok(Some(exit_code(BY_SIGNAL + signal as i32)));
                }
                Ok(WaitStatus::StillAlive) => return Ok(None),
                Err(Errno::ECHILD) => {
                    tracing::error!(pid = %self.agent, "the agent has ended, and the kernel does not say how: SIGCHLD is ignored");
                    return Ok(Some(ExitCode::FAILURE));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
