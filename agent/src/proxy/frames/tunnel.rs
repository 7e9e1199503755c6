//! The connections of one worker to another agent, or to another worker: kept open, replaced before they end.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    conn::FrameConn,
    task,
    upstream::{Remote, Waiting, least_loaded},
};
use crate::{
    balance::{backoff, overload::Level},
    proxy::{
        calls::CallKey,
        dial::connect,
        pool::Refused,
        request::Request,
        routes::Health,
        socket::{Loose, Peer, Socket},
        stream::Stream,
        worker::Worker,
    },
};

/// Waits between two tries to connect: doubled each time, between these bounds, with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// What lasted so long was a connection.
const PROVEN: Duration = Duration::from_secs(5);

/// Where a tunnel leads to.
#[derive(Debug)]
pub(crate) enum To {
    /// Another agent.
    Agent { name: Arc<str>, address: SocketAddr, health: Arc<Health> },
    /// Another worker of this one, by its number.
    Worker(usize),
}

/// The connections to one other agent or worker.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) to: To,
    conns: RefCell<Vec<Rc<FrameConn>>>,
    /// Tries that are under way.
    opening: Cell<usize>,
    waiting: Waiting,
    last_failure: RefCell<String>,
    retired: Cell<bool>,
    retire: Notify,
}

impl Tunnel {
    pub(crate) fn new(to: To) -> Self {
        Self {
            to,
            conns: RefCell::default(),
            opening: Cell::new(0),
            waiting: RefCell::default(),
            last_failure: RefCell::default(),
            retired: Cell::new(false),
            retire: Notify::new(),
        }
    }

    /// Opens its connections, and keeps them open until it is retired.
    pub(crate) fn keep(self: &Rc<Self>, worker: &Rc<Worker>, connections: usize) {
        for nth in 0..connections {
            // Calls wait for the first try of all, no matter when its task gets to run.
            self.opening.set(self.opening.get() + 1);
            tokio::task::spawn_local(keep(self.clone(), worker.clone(), nth));
        }
    }

    pub(crate) fn least_loaded(&self) -> Option<Rc<FrameConn>> {
        least_loaded(self.conns.borrow().iter())
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.opening.get() > 0
    }

    pub(crate) fn last_failure(&self) -> String {
        let failure = self.last_failure.borrow();
        if failure.is_empty() { "is not connected".to_owned() } else { failure.clone() }
    }

    /// Lets a call wait for a connection that is being opened.
    pub(crate) fn wait(&self, key: CallKey, remote: &Rc<Remote>, request: Request, queue_max: usize) -> Result<(), Refused> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= queue_max {
            return Err(Refused::Full(request));
        }
        waiting.push_back((key, remote.clone(), request.owned()));
        Ok(())
    }

    /// A waiting call has ended otherwise.
    pub(crate) fn forget(&self, key: CallKey) {
        self.waiting.borrow_mut().retain(|(waiting, ..)| *waiting != key);
    }

    /// It is no longer wanted: its connections end with their last call.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.retire.notify_waiters();
        for conn in self.conns.borrow().iter() {
            conn.leave();
        }
    }

    fn take_waiting(&self) -> VecDeque<(CallKey, Rc<Remote>, Request)> {
        std::mem::take(&mut *self.waiting.borrow_mut())
    }

    fn opened(&self, worker: &Rc<Worker>, conn: &Rc<FrameConn>) {
        self.opening.set(self.opening.get() - 1);
        self.conns.borrow_mut().push(conn.clone());
        if let To::Agent { name, address, health } = &self.to {
            info!(agent = %name, %address, "tunnel is open");
            health.is_back("connected");
        }
        for (key, remote, request) in self.take_waiting() {
            worker.send_waiting(key, &remote, conn, &request);
        }
        if self.retired.get() {
            // It was being opened at that time.
            conn.leave();
        }
    }

    fn failed(self: &Rc<Self>, worker: &Rc<Worker>, reason: &str) {
        self.opening.set(self.opening.get() - 1);
        self.is_down(reason);
        if self.opening.get() == 0 && self.least_loaded().is_none() {
            for (key, remote, request) in self.take_waiting() {
                worker.send_elsewhere_from(key, request, &remote, reason);
            }
        }
    }

    fn is_down(&self, reason: &str) {
        let known = *self.last_failure.borrow() == reason;
        if self.least_loaded().is_some() {
            return;
        }
        if let To::Agent { name, address, health } = &self.to {
            if !known {
                warn!(agent = %name, %address, reason, "tunnel is down");
            }
            health.set(false, reason);
            health.set_load(Level::Calm);
        }
        reason.clone_into(&mut self.last_failure.borrow_mut());
    }

    fn ended(&self, conn: &Rc<FrameConn>) {
        self.conns.borrow_mut().retain(|other| !Rc::ptr_eq(other, conn));
    }
}

