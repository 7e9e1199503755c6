//! Which sockets can go on.

use std::{io, os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// Sockets that one thread waits for, each with a number.
pub(super) struct Events {
    epoll: Epoll,
    found: Vec<EpollEvent>,
    /// By number: whether the socket is also waited for to take more.
    writing: Vec<bool>,
}

const MOST: usize = 256;

impl Events {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, found: vec![EpollEvent::empty(); MOST], writing: Vec::new() })
    }

    /// Waits for what comes on one more socket from now on.
    pub(super) fn add(&mut self, number: usize, socket: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?)
    }

    /// Waits for whether a socket takes more, if there is more.
    pub(super) fn renew(&mut self, number: usize, socket: impl AsFd, wants: bool) -> io::Result<()> {
        if self.writing.len() <= number {
            self.writing.resize(number + 1, false);
        }
        if self.writing[number] != wants {
            self.writing[number] = wants;
            let flags = if wants { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            self.epoll.modify(socket, &mut EpollEvent::new(flags, number as u64))?;
        }
        Ok(())
    }

    /// The numbers of those that can go on, and whether there is something to read; none if nothing came in time.
    pub(super) fn wait(&mut self, time: Duration) -> io::Result<Vec<(usize, bool)>> {
        let time = EpollTimeout::try_from(time).unwrap_or(EpollTimeout::NONE);
        let count = match self.epoll.wait(&mut self.found, time) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let ready = |event: &EpollEvent| {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            (number, event.events() != EpollFlags::EPOLLOUT)
        };
        Ok(self.found[..count].iter().map(ready).collect())
    }
}
