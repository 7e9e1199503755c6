//! The agent's side: asks the parent, from any thread.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd, RawFd},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    channel::{Channel, Packet},
    protocol::{Ask, DESCRIPTORS_MAX, Failure, Head, Ports, Reply, Request, Tried, VERSION},
    pulse::Pulse,
};

/// What may wait to be asked; beyond that, whoever asks waits.
const JOBS_MAX: usize = 1024;
/// The parent answers at once; so late, something has stopped it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to the parent.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    jobs: mpsc::Sender<Job>,
}

/// Why the parent did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) tried: Tried,
    pub(crate) source: io::Error,
}

#[derive(Debug)]
struct Job {
    ask: Ask,
    beside: Arc<OwnedFd>,
    reply: oneshot::Sender<Result<Vec<OwnedFd>, Failed>>,
}

impl Parent {
    /// Starts the thread that asks: one request at a time, as the parent does one at a time.
    ///
    /// # Errors
    /// There can't be another thread.
    pub(super) fn new(channel: Channel) -> io::Result<Self> {
        channel.set_patience(PATIENCE)?;
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        thread::Builder::new().name("moa-parent".to_owned()).spawn(move || ask_all(&channel, waiting))?;
        Ok(Self { jobs })
    }

    /// Sockets in a namespace that are bound to an address, which nobody else there has, and do not listen yet.
    ///
    /// # Errors
    /// The namespace can't be entered, or the address can't be bound.
    pub(crate) async fn listen(
        &self,
        namespace: &Arc<OwnedFd>,
        address: SocketAddr,
        count: usize,
    ) -> Result<Vec<OwnedFd>, Failed> {
        let mut sockets = Vec::with_capacity(count);
        while sockets.len() < count {
            let more = (count - sockets.len()).min(DESCRIPTORS_MAX);
            let ask = Ask::Listen { address, count: more, first: sockets.is_empty() };
            sockets.extend(self.ask(ask, namespace.clone(), more).await?);
        }
        Ok(sockets)
    }

    /// A socket in a namespace, for a connection by TCP.
    ///
    /// # Errors
    /// The namespace can't be entered, or there are too many sockets.
    pub(crate) async fn socket(&self, namespace: Arc<OwnedFd>, v6: bool) -> Result<OwnedFd, Failed> {
        self.one(Ask::Socket { v6 }, namespace).await
    }

    /// A socket that asks the kernel about those of a namespace.
    ///
    /// # Errors
    /// As for [`Self::socket`].
    pub(crate) async fn diag(&self, namespace: Arc<OwnedFd>) -> Result<OwnedFd, Failed> {
        self.one(Ask::Diag, namespace).await
    }

    /// Has workers watched, of which each has a timer with this number in its epoll.
    ///
    /// # Errors
    /// The kernel does not let the parent do it.
    pub(crate) async fn watch(&self, pulse: &Pulse, timers: Vec<RawFd>, ports: Ports) -> Result<(), Failed> {
        self.ask(Ask::Watch { timers, ports }, pulse.file(), 0).await.map(drop)
    }

    async fn one(&self, ask: Ask, beside: Arc<OwnedFd>) -> Result<OwnedFd, Failed> {
        let mut descriptors = self.ask(ask, beside, 1).await?;
        descriptors.pop().ok_or_else(|| Failed::to_ask(io::ErrorKind::InvalidData.into()))
    }

    /// Asks, and gives as many descriptors as are expected.
    async fn ask(&self, ask: Ask, beside: Arc<OwnedFd>, expected: usize) -> Result<Vec<OwnedFd>, Failed> {
        let (reply, answered) = oneshot::channel();
        let ended = || Failed::to_ask(io::Error::other("the thread that asks it has ended: restart the agent"));
        self.jobs.send(Job { ask, beside, reply }).await.map_err(|_| ended())?;
        let descriptors = answered.await.unwrap_or_else(|_| Err(ended()))?;
        if descriptors.len() == expected {
            Ok(descriptors)
        } else {
            Err(Failed::to_ask(io::Error::new(io::ErrorKind::InvalidData, "it gave another number of sockets")))
        }
    }
}

impl Failed {
    fn to_ask(source: io::Error) -> Self {
        Self { tried: Tried::Ask, source }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tried.what(), self.source)
    }
}

impl std::error::Error for Failed {}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        Self::new(failed.source.kind(), failed)
    }
}

fn ask_all(channel: &Channel, mut jobs: mpsc::Receiver<Job>) {
    let mut last = 0;
    while let Some(Job { ask, beside, reply }) = jobs.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        last += 1;
        // Whoever asked may give up meanwhile: then what was opened is closed here.
        drop(reply.send(exchange(channel, last, ask, &beside)));
    }
}

fn exchange(channel: &Channel, id: u64, ask: Ask, beside: &OwnedFd) -> Result<Vec<OwnedFd>, Failed> {
    let request = Request { head: Head { version: VERSION, id }, ask };
    channel.send(&request, &[beside.as_fd()]).map_err(Failed::to_ask)?;
    loop {
        let Packet { bytes, descriptors } = next(channel).map_err(Failed::to_ask)?;
        let reply: Reply = serde_json::from_slice(&bytes).map_err(|error| Failed::to_ask(error.into()))?;
        match reply.failure {
            // To an earlier request, whose answer came too late: what is with it is closed.
            _ if reply.id != id => {}
            None => return Ok(descriptors),
            Some(Failure { tried, errno }) => return Err(Failed { tried, source: io::Error::from_raw_os_error(errno) }),
        }
    }
}

fn next(channel: &Channel) -> io::Result<Packet> {
    match channel.receive() {
        Ok(Some(packet)) => Ok(packet),
        // It is about to take this process with it.
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has not answered within {} s", PATIENCE.as_secs())))
        }
        Err(error) => Err(error),
    }
}
