//! Single keys from the terminal, or from a pipe.

use std::{
    io::{Read, stdin},
    os::fd::AsFd,
    sync::mpsc::{Receiver, channel},
    thread,
};

use anyhow::{Context, Result};
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};

/// Keys as they are pressed. Dropping it gives the terminal back as it was.
pub(super) struct Keys {
    pressed: Receiver<u8>,
    former: Option<Termios>,
}

impl Keys {
    /// Has the terminal give each key at once, if there is one.
    pub(super) fn take() -> Result<Self> {
        let former = termios::tcgetattr(stdin().as_fd()).ok();
        if let Some(former) = &former {
            let mut at_once = former.clone();
            at_once.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            termios::tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &at_once).context("the terminal cannot be set")?;
        }
        let (send, pressed) = channel();
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            for key in stdin().lock().bytes().map_while(Result::ok) {
                if send.send(key).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { pressed, former })
    }

    /// The next key that was pressed, if any.
    pub(super) fn next(&self) -> Option<u8> {
        self.pressed.try_recv().ok()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(former) = &self.former {
            // There is nobody left to tell.
            let _ = termios::tcsetattr(stdin().as_fd(), SetArg::TCSANOW, former);
        }
    }
}
