//! The agent's ends of enrolled connections, held to the rules that the agent itself keeps (`proxy/stream.rs`), by way of
//! plain blocking sockets.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    sync::Arc,
};

use agent::proxy::{End, Fallback, KernelPath};

use super::{Legs, local, remote};
use crate::until_true;

/// How often what was read is published for each bound.
const PUBLISHED_PER_BOUND: u64 = 4;

/// Reads at the agent's end, and publishes what was read.
pub struct AgentReader {
    socket: TcpStream,
    path: Arc<dyn KernelPath>,
    end: End,
    read: u64,
    published: u64,
}

impl AgentReader {
    /// For a socket that is enrolled.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(legs: &Legs, socket: TcpStream) -> Self {
        let end = legs.path().enrolled(socket.as_fd()).expect("the agent's end is not enrolled").end;
        Self { socket, path: legs.path().clone(), end, read: 0, published: 0 }
    }
}

impl Read for AgentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.socket.read(buffer)?;
        self.read += read as u64;
        if (self.read - self.published) * PUBLISHED_PER_BOUND >= self.path.bound() {
            self.published = self.read;
            self.path.publish(&self.end, self.read);
        }
        Ok(read)
    }
}

impl Drop for AgentReader {
    fn drop(&mut self) {
        self.path.forget(&self.end);
    }
}

/// Writes at the agent's end, never more than may wait for the other end, and goes over to TCP only when nothing waits.
pub struct AgentWriter {
    socket: TcpStream,
    path: Arc<dyn KernelPath>,
    unproven: u64,
    generation: u32,
    by_tcp: bool,
}

impl AgentWriter {
    /// For a socket that is enrolled, and on which the agent has sent nothing.
    pub fn new(legs: &Legs, socket: TcpStream) -> Self {
        let path = legs.path().clone();
        Self { socket, unproven: 0, generation: path.generation(), by_tcp: false, path }
    }

    /// Whether it has gone over to TCP.
    pub fn is_by_tcp(&self) -> bool {
        self.by_tcp
    }

    fn unread(&self) -> u64 {
        self.path.unread(self.socket.as_fd(), local(&self.socket), remote(&self.socket)).expect("asking the kernel").unwrap_or(0)
    }

    fn room(&mut self, wanted: usize) -> usize {
        let bound = self.path.bound();
        if self.by_tcp {
            return wanted;
        }
        if self.path.generation() != self.generation {
            self.fall_back(Fallback::Off);
        } else if self.unproven + wanted as u64 > bound {
            self.unproven = self.unread();
            if self.unproven > bound / 2 {
                self.fall_back(Fallback::Bound);
            }
        }
        if self.by_tcp { wanted } else { wanted.min(usize::try_from(bound - self.unproven).unwrap_or(usize::MAX)) }
    }

    /// Goes over to TCP, when the other end has read everything.
    pub fn fall_back(&mut self, why: Fallback) {
        until_true("the other end to have read everything", || self.unread() == 0);
        self.path.keep_to_tcp(self.socket.as_fd(), why, true).expect("keeping to TCP");
        self.by_tcp = true;
    }
}

impl Write for AgentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len());
        let written = self.socket.write(&bytes[..room])?;
        self.unproven += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
