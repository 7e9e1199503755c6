//! An agent that listens or does not, and siblings.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use agent_common::failover::{Decision, Failover};
use socket2::{Domain, Socket, Type};

use crate::{
    failover::{Hooks, PeerLook},
    kernel::{Kernel, Options, mapped::Mapped},
    netns::thread::{cookie, enter_new},
    parent::Pulse,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The programs, turned on.
pub(super) struct Bed {
    pub(super) kernel: Kernel,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) pulse: Pulse,
    pub(super) netns: u64,
}

/// Runs a test where nobody else is.
pub(super) fn alone(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        enter_new().expect("this test makes a network namespace: run it as root");
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        resume_unwind(panic);
    }
}

/// The same, with the programs.
pub(super) fn in_bed(test: impl FnOnce(&Bed) + Send + 'static) {
    alone(|| test(&Bed::new(None)));
}

/// A name of an agent that no other has.
pub(super) fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test-connects-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed))
}

impl Bed {
    pub(super) fn new(name: Option<&str>) -> Self {
        let options = Options { bound: 1 << 20, name: name.map(str::to_owned), ..Options::default() };
        let kernel = Kernel::attach(&options).expect("run as root, after cargo xtask build");
        let hooks = kernel.hooks();
        hooks.set_on(true);
        let pulse = Pulse::over(hooks.page().unwrap()).unwrap();
        Self { kernel, hooks, pulse, netns: cookie().unwrap() }
    }

    /// A gate in this namespace.
    pub(super) fn gate(&self, address: SocketAddr, siblings: &[SocketAddr]) {
        self.hooks.set_gate(self.netns, address, siblings).unwrap();
    }

    /// One of the agent's own listeners, as those of several workers.
    pub(super) fn agent(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        let domain = Domain::for_address(address);
        let listener = Socket::new(domain, Type::STREAM.cloexec(), None).unwrap();
        listener.set_reuse_port(true).unwrap();
        if domain == Domain::IPV6 {
            listener.set_only_v6(false).unwrap();
        }
        listener.bind(&address.into()).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        self.kernel.path().listening(listener.as_fd(), address).unwrap();
        listener.listen(64).unwrap();
        listener.into()
    }

    pub(super) fn count(&self, decision: Decision) -> u64 {
        self.hooks.decisions().unwrap().of(decision)
    }

    /// What was decided, and nothing else was.
    #[track_caller]
    pub(super) fn expect(&self, counts: &[(Decision, u64)]) {
        let found: Vec<_> =
            Decision::ALL.into_iter().map(|decision| (decision, self.count(decision))).filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, counts);
    }

    pub(super) fn peer(&self, address: SocketAddr) -> PeerLook {
        self.hooks.peers().into_iter().find(|peer| peer.address == address).unwrap()
    }

    /// The page as the process that watches sees it.
    pub(super) fn page(&self) -> Mapped {
        Mapped::map(self.hooks.page().unwrap(), size_of::<Failover>()).unwrap()
    }
}

/// A sibling, or a stranger.
pub(super) fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

/// An address at which nobody listens.
pub(super) fn nobody(host: &str) -> SocketAddr {
    at(&listen(&format!("{host}:0")))
}

pub(super) fn at(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap()
}

/// Connects, and what it connected to has it.
#[track_caller]
pub(super) fn reaches(to: SocketAddr, listener: &TcpListener) -> TcpStream {
    let client = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    has(listener, &client);
    client
}

/// The listener gets this very connection next.
#[track_caller]
pub(super) fn has(listener: &TcpListener, client: &TcpStream) -> TcpStream {
    let (got, from) = accept(listener).unwrap_or_else(|error| panic!("{} got nobody: {error}", at(listener)));
    let own = client.local_addr().unwrap();
    assert_eq!((from.ip().to_canonical(), from.port()), (own.ip().to_canonical(), own.port()));
    got
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => thread::yield_now(),
            accepted => return accepted,
        }
    }
}

/// Whichever of several listeners gets the connection.
pub(super) fn any_has(listeners: &[TcpListener], client: &TcpStream) -> usize {
    let own = client.local_addr().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for (at, listener) in listeners.iter().enumerate() {
            listener.set_nonblocking(true).unwrap();
            if listener.accept().is_ok_and(|(_, from)| from == own) {
                return at;
            }
        }
    }
    panic!("nobody has it");
}

#[track_caller]
pub(super) fn refused(to: SocketAddr) {
    let error = TcpStream::connect(to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
}

/// Waits for something that the kernel does in its own time.
#[track_caller]
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// A listener that answers nobody any more, with who fills it.
pub(super) fn deaf() -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = || {
        let one = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
        // It has room for one more than none.
        one.connect_timeout(&address, Duration::from_millis(200)).map(|()| one)
    };
    let fillers = std::iter::from_fn(|| fill().ok()).collect();
    (listener, fillers)
}
