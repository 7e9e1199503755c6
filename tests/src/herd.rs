//! Many applications with lanes, which a few threads look after: as many as a node may have.

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use agent_common::frame::{Flags, Hello, Kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    frames::{Got, caller},
    lanes::{LanePeer, Way},
};

/// How long a thread waits for something to come before it looks whether it is to stop.
const LOOK: u16 = 20;

/// Applications that echo what they are called with, however long nothing comes.
pub struct Serving {
    stop: Arc<AtomicBool>,
    served: Arc<Vec<AtomicU64>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Opens one application for each of these, and serves until this is dropped.
    pub fn start(address: SocketAddr, hellos: &[Hello]) -> Self {
        let peers: Vec<_> = hellos.iter().map(|hello| LanePeer::open(address, hello)).collect();
        let served: Arc<Vec<_>> = Arc::new(peers.iter().map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let (counts, stopped) = (served.clone(), stop.clone());
        let thread = thread::spawn(move || serve(peers, &counts, &stopped));
        Self { stop, served, thread: Some(thread) }
    }

    /// Calls that each of them has answered.
    pub fn served(&self) -> Vec<u64> {
        self.served.iter().map(|count| count.load(Relaxed)).collect()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "an application saw something wrong");
    }
}

fn serve(mut peers: Vec<LanePeer>, counts: &[AtomicU64], stop: &AtomicBool) {
    let mut ended = vec![false; peers.len()];
    while !stop.load(Relaxed) {
        for at in ready(&peers, &ended) {
            let peer = &mut peers[at];
            loop {
                match peer.frame_within(Duration::ZERO) {
                    Ok(Some((way, got))) if got.kind() == Some(Kind::Request) => {
                        counts[at].fetch_add(1, Relaxed);
                        peer.respond_by(way, &got, 0, &got.body);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        ended[at] = true;
                        break;
                    }
                }
            }
        }
    }
}

/// Those that something has come for.
fn ready(peers: &[LanePeer], ended: &[bool]) -> Vec<usize> {
    let events = |at: usize| if ended[at] { PollFlags::empty() } else { PollFlags::POLLIN };
    let of = |(at, peer)| -> [PollFd<'_>; 2] {
        let peer: &LanePeer = peer;
        [PollFd::new(peer.socket().as_fd(), events(at)), PollFd::new(peer.stream.fd(), events(at))]
    };
    let mut fds: Vec<_> = peers.iter().enumerate().flat_map(of).collect();
    let _ = poll(&mut fds, PollTimeout::from(LOOK));
    let any = |at: &usize| !ended[*at] && fds[2 * at..][..2].iter().any(|fd| fd.any().unwrap_or(false));
    (0..peers.len()).filter(any).collect()
}

/// So many callers, at all workers in turn.
pub fn callers(address: SocketAddr, count: usize) -> Vec<LanePeer> {
    let hello = |nth: usize| {
        let connection = Some(u16::try_from(nth % 256).expect("a number"));
        Hello { connection, instance: format!("caller-{nth}"), ..caller() }
    };
    (0..count).map(|nth| LanePeer::open(address, &hello(nth))).collect()
}

/// Has each of these call once, all at the same time, and takes the answers.
pub fn call_each<'u>(peers: &mut [LanePeer], uri: impl Fn(usize) -> &'u str, body: impl Fn(usize) -> Vec<u8>) -> Vec<(Way, Got)> {
    let streams: Vec<_> =
        peers.iter_mut().enumerate().map(|(nth, peer)| peer.request(uri(nth), Flags::END_STREAM, &body(nth))).collect();
    peers.iter_mut().zip(streams).map(|(peer, stream)| peer.answer_to(stream)).collect()
}
