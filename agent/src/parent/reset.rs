//! Resets what a worker holds that hangs. It can do nothing itself, so its sockets are taken by their numbers
//! (`pidfd_getfd`), and `connect` to nowhere (`AF_UNSPEC`) does the rest: a connection sends a reset, a listener resets its
//! backlog and leaves those that share its address, who then get all that is new.

use std::{
    fs, io,
    net::Shutdown,
    os::fd::{AsFd, OwnedFd, RawFd},
};

use nix::{sys::stat::fstat, unistd::Pid};
use rustix::{
    net::connect_unspec,
    process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use socket2::{Domain, Protocol, SockRef, Type};

use super::protocol::Ports;
use crate::netns::thread::{cookie, cookie_of_socket};

/// Connections in a backlog that are closed at most; the kernel has no longer ones.
const BACKLOG_MAX: usize = 65_536;

/// The process whose workers may hang.
pub(super) struct Holder {
    pid: Pid,
    process: OwnedFd,
    /// The cookie of its network namespace.
    home: u64,
    ports: Ports,
}

/// What was taken from one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reset {
    pub(super) listeners: usize,
    pub(super) connections: usize,
    /// What could not be reset.
    pub(super) failed: usize,
}

/// What a worker waits for, as `/proc` shows it of an epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    /// Its number when it was added.
    number: RawFd,
    inode: u64,
}

/// A socket that others reach the agent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listener,
    Connection,
    UnixListener,
    UnixConnection,
}

impl Holder {
    /// Its network namespace is that of the calling thread.
    pub(super) fn new(pid: Pid, ports: Ports) -> io::Result<Self> {
        let raw = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, process: pidfd_open(raw, PidfdFlags::empty())?, home: cookie()?, ports })
    }

    /// Resets what each worker holds that has this timer: first its listeners, so that nothing new comes, then what it has
    /// accepted. What it has opened itself stays. `all`: no other worker is left.
    pub(super) fn reset(&self, timers: &[RawFd], all: bool) -> io::Result<Vec<Reset>> {
        let epolls = self.epolls(timers)?;
        let mut resets = vec![Reset::default(); timers.len()];
        for listeners in [true, false] {
            for (targets, reset) in epolls.iter().zip(&mut resets) {
                for target in targets {
                    if let Some((socket, kind)) = self.take(*target)? {
                        reset.apply(&socket, kind, listeners, all);
                    }
                }
            }
        }
        Ok(resets)
    }

    /// For each timer what is in the same epoll; nothing if its worker has ended.
    fn epolls(&self, timers: &[RawFd]) -> io::Result<Vec<Vec<Target>>> {
        let mut found = vec![Vec::new(); timers.len()];
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid))?.flatten() {
            let is_epoll = fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]");
            let Some(number) = entry.file_name().to_str().filter(|_| is_epoll).map(str::to_owned) else { continue };
            let text = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid))?;
            let targets: Vec<Target> = text.lines().filter_map(Target::parse).collect();
            let whose = timers.iter().position(|timer| targets.iter().any(|target| target.number == *timer));
            if let Some(place) = whose.and_then(|worker| found.get_mut(worker)) {
                // A runtime has two descriptors of the same epoll.
                *place = targets;
            }
        }
        Ok(found)
    }

    /// A socket of the worker's, if others reach the agent by it.
    fn take(&self, target: Target) -> io::Result<Option<(OwnedFd, Kind)>> {
        let taken = match pidfd_getfd(&self.process, target.number, PidfdGetfdFlags::empty()) {
            Ok(taken) => taken,
            // It was closed, and is in the epoll by another number still.
            Err(rustix::io::Errno::BADF) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // The number may have been given to another file since.
        let same = fstat(&taken).is_ok_and(|stat| stat.st_ino == target.inode);
        let kind = if same { self.kind(&taken).unwrap_or(None) } else { None };
        Ok(kind.map(|kind| (taken, kind)))
    }

    fn kind(&self, socket: &OwnedFd) -> io::Result<Option<Kind>> {
        let look = SockRef::from(socket);
        let (domain, listens) = (look.domain()?, look.is_listener()?);
        if look.r#type()? != Type::STREAM {
            return Ok(None);
        }
        let address = look.local_addr()?;
        if domain == Domain::UNIX {
            // Workers have pairs of sockets without names between them.
            let named = address.as_pathname().is_some();
            return Ok(named.then_some(if listens { Kind::UnixListener } else { Kind::UnixConnection }));
        }
        let Some(address) = address.as_socket().filter(|_| look.protocol().is_ok_and(|own| own == Some(Protocol::TCP))) else {
            return Ok(None);
        };
        // One that is closed, and a listener that was reset just now.
        if !listens && look.peer_addr().is_err() {
            return Ok(None);
        }
        // Nobody who connects from a namespace is given a port there that somebody listens on.
        let here = cookie_of_socket(socket.as_fd()).map_or(true, |cookie| cookie == self.home);
        let ports = if here { &self.ports.here } else { &self.ports.elsewhere };
        let kind = if listens { Kind::Listener } else { Kind::Connection };
        Ok(ports.contains(&address.port()).then_some(kind))
    }
}

impl Reset {
    fn apply(&mut self, socket: &OwnedFd, kind: Kind, listeners: bool, all: bool) {
        match (kind, listeners) {
            (Kind::Listener, true) => match connect_unspec(socket) {
                Ok(()) => self.listeners += 1,
                Err(_) => self.failed += 1,
            },
            (Kind::Connection, false) => match connect_unspec(socket) {
                Ok(()) => {
                    // On the kernel path, whoever reads would be told of nothing else. It is not connected, says the kernel, and
                    // does it.
                    let _ = SockRef::from(socket).shutdown(Shutdown::Both);
                    self.connections += 1;
                }
                Err(_) => self.failed += 1,
            },
            (Kind::UnixConnection, false) => {
                // One that has ended is as good.
                let _ = SockRef::from(socket).shutdown(Shutdown::Both);
                self.connections += 1;
            }
            // All workers share it, and it could not be opened again; while one is left, that one takes its backlog.
            (Kind::UnixListener, true) if all => self.connections += close_backlog(socket),
            _ => {}
        }
    }
}

/// Takes and closes what nobody has accepted.
fn close_backlog(listener: &OwnedFd) -> usize {
    // It does not wait, as the worker never does.
    (0..BACKLOG_MAX).take_while(|_| SockRef::from(listener).accept().is_ok()).count()
}

impl Target {
    /// Such as `tfd:       15 events: 80002019 data:     7f52c8  pos:0 ino:1a2b sdev:9`.
    fn parse(line: &str) -> Option<Self> {
        let number = line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok()?;
        let inode = line.split_whitespace().find_map(|word| word.strip_prefix("ino:"))?;
        Some(Self { number, inode: u64::from_str_radix(inode, 16).ok()? })
    }
}
