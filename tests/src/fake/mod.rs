//! A MOA server of 2016 that misbehaves on demand.
//!
//! It speaks as the recorded ones do: calls of one connection run at the same time and are answered in the order in
//! which they end, without an id; what is no JSON gets no answer; an inline command or an empty argument closes the
//! connection; an argument of 32,768 bytes resets it; after a 3041 the late result goes to whoever waits next.

mod answer;
mod connection;
mod counts;
mod desk;
mod request;
mod server;
mod service;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, watch};

pub use answer::{Answer, End, Gate};
pub use counts::Counts;
pub use request::Call;
pub use service::demo;

use self::{
    connection::Accept,
    server::{Control, Shared},
};
use crate::{
    judge::Ledger,
    machine::{free_address, free_address_v6, release_address},
    wait::until,
};

/// A running fake server; it ends when it is dropped.
pub struct FakeMoa {
    address: SocketAddr,
    shared: Arc<Shared>,
    control: mpsc::UnboundedSender<Control>,
    thread: Option<JoinHandle<()>>,
}

/// How a fake server treats a new connection.
pub type Welcome = Accept;

/// What a fake server is started with.
#[derive(Default)]
pub struct Builder {
    in_order: bool,
    server_timeout: Option<Duration>,
    ledger: Ledger,
    small_buffers: bool,
    v6: bool,
    address: Option<SocketAddr>,
}

impl FakeMoa {
    /// Starts a server that behaves, and serves every URI with the methods of [`demo`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A server that differs.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, answers calls like this.
    pub fn script(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *self.shared.script.lock().expect("the script") = Arc::new(script);
    }

    /// From now on, treats new connections like this; the argument counts them from 0.
    pub fn welcome(&self, welcome: impl Fn(usize) -> Welcome + Send + Sync + 'static) {
        *self.shared.welcome.lock().expect("the welcome") = Arc::new(welcome);
    }

    /// From now on, answers PING, or is silent.
    pub fn answer_pings(&self, answer: bool) {
        self.shared.answers_pings.store(answer, Ordering::Relaxed);
    }

    /// What it has counted so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().expect("the counts").clone()
    }

    /// The calls it was sent, each exactly as it came, PINGs left out.
    ///
    /// # Panics
    /// If there were more than it keeps.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        let requests = self.shared.requests.lock().expect("the requests").clone();
        assert_eq!(requests.len(), self.counts().calls, "the fake server does not keep so many requests");
        requests
    }

    /// Which calls of a [`Judge`](crate::Judge) it executed.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// Waits until its counts are like this.
    pub fn await_counts(&self, what: &str, test: impl Fn(&Counts) -> bool) -> Counts {
        let what = format!("{what} (at the server {}, whose latest counts are {:?})", self.address, self.counts());
        until(&what, || Some(self.counts()).filter(&test))
    }

    /// Waits until so many calls are at the server at the same time.
    pub fn await_in_flight(&self, calls: usize) {
        self.await_counts(&format!("{calls} calls in flight"), |counts| counts.in_flight == calls);
    }

    /// Stops listening, and ends every connection like this.
    pub fn down(&self, end: End) {
        self.ask(|done| Control::Down(end, done));
    }

    /// Stops listening, and leaves the connections as they are.
    pub fn stop_listening(&self) {
        self.ask(Control::StopListening);
    }

    /// Ends every connection like this, and goes on listening.
    pub fn hang_up(&self, end: End) {
        self.ask(|done| Control::HangUp(end, done));
    }

    /// Listens again.
    pub fn up(&self) {
        self.ask(Control::Up);
    }

    fn ask(&self, message: impl FnOnce(std::sync::mpsc::Sender<()>) -> Control) {
        let (done, wait) = std::sync::mpsc::channel();
        self.control.send(message(done)).expect("the fake server runs");
        wait.recv().expect("the fake server has obeyed");
    }
}

impl Drop for FakeMoa {
    fn drop(&mut self) {
        // Fails only if its thread has ended.
        let _ = self.control.send(Control::Exit);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the fake server panicked");
        }
        release_address(self.address);
    }
}

impl Builder {
    /// Answers in the order of the calls, as servers do that an agent may pipeline to.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self
    }

    /// Answers 3041 after this time, and hands the late result to the next call, as servers of 2016 do.
    #[must_use]
    pub fn server_timeout(mut self, timeout: Duration) -> Self {
        self.server_timeout = Some(timeout);
        self
    }

    /// Enters its executions where others do.
    #[must_use]
    pub fn ledger(mut self, ledger: &Ledger) -> Self {
        self.ledger = ledger.clone();
        self
    }

    /// Takes little into its socket's buffer before it reads.
    #[must_use]
    pub fn small_buffers(mut self) -> Self {
        self.small_buffers = true;
        self
    }

    /// Listens at `[::1]`.
    #[must_use]
    pub fn v6(mut self) -> Self {
        self.v6 = true;
        self
    }

    /// Listens here, where nobody else does.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Starts it.
    pub fn start(self) -> FakeMoa {
        let free = || if self.v6 { free_address_v6() } else { free_address() };
        let address = self.address.unwrap_or_else(free);
        let shared = Arc::new(Shared {
            address,
            in_order: self.in_order,
            server_timeout: self.server_timeout,
            small_buffers: self.small_buffers,
            ledger: self.ledger,
            script: Mutex::new(Arc::new(demo)),
            welcome: Mutex::new(Arc::new(|_| Accept::Serve)),
            answers_pings: true.into(),
            counts: Mutex::default(),
            requests: Mutex::default(),
            hang_up: watch::Sender::new((0, End::Close)),
        });
        let (control, orders) = mpsc::unbounded_channel();
        let thread = server::spawn(Arc::clone(&shared), orders);
        let fake = FakeMoa { address, shared, control, thread: Some(thread) };
        fake.up();
        fake
    }
}
