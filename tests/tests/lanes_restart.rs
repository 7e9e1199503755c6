//! Calls from lane to lane while their agent is killed, and while it is stopped: each ends once, and nothing of them is left.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use agent_common::frame::{Flags, Header, Kind};
use moa_tests::{
    Agent, DEMO, LanePeer, PATIENCE,
    fleet::metric,
    frames::{bytes_of, caller, meta_of, service},
    kernel::{self, Look},
    lanes::{self, Way, request_header},
    routed::{Routed, await_idle, await_routed},
    seed, until_true,
};
use nix::sys::signal::Signal;

/// Calls that a caller has in flight.
const DEPTH: usize = 8;

/// What became of a caller's calls.
#[derive(Debug, Default)]
struct Account {
    made: usize,
    /// How often each was answered with success, and with an error.
    answers: HashMap<u32, (usize, usize)>,
    /// Which connections were ended by a GOAWAY that lets calls end.
    goodbyes: usize,
}

impl Account {
    fn took(&mut self, stream: u32, word: u32) {
        let answer = self.answers.entry(stream).or_default();
        if word == 0 { answer.0 += 1 } else { answer.1 += 1 }
    }

    fn in_flight(&self) -> usize {
        self.made - self.answers.len()
    }

    fn expect_each_once(&self) {
        for (stream, (right, wrong)) in &self.answers {
            assert_eq!(right + wrong, 1, "call {stream} was answered more than once");
        }
    }
}

/// Echoes until both connections end, whatever becomes of its answers.
fn echo(address: SocketAddr, name: &str) -> JoinHandle<()> {
    lanes::serve(LanePeer::open(address, &service(name, &[DEMO])), |peer, way, got| {
        if got.kind() == Some(Kind::Request) {
            let header = got.back(Kind::Response);
            let bytes = bytes_of(Header { flags: header.flags | Flags::END_STREAM, ..header }, &[], &got.body);
            match way {
                Way::Lane => drop(peer.try_send(&bytes)),
                Way::Stream => drop(peer.stream.try_write(&bytes)),
            }
        }
    })
}

/// Calls until it is told to stop, or GOAWAY, and then until its calls have ended; or until both connections end.
fn calls(address: SocketAddr, stop: &Arc<AtomicBool>) -> JoinHandle<Account> {
    let (mut peer, stop) = (LanePeer::open(address, &caller()), stop.clone());
    thread::spawn(move || {
        let mut account = Account::default();
        loop {
            let goes_on = account.goodbyes == 0 && !stop.load(Ordering::Relaxed);
            while goes_on && account.in_flight() < DEPTH {
                let (_, bytes) = peer.request_bytes(request_header(DEMO, Flags::END_STREAM), meta_of(DEMO).as_ref(), b"body");
                account.made += 1;
                // In vain if the lane has ended: then reading says so.
                let _ = peer.try_send(&bytes);
            }
            if account.in_flight() == 0 {
                return account;
            }
            match peer.next_frame() {
                None => return account,
                Some((_, got)) => match got.kind() {
                    Some(Kind::Response) => account.took(got.header.stream, got.header.word),
                    Some(Kind::GoAway) if !got.has(Flags::END_STREAM) => account.goodbyes += 1,
                    _ => {}
                },
            }
        }
    })
}

/// The counters of one process go on where those of the other stopped, and nothing else of it is left.
fn expect_adopted(agent: &Agent, before: (&Look, u64)) {
    let (after, routed) = (Look::at(agent), Routed::at(agent));
    assert_eq!(after.kept_maps(), before.0.kept_maps(), "other maps");
    let counted = metric(agent, "moa_kernel_routed_calls_total");
    assert!(counted >= before.1 && routed.calls >= before.1, "{counted} after {}", before.1);
    assert_eq!((routed.lanes, routed.in_flight), (0, 0), "{routed:?}");
    assert!(routed.services.values().all(Option::is_some), "{routed:?}");
}

