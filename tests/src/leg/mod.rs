//! The kernel path, with the test as the agent: the programs are attached to a cgroup that this process is in, and see
//! its sockets as they would see anybody's. They know the listeners and sockets that the test marks, and no others.

mod agent_end;
mod cgroup;
mod netns;
pub mod options;
mod stamps;
mod took;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Deref,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use agent::{
    kernel::{Kernel, Options, Verdicts},
    proxy::{Fallback, KernelPath},
};
use socket2::{Domain, Socket, Type};

pub use self::{
    agent_end::{AgentReader, AgentWriter},
    cgroup::{Inside, root as cgroup2_root},
    netns::{in_new_namespace, set as set_sysctl},
    stamps::Stamps,
    took::Took,
};
use crate::{PATIENCE, until_true};

/// The bound of tests that do not ask for another, as the agent has it unless it is configured.
pub const BOUND: u64 = 2 << 20;
/// The addresses of a machine's own, for every family: where to listen, and where to connect.
pub const FAMILIES: [(&str, &str); 3] = [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")];

/// The attached programs, and the heart that says that the agent lives.
pub struct Legs {
    kernel: Arc<Kernel>,
    path: Arc<dyn KernelPath>,
    listener: Mutex<Option<TcpListener>>,
    before: Verdicts,
    stop: Arc<AtomicBool>,
    heart: Option<JoinHandle<()>>,
    /// Dropped last, as the programs are attached to it.
    _inside: Inside,
}

impl Legs {
    /// With the usual bound.
    pub fn attach() -> Self {
        Self::bounded(BOUND)
    }

    /// With this bound.
    pub fn bounded(bound: u64) -> Self {
        Self::with(&Options { bound, ..Options::default() })
    }

    /// With these options.
    ///
    /// # Panics
    /// If the programs are not built, or the kernel refuses them.
    pub fn with(options: &Options) -> Self {
        let inside = Inside::enter();
        let kernel = Kernel::attach(&Options { cgroup: Some(inside.path().to_path_buf()), ..options.clone() });
        let kernel = Arc::new(kernel.expect("this test attaches kernel programs: run cargo xtask build, and run it as root"));
        let before = kernel.verdicts().expect("the counters");
        let stop = Arc::new(AtomicBool::new(false));
        let (beating, until) = (kernel.clone(), stop.clone());
        let heart = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                beating.beat();
                thread::park_timeout(Duration::from_secs(1));
            }
        });
        Self { path: kernel.path(), kernel, listener: Mutex::new(None), before, stop, heart: Some(heart), _inside: inside }
    }

    /// The path, as the agent's connections use it.
    pub fn path(&self) -> &Arc<dyn KernelPath> {
        &self.path
    }

    /// A listener of the agent's at this address.
    pub fn listen(&self, address: &str) -> TcpListener {
        let socket = bound_socket(address.parse().expect("an address"));
        self.mark_listener(&socket);
        socket.listen(1024).expect("listening");
        socket.into()
    }

    /// Marks a socket that is bound and about to listen.
    pub fn mark_listener(&self, socket: &Socket) {
        let address = socket.local_addr().expect("the address").as_socket().expect("an IP address");
        self.path.listening(socket.as_fd(), address).expect("marking the listener");
    }

    /// A connection of the agent's to this address.
    pub fn dial(&self, to: SocketAddr) -> TcpStream {
        let socket = stream_socket(to);
        self.path.dialling(socket.as_fd()).expect("marking the socket");
        socket.connect(&to.into()).expect("connecting");
        socket.into()
    }

    /// A connection that an application opens to the agent.
    pub fn accepted(&self, listen: &str, connect: &str) -> Pair {
        Pair::accept(&self.listen(listen), connect)
    }

    /// A connection that the agent opens to a service.
    pub fn dialled(&self, listen: &str, connect: &str) -> Pair {
        let service = TcpListener::bind(listen).expect("listening");
        let agent = self.dial(SocketAddr::new(connect.parse().expect("an IP address"), port(&service)));
        let (app, _) = service.accept().expect("accepting");
        Pair { app, agent }
    }

    /// A connection that an application opens to the agent by IPv4. All such have one listener, which stays: another
    /// test's would be taken for it if it got the address of one that is gone.
    pub fn pair(&self) -> Pair {
        // One at a time, so that the ends belong together.
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        Pair::accept(listener.get_or_insert_with(|| self.listen("127.0.0.1:0")), "127.0.0.1")
    }

    /// Has what the agent sends on a socket go by TCP, when the other end has read all that was redirected.
    pub fn keep_to_tcp(&self, agent: &TcpStream, why: Fallback) {
        until_true("the other end to have read everything", || self.unread_by_app(agent) == 0);
        self.path.keep_to_tcp(agent.as_fd(), why, true).expect("keeping to TCP");
    }

    /// Says no more that the agent lives.
    pub fn silence(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Bytes that the other end of the agent's socket has not read, as the kernel says.
    pub fn unread_by_app(&self, agent: &TcpStream) -> u64 {
        self.path.unread(agent.as_fd(), local(agent), remote(agent)).expect("asking the kernel").unwrap_or(0)
    }

    /// Bytes of memory that the agent's own socket has in its queues.
    pub fn held_by_agent(&self, agent: &TcpStream) -> u64 {
        self.path.unread(agent.as_fd(), remote(agent), local(agent)).expect("asking the kernel").unwrap_or(0)
    }

    /// What was counted since the programs were attached.
    pub fn took(&self) -> Verdicts {
        took::since(&self.before, &self.kernel.verdicts().expect("the counters"))
    }

    /// Expects that this, and nothing else, has been counted since the programs were attached.
    ///
    /// # Panics
    /// If something else was: the bytes took another way than they should have.
    #[track_caller]
    pub fn expect(&self, expected: &Took) {
        took::expect(&self.took(), expected);
    }

    /// As [`Legs::expect`], but for how many bytes went by TCP: of a send that does not block, the programs see what it
    /// wants to send, not what TCP takes of it.
    ///
    /// # Panics
    /// As [`Legs::expect`].
    #[track_caller]
    pub fn expect_of_nonblocking(&self, expected: &Took) {
        let took = self.took();
        took::expect(&took, &Took { passed: took.passed.bytes, ..*expected });
    }

    /// Expects that both ends of so many connections are enrolled, and that all bytes were redirected.
    ///
    /// # Panics
    /// As [`Legs::expect`].
    #[track_caller]
    pub fn expect_redirected(&self, connections: u64, to_agent: u64, from_agent: u64) {
        self.expect(&Took { enrolled: 2 * connections, to_agent, from_agent, ..Took::default() });
    }
}

