//! A connection's socket, read and written by way of the kernel where that is possible.
//!
//! What comes through the kernel path waits in a queue of its own, which is read before TCP's, and a socket says once that
//! there is something, whichever queue it is in. So a short read means that nothing is left only as long as no direction
//! has fallen back to TCP meanwhile. And what is redirected has no backpressure: this end holds itself to the bound, by
//! what the kernel says of the other end, and goes over to TCP only when nothing redirected waits there any more, as not
//! every application looks twice.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use nix::libc::ENOMEM;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    path::{End, Fallback, KernelPath},
    socket::{Loose, Socket},
    stats::WorkerCounters,
};

/// How long after the other end was last asked whether it has read everything, at first and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));
/// What timers are early by at most.
const RESOLUTION: Duration = Duration::from_millis(1);
/// What has been read is published four times for each bound.
const PUBLISHED_PER_BOUND: u64 = 4;
/// What `fallbacks` never is: what was read so far may be less than there is.
const NEVER: u64 = u64::MAX;

/// One connection's socket.
pub(crate) struct Stream {
    socket: Socket,
    counters: Arc<WorkerCounters>,
    leg: Option<Leg>,
}

/// A stream on its way to another worker.
pub(crate) struct LooseStream {
    socket: Loose,
    leg: Option<Leg>,
}

/// What is known of a connection that may be on the kernel path.
struct Leg {
    kernel: Arc<dyn KernelPath>,
    reads: Reads,
    writes: Writes,
}

/// The direction towards the agent.
struct Reads {
    /// Bytes that were read.
    read: u64,
    /// Those of them that were published.
    published: u64,
    /// [`KernelPath::fallbacks`] when there was certainly nothing more to read.
    seen: u64,
    end: Known,
}

/// What is known of the socket's enrolment.
enum Known {
    /// Nothing: it has not carried enough to be worth a question.
    NotYet,
    /// It is not enrolled.
    Plain,
    /// It is, under this name.
    Enrolled(Box<End>),
}

/// The direction from the agent.
struct Writes {
    /// Bytes that were written since the other end was known to have read everything, and what it had not read then.
    unproven: u64,
    /// [`KernelPath::generation`] when the connection was opened.
    generation: u32,
    /// The other end has redirected nothing to this one, and will not.
    never_redirected: bool,
    state: State,
}

enum State {
    /// Redirected, as far as is known.
    Redirected,
    /// Waits for the other end to have read everything.
    Draining(Box<Draining>),
    /// By TCP, for life. After a fall-back the other end may be out of the map, and then sends by TCP without a word.
    Tcp { fell_back: bool },
}

struct Draining {
    why: Fallback,
    delay: Duration,
    until: Instant,
}

impl Stream {
    /// `kernel` is for sockets of TCP alone.
    pub(crate) fn new(socket: Socket, counters: Arc<WorkerCounters>, kernel: Option<Arc<dyn KernelPath>>) -> Self {
        let leg = kernel.filter(|_| socket.tcp().is_some()).map(|kernel| Leg {
            reads: Reads { read: 0, published: 0, seen: NEVER, end: Known::NotYet },
            writes: Writes { unproven: 0, generation: kernel.generation(), never_redirected: false, state: State::Redirected },
            kernel,
        });
        Self { socket, counters, leg }
    }