#[test]
fn a_kill_in_mid_traffic_ends_each_call_once_and_the_next_agent_begins_anew() {
    let mut agent = kernel::start("");
    for _ in 0..seed::count(4, 40) {
        let serving = ["one", "two"].map(|name| echo(agent.address(), name));
        await_routed(&agent, DEMO);
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..3).map(|_| calls(agent.address(), &stop)).collect();
        let begun = Routed::at(&agent).calls;
        until_true("calls to be routed", || Routed::at(&agent).calls > begun + 1_000);
        let before = (Look::at(&agent), metric(&agent, "moa_kernel_routed_calls_total"));
        agent.kill();
        for ended in callers {
            let account = ended.join().expect("a caller");
            account.expect_each_once();
            assert!(account.in_flight() <= DEPTH, "{}", account.in_flight());
            assert!(account.answers.values().all(|(_, wrong)| *wrong == 0), "an error of nobody's");
        }
        serving.into_iter().for_each(|ended| ended.join().expect("a service"));
        agent.start_again();
        expect_adopted(&agent, (&before.0, before.1));
    }
    let _serving = echo(agent.address(), "last");
    await_routed(&agent, DEMO);
    let before = metric(&agent, "moa_kernel_routed_calls_total");
    let mut client = LanePeer::open(agent.address(), &caller());
    (0..10).for_each(|_| assert_eq!(client.call(DEMO, b"x").0, Way::Lane));
    assert_eq!(metric(&agent, "moa_kernel_routed_calls_total"), before + 10);
    await_idle(&agent);
}

