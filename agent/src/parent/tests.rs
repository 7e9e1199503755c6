//! The serving loop in a thread, and what this process itself holds reset as if a worker of it hung.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};
use socket2::{SockRef, Socket};
use tokio::{io::unix::AsyncFd, net::TcpListener as AsyncListener, runtime::Runtime};

use super::{
    channel::Channel,
    client::Parent,
    protocol::{Ask, DESCRIPTORS_MAX, Head, Ports, Reply, Request, Tried, VERSION},
    pulse::Pulse,
    reset::{Holder, Reset},
    serve::Desk,
};
use crate::{
    clock::now_ns,
    diag::Diag,
    netns::thread::{cookie, cookie_of_socket, enter_new},
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A parent that is a thread of this process, and ends with the last of those who ask it.
fn in_thread() -> Channel {
    let (parent, agent) = Channel::pair().unwrap();
    thread::spawn(move || {
        let mut desk = Desk::new(Pid::this()).unwrap();
        loop {
            poll(&mut [PollFd::new(parent.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            if !desk.serve(&parent) {
                return;
            }
        }
    });
    agent
}

/// A namespace that nobody else is in, with its cookie.
fn new_namespace() -> (Arc<OwnedFd>, u64) {
    let made = thread::spawn(|| {
        enter_new().expect("this test makes a network namespace: run it as root");
        (File::open("/proc/thread-self/ns/net").unwrap(), cookie().unwrap())
    });
    let (file, cookie) = made.join().unwrap();
    (Arc::new(file.into()), cookie)
}

#[tokio::test]
async fn sockets_are_opened_where_they_belong() {
    let parent = Parent::new(in_thread()).unwrap();
    let (namespace, there) = new_namespace();
    let address = SocketAddr::from(([127, 0, 0, 1], 4711));
    let many = 2 * DESCRIPTORS_MAX + 1;
    let listeners = parent.listen(&namespace, address, many).await.unwrap();
    assert_eq!(listeners.len(), many);
    for listener in &listeners {
        assert_eq!(cookie_of_socket(listener.as_fd()).unwrap(), there);
        assert!(!SockRef::from(listener).is_listener().unwrap(), "the agent marks it before");
    }
    SockRef::from(&listeners[0]).listen(1).unwrap();
    let taken = parent.listen(&namespace, address, 1).await.unwrap_err();
    assert_eq!((taken.tried, taken.source.raw_os_error()), (Tried::Bind, Some(Errno::EADDRINUSE as i32)));
    let socket = Socket::from(parent.socket(namespace.clone(), false).await.unwrap());
    assert_eq!(socket.connect(&address.into()).map_err(|error| error.raw_os_error()), Err(Some(Errno::EINPROGRESS as i32)));
    let v6 = parent.socket(namespace.clone(), true).await.unwrap();
    assert_eq!(SockRef::from(&v6).domain().unwrap(), socket2::Domain::IPV6);
    let diag = parent.diag(namespace).await.unwrap();
    assert_eq!(cookie_of_socket(diag.as_fd()).unwrap(), there);
    Diag::over(diag).unwrap();
    assert_ne!(cookie().unwrap(), there);
}

#[tokio::test]
async fn what_is_no_namespace_is_not_entered() {
    let parent = Parent::new(in_thread()).unwrap();
    let file: Arc<OwnedFd> = Arc::new(File::open("/proc/self/ns/uts").unwrap().into());
    let failed = parent.socket(file, false).await.unwrap_err();
    assert_eq!((failed.tried, failed.source.kind()), (Tried::Enter, ErrorKind::InvalidInput));
    let (namespace, there) = new_namespace();
    let socket = parent.socket(namespace, false).await.unwrap();
    assert_eq!(cookie_of_socket(socket.as_fd()).unwrap(), there, "it goes on");
}

#[test]
fn who_speaks_otherwise_is_told() {
    let channel = in_thread();
    channel.set_patience(Duration::from_secs(5)).unwrap();
    let file = File::open("/proc/self/ns/net").unwrap();
    let ask = |version, descriptors: usize| {
        let request = Request { head: Head { version, id: 7 }, ask: Ask::Diag };
        channel.send(&request, &vec![file.as_fd(); descriptors]).unwrap();
        let reply: Reply = serde_json::from_slice(&channel.receive().unwrap().unwrap().bytes).unwrap();
        assert_eq!(reply.id, 7);
        reply.failure.map(|failure| (failure.tried, failure.errno))
    };
    let misunderstood = Some((Tried::Ask, Errno::EPROTO as i32));
    assert_eq!(ask(VERSION + 1, 1), misunderstood);
    assert_eq!(ask(VERSION, 0), misunderstood);
    assert_eq!(ask(VERSION, 2), misunderstood);
    assert_eq!(ask(VERSION, 1), None);
}

/// Sockets of a worker that runs no more.
struct Hung {
    runtime: Runtime,
    listener: AsyncListener,
    accepted: tokio::net::TcpStream,
    opened: tokio::net::TcpStream,
    timer: AsyncFd<OwnedFd>,
}

impl Hung {
    fn at(listener: &TcpListener, client: &TcpStream, server: &TcpListener) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (listener, accepted, opened, timer) = runtime.block_on(async {
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
            let opened = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let listener = listener.try_clone().unwrap();
            listener.set_nonblocking(true).unwrap();
            [&accepted, &opened].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            // Anything that can be waited for, with a number of its own.
            let timer = waited_for(UnixStream::pair().unwrap().0.into());
            let stream = |stream| tokio::net::TcpStream::from_std(stream).unwrap();
            (AsyncListener::from_std(listener).unwrap(), stream(accepted), stream(opened), timer)
        });
        Self { runtime, listener, accepted, opened, timer }
    }
}

#[expect(deprecated, reason = "it is so for descriptors that may be closed too early: this one is owned")]
fn waited_for(descriptor: OwnedFd) -> AsyncFd<OwnedFd> {
    AsyncFd::new(descriptor).unwrap()
}

#[test]
fn a_hung_worker_is_reset_and_what_it_has_opened_stays() {
    let server = TcpListener::bind(LOOPBACK).unwrap();
    // A port that the kernel has chosen is lost with the reset; the agent's are always configured.
    let address = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let hung = Hung::at(&listener, &client, &server);
    let mut waiting = TcpStream::connect(address).unwrap();
    let ports = Ports { here: vec![address.port()], elsewhere: vec![server.local_addr().unwrap().port()] };
    let holder = Holder::new(Pid::this(), ports).unwrap();
    let timer = hung.timer.as_raw_fd();
    assert_eq!(holder.reset(&[-1], false).unwrap(), [Reset::default()], "no such worker");
    let reset = Reset { listeners: 1, connections: 1, failed: 0 };
    assert_eq!(holder.reset(&[timer], false).unwrap(), [reset]);
    for stream in [&mut client, &mut waiting] {
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(hung.opened.peer_addr().is_ok() && hung.accepted.peer_addr().is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::InvalidInput);
    SockRef::from(&listener).listen(16).unwrap();
    drop(TcpStream::connect(address).unwrap());
    hung.runtime.block_on(hung.listener.accept()).unwrap();
}

#[test]
fn unix_sockets_with_a_name_are_shut_and_a_backlog_is_closed_only_if_nobody_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let _in = runtime.enter();
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (mut left, right) = UnixStream::pair().unwrap();
    left.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut waiting = UnixStream::connect(&path).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let held: Vec<OwnedFd> = vec![listener.into(), accepted.into(), right.into()];
    let held: Vec<_> = held.into_iter().map(waited_for).collect();
    let holder = Holder::new(Pid::this(), Ports::default()).unwrap();
    let timer = held[2].as_raw_fd();
    let connections = |all| holder.reset(&[timer], all).unwrap()[0].connections;
    assert_eq!(connections(false), 1);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "another worker may take it");
    assert_eq!(connections(true), 2);
    assert_eq!(waiting.read(&mut [0]).unwrap(), 0);
    assert_eq!(left.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it is between workers");
}

#[test]
fn a_page_is_shared_and_a_beat_that_came_meanwhile_stays() {
    let pulse = Pulse::new(3, Duration::from_millis(500)).unwrap();
    let other = Pulse::over(pulse.file().try_clone().unwrap()).unwrap();
    let before = now_ns();
    pulse.beat(1);
    let beats = other.beats();
    assert!(beats[0] == 0 && (before..=now_ns()).contains(&beats[1]) && beats.len() == 3, "{beats:?}");
    assert_eq!((other.stale_ns(), other.interval()), (500_000_000, Duration::from_millis(100)));
    other.rest_if(1, beats[1] - 1);
    assert_eq!(pulse.beats(), beats, "it has said meanwhile that it lives");
    other.rest_if(1, beats[1]);
    assert_eq!(pulse.beats(), [0; 3]);
    pulse.beat(agent_common::failover::WORKERS_MAX);
    pulse.hold_until(7);
    assert_eq!(other.hold_until_ns(), 7);
}
