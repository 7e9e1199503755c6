//! The parent's side: does what the agent asks, and keeps nothing of it.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use super::{
    channel::{Channel, Packet},
    protocol::{Ask, DESCRIPTORS_MAX, Failure, Head, Reply, Request, Tried, VERSION},
    watch::Watchdog,
};
use crate::{diag, netns::sockets};

/// Does what it is asked.
pub(super) struct Desk {
    /// The namespace to come back to; none if that has failed once.
    home: Option<File>,
    agent: Pid,
    /// Once the agent has asked for it.
    pub(super) watchdog: Option<Watchdog>,
}

type Done = Result<Vec<OwnedFd>, Failure>;

impl Desk {
    /// For an agent, whose home is the namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub(super) fn new(agent: Pid) -> io::Result<Self> {
        Ok(Self { home: Some(File::open("/proc/thread-self/ns/net")?), agent, watchdog: None })
    }

    /// Answers one request, if there is one. False: the other end is closed.
    pub(super) fn serve(&mut self, channel: &Channel) -> bool {
        let packet = match channel.receive() {
            Ok(Some(packet)) => packet,
            Ok(None) => return false,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "a request of the agent can't be received");
                }
                return true;
            }
        };
        let (id, done) = self.answer(packet);
        let (descriptors, failure) = match done {
            Ok(descriptors) => (descriptors, None),
            Err(failure) => (Vec::new(), Some(failure)),
        };
        let beside: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = channel.send(&Reply { id, failure }, &beside) {
            tracing::warn!(%error, "the agent does not take an answer of its parent's");
        }
        true
    }

    fn answer(&mut self, Packet { bytes, descriptors }: Packet) -> (u64, Done) {
        let misunderstood = || Failure { tried: Tried::Ask, errno: Errno::EPROTO as i32 };
        let head = serde_json::from_slice::<Head>(&bytes).unwrap_or(Head { version: 0, id: 0 });
        let request = serde_json::from_slice::<Request>(&bytes).ok().filter(|request| request.head.version == VERSION);
        let beside = <[OwnedFd; 1]>::try_from(descriptors).ok();
        let done = match request.zip(beside) {
            Some((Request { ask, .. }, [beside])) => self.act(ask, beside),
            None => Err(misunderstood()),
        };
        (head.id, done)
    }

    fn act(&mut self, ask: Ask, beside: OwnedFd) -> Done {
        match ask {
            Ask::Listen { address, count, first } if count <= DESCRIPTORS_MAX => {
                self.inside(&beside, Tried::Bind, || listeners(address, count, first))
            }
            Ask::Listen { .. } => Err(failure(Tried::Ask)(Errno::E2BIG.into())),
            Ask::Socket { v6 } => self.inside(&beside, Tried::Open, || Ok(vec![sockets::stream(v6)?.into()])),
            Ask::Diag => self.inside(&beside, Tried::Open, || Ok(vec![diag::new_socket()?])),
            Ask::Watch { timers, ports } => {
                self.watchdog = Some(Watchdog::new(self.agent, beside, timers, ports).map_err(failure(Tried::Watch))?);
                Ok(Vec::new())
            }
        }
    }

    /// Runs something in a namespace, and comes back at once, as a thread in a namespace keeps it alive.
    fn inside(
        &mut self,
        namespace: &OwnedFd,
        tried: Tried,
        run: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>, Failure> {
        let home = self.home.as_ref().ok_or_else(|| failure(Tried::Enter)(Errno::ESTALE.into()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failure(Tried::Enter)(errno.into()))?;
        let done = run();
        if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "the parent can't come back from a namespace, and enters none any more: restart the agent");
            self.home = None;
        }
        done.map_err(failure(tried))
    }
}

fn listeners(address: SocketAddr, count: usize, first: bool) -> io::Result<Vec<OwnedFd>> {
    if first {
        // SO_REUSEPORT would let another agent share the port in silence: see first that it is free.
        drop(sockets::bound(address, false, true)?);
    }
    (0..count).map(|_| Ok(sockets::bound(address, true, true)?.into())).collect()
}

fn failure(tried: Tried) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure { tried, errno: error.raw_os_error().unwrap_or(Errno::EIO as i32) }
}
