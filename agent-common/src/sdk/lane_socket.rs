//! The lane's own connection: how it is opened, kept, read and written.

use std::{
    io::{self, IoSlice, Read},
    net::SocketAddr,
    os::fd::AsFd,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout},
};

use super::{
    address::Socket,
    backoff::Backoff,
    frames::{Frames, Received},
    handshake::greet,
    lane::Wire,
    link::{Link, lock},
};
use crate::frame::{Broken, Hello, Lane, Role};

/// What comes by a lane.
#[derive(Debug)]
pub(super) struct LaneReader {
    half: OwnedReadHalf,
    frames: Frames,
}

/// What a lane sends with. Dropped, it ends this direction.
#[derive(Debug)]
struct LaneWriter(OwnedWriteHalf);

/// Opens a connection's lane, and another one when it is over.
pub(super) struct LaneKeeper {
    link: Link,
    /// Where the connection goes, and no other address of the same name.
    to: SocketAddr,
    hello: Hello,
    lane: Lane,
}

/// For the socket and the agent's HELLO together.
const OPEN_WITHIN: Duration = Duration::from_secs(1);
/// Between half and all of it passes before the second try.
const WAIT_FIRST: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Room of a read that does not wait for the runtime.
const RAW: usize = 64 * 1024;

impl LaneReader {
    /// Reads what there is; 0 at the end. Less than there is room for is all there is: what the kernel path gives comes in a
    /// queue of its own, and only the lane's end comes behind it.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.frames.poll_fill(cx, &mut self.half)
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Broken> {
        self.frames.next()
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half.as_ref().poll_write_ready(cx)
    }

    /// Reads what is there at this moment, whether the runtime knows of it yet or not.
    pub(super) fn read_now(&mut self) -> io::Result<()> {
        let mut socket = std::net::TcpStream::from(self.half.as_ref().as_fd().try_clone_to_owned()?);
        let mut chunk = vec![0; RAW];
        loop {
            match socket.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => self.frames.put(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Wire for LaneWriter {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }
}

impl LaneKeeper {
    /// None if the agent gives no lane, or not by this kind of socket.
    pub(super) fn new(link: &Link, socket: &Socket, ours: &Hello) -> Option<Self> {
        let lane = link.0.peer.lane?;
        let Socket::Tcp(stream) = socket else { return None };
        let Hello { application, instance, windows, connection, .. } = ours;
        let hello = Hello::new(Role::Lane, application, instance, *windows);
        let hello = Hello { connection: *connection, lane: Some(lane), ..hello };
        Some(Self { link: link.clone(), to: stream.peer_addr().ok()?, hello, lane })
    }

    /// Runs until the connection takes no new calls. Nothing that goes wrong here concerns it.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.link.gone() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut backoff = Backoff::starting(WAIT_FIRST, WAIT_MAX);
        loop {
            if let Ok(Some((reader, writer))) = timeout(OPEN_WITHIN, self.open()).await {
                let since = Instant::now();
                // In this order: what the connection's task finds is a lane that is open, or was.
                self.link.look(|state| state.open_lane(Box::new(writer), self.lane.body_max));
                *lock(&self.link.0.arrived) = Some(reader);
                self.link.change(|_| ());
                self.link.0.lane_over.notified().await;
                if since.elapsed() > WAIT_FIRST {
                    backoff.reset();
                }
            }
            sleep(backoff.next()).await;
        }
    }

    async fn open(&self) -> Option<(LaneReader, LaneWriter)> {
        let stream = TcpStream::connect(self.to).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (socket, frames, peer) = greet(Socket::Tcp(stream), &self.hello).await.ok()?;
        let ours = peer.lane.is_some_and(|lane| lane.token == self.lane.token);
        match socket {
            Socket::Tcp(stream) if ours && peer.role == Role::Agent => {
                let (half, writer) = stream.into_split();
                Some((LaneReader { half, frames }, LaneWriter(writer)))
            }
            _ => None,
        }
    }
}
