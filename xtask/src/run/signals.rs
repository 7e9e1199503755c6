//! Ctrl-C and its kind, as an answer to wait for.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// The signals that ask the task to stop, from now on.
pub(super) struct Signals(Receiver<Signal>);

impl Signals {
    /// Takes them over for this thread and those that it starts. Programs that it starts are not affected.
    pub(super) fn take() -> Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        set.thread_block().context("signals cannot be blocked")?;
        let (send, receive) = channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Ok(signal) = set.wait() {
                if send.send(signal).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(receive))
    }

    /// Waits for a time; whether the task is to stop.
    pub(super) fn within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}
