//! Ctrl-C and its kind, as an answer to wait for.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator,
};

/// The signals that ask the task to stop, from now on.
pub(crate) struct Signals(Receiver<i32>);

impl Signals {
    /// Takes them over, by handlers: programs inherit signals that are blocked, but not those that are handled.
    pub(crate) fn take() -> Result<Self> {
        let mut signals = iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals cannot be handled")?;
        let (send, receive) = channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if send.send(signal).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(receive))
    }

    /// Waits for a time; whether the task is to stop.
    pub(crate) fn within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}
