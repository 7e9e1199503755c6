//! What waits at a reader that does not read: never more than the bound, and the rest by TCP, which has backpressure.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use agent::kernel::Pass;
use moa_tests::{
    leg::{AgentReader, AgentWriter, FAMILIES, Legs, Pair, Route, Stamps, Took, readable},
    seed, until_true,
};
use rand::{RngExt, rngs::StdRng};
use socket2::SockRef;

const BOUND: u64 = 256 << 10;

/// Writes until the socket takes nothing more.
fn fill(sender: &mut TcpStream, stamps: &mut Stamps, piece_max: usize, rng: &mut StdRng) {
    sender.set_nonblocking(true).unwrap();
    loop {
        let mut next = stamps.clone();
        let bytes = next.make(rng.random_range(1..=piece_max));
        match sender.write(&bytes) {
            Ok(written) => drop(stamps.make(written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    sender.set_nonblocking(false).unwrap();
}

/// Calls and answers on another connection, as if nothing were the matter.
fn others_are_unharmed(legs: &Legs) -> u64 {
    let Pair { mut app, mut agent } = legs.pair();
    for call in 0..200_u64 {
        app.write_all(&Stamps::of(call).make(1000)).unwrap();
        Stamps::of(call).receive(&mut agent, 1000, &mut seed::fixed(call), |_| {});
        agent.write_all(&Stamps::of(!call).make(1000)).unwrap();
        Stamps::of(!call).receive(&mut app, 1000, &mut seed::fixed(call), |_| {});
    }
    200 * 1000
}

#[test]
fn a_stalled_agent_holds_the_bound_and_no_more() {
    let mut rng = seed::rng("a_stalled_agent_holds_the_bound_and_no_more");
    for piece_max in [10, 1_000, 60_000, 1 << 20] {
        let legs = Legs::bounded(BOUND);
        let Pair { mut app, mut agent } = legs.pair();
        let mut sent = Stamps::of(1);
        fill(&mut app, &mut sent, piece_max, &mut rng);
        let took = legs.took();
        assert!(took.to_agent.bytes <= BOUND, "{piece_max}: {took:?}");
        assert!(sent.at() > BOUND, "{piece_max}: TCP took none of {}", sent.at());
        assert_eq!(took.passes[Pass::Bound as usize], 1);
        // TCP's share is limited by the receive buffer, in which the agent made room for both.
        let (held, room) = (legs.held_by_agent(&agent), SockRef::from(&agent).recv_buffer_size().unwrap() as u64);
        println!("pieces up to {piece_max}: {} redirected, {} sent, {held} held, {room} room", took.to_agent.bytes, sent.at());
        assert!(held <= room + (256 << 10), "{held} bytes of memory are held, there is room for {room}");
        let unharmed = others_are_unharmed(&legs);
        // A reader that comes late finds everything in order, and more after it.
        let more = thread::scope(|scope| {
            let mut continued = sent.clone();
            let sending = scope.spawn(move || {
                continued.send(&mut app, 1 << 20, piece_max, &mut seed::fixed(1));
                app.shutdown(Shutdown::Write).unwrap();
            });
            let received = Stamps::of(1).receive_to_end(&mut agent);
            sending.join().unwrap();
            received - sent.at()
        });
        assert_eq!(more, 1 << 20);
        legs.expect_of_nonblocking(&Took {
            enrolled: 4,
            to_agent: took.to_agent.bytes + unharmed,
            from_agent: unharmed,
            passes: &[(Pass::Bound, 1)],
            ..Took::default()
        });
    }
}

/// The agent holds itself to the bound by what the kernel says of the other end.
#[test]
fn what_waits_is_known_in_every_family() {
    let legs = Legs::bounded(BOUND);
    let ways = FAMILIES.into_iter().chain([("[::]:0", "127.0.0.1")]);
    let pairs: Vec<Pair> = ways.flat_map(|(listen, to)| [legs.accepted(listen, to), legs.dialled(listen, to)]).collect();
    for Pair { mut app, mut agent } in pairs {
        agent.write_all(&[1; 5_000]).unwrap();
        app.write_all(&[1; 3_000]).unwrap();
        assert_eq!((legs.unread_by_app(&agent), legs.held_by_agent(&agent)), (5_000, 3_000), "{agent:?}");
        app.read_exact(&mut [0; 4_000]).unwrap();
        agent.read_exact(&mut [0; 3_000]).unwrap();
        until_true("what was read to be gone", || legs.held_by_agent(&agent) == 0);
        assert!((1_000..=5_000).contains(&legs.unread_by_app(&agent)), "{agent:?}");
        app.read_exact(&mut [0; 1_000]).unwrap();
        assert_eq!(legs.unread_by_app(&agent), 0, "{agent:?}");
    }
    legs.expect_redirected(8, 8 * 3_000, 8 * 5_000);
}

#[test]
fn what_an_agent_has_published_may_come_again() {
    let legs = Legs::bounded(BOUND);
    goes_on_when_published(&legs, legs.pair());
    let sent = legs.took().to_agent.bytes;
    goes_on_when_published(&legs, legs.dialled("[::]:0", "::ffff:127.0.0.1"));
    legs.expect_redirected(2, 2 * sent, 0);
}

fn goes_on_when_published(legs: &Legs, pair: Pair) {
    let Pair { mut app, agent } = pair;
    let (mut sent, mut received, mut rng) = (Stamps::of(1), Stamps::of(1), seed::rng("what_an_agent_has_published"));
    let mut agent = AgentReader::new(legs, agent);
    for _ in 0..seed::count(200, 2_000) {
        sent.send(&mut app, BOUND * 3 / 4, 50_000, &mut rng);
        received.receive(&mut agent, BOUND * 3 / 4, &mut rng, |_| {});
    }
}

#[test]
fn what_an_agent_has_read_and_not_published_counts() {
    let legs = Legs::bounded(BOUND);
    let Pair { mut app, mut agent } = legs.pair();
    let (mut sent, mut received, mut rng) = (Stamps::of(1), Stamps::of(1), seed::rng("what_an_agent_has_read"));
    sent.send(&mut app, BOUND, 50_000, &mut rng);
    received.receive(&mut agent, BOUND, &mut rng, |_| {});
    legs.expect_redirected(1, BOUND, 0);
    sent.send(&mut app, BOUND, 50_000, &mut rng);
    received.receive(&mut agent, BOUND, &mut rng, |_| {});
    legs.expect(&Took { passed: BOUND, passes: &[(Pass::Bound, 1)], ..Route::ToAgent.took(BOUND) });
}

#[test]
fn many_threads_on_one_socket_do_not_exceed_the_bound() {
    const THREADS: u8 = 4;
    const EACH: usize = 1 << 20;
    let legs = Legs::bounded(BOUND);
    let Pair { app, mut agent } = legs.pair();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let mut app = &app;
            scope.spawn(move || {
                let (mut rng, mut at) = (seed::fixed(u64::from(thread)), 0);
                while at < EACH {
                    let piece = rng.random_range(1..20_000).min(EACH - at);
                    // Two bits of each byte say which thread it is of, six which of the thread's.
                    let bytes: Vec<u8> = (at..at + piece).map(|at| thread << 6 | u8::try_from(at % 64).unwrap()).collect();
                    app.write_all(&bytes).unwrap();
                    at += piece;
                }
            });
        }
        until_true("the bound to be met", || legs.took().passes[Pass::Bound as usize] == 1);
        let stalled = legs.took();
        assert!(stalled.to_agent.bytes <= BOUND && stalled.to_agent.bytes > BOUND - (64 << 10), "{stalled:?}");
        let mut counts = [0_usize; THREADS as usize];
        let mut buffer = vec![0; 64 << 10];
        while counts.iter().sum::<usize>() < EACH * usize::from(THREADS) {
            let read = agent.read(&mut buffer).unwrap();
            assert!(read > 0, "it ended after {counts:?}");
            for byte in &buffer[..read] {
                let count = &mut counts[usize::from(byte >> 6)];
                assert_eq!(usize::from(byte & 63), *count % 64, "thread {}, byte {count}", byte >> 6);
                *count += 1;
            }
        }
        let to_agent = stalled.to_agent.bytes;
        let passed = EACH as u64 * u64::from(THREADS) - to_agent;
        legs.expect(&Took { passed, passes: &[(Pass::Bound, 1)], ..Route::ToAgent.took(to_agent) });
    });
}

#[test]
fn a_stalled_application_is_held_to_the_bound_by_the_agent() {
    let legs = Legs::bounded(BOUND);
    let Pair { mut app, agent } = legs.pair();
    let watched = agent.try_clone().unwrap();
    let total = 4 << 20;
    thread::scope(|scope| {
        let legs = &legs;
        let writing = scope.spawn(move || {
            let mut agent = AgentWriter::new(legs, agent);
            Stamps::of(1).send(&mut agent, total, 50_000, &mut seed::fixed(1));
            agent.is_by_tcp()
        });
        until_true("the agent to hold back", || legs.unread_by_app(&watched) > BOUND / 2);
        others_are_unharmed(legs);
        let (unread, held) = (legs.unread_by_app(&watched), readable(&app));
        assert!(unread <= BOUND && held <= BOUND, "{unread} bytes of memory, {held} bytes");
        Stamps::of(1).receive(&mut app, total, &mut seed::fixed(2), |_| {});
        assert!(writing.join().unwrap());
    });
    let took = legs.took();
    assert_eq!(took.passes[Pass::AgentBound as usize], 1);
    assert_eq!(took.passes.iter().sum::<u64>(), 1);
    assert_eq!(took.from_agent.bytes + took.passed.bytes, total + 200 * 1000);
    assert!(took.passed.bytes > 0 && took.from_agent.bytes >= BOUND);
}

/// Without blocking, a send may take a part of the bytes. What it says to have taken is what arrives.
#[test]
fn short_writes() {
    for route in Route::ALL {
        let legs = Legs::bounded(BOUND);
        let (mut sender, mut receiver) = route.open(&legs);
        SockRef::from(&sender).set_send_buffer_size(1).unwrap();
        let (total, mut rng) = (8 << 20, seed::rng("short_writes"));
        let short = thread::scope(|scope| {
            let sending = scope.spawn(|| send_without_blocking(&mut sender, total));
            let mut received = Stamps::of(1);
            received.receive(&mut receiver, total, &mut rng, |_| {});
            sending.join().unwrap()
        });
        let took = legs.took();
        println!("{route:?}: {short:?} short and refused writes, {took:?}");
        match route {
            Route::Plain => legs.expect(&Took::default()),
            // Who does not publish meets the bound.
            Route::ToAgent => {
                assert!(took.to_agent.bytes <= BOUND, "{took:?}");
                legs.expect_of_nonblocking(&Took { passes: &[(Pass::Bound, 1)], ..route.took(took.to_agent.bytes) });
            }
            // Nobody holds the agent back but itself, which it does not here.
            Route::FromAgent => legs.expect(&route.took(total)),
        }
    }
}

fn send_without_blocking(sender: &mut TcpStream, total: u64) -> (u64, u64) {
    sender.set_nonblocking(true).unwrap();
    let (mut stamps, mut rng, mut short) = (Stamps::of(1), seed::fixed(1), (0, 0));
    while stamps.at() < total {
        let size = usize::try_from(total - stamps.at()).unwrap().min(rng.random_range(1..300_000));
        let bytes = stamps.clone().make(size);
        match sender.write(&bytes) {
            Ok(written) => {
                short.0 += u64::from(written < size);
                stamps.make(written);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                short.1 += 1;
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
    short
}

/// Very many bytes at a reader that keeps up: nothing waits longer than it must, so nothing goes by TCP.
#[test]
fn a_reader_that_keeps_up_never_has_it_fall_back() {
    let total = seed::count(1 << 30, 10 << 30) as u64;
    let legs = Legs::attach();
    let bound = legs.path().bound();
    let Pair { mut app, agent } = legs.pair();
    let read = AtomicU64::new(0);
    thread::scope(|scope| {
        let (legs, read) = (&legs, &read);
        scope.spawn(move || {
            let mut agent = AgentReader::new(legs, agent);
            let keep_up = |bytes| {
                read.fetch_add(bytes as u64, Ordering::SeqCst);
            };
            Stamps::of(1).receive(&mut agent, total, &mut seed::fixed(1), keep_up);
        });
        let (mut sent, mut rng) = (Stamps::of(1), seed::rng("a_reader_that_keeps_up_never_has_it_fall_back"));
        while sent.at() < total {
            let piece = rng.random_range(1..=200_000_u64).min(total - sent.at());
            // A quarter of the bound is read and not yet published.
            until_true("the reader", || sent.at() + piece - read.load(Ordering::SeqCst) <= bound * 3 / 4);
            sent.send(&mut app, piece, 200_000, &mut rng);
        }
    });
    legs.expect_redirected(1, total, 0);
}

#[test]
fn very_many_calls_on_one_connection() {
    let calls = seed::count(100_000, 1_000_000) as u64;
    let legs = Legs::attach();
    let Pair { mut app, agent } = legs.pair();
    let (mut asked, mut answered, mut rng) = (Stamps::of(1), Stamps::of(2), seed::rng("very_many_calls_on_one_connection"));
    let mut writer = AgentWriter::new(&legs, agent.try_clone().unwrap());
    let mut reader = AgentReader::new(&legs, agent);
    for _ in 0..calls {
        let (call, answer): (usize, usize) = (rng.random_range(1..300), rng.random_range(1..300));
        app.write_all(&asked.clone().make(call)).unwrap();
        expect_bytes(&mut reader, &mut asked, call);
        writer.write_all(&answered.clone().make(answer)).unwrap();
        expect_bytes(&mut app, &mut answered, answer);
    }
    assert!(!writer.is_by_tcp());
    legs.expect_redirected(1, asked.at(), answered.at());
}

fn expect_bytes(from: &mut impl Read, stamps: &mut Stamps, count: usize) {
    let mut buffer = [0; 300];
    from.read_exact(&mut buffer[..count]).unwrap();
    stamps.check(&buffer[..count]);
}
