//! Takes the applications' connections.

use std::{future::poll_fn, io, net::SocketAddr, rc::Rc, task::Poll, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::warn;

use super::worker::Worker;

/// A pause after an error that concerns the whole process, like a lack of descriptors, which trying at once would not mend.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the worker drains; then the backlog is taken too, so that nobody who is connected is reset.
pub(crate) async fn run(worker: Rc<Worker>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = worker.stopping() => break,
        };
        match accepted {
            Ok((stream, peer)) => take(&worker, stream, peer),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "can't accept connections for now");
                sleep(PAUSE).await;
            }
        }
    }
    while let Poll::Ready(Ok((stream, peer))) = poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await {
        take(&worker, stream, peer);
    }
}

fn take(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    worker.turn_begins();
    // A socket that refuses this is already reset.
    if stream.set_nodelay(true).is_ok() {
        worker.accepted(stream, peer);
    }
}

/// Tells an application that there are too many, as Redis does.
pub(crate) fn refuse(stream: &TcpStream) {
    // Best effort: the buffer of a new connection takes it, and if not, the close says enough.
    let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock)
}
