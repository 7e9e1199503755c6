//! Steady traffic beside which a test does something, and its account afterwards.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::{
    client::Client,
    frames::{FramePeer, caller},
    judge::{Judge, Verdict},
    resp::Reply,
    wait::until_true,
};

/// Callers that call one after the other, each on its own connection, until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Account>>,
}

/// What became of the calls.
#[derive(Debug, Default)]
pub struct Account {
    /// Calls that got their right answer.
    pub right: u64,
    /// Those that got an error, by its code.
    pub failed: BTreeMap<i64, u64>,
    /// The texts of the first few errors.
    pub texts: Vec<String>,
    /// Why a caller's connection ended, if one did.
    pub closed: Option<String>,
}

impl Load {
    /// Starts as many callers as `services` names one after the other; each keeps to its own service.
    pub fn start(address: SocketAddr, services: &[&str], callers: usize) -> Self {
        Self::start_with(services, callers, move || Line::Redis(Client::connect(address)))
    }

    /// As [`Load::start`], with callers that speak frames.
    pub fn start_frames(address: SocketAddr, services: &[&str], callers: usize) -> Self {
        Self::start_with(services, callers, move || Line::Frames(Box::new(FramePeer::connect(address, &caller()))))
    }

    fn start_with(services: &[&str], callers: usize, connect: impl Fn() -> Line + Clone + Send + 'static) -> Self {
        let (stop, done, judge) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Judge);
        let callers = (0..callers).map(|number| {
            let caller = Caller {
                service: services[number % services.len()].to_owned(),
                judge,
                stop: Arc::clone(&stop),
                done: Arc::clone(&done),
            };
            let connect = connect.clone();
            thread::spawn(move || caller.run(connect()))
        });
        let callers = callers.collect();
        Self { stop, done, callers }
    }

    /// Calls that were answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more calls were answered.
    pub fn await_calls(&self, more: u64) {
        let goal = self.done() + more;
        until_true(&format!("{more} more calls to be answered"), || self.done() >= goal || self.broken());
    }

    /// Stops, and sums up; a caller's panic at a wrong answer is the test's.
    ///
    /// # Panics
    /// If a connection was closed under a caller.
    pub fn stop(self) -> Account {
        let account = self.sum_up();
        assert!(account.closed.is_none(), "a caller's connection was closed: {account:?}");
        account
    }

    fn sum_up(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Account::default();
        for caller in self.callers {
            match caller.join() {
                Ok(account) => sum.add(account),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum
    }

    /// Waits until the agent has closed each caller's connection, and sums up.
    pub fn await_close(self) -> Account {
        until_true("the callers' connections to be closed", || self.callers.iter().all(JoinHandle::is_finished));
        self.sum_up()
    }

    fn broken(&self) -> bool {
        self.callers.iter().any(JoinHandle::is_finished)
    }
}

/// What a caller calls by.
enum Line {
    Redis(Client),
    Frames(Box<FramePeer>),
}

impl Line {
    fn get(&mut self, service: &str, json: &str) -> io::Result<Reply> {
        match self {
            Self::Redis(client) => client.try_get(json),
            Self::Frames(peer) => {
                let answer = peer.call(service, json.as_bytes());
                if answer.header.word == 0 || !answer.body.is_empty() {
                    return Ok(Reply::Bulk(answer.body));
                }
                let error = serde_json::json!({ "ec": answer.header.word, "em": answer.error(), "result": null });
                Ok(Reply::Bulk(error.to_string().into_bytes()))
            }
        }
    }
}

struct Caller {
    service: String,
    judge: Judge,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Caller {
    fn run(self, mut line: Line) -> Account {
        let mut account = Account::default();
        let mut size = 17;
        while !self.stop.load(Ordering::Relaxed) {
            size = if size > 2_000 { 17 } else { size * 2 };
            let ask = self.judge.ask(&self.service, size);
            match line.get(&self.service, &ask.json) {
                Ok(reply) => account.enter(ask.judge(&reply)),
                Err(error) => {
                    account.closed = Some(error.to_string());
                    return account;
                }
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        account
    }
}

impl Account {
    /// All calls that failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Expects that each call got its right answer.
    ///
    /// # Panics
    /// If one did not, or none was made.
    pub fn expect_all_right(&self) {
        assert!(self.failures() == 0 && self.right > 0, "calls failed: {self:#?}");
    }

    fn enter(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Right => self.right += 1,
            Verdict::Failed(code, text) => {
                *self.failed.entry(code).or_default() += 1;
                if self.texts.len() < 5 {
                    self.texts.push(text);
                }
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.right += other.right;
        for (code, count) in other.failed {
            *self.failed.entry(code).or_default() += count;
        }
        self.texts.extend(other.texts);
        self.closed = self.closed.take().or(other.closed);
    }
}