#[test]
fn a_kill_with_calls_that_nobody_has_answered() {
    let mut agent = kernel::start("");
    let mut held = LanePeer::open(agent.address(), &service("held", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    for _ in 0..50 {
        client.request(DEMO, Flags::END_STREAM, b"x");
    }
    let given: Vec<_> = (0..50).map(|_| held.expect(Kind::Request).1).collect();
    let before = (Look::at(&agent), metric(&agent, "moa_kernel_routed_calls_total"));
    assert_eq!(Routed::at(&agent).in_flight, 50);
    agent.kill();
    while let Some((_, got)) = client.next_frame() {
        assert_ne!(got.kind(), Some(Kind::Response), "{got:?}");
    }
    while held.next_frame().is_some() {}
    agent.start_again();
    expect_adopted(&agent, (&before.0, before.1));
    // What is answered on the lane of the former agent is nobody's, and is not taken for a call of the new one.
    let header = given[0].back(Kind::Response);
    let late = bytes_of(Header { flags: header.flags | Flags::END_STREAM, ..header }, &[], b"late");
    let _ = held.try_send(&late);
    let mut next = LanePeer::open(agent.address(), &service("next", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let stream = client.request(DEMO, Flags::END_STREAM, b"y");
    let (way, call) = next.expect(Kind::Request);
    assert!(way == Way::Lane && given.iter().all(|former| former.header.via != call.header.via));
    // Nor is one that names a call of before.
    next.send(Header { via: given[1].header.via, ..call.back(Kind::Response) }, &[], b"another's");
    next.respond(&call, 0, b"right");
    assert_eq!(client.answer_to(stream).1.body, b"right");
    await_idle(&agent);
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_routes_nothing_more() {
    let mut agent = kernel::start("");
    let mut held = LanePeer::open(agent.address(), &service("held", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let streams: Vec<_> = (0..10).map(|_| client.request(DEMO, Flags::END_STREAM, b"x")).collect();
    let given: Vec<_> = streams.iter().map(|_| held.expect(Kind::Request).1).collect();
    agent.signal(Signal::SIGTERM);
    for peer in [&mut client, &mut held] {
        let (way, goodbye) = peer.expect(Kind::GoAway);
        assert_eq!((way, goodbye.has(Flags::END_STREAM)), (Way::Stream, false));
    }
    // A call that was on its way is not lost, and is not routed.
    let late = client.request(DEMO, Flags::END_STREAM, b"late");
    let (way, call) = held.expect(Kind::Request);
    assert_eq!((way, call.header.is_routed(), &*call.body), (Way::Stream, false, &b"late"[..]));
    held.stream.respond(&call, 0, b"late");
    assert_eq!(client.answer_to(late).1.header.word, 0);
    assert!(agent.ended().is_none(), "it ended with calls in flight");
    for (call, stream) in given.iter().zip(&streams) {
        held.respond(call, 0, b"in the end");
        let (_, got) = client.answer_to(*stream);
        assert_eq!((got.header.word, &*got.body), (0, &b"in the end"[..]), "{}", got.error());
    }
    drop(client);
    let (way, last) = held.expect_that("the end", |got| got.kind() == Some(Kind::GoAway) && got.has(Flags::END_STREAM));
    assert_eq!((way, last.header.word), (Way::Stream, agent_common::frame::status::reason::DRAIN));
    drop(held);
    let status = agent.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

#[test]
fn a_service_that_goes_is_given_nothing_by_its_lane_once_its_ping_is_answered() {
    let agent = kernel::start("");
    for _ in 0..10 {
        let mut leaves = LanePeer::open(agent.address(), &service("leaves", &[DEMO]));
        await_routed(&agent, DEMO);
        let mut client = LanePeer::open(agent.address(), &caller());
        let stream = client.request(DEMO, Flags::END_STREAM, b"x");
        let (_, call) = leaves.expect(Kind::Request);
        leaves.stream.send(Header::new(Kind::GoAway), &[], &[]);
        leaves.stream.send(Header { via: 77, ..Header::new(Kind::Ping) }, &[], &[]);
        leaves.expect(Kind::Pong);
        let late = client.request(DEMO, Flags::END_STREAM, b"late");
        let (way, got) = client.answer_to(late);
        assert!(way == Way::Stream && got.header.word != 0, "{}", got.error());
        leaves.respond(&call, 0, b"in the end");
        assert_eq!(client.answer_to(stream).1.body, b"in the end");
        while let Some((way, got)) = leaves.next_frame() {
            assert_ne!(got.kind(), Some(Kind::Request), "by the {way:?}");
        }
    }
    await_idle(&agent);
}

#[test]
fn a_stop_under_load_loses_no_routed_call() {
    for _ in 0..seed::count(3, 30) {
        let mut agent = kernel::start("");
        let _serving = ["one", "two"].map(|name| echo(agent.address(), name));
        await_routed(&agent, DEMO);
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4).map(|_| calls(agent.address(), &stop)).collect();
        until_true("calls to be routed", || Routed::at(&agent).calls > 1_000);
        agent.signal(Signal::SIGTERM);
        for ended in callers {
            let account = ended.join().expect("a caller");
            account.expect_each_once();
            assert_eq!((account.in_flight(), account.goodbyes), (0, 1), "{:?}", account.made);
            let wrong = account.answers.values().filter(|(_, wrong)| *wrong > 0).count();
            assert_eq!(wrong, 0, "of {}", account.made);
        }
        let status = agent.wait(PATIENCE);
        assert!(status.success(), "{status}");
    }
}

#[test]
fn applications_with_lanes_that_are_idle_do_not_hold_a_stop_up() {
    let mut agent = kernel::start("");
    let serving = echo(agent.address(), "idle");
    await_routed(&agent, DEMO);
    let stop = Arc::new(AtomicBool::new(true));
    let clients: Vec<_> = (0..5).map(|_| calls(agent.address(), &stop)).collect();
    clients.into_iter().for_each(|client| drop(client.join().expect("a caller")));
    agent.signal(Signal::SIGTERM);
    let status = agent.wait(Duration::from_secs(3));
    assert!(status.success(), "{status}");
    serving.join().expect("a service");
}
