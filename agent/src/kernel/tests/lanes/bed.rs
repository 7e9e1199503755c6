//! Lanes to try things with.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use agent_common::frame::{Flags, Header, Kind};
use socket2::{Domain, Socket, Type};

use crate::{
    kernel::{Kernel, Options},
    netns::thread::enter_new,
    proxy::{LaneId, LanePath, LaneRoute, Pick, Unrouted},
};

pub(super) const BOUND: u64 = 1 << 20;
pub(super) const SERVICE: u64 = 0x1234_5678_9abc_def0;
const PATIENCE: Duration = Duration::from_secs(20);

/// The programs, and the agent's listener.
pub(super) struct Bed {
    pub(super) kernel: Arc<Kernel>,
    pub(super) lanes: Arc<dyn LanePath>,
    listener: Socket,
    stopped: Arc<AtomicBool>,
}

/// An application with a lane, and the agent's end of it.
pub(super) struct App {
    pub(super) app: TcpStream,
    pub(super) agent: TcpStream,
    pub(super) lane: LaneId,
}

/// A frame with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
}

/// Runs a test where nobody else is.
pub(super) fn in_bed(bound: u64, test: impl FnOnce(&Bed) + Send + 'static) {
    let run = move || {
        enter_new().expect("this test makes a network namespace: run it as root");
        test(&Bed::new(bound));
    };
    if let Err(panic) = thread::spawn(run).join() {
        resume_unwind(panic);
    }
}

impl Bed {
    fn new(bound: u64) -> Self {
        let options = Options { bound, ..Options::default() };
        let kernel = Arc::new(Kernel::attach(&options).expect("run as root, after cargo xtask build"));
        let listener = listen(&kernel, 0);
        let stopped = Arc::new(AtomicBool::new(false));
        let (beating, until) = (kernel.clone(), stopped.clone());
        thread::spawn(move || {
            while !until.load(Relaxed) {
                beating.legs.shared.set_alive(crate::clock::now_ns());
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self { lanes: kernel.lanes(), kernel, listener, stopped }
    }

    /// An application with a lane that takes as many calls as come.
    pub(super) fn app(&self, label: u32) -> App {
        self.app_with(label, u32::MAX)
    }

    pub(super) fn app_with(&self, label: u32, calls_max: u32) -> App {
        let (app, agent) = connect(&self.listener, None);
        greet(&*self.lanes, app, agent, label, calls_max)
    }

    /// A connection that is only a leg.
    pub(super) fn connect(&self) -> (TcpStream, TcpStream) {
        connect(&self.listener, None)
    }

    /// Routes the service to these, in turn, and turns routing on.
    pub(super) fn route(&self, apps: &[&App]) {
        self.publish(&[route(SERVICE, apps)]);
    }

    pub(super) fn publish(&self, routes: &[LaneRoute]) {
        assert_eq!(self.lanes.publish(routes).unwrap(), Vec::<u64>::new());
        self.lanes.set_on(true);
    }

    pub(super) fn unrouted(&self, why: Unrouted) -> u64 {
        self.lanes.routed().unwrap().unrouted[why as usize]
    }

    /// What an application has not read, as the kernel says.
    pub(super) fn unread(&self, app: &App) -> u64 {
        let (own, other) = (app.agent.local_addr().unwrap(), app.agent.peer_addr().unwrap());
        self.kernel.path().unread(app.agent.as_fd(), own, other).unwrap().unwrap()
    }

    pub(super) fn in_flight(&self, app: &App) -> u64 {
        self.lanes.look(app.lane).unwrap().in_flight
    }

    pub(super) fn calls(&self) -> Vec<(u64, crate::proxy::RoutedCall)> {
        let mut all = Vec::new();
        self.lanes.calls(&mut |via, call| all.push((via, *call)));
        all
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
    }
}

pub(super) fn route(service: u64, apps: &[&App]) -> LaneRoute {
    let instances = apps.iter().zip(0..).map(|(app, member)| (app.lane, 1, member)).collect();
    LaneRoute {
        service,
        pick: Pick::Turns,
        callers: None,
        timeout_ms: 1000,
        to_agent_per_million: 0,
        body_max: 32 * 1024,
        instances,
    }
}

pub(super) fn listen(kernel: &Kernel, port: u16) -> Socket {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    kernel.path().listening(listener.as_fd(), address).unwrap();
    listener.listen(64).unwrap();
    listener
}

/// The application's end, perhaps with this port, and the agent's.
pub(super) fn connect(listener: &Socket, port: Option<u16>) -> (TcpStream, TcpStream) {
    let app = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).unwrap();
    if let Some(port) = port {
        app.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    }
    app.connect(&listener.local_addr().unwrap()).unwrap();
    let (agent, _) = listener.accept().unwrap();
    let ends: (TcpStream, TcpStream) = (app.into(), agent.into());
    for end in [&ends.0, &ends.1] {
        end.set_nodelay(true).unwrap();
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    ends
}

/// Makes a lane of a connection, as both ends do.
pub(super) fn greet(lanes: &dyn LanePath, mut app: TcpStream, mut agent: TcpStream, label: u32, calls_max: u32) -> App {
    let hello = Header::new(Kind::Hello).bytes();
    app.write_all(&hello).unwrap();
    agent.read_exact(&mut [0; 40]).unwrap();
    let lane = lanes.open(agent.as_fd(), 40, label, calls_max).unwrap();
    agent.write_all(&hello).unwrap();
    app.read_exact(&mut [0; 40]).unwrap();
    App { app, agent, lane }
}

/// A call, whose number is also its caller's `via`.
pub(super) fn request(stream: u32, body: Vec<u8>) -> Whole {
    let header = Header {
        flags: Flags::END_STREAM | Flags::VERIFIED,
        stream,
        via: u64::from(stream),
        service: SERVICE,
        word: 5000,
        ..Header::new(Kind::Request)
    };
    Whole::new(header, body)
}

/// The answer to a call as its callee has got it.
pub(super) fn response(to: &Whole, body: Vec<u8>) -> Whole {
    let header = Header {
        flags: Flags::END_STREAM | Flags::TO_CALLER,
        stream: to.header.stream,
        via: to.header.via,
        service: to.header.service,
        ..Header::new(Kind::Response)
    };
    Whole::new(header, body)
}

/// Bytes of which a part is never the same as another one.
pub(super) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ len as u64;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).to_le_bytes()
    });
    words.take(len).collect()
}

