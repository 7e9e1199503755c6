//! HTTP with bounds: so many connections, one request each, and so much time for it.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Extension, Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// Connections at a time; others wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to arrive.
const HEADER_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may last as a whole, unless its answer is [`Lasting`].
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// How long an end waits for whoever is being answered.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);
/// How large the head of a request may be.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A server that can be stopped.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Takes no more connections, and waits a moment for the requests that are being answered.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if timeout(STOPPED_WITHIN, &mut self.task).await.is_err() {
            self.task.abort();
            // Its connections are gone once it is.
            let _ = self.task.await;
        }
    }
}

/// Given to a handler, to say that its answer goes on for as long as both ends want it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lasting(Arc<AtomicBool>);

impl Lasting {
    pub(super) fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

/// Serves HTTP; `routes` says which paths a connection sees.
pub fn serve<L: Listener>(listener: L, routes: impl Fn(&L::Io) -> Router + Send + 'static) -> Server {
    let (stop, stopped) = watch::channel(false);
    Server { stop, task: tokio::spawn(accept(listener, routes, ANSWERED_WITHIN, stopped)) }
}

async fn accept<L: Listener>(
    mut listener: L,
    routes: impl Fn(&L::Io) -> Router + Send,
    answered_within: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok();
            (permit, listener.accept().await.0)
        };
        let (permit, stream) = tokio::select! {
            next = next => next,
            _ = stopped.changed() => break,
        };
        let lasting = Lasting::default();
        let router = routes(&stream).layer(Extension(lasting.clone()));
        let connection = connection(stream, router, stopped.clone());
        connections.spawn(async move {
            let mut connection = pin!(connection);
            // Whoever is too slow for the bounds, or gone, learns nothing more.
            if timeout(answered_within, &mut connection).await.is_err() && lasting.0.load(Relaxed) {
                connection.await;
            }
            drop(permit);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN).keep_alive(false).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::select! {
        _ = &mut connection => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use bytes::Bytes;
    use hyper::body::Frame;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc::{Receiver, channel},
    };

    use super::*;

    /// How long a test waits for what comes at once.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A body that goes on for as long as somebody sends.
    struct Endless(Receiver<Bytes>);

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            task: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(task).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    #[tokio::test]
    async fn only_an_answer_that_lasts_outlasts_the_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (senders, mut sent) = channel(2);
        let endless = async move |says: bool, lasting: Lasting| {
            if says {
                lasting.set();
            }
            let (sender, receiver) = channel(1);
            senders.send((says, sender)).await.expect("wanted");
            Body::new(Endless(receiver))
        };
        let (lasts, ends) = (endless.clone(), endless);
        let routes = Router::new()
            .route("/lasts", get(async move |Extension(lasting): Extension<Lasting>| lasts(true, lasting).await))
            .route("/ends", get(async move |Extension(lasting): Extension<Lasting>| ends(false, lasting).await));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, move |_| routes.clone(), Duration::from_millis(50), stopped));
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.expect("sent");
            stream
        };
        let mut lasting = ask("/lasts").await;
        let (_, sender) = sent.recv().await.expect("a sender");
        let mut ending = ask("/ends").await;
        let (_, _kept) = sent.recv().await.expect("a sender");
        // The one that came later is over, so the bound has passed for the other too.
        let mut rest = Vec::new();
        timeout(PATIENCE, ending.read_to_end(&mut rest)).await.expect("an end").expect("read");
        sender.send("goes on\n".into()).await.expect("wanted");
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("goes on") {
            let read = timeout(PATIENCE, lasting.read_buf(&mut text)).await.expect("more").expect("read");
            assert!(read > 0, "ended: {}", String::from_utf8_lossy(&text));
        }
        // Whoever hangs up is noticed although there is nothing to say.
        drop(lasting);
        timeout(PATIENCE, sender.closed()).await.expect("noticed");
        stop.send(true).expect("it runs");
        timeout(PATIENCE, task).await.expect("an end").expect("no panic");
    }
}
