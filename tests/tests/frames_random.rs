//! Many calls of all kinds at once, over frames and Redis on both sides: each ends exactly once, and as it should.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use agent_common::frame::{Flags, Header, Hello, Kind, MetaBuilder, service_hash};
use moa_tests::{
    Agent, DEMO, FakeMoa, Judge, Reply, config,
    frames::{FramePeer, caller, meta_of, service},
    judge::{Ask, Verdict},
    mixed,
    mux::{Event, Mux},
    seed, until_true,
};
use rand::{RngExt, rngs::StdRng};
use serde_json::Value;

const USER: &str = "/service/user";
/// Never answers.
const SILENT: &str = "/service/silent";
/// Fails with a CANCEL.
const FAILING: &str = "/service/failing";
const IN_FLIGHT: usize = 24;

/// Serves until the connection ends. Returns how many one-way calls came.
fn serve(peer: FramePeer, one_ways: Arc<AtomicU64>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut mux = Mux::new(peer);
        loop {
            let call = match mux.next_event() {
                Event::Whole(call) => call,
                Event::Cancelled(_) => continue,
                Event::End => return,
            };
            let value: Value = serde_json::from_slice(&call.body).unwrap_or_default();
            if call.has(Flags::ONE_WAY) {
                one_ways.fetch_add(1, Relaxed);
            } else if value["action"] == FAILING {
                mux.cancel(Header { word: 333, ..call.back(Kind::Cancel) });
            } else if value["action"] != SILENT {
                let args = &value["params"]["args"];
                let times = args[1].as_u64().and_then(|times| usize::try_from(times).ok()).unwrap_or(1);
                let text = args[0].as_str().unwrap_or_default().repeat(times);
                let answer = if call.body.is_empty() { String::new() } else { format!(r#"{{"ec":0,"result":"{text}"}}"#) };
                mux.send(call.back(Kind::Response), MetaBuilder::new(), answer.as_bytes());
            }
        }
    })
}

/// How many bytes of text a call sends, and how many times they are in the answer.
fn sizes(rng: &mut StdRng, largest: usize) -> (usize, usize) {
    let bytes = match rng.random_range(0..1000) {
        0 => 10_000_000,
        1..10 => 1_000_000,
        10..100 => 65_000,
        _ => 2_000,
    };
    let size = rng.random_range(17..=bytes.min(largest));
    (size, if rng.random_bool(0.5) { 1 } else { (rng.random_range(0..=bytes) / size).max(1) })
}

/// A call in flight.
struct Pending {
    uri: &'static str,
    ask: Option<Ask>,
    cancelled: bool,
}

struct FrameCaller {
    mux: Mux,
    rng: StdRng,
    last: u32,
    pending: HashMap<u32, Pending>,
    one_ways: u64,
}

impl FrameCaller {
    fn run(mut self, calls: usize) -> u64 {
        for _ in 0..calls {
            self.begin();
            if self.rng.random_bool(0.05) {
                self.give_one_up();
            }
            while self.in_flight() >= IN_FLIGHT {
                self.wait();
            }
        }
        while self.in_flight() > 0 {
            self.wait();
        }
        self.one_ways
    }

    fn in_flight(&self) -> usize {
        self.pending.values().filter(|call| !call.cancelled).count()
    }

    fn begin(&mut self) {
        self.last += 1;
        let uri = [USER, USER, DEMO, USER, USER, DEMO, SILENT, FAILING][self.rng.random_range(0..8)];
        let largest = if uri == DEMO { 30_000 } else { usize::MAX };
        let (size, times) = sizes(&mut self.rng, largest);
        let ask = (uri != USER || self.rng.random_bool(0.95)).then(|| Judge.ask_repeated(uri, size, times));
        let one_way = uri == USER && self.rng.random_bool(0.1);
        let timeout_ms = match uri {
            SILENT => self.rng.random_range(1..200),
            _ => [0, 60_000][self.rng.random_range(0..2)],
        };
        let header = Header {
            flags: if one_way { Flags::ONE_WAY } else { Flags::NONE },
            stream: self.last,
            via: u64::from(self.last) << 7,
            service: service_hash(uri.as_bytes(), b""),
            word: timeout_ms,
            ..Header::new(Kind::Request)
        };
        let body = ask.as_ref().map(|ask| ask.json.clone()).unwrap_or_default();
        self.mux.send(header, meta_of(uri), body.as_bytes());
        if one_way {
            self.one_ways += 1;
        } else {
            self.pending.insert(self.last, Pending { uri, ask, cancelled: false });
        }
    }