    /// The socket, if it is one of TCP.
    pub(crate) fn tcp(&self) -> Option<BorrowedFd<'_>> {
        self.socket.tcp().map(AsFd::as_fd)
    }

    /// Takes the socket out, for another task of this worker; what stays behind is closed.
    pub(crate) fn take(&mut self) -> Self {
        let socket = std::mem::replace(&mut self.socket, Socket::Gone);
        Self { socket, counters: self.counters.clone(), leg: self.leg.take() }
    }

    /// Takes the socket out of this worker.
    pub(crate) fn loosen(mut self) -> io::Result<LooseStream> {
        let Self { socket, leg, .. } = self.take();
        Ok(LooseStream { socket: socket.loosen()?, leg })
    }

    /// Reads what there is, once, and makes room for it. 0 at the end of the stream.
    pub(crate) fn poll_read_buf(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        let (Some(leg), Socket::Tcp(tcp)) = (&mut self.leg, &self.socket) else {
            return self.socket.poll_read(cx, buffer).map_ok(|read| self.counters.moved(read));
        };
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            // Read before the socket is: what falls back later is not taken for seen.
            let fallbacks = leg.kernel.fallbacks();
            if buffer.capacity() == buffer.len() {
                buffer.reserve(1);
            }
            let room = buffer.capacity() - buffer.len();
            match tcp.try_read_buf(buffer) {
                Ok(read) => {
                    if read > 0 && read < room && leg.nothing_behind() {
                        clear(tcp, Interest::READABLE);
                    }
                    leg.has_read(tcp, read as u64);
                    return Poll::Ready(Ok(self.counters.moved(read)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => leg.has_read_all(tcp, fallbacks),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes slices at once, as much of them as there is room for.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (Some(leg), Socket::Tcp(tcp)) = (&mut self.leg, &self.socket) else {
            return self.socket.poll_write(cx, slices).map_ok(|written| self.counters.moved(written));
        };
        loop {
            let len: usize = slices.iter().map(|slice| slice.len()).sum();
            let Some(room) = ready!(leg.poll_room(tcp, cx, len as u64)) else {
                return self.socket.poll_write(cx, slices).map_ok(|written| self.counters.moved(written));
            };
            match write_some(tcp, slices, usize::try_from(room).unwrap_or(usize::MAX)) {
                Ok(written) => {
                    leg.writes.unproven += written as u64;
                    return Poll::Ready(Ok(self.counters.moved(written)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(tcp.poll_write_ready(cx))?,
                // The kernel has no memory for what has no backpressure. TCP waits for it.
                Err(error) if error.raw_os_error() == Some(ENOMEM) => leg.writes.drain(Fallback::Bound),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Says that nothing more comes.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }
}

impl LooseStream {
    pub(crate) fn new(socket: Loose) -> Self {
        Self { socket, leg: None }
    }

    /// Gives it to the worker that this is called in.
    pub(crate) fn fasten(self, counters: Arc<WorkerCounters>) -> io::Result<Stream> {
        Ok(Stream { socket: self.socket.fasten()?, counters, leg: self.leg })
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if let Known::Enrolled(end) = &self.reads.end {
            self.kernel.forget(end);
        }
    }
}

impl Leg {
    /// Whether a short read means that there is nothing more to read.
    fn nothing_behind(&self) -> bool {
        !matches!(self.writes.state, State::Tcp { fell_back: true }) && self.kernel.fallbacks() == self.reads.seen
    }

    /// There was nothing more to read when `fallbacks` had this value.
    fn has_read_all(&mut self, tcp: &TcpStream, fallbacks: u64) {
        if self.reads.seen == fallbacks {
            return;
        }
        self.reads.seen = fallbacks;
        if let Some(redirected) = self.kernel.other_blocks(tcp.as_fd()) {
            self.writes.never_redirected = redirected == 0;
            self.writes.drain(Fallback::Blocking);
            // Before it waits for its answer, if it can be.
            self.writes.try_leave(&*self.kernel, tcp);
        }
    }

    fn has_read(&mut self, tcp: &TcpStream, bytes: u64) {
        let (kernel, reads) = (&self.kernel, &mut self.reads);
        reads.read += bytes;
        if matches!(reads.end, Known::Plain) || (reads.read - reads.published) * PUBLISHED_PER_BOUND < kernel.bound() {
            return;
        }
        reads.published = reads.read;
        if matches!(reads.end, Known::NotYet) {
            reads.end = kernel.enrolled(tcp.as_fd()).map_or(Known::Plain, |enrolled| Known::Enrolled(Box::new(enrolled.end)));
        }
        if let Known::Enrolled(end) = &reads.end {
            kernel.publish(end, reads.read);
        }
    }

    /// How much of so many bytes may be redirected; none: they go by TCP, which knows itself how many it takes.
    fn poll_room(&mut self, tcp: &TcpStream, cx: &mut Context<'_>, len: u64) -> Poll<Option<u64>> {
        let (kernel, writes) = (&self.kernel, &mut self.writes);
        let bound = kernel.bound();
        if let State::Redirected = writes.state {
            if kernel.generation() != writes.generation {
                writes.drain(Fallback::Off);
            } else if writes.unproven + len <= bound {
                return Poll::Ready(Some(len));
            } else if kernel.enrolled(tcp.as_fd()).is_none_or(|enrolled| enrolled.by_tcp) {
                writes.state = State::Tcp { fell_back: false };
            } else {
                writes.unproven = unread(&**kernel, tcp).ok().flatten().unwrap_or(bound);
                if writes.unproven <= bound / 2 {
                    return Poll::Ready(Some(len.min(bound - writes.unproven)));
                }
                writes.drain(Fallback::Bound);
            }
        }
        writes.poll_drained(&**kernel, tcp, cx).map(|()| None)
    }
}

impl Writes {
    fn drain(&mut self, why: Fallback) {
        self.state = State::Draining(Box::new(Draining { why, delay: ASK_AGAIN.0, until: Instant::now() }));
    }

    /// Goes over to TCP, if the other end has read what was redirected to it.
    fn try_leave(&mut self, kernel: &dyn KernelPath, tcp: &TcpStream) -> bool {
        let State::Draining(draining) = &self.state else { return true };
        let over = match kernel.enrolled(tcp.as_fd()) {
            // What is reset has nobody who reads: TCP says so itself.
            Some(_) if tcp.peer_addr().is_err() => Some(Left::Stayed),
            Some(enrolled) if enrolled.by_tcp && draining.why != Fallback::Blocking => Some(Left::Stayed),
            Some(_) => leave(kernel, tcp, draining.why),
            None => Some(Left::Stayed),
        };
        if let Some(left) = over {
            self.state = State::Tcp { fell_back: left == Left::Left && !self.never_redirected };
        }
        over.is_some()
    }

    /// Waits until the other end has read what was redirected to it, and goes over to TCP.
    fn poll_drained(&mut self, kernel: &dyn KernelPath, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let State::Draining(draining) = &self.state else { return Poll::Ready(()) };
        // A timer may be early by its resolution; the one that was set is the only one.
        if Instant::now() + RESOLUTION < draining.until {
            return Poll::Pending;
        }
        if self.try_leave(kernel, tcp) {
            return Poll::Ready(());
        }
        let State::Draining(draining) = &mut self.state else { return Poll::Ready(()) };
        draining.until = Instant::now() + draining.delay;
        draining.delay = (draining.delay * 2).min(ASK_AGAIN.1);
        let (until, waker) = (draining.until, cx.waker().clone());
        tokio::task::spawn_local(async move {
            sleep_until(until).await;
            waker.wake();
        });
        Poll::Pending
    }
}

/// Whether the other end's socket may have left the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Left,
    Stayed,
}

/// Has what is written go by TCP, unless the other end has something to read.
fn leave(kernel: &dyn KernelPath, tcp: &TcpStream, why: Fallback) -> Option<Left> {
    let all_read = match unread(kernel, tcp).ok()? {
        Some(0) => true,
        // Whoever cannot be found reads nothing, or by TCP what comes by TCP: it decides.
        None => false,
        Some(_) => return None,
    };
    kernel.keep_to_tcp(tcp.as_fd(), why, all_read).ok().map(|()| Left::Left)
}

fn unread(kernel: &dyn KernelPath, tcp: &TcpStream) -> io::Result<Option<u64>> {
    kernel.unread(tcp.as_fd(), tcp.local_addr()?, tcp.peer_addr()?)
}

/// Writes at most so many bytes. A short write does not mean that there was no room, so nothing is concluded from it.
fn write_some(tcp: &TcpStream, slices: &[IoSlice<'_>], room: usize) -> io::Result<usize> {
    match slices {
        [one] => tcp.try_write(&one[..one.len().min(room)]),
        [first, ..] if first.len() >= room => tcp.try_write(&first[..room]),
        _ => {
            let mut left = room;
            let fitting = slices.iter().take_while(|slice| {
                let fits = slice.len() <= left;
                left = left.saturating_sub(slice.len());
                fits
            });
            tcp.try_write_vectored(&slices[..fitting.count()])
        }
    }
}

/// Waits for the next word of the socket, as nothing is left of what it said last.
fn clear(tcp: &TcpStream, interest: Interest) {
    // The error is how it is said.
    let _ = tcp.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
