//! HTTP with bounds: so many connections, one request each, and so much time for it.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
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
/// How long a connection may last as a whole.
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

/// Serves HTTP; `routes` says which paths a connection sees.
pub fn serve<L: Listener>(listener: L, routes: impl Fn(&L::Io) -> Router + Send + 'static) -> Server {
    let (stop, stopped) = watch::channel(false);
    Server { stop, task: tokio::spawn(accept(listener, routes, stopped)) }
}

async fn accept<L: Listener>(mut listener: L, routes: impl Fn(&L::Io) -> Router + Send, mut stopped: watch::Receiver<bool>) {
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
        let router = routes(&stream);
        let connection = connection(stream, router, stopped.clone());
        connections.spawn(async move {
            // Whoever is too slow for the bounds, or gone, learns nothing more.
            let _ = timeout(ANSWERED_WITHIN, connection).await;
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