impl Deref for Legs {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        &self.kernel
    }
}

impl Drop for Legs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            heart.thread().unpark();
            let _ = heart.join();
        }
    }
}

/// Both ends of one connection.
#[derive(Debug)]
pub struct Pair {
    /// The application's, or the service's.
    pub app: TcpStream,
    /// The agent's.
    pub agent: TcpStream,
}

impl Pair {
    /// A connection to a listener.
    pub fn accept(listener: &TcpListener, connect: &str) -> Self {
        let to = SocketAddr::new(connect.parse().expect("an IP address"), port(listener));
        let app = TcpStream::connect(to).expect("connecting");
        let (agent, _) = listener.accept().expect("accepting");
        Self { app, agent }
    }

    /// A connection that nobody marked.
    pub fn plain() -> Self {
        Self::accept(&TcpListener::bind("127.0.0.1:0").expect("listening"), "127.0.0.1")
    }
}

/// Which way the bytes of a connection go whose first end sends to its second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// By TCP, as nothing is marked.
    Plain,
    /// Redirected from an application to the agent.
    ToAgent,
    /// Redirected from the agent to an application.
    FromAgent,
}

impl Route {
    /// The two that are redirected.
    pub const REDIRECTED: [Self; 2] = [Self::ToAgent, Self::FromAgent];
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::ToAgent, Self::FromAgent];

    /// A connection: the end that sends, and the end that receives.
    pub fn open(self, legs: &Legs) -> (TcpStream, TcpStream) {
        let ends = self.split(match self {
            Self::Plain => Pair::plain(),
            Self::ToAgent | Self::FromAgent => legs.pair(),
        });
        for end in [&ends.0, &ends.1] {
            end.set_read_timeout(Some(PATIENCE)).expect("a deadline for reads");
            end.set_write_timeout(Some(PATIENCE)).expect("a deadline for writes");
        }
        ends
    }

    /// The end that sends, and the end that receives.
    pub fn split(self, pair: Pair) -> (TcpStream, TcpStream) {
        if self == Self::FromAgent { (pair.agent, pair.app) } else { (pair.app, pair.agent) }
    }

    /// What is counted of one connection on which so many bytes were sent, all redirected if they may be.
    pub fn took(self, bytes: u64) -> Took {
        match self {
            Self::Plain => Took::default(),
            Self::ToAgent => Took { enrolled: 2, to_agent: bytes, ..Took::default() },
            Self::FromAgent => Took { enrolled: 2, from_agent: bytes, ..Took::default() },
        }
    }
}

/// A TCP socket of the family of an address.
pub fn stream_socket(address: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket")
}

/// A TCP socket that is bound to an address, and may take one that was used before.
pub fn bound_socket(address: SocketAddr) -> Socket {
    let socket = stream_socket(address);
    socket.set_reuse_address(true).expect("reusing addresses");
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("binding to {address}: {error}"));
    socket
}

/// The port of a listener.
pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address").port()
}

/// The address of a socket.
pub fn local(socket: &TcpStream) -> SocketAddr {
    socket.local_addr().expect("the address")
}

/// The address of a socket's peer.
pub fn remote(socket: &TcpStream) -> SocketAddr {
    socket.peer_addr().expect("the other end's address")
}

/// Bytes that a read would give at once (`FIONREAD`).
pub fn readable(socket: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(socket).expect("FIONREAD")
}
