//! Callers who come when they come.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Seat, resp};

/// How long it takes a caller at most to see that it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// When requests are due, whoever makes them.
pub(super) struct Schedule {
    began: Instant,
    every: Duration,
    next: AtomicU32,
}

impl Schedule {
    /// The first request is due now.
    pub(super) fn new(rate: f64) -> Self {
        Self { began: Instant::now(), every: Duration::from_secs_f64(1.0 / rate), next: AtomicU32::new(0) }
    }

    /// Waits until the next request that nobody else makes is due; since when it is. None: no more are made.
    fn due(&self, stop: &AtomicBool) -> Option<Instant> {
        let due = self.began + self.every * self.next.fetch_add(1, Ordering::Relaxed);
        while !stop.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(due);
            }
            thread::sleep(left.min(LOOK));
        }
        None
    }
}

/// Makes requests until it is told to stop, or one is not answered.
pub(super) fn run(seat: &Seat, mut socket: TcpStream, schedule: &Schedule) {
    let requests = seat.load.requests.iter().cycle().skip(seat.index % seat.load.requests.len());
    let mut buf = Vec::new();
    for request in requests {
        let Some(due) = schedule.due(&seat.stop) else { return };
        let answer = call(&mut socket, request, &mut buf);
        let took = due.elapsed();
        let mut stats = seat.stats.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(error) => stats.answered(took, error),
            Err(error) => return stats.error(1, error.to_string()),
        }
    }
}

/// What is wrong with the answer, if it is an error.
fn call(socket: &mut TcpStream, request: &[u8], buf: &mut Vec<u8>) -> io::Result<Option<String>> {
    socket.write_all(request)?;
    buf.clear();
    let mut piece = [0; 4 << 10];
    loop {
        let len = socket.read(&mut piece)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        buf.extend_from_slice(&piece[..len]);
        let answer = resp::answer(buf).map_err(|_| io::Error::other("the answer is not Redis's protocol"))?;
        if let Some(answer) = answer {
            return Ok(answer.error);
        }
    }
}
