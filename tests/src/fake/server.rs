//! A fake server's thread: it listens, takes connections, and obeys the test.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    sync::{mpsc, watch},
    task,
};

use super::{
    answer::{Answer, End},
    connection::{self, Accept},
    counts::Counts,
    request::Call,
};
use crate::judge::Ledger;

pub(super) type Script = Arc<dyn Fn(&Call) -> Answer + Send + Sync>;
pub(super) type Welcome = Arc<dyn Fn(usize) -> Accept + Send + Sync>;

/// How many requests a fake server keeps.
pub(super) const REQUESTS_KEPT: usize = 10_000;

/// What the test and the server's thread share.
pub(super) struct Shared {
    pub(super) address: SocketAddr,
    pub(super) in_order: bool,
    pub(super) server_timeout: Option<Duration>,
    pub(super) small_buffers: bool,
    pub(super) ledger: Ledger,
    pub(super) script: Mutex<Script>,
    pub(super) welcome: Mutex<Welcome>,
    pub(super) answers_pings: AtomicBool,
    pub(super) counts: Mutex<Counts>,
    pub(super) requests: Mutex<Vec<Vec<u8>>>,
    /// How often all connections were hung up, and how the last time.
    pub(super) hang_up: watch::Sender<(usize, End)>,
}

/// What the test orders; what is done at once is acknowledged.
pub(super) enum Control {
    Up(Done),
    StopListening(Done),
    HangUp(End, Done),
    Down(End, Done),
    Exit,
}

type Done = std::sync::mpsc::Sender<()>;

impl Shared {
    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().expect("the counts"));
    }
}

pub(super) fn spawn(shared: Arc<Shared>, orders: mpsc::UnboundedReceiver<Control>) -> JoinHandle<()> {
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(Server { shared, listener: None }.run(orders));
    })
}

struct Server {
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
}

impl Server {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Control>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None | Some(Control::Exit) => return,
                    Some(order) => self.obey(order).await,
                },
                stream = accept(self.listener.as_ref()) => self.take(stream),
            }
        }
    }

    async fn obey(&mut self, order: Control) {
        let done = match order {
            Control::Up(done) => {
                self.listener = Some(listen(&self.shared));
                done
            }
            Control::StopListening(done) => {
                self.listener = None;
                done
            }
            Control::HangUp(end, done) => {
                self.hang_up(end).await;
                done
            }
            Control::Down(end, done) => {
                self.listener = None;
                self.hang_up(end).await;
                done
            }
            Control::Exit => return,
        };
        // Fails only when the test has given up.
        let _ = done.send(());
    }

    fn take(&self, stream: TcpStream) {
        let mut id = 0;
        self.shared.count(|counts| {
            id = counts.accepted;
            counts.accepted += 1;
            counts.open += 1;
        });
        // Subscribed before the task runs: it is not to miss a hang-up.
        let hang_up = self.shared.hang_up.subscribe();
        tokio::spawn(connection::serve(stream, id, Arc::clone(&self.shared), hang_up));
    }

    async fn hang_up(&self, end: End) {
        self.shared.hang_up.send_modify(|(times, how)| {
            *times += 1;
            *how = end;
        });
        // After half a close, the other side decides when the connection ends.
        while end != End::HalfClose && self.shared.counts.lock().expect("the counts").open > 0 {
            task::yield_now().await;
        }
    }
}

fn listen(shared: &Shared) -> TcpListener {
    let socket = if shared.address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    if shared.small_buffers {
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
    }
    socket.bind(shared.address).unwrap_or_else(|error| panic!("binding {}: {error}", shared.address));
    socket.listen(4096).unwrap_or_else(|error| panic!("listening at {}: {error}", shared.address))
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        match listener {
            None => std::future::pending::<()>().await,
            Some(listener) => {
                // An error is that of a connection which has ended already.
                if let Ok((stream, _)) = listener.accept().await {
                    return stream;
                }
            }
        }
    }
}
