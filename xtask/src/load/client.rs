//! One connection of a load.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{Load, Stats, resp};

/// Time between two attempts to open a connection again.
const REOPEN: Duration = Duration::from_millis(100);

/// Bytes of one read.
const PIECE: usize = 16 << 10;

/// A connection's thread.
pub(super) struct Client {
    load: Arc<Load>,
    stats: Arc<Mutex<Stats>>,
    stop: Arc<AtomicBool>,
    /// Which of the load's requests comes next.
    next: usize,
    pace: Option<Pace>,
    /// When each request in flight was sent.
    sent: VecDeque<Instant>,
    /// Bytes of answers that are not whole yet.
    buf: Vec<u8>,
    /// Where reads go; kept, as clearing it for each would be seen in the latency.
    piece: Box<[u8]>,
}

/// When the next request is due, for loads with a rate.
struct Pace {
    due: Instant,
    every: Duration,
}

/// Opens a connection.
pub(super) fn connect(load: &Load) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&load.to, load.timeout).with_context(|| format!("cannot connect to {}", load.to))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(load.timeout))?;
    socket.set_write_timeout(Some(load.timeout))?;
    socket.set_nonblocking(load.polls)?;
    Ok(socket)
}

impl Client {
    pub(super) fn new(load: Arc<Load>, index: usize, stats: Arc<Mutex<Stats>>, stop: Arc<AtomicBool>) -> Self {
        let pace = load.rate.map(|rate| Pace::new(rate, load.connections, index));
        Self { next: index, pace, load, stats, stop, sent: VecDeque::new(), buf: Vec::new(), piece: vec![0; PIECE].into() }
    }

    /// Sends until it is told to stop; a connection that fails is opened again.
    pub(super) fn run(mut self, socket: TcpStream) {
        if let Some(error) = self.load.cpu.and_then(|cpu| pin(cpu).err()) {
            self.stats().error(1, format!("cannot stay on its CPU: {error}"));
        }
        let mut socket = Some(socket);
        while let Some(open) = socket.take() {
            if let Err(error) = self.talk(open) {
                let unanswered = u64::try_from(self.sent.len()).unwrap_or(u64::MAX).max(1);
                self.stats().error(unanswered, error.to_string());
                self.sent.clear();
                self.buf.clear();
                socket = self.reopen();
            }
        }
    }

    fn reopen(&self) -> Option<TcpStream> {
        while !self.stopped() {
            match connect(&self.load) {
                Ok(socket) => return Some(socket),
                Err(error) => self.stats().error(1, format!("{error:#}")),
            }
            thread::sleep(REOPEN);
        }
        None
    }

    /// Keeps the depth in flight until it is told to stop and the last answer is there.
    fn talk(&mut self, mut socket: TcpStream) -> io::Result<()> {
        let mut out = Vec::new();
        loop {
            out.clear();
            let more = if self.stopped() { 0 } else { self.fill(&mut out) };
            if more > 0 {
                let now = Instant::now();
                self.sent.extend(std::iter::repeat_n(now, more));
                socket.write_all(&out)?;
            }
            if self.sent.is_empty() {
                return Ok(());
            }
            self.read(&mut socket)?;
        }
    }

    /// Puts the requests that may go now into the buffer; how many. Waits for one that is due if none is in flight.
    fn fill(&mut self, out: &mut Vec<u8>) -> usize {
        let room = self.load.depth.saturating_sub(self.sent.len());
        let mut more = 0;
        while more < room {
            if let Some(pace) = &mut self.pace
                && !pace.take(&self.stop, self.sent.is_empty() && more == 0)
            {
                break;
            }
            out.extend_from_slice(&self.load.requests[self.next % self.load.requests.len()]);
            self.next = self.next.wrapping_add(1);
            more += 1;
        }
        more
    }

    /// Reads once, and counts the answers that are whole.
    fn read(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        if self.load.polls {
            let wait = PollTimeout::try_from(self.load.timeout).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], wait)?;
        }
        let len = match socket.read(&mut self.piece) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        self.buf.extend_from_slice(&self.piece[..len]);
        let mut used = 0;
        while let Some(answer) =
            resp::answer(&self.buf[used..]).map_err(|_| io::Error::other("the answer is not Redis's protocol"))?
        {
            used += answer.len;
            let sent = self.sent.pop_front().ok_or_else(|| io::Error::other("an answer to no request"))?;
            self.count(now.duration_since(sent), answer.error);
        }
        self.buf.drain(..used);
        Ok(())
    }

    fn count(&self, latency: Duration, error: Option<String>) {
        self.stats().answered(latency, error);
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Pace {
    /// The share of one connection in the rate, at its own place in the interval.
    #[expect(clippy::cast_precision_loss, reason = "connections are few")]
    fn new(rate: f64, connections: usize, index: usize) -> Self {
        let every = Duration::from_secs_f64(connections as f64 / rate.max(0.001));
        Self { due: Instant::now() + every.mul_f64(index as f64 / connections as f64), every }
    }

    /// Whether a request may go: one is due, or is waited for. Nothing is due once the load is to stop.
    fn take(&mut self, stop: &AtomicBool, wait: bool) -> bool {
        const LOOK: Duration = Duration::from_millis(50);
        let mut left = self.due.saturating_duration_since(Instant::now());
        while wait && !left.is_zero() && !stop.load(Ordering::Relaxed) {
            thread::sleep(left.min(LOOK));
            left = self.due.saturating_duration_since(Instant::now());
        }
        if !left.is_zero() {
            return false;
        }
        // What could not be sent in time is not made up for: a burst would measure itself.
        self.due = (self.due + self.every).max(Instant::now());
        true
    }
}

/// Keeps the calling thread on a CPU.
pub(super) fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
