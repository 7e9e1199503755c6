//! Takes the applications' connections.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, UnixListener},
    task::coop::unconstrained,
    time::sleep,
};
use tracing::{debug, error, warn};

use super::{
    frames::Side,
    listen::BACKLOG,
    place::{Place, Source},
    socket::{Peer, Socket},
    worker::Worker,
};

/// A pause after an error that concerns the whole process, like a lack of descriptors, which trying at once would not mend.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is tried to listen again.
const AGAIN_MAX: u32 = 10;

/// Where connections come in.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_accept(cx).map_ok(|(stream, peer)| (Socket::Tcp(stream), Peer::Tcp(peer))),
            Self::Unix(unix) => unix.poll_accept(cx).map_ok(|(stream, _)| (Socket::Unix(stream), Peer::Unix)),
        }
    }

    /// Listens again on the same socket. It is still bound, and what the kernel path knows of it stays; but the runtime holds
    /// for closed for ever what once was, so it is given the socket anew.
    async fn listen_again(self) -> io::Result<Self> {
        let Self::Tcp(tcp) = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let (socket, mut tries) = (tcp.into_std()?, 0);
        while let Err(error) = SockRef::from(&socket).listen(BACKLOG) {
            tries += 1;
            if tries == AGAIN_MAX {
                return Err(error);
            }
            warn!(%error, "can't listen again for now");
            sleep(PAUSE).await;
        }
        TcpListener::from_std(socket).map(Self::Tcp)
    }
}

/// Who comes in.
pub(crate) enum Door {
    /// Anybody.
    Any(Side),
    /// Applications that are in one place.
    Place(Rc<Place>),
    /// Applications of other agents, by their addresses.
    Foreign,
}

impl Door {
    fn place(&self) -> Option<&Place> {
        if let Self::Place(place) = self { Some(place) } else { None }
    }
}

/// Accepts until the worker drains; then the backlog is taken too, so that nobody who is connected is reset. In a namespace that
/// goes, nobody is left.
pub(crate) async fn run(worker: Rc<Worker>, mut listener: Listener, door: Door) {
    let mut warned = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = leaving(door.place()) => return,
            accepted = poll_fn(|cx| listener.poll_accept(cx)) => accepted,
            () = worker.stopping() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                warned = false;
                take(&worker, stream, peer, &door);
            }
            Err(error) if concerns_one_connection(&error) => {}
            // The parent took it from this worker, as it seemed to hang, so that the others get what is new.
            Err(error) if matches!(listener, Listener::Tcp(_)) && does_not_listen(&error) => {
                match listener.listen_again().await {
                    Ok(again) => {
                        warn!(worker = worker.id(), "listening again: this worker had seemed to hang");
                        listener = again;
                    }
                    Err(error) => {
                        error!(worker = worker.id(), %error, "can't listen any more: restart the agent");
                        return;
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    warn!(%error, "can't accept connections for now");
                }
                sleep(PAUSE).await;
            }
        }
    }
    // Without the runtime's budget, which would end this in the middle of the backlog.
    while let Poll::Ready(accepted) = unconstrained(poll_fn(|cx| Poll::Ready(listener.poll_accept(cx)))).await {
        match accepted {
            Ok((stream, peer)) => take(&worker, stream, peer, &door),
            Err(error) if concerns_one_connection(&error) => {}
            Err(_) => break,
        }
    }
}

async fn leaving(place: Option<&Place>) {
    match place {
        Some(place) => place.leaving().await,
        None => std::future::pending().await,
    }
}

fn take(worker: &Rc<Worker>, socket: Socket, peer: Peer, door: &Door) {
    worker.turn_begins();
    let from = match (door, peer) {
        (Door::Any(side), _) => Source { peer, side: *side, place: None },
        (Door::Place(place), _) => Source { peer, side: Side::App, place: Some(place.clone()) },
        (Door::Foreign, Peer::Tcp(address)) => match worker.foreign_at(address.ip()) {
            Some(application) => {
                worker.counters.foreign_accepted.add(1);
                Source { peer, side: Side::App, place: Some(Place::foreign(address.ip(), application)) }
            }
            None => return turn_away(worker, &socket, address.ip()),
        },
        // That door is none of a unix socket.
        (Door::Foreign, Peer::Unix) => return,
    };
    // A socket that refuses this is already reset. Keepalive finds peers that vanished without a word.
    let usable =
        socket.tcp().is_none_or(|tcp| tcp.set_nodelay(true).and_then(|()| SockRef::from(tcp).set_keepalive(true)).is_ok());
    if usable && (from.side != Side::AgentIn || socket.send_in_turns().is_ok()) {
        if from.place.is_none() && from.side == Side::App && worker.cgroups.is_on() {
            worker.accepted_from_cgroup(socket, from);
        } else {
            worker.accepted(socket, from);
        }
    }
}

/// Tells an application of another agent that nobody knows it here.
fn turn_away(worker: &Worker, socket: &Socket, address: IpAddr) {
    // Other agents only look whether anybody answers.
    if !worker.is_agent(address) {
        worker.counters.foreign_refused.add(1);
        debug!(%address, "an application that belongs elsewhere was turned away");
    }
    let text = format!("-ERR MOA Mesh: {address} belongs to no application here: add it to failover.applications\r\n");
    // Best effort, as below.
    let _ = socket.try_write(text.as_bytes());
}

/// Tells an application that there are too many, as Redis does.
pub(crate) fn refuse(socket: &Socket) {
    // Best effort: the buffer of a new connection takes it, and if not, the close says enough.
    let _ = socket.try_write(b"-ERR max number of clients reached\r\n");
}

fn does_not_listen(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock)
}
