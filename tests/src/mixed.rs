//! Traffic of several kinds side by side: short calls and long ones, one after the other and in pipelines.

use std::{
    io,
    net::SocketAddr,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use serde_json::Value;

use crate::{
    client::{Client, command},
    fake::{Answer, Call, demo},
    judge::{Ask, Judge},
    wait::until_true,
};

/// What a caller does, over and over.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Calls that it sends before it reads their answers.
    pub depth: usize,
    /// Bytes of the text that it sends.
    pub size: usize,
    /// How many times that text is in the answer.
    pub times: usize,
    /// Rounds after which it opens a new connection.
    pub rounds_per_connection: u64,
}

/// The kinds of most tests: short calls one by one, short ones in a pipeline, answers of 256 KiB, and those in a pipeline.
pub const KINDS: [Kind; 4] = [
    Kind { depth: 1, size: 100, times: 1, rounds_per_connection: u64::MAX },
    Kind { depth: 40, size: 100, times: 2, rounds_per_connection: u64::MAX },
    Kind { depth: 1, size: 16 << 10, times: 16, rounds_per_connection: u64::MAX },
    Kind { depth: 6, size: 16 << 10, times: 16, rounds_per_connection: u64::MAX },
];

/// A script for [`FakeMoa`](crate::FakeMoa): `repeat` answers its text so many times, everything else is [`demo`].
pub fn service(call: &Call) -> Answer {
    match (call.method.as_str(), call.args.get(1).and_then(Value::as_u64)) {
        ("repeat", Some(times)) => Answer::ok(&Value::from(call.text().repeat(usize::try_from(times).unwrap_or_default()))),
        _ => demo(call),
    }
}

/// Running callers, one of each kind in turn.
pub struct Mixed {
    stop: Arc<AtomicBool>,
    /// Rounds of each caller.
    rounds: Vec<Arc<AtomicU64>>,
    callers: Vec<JoinHandle<io::Result<u64>>>,
}

impl Mixed {
    /// Starts them; each answer must be the right one, in its place.
    pub fn start(address: SocketAddr, uri: &str, kinds: &[Kind]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds: Vec<_> = kinds.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
        let callers = kinds.iter().zip(&rounds).map(|(kind, rounds)| {
            let caller = Caller { address, uri: uri.to_owned(), kind: *kind, stop: stop.clone(), rounds: rounds.clone() };
            thread::spawn(move || caller.run())
        });
        Self { callers: callers.collect(), stop, rounds }
    }

    /// Waits until each caller has done so many more rounds.
    pub fn await_rounds(&self, more: u64) {
        let goals: Vec<u64> = self.rounds.iter().map(|rounds| rounds.load(Relaxed) + more).collect();
        until_true(&format!("{more} more rounds of every caller"), || {
            let reached = self.rounds.iter().zip(&goals).all(|(rounds, goal)| rounds.load(Relaxed) >= *goal);
            reached || self.callers.iter().any(JoinHandle::is_finished)
        });
    }

    /// Stops them, and returns how many calls were answered.
    ///
    /// # Panics
    /// If an answer was wrong, or a connection ended.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.join().into_iter().map(|calls| calls.expect("a caller's connection")).sum()
    }

    /// Waits until the connection of every caller has ended, and returns how.
    ///
    /// # Panics
    /// If an answer was wrong.
    pub fn await_ends(self) -> Vec<io::Result<u64>> {
        until_true("the callers' connections to end", || self.callers.iter().all(JoinHandle::is_finished));
        self.join()
    }

    fn join(self) -> Vec<io::Result<u64>> {
        self.callers.into_iter().map(|caller| caller.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    }
}

struct Caller {
    address: SocketAddr,
    uri: String,
    kind: Kind,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Caller {
    fn run(self) -> io::Result<u64> {
        let mut calls = 0;
        while !self.stop.load(Relaxed) {
            let mut client = Client::try_connect(self.address)?;
            for _ in 0..self.kind.rounds_per_connection {
                self.round(&mut client)?;
                calls += self.kind.depth as u64;
                self.rounds.fetch_add(1, Relaxed);
                if self.stop.load(Relaxed) {
                    break;
                }
            }
        }
        Ok(calls)
    }

    fn round(&self, client: &mut Client) -> io::Result<()> {
        let ask = || Judge.ask_repeated(&self.uri, self.kind.size, self.kind.times);
        let asks: Vec<Ask> = (0..self.kind.depth).map(|_| ask()).collect();
        client.try_send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>())?;
        for ask in asks {
            ask.expect_right(&client.try_read()?);
        }
        Ok(())
    }
}