/// Keeps one connection open. One that leaves is replaced at once, while its calls end.
async fn keep(tunnel: Rc<Tunnel>, worker: Rc<Worker>, nth: usize) {
    let mut failures = 0u32;
    loop {
        let begun = Instant::now();
        let opened = open(&tunnel, &worker, nth).await;
        worker.turn_begins();
        match opened {
            Ok(conn) => {
                tunnel.opened(&worker, &conn);
                tokio::task::spawn_local(watch(tunnel.clone(), conn.clone()));
                conn.until_unusable().await;
                worker.turn_begins();
                failures = if begun.elapsed() > PROVEN { 0 } else { failures + 1 };
                let why = conn.ends_now().map_or_else(|| "the other agent leaves".to_owned(), |(_, text)| text.to_string());
                tunnel.is_down(&why);
            }
            Err(reason) => {
                failures += 1;
                tunnel.failed(&worker, &reason);
            }
        }
        if tunnel.retired.get() {
            return;
        }
        if failures > 1 {
            tokio::select! {
                () = sleep(backoff(BACKOFF, failures, &mut rand::rng())) => {}
                () = tunnel.retire.notified() => return,
            }
        }
        tunnel.opening.set(tunnel.opening.get() + 1);
    }
}

/// Takes a connection out of the tunnel when it has ended.
async fn watch(tunnel: Rc<Tunnel>, conn: Rc<FrameConn>) {
    conn.until_closed().await;
    tunnel.ended(&conn);
}

async fn open(tunnel: &Rc<Tunnel>, worker: &Rc<Worker>, nth: usize) -> Result<Rc<FrameConn>, String> {
    let within = worker.tunnel_limits().connect_timeout;
    let connect = async {
        let kernel = worker.kernel();
        let (socket, peer) = match &tunnel.to {
            To::Agent { address, .. } => (Socket::Tcp(connect(*address, kernel.as_deref()).await?), Peer::Tcp(*address)),
            To::Worker(number) => (worker.dial_worker(*number)?, Peer::Unix),
        };
        socket.send_in_turns()?;
        let stream = Stream::new(socket, worker.counters.clone(), kernel);
        let conn = task::start_out(worker, stream, peer, nth);
        if let To::Agent { health, .. } = &tunnel.to {
            conn.leads_to(health);
        }
        Ok::<_, io::Error>(conn)
    };
    let late = || format!("can't connect within {} ms", within.as_millis());
    let connected = timeout(within, connect).await.map_err(|_| late())?;
    let conn = connected.map_err(|error| format!("can't connect: {error}"))?;
    match timeout(within, conn.until_greeted()).await {
        Ok(true) => Ok(conn),
        Ok(false) => Err(conn.ends_now().map_or_else(|| "connection lost".to_owned(), |(_, text)| text.to_string())),
        Err(_) => {
            conn.close(crate::proxy::stats::CloseReason::Stalled, 0, "no HELLO in time");
            Err(format!("no HELLO within {} ms", within.as_millis()))
        }
    }
}

impl Worker {
    /// A socket to another worker.
    fn dial_worker(&self, number: usize) -> io::Result<Socket> {
        let (own, other) = std::os::unix::net::UnixStream::pair()?;
        own.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        self.hand_over(number, task::Handoff::worker(other))?;
        Loose::Unix(own).fasten()
    }
}

/// What a tunnel is for, in lists.
impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent { name, address, .. } => write!(f, "{name}@{address}"),
            Self::Worker(number) => write!(f, "worker {number}"),
        }
    }
}