    fn give_one_up(&mut self) {
        let Some((stream, call)) = self.pending.iter_mut().find(|(_, call)| !call.cancelled) else { return };
        call.cancelled = true;
        let service = service_hash(call.uri.as_bytes(), b"");
        let header = Header { stream: *stream, via: u64::from(*stream) << 7, service, word: 305, ..Header::new(Kind::Cancel) };
        self.mux.cancel(header);
    }

    fn wait(&mut self) {
        let (got, whole) = match self.mux.next_event() {
            Event::Whole(got) => (got, true),
            Event::Cancelled(got) => (got, false),
            Event::End => panic!("the agent has ended the connection"),
        };
        let Header { via, word, .. } = got.header;
        let stream = u32::try_from(via >> 7).expect("a via of its own");
        let call = self.pending.remove(&stream).unwrap_or_else(|| panic!("stream {stream} ends twice, or never began"));
        let expected = match call.uri {
            SILENT => 304,
            FAILING => 333,
            _ => 0,
        };
        // An answer may cross a CANCEL.
        if call.cancelled && !whole {
            return;
        }
        assert_eq!((word, whole), (expected, true), "{} {}", call.uri, got.error());
        match call.ask {
            _ if word != 0 => {}
            Some(ask) => assert_eq!(ask.judge(&Reply::Bulk(got.body)), Verdict::Right),
            None => assert_eq!(got.body, b""),
        }
    }
}

fn redis_caller(agent: &Agent, mut rng: StdRng, calls: usize) -> JoinHandle<u64> {
    let mut client = agent.connect();
    thread::spawn(move || {
        for _ in 0..calls {
            let uri = [USER, DEMO][rng.random_range(0..2)];
            let (size, times) = sizes(&mut rng, 30_000);
            let ask = Judge.ask_repeated(uri, size, times);
            assert_eq!(ask.judge(&client.get(&ask.json)), Verdict::Right);
        }
        0
    })
}

#[test]
fn every_call_ends_once_and_as_it_should() {
    let mut rng = seed::rng("every_call_ends_once_and_as_it_should");
    let calls = seed::count(5_000, 100_000) / 5;
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    fakes.iter().for_each(|fake| fake.script(mixed::service));
    let addresses = fakes.each_ref().map(FakeMoa::address);
    let text = format!(
        "[agent]\nworkers = 2\n[app]\nqueued_bytes_max = 100000000\n[defaults]\ntimeout_ms = 60000\n{}",
        config::service(DEMO, &addresses, config::NO_HEALTH_CHECK)
    );
    let agent = Agent::start(&text);
    let one_ways = Arc::new(AtomicU64::new(0));
    let offers = [USER, SILENT, FAILING];
    let hellos = [
        Hello { connection: Some(0), ..service("a", &offers) },
        Hello { connection: Some(1), ..service("a", &offers) },
        Hello { connection: Some(1), ..service("b", &offers) },
    ];
    for hello in hellos {
        serve(FramePeer::connect(agent.address(), &hello), one_ways.clone());
    }
    let mut callers = Vec::new();
    for connection in [None, Some(0), Some(1)] {
        let peer = FramePeer::connect(agent.address(), &Hello { connection, ..caller() });
        let rng = seed::fixed(rng.random());
        let caller = FrameCaller { mux: Mux::new(peer), rng, last: 0, pending: HashMap::new(), one_ways: 0 };
        callers.push(thread::spawn(move || caller.run(calls)));
    }
    (0..2).for_each(|_| callers.push(redis_caller(&agent, seed::fixed(rng.random()), calls)));
    let sent: u64 =
        callers.into_iter().map(|caller| caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum();
    until_true("nothing to be held", || {
        let status = agent.json(&["status"]);
        status["calls"]["in_flight"] == 0 && status["app"]["queued_bytes"] == 0
    });
    fakes.iter().for_each(|fake| fake.ledger().expect_none_twice());
    until_true(&format!("{sent} one-way calls to have come"), || one_ways.load(Relaxed) >= sent);
    assert_eq!(one_ways.load(Relaxed), sent, "one came twice");
}