impl Whole {
    pub(super) fn new(header: Header, body: Vec<u8>) -> Self {
        Self { header: Header { body_len: u32::try_from(body.len()).unwrap(), ..header }, body }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        [&self.header.bytes()[..], &self.body].concat()
    }

    /// Sends it at once.
    pub(super) fn send(&self, mut to: &TcpStream) {
        let all = self.bytes();
        assert_eq!(to.write(&all).unwrap(), all.len(), "a part of a frame was sent");
    }

    pub(super) fn read(from: &TcpStream) -> Self {
        Self::try_read(from).unwrap()
    }

    pub(super) fn try_read(mut from: &TcpStream) -> io::Result<Self> {
        let mut header = [0; 40];
        from.read_exact(&mut header)?;
        let header = Header::read(&header);
        assert!(header.frame_len() <= 1 << 16, "no frame: {header:?}");
        let mut body = vec![0; header.frame_len() - 40];
        from.read_exact(&mut body)?;
        Ok(Self { header, body })
    }
}

/// Answers every call with its own body until the connection ends.
pub(super) fn echo(app: &TcpStream) -> thread::JoinHandle<u64> {
    let app = app.try_clone().unwrap();
    thread::spawn(move || {
        let mut count = 0;
        while let Ok(call) = Whole::try_read(&app) {
            let body = call.body.clone();
            response(&call, body).send(&app);
            count += 1;
        }
        count
    })
}

/// Nothing has come.
#[track_caller]
pub(super) fn expect_nothing(mut end: &TcpStream) {
    end.set_nonblocking(true).unwrap();
    let read = end.read(&mut [0; 1]);
    end.set_nonblocking(false).unwrap();
    assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
}

/// Frames that an end has got, until it has got nothing for a moment after the connection's other end has sent all.
pub(super) fn drain(end: &TcpStream) -> Vec<Whole> {
    end.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut all = Vec::new();
    while let Ok(one) = Whole::try_read(end) {
        all.push(one);
    }
    end.set_read_timeout(Some(PATIENCE)).unwrap();
    all
}
