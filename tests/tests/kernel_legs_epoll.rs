//! Edge-triggered readers, as every asynchronous runtime is one: a socket says once that there is something, and a reader
//! that stopped too early would wait for ever. Bytes come through both queues of a socket.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use agent::{
    kernel::Pass,
    proxy::{Fallback, KernelPath},
};
use moa_tests::{
    PATIENCE,
    leg::{AgentReader, AgentWriter, Legs, Pair, Stamps},
    seed,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rand::{RngExt, rngs::StdRng};

/// Small, so that many directions fall back in the middle, early and late.
const BOUNDS: [u64; 2] = [32 << 10, 512 << 10];

/// When a reader waits for the next word of its socket.
enum Until<'a> {
    /// When there was nothing more to read.
    WouldBlock,
    /// After a read that did not fill the buffer.
    Short,
    /// As the agent does: after a short read, if no direction has fallen back since there was certainly nothing more.
    ShortUnlessFallenBack(&'a dyn KernelPath),
}

/// Reads to the end of the stream, and checks it.
fn read_by_edges(socket: &TcpStream, from: &mut impl Read, stamps: &mut Stamps, until: &Until<'_>, rng: &mut StdRng) {
    socket.set_nonblocking(true).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    epoll.add(socket, EpollEvent::new(wanted, 0)).unwrap();
    let (mut buffer, mut seen, mut ends) = (vec![0; 64 << 10], None, false);
    loop {
        let (patience, mut events) = (EpollTimeout::try_from(PATIENCE).unwrap(), [EpollEvent::empty()]);
        let told = epoll.wait(&mut events, patience).unwrap();
        assert_eq!(told, 1, "nothing came behind byte {} for {PATIENCE:?}", stamps.at());
        // The end, too, is told only once, perhaps together with bytes before it.
        ends |= events[0].events().contains(EpollFlags::EPOLLRDHUP);
        loop {
            let room = rng.random_range(1..=64 << 10);
            let fallbacks = if let Until::ShortUnlessFallenBack(path) = until { Some(path.fallbacks()) } else { None };
            match from.read(&mut buffer[..room]) {
                Ok(0) => return,
                Ok(read) => {
                    stamps.check(&buffer[..read]);
                    let stops = match until {
                        Until::WouldBlock => false,
                        Until::Short => read < room,
                        Until::ShortUnlessFallenBack(path) => read < room && Some(path.fallbacks()) == seen,
                    };
                    if stops && !ends {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    seen = fallbacks;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        if rng.random_range(0..8) == 0 {
            thread::yield_now();
        }
    }
}

/// Messages of 1 B to 256 KiB, small ones mostly.
fn send_messages(to: &mut impl Write, total: u64, rng: &mut StdRng) {
    let mut stamps = Stamps::of(1);
    while stamps.at() < total {
        let most = 1_u64 << rng.random_range(1..=18);
        let size = rng.random_range(1..=most).min(total - stamps.at());
        to.write_all(&stamps.make(usize::try_from(size).unwrap())).unwrap();
        if rng.random_range(0..4) == 0 {
            thread::yield_now();
        }
    }
}

/// So many connections on which an application sends, two at a time; `read` is the agent.
fn to_agent(legs: &Legs, rounds: usize, read: impl Fn(TcpStream, u64, &mut Stamps, &mut StdRng) + Sync) -> u64 {
    let mut rng = seed::rng("to_agent");
    let totals: Vec<u64> = (0..rounds).map(|_| rng.random_range(1..2 << 20)).collect();
    thread::scope(|scope| {
        for totals in totals.chunks(rounds.div_ceil(2)) {
            let read = &read;
            scope.spawn(move || {
                let mut rng = seed::rng("to_agent, a half");
                for (number, total) in (0..).zip(totals) {
                    let Pair { mut app, agent } = legs.pair();
                    let mut own = seed::fixed(number);
                    thread::scope(|scope| {
                        scope.spawn(move || send_messages(&mut app, *total, &mut own));
                        let mut stamps = Stamps::of(1);
                        read(agent, number, &mut stamps, &mut rng);
                        assert_eq!(stamps.at(), *total);
                    });
                }
            });
        }
    });
    totals.iter().sum()
}

/// All bytes were counted, and each direction that fell back did so at its bound.
fn expect_some_at_the_bound(legs: &Legs, rounds: usize, total: u64) {
    let took = legs.took();
    let bound = took.passes[Pass::Bound as usize];
    println!("{bound} of {rounds} fell back, {} of {total} bytes by TCP", took.passed.bytes);
    assert_eq!(took.enrolled, 2 * rounds as u64);
    assert_eq!(took.to_agent.bytes + took.passed.bytes, total);
    assert_eq!(took.passes.iter().sum::<u64>(), bound);
    assert!(bound > 0, "no direction fell back: nothing was tried");
    assert!(took.to_agent.bytes > 0, "nothing was redirected: nothing was tried");
}

#[test]
fn an_agent_that_reads_until_there_is_nothing_more() {
    for legs in BOUNDS.map(Legs::bounded) {
        let rounds = seed::count(800, 5_000);
        let total = to_agent(&legs, rounds, |socket, number, stamps, rng| {
            // One in two publishes what it reads.
            if number % 2 == 0 {
                let mut reader = AgentReader::new(&legs, socket.try_clone().unwrap());
                read_by_edges(&socket, &mut reader, stamps, &Until::WouldBlock, rng);
            } else {
                read_by_edges(&socket, &mut &socket, stamps, &Until::WouldBlock, rng);
            }
        });
        expect_some_at_the_bound(&legs, rounds, total);
    }
}

#[test]
fn an_agent_that_stops_after_short_reads_until_something_has_fallen_back() {
    for legs in BOUNDS.map(Legs::bounded) {
        let rounds = seed::count(800, 5_000);
        let total = to_agent(&legs, rounds, |socket, _, stamps, rng| {
            let until = Until::ShortUnlessFallenBack(&**legs.path());
            let mut reader = AgentReader::new(&legs, socket.try_clone().unwrap());
            read_by_edges(&socket, &mut reader, stamps, &until, rng);
        });
        expect_some_at_the_bound(&legs, rounds, total);
    }
}

/// What an application may do that knows nothing of two queues: the agent goes over to TCP only when the first is empty.
#[test]
fn an_application_that_stops_after_short_reads() {
    for legs in BOUNDS.map(Legs::bounded) {
        application_stops_after_short_reads(&legs, seed::count(800, 5_000));
    }
}

fn application_stops_after_short_reads(legs: &Legs, rounds: usize) {
    let mut rng = seed::rng("an_application_that_stops_after_short_reads");
    let mut sum = 0;
    for number in 0..rounds as u64 {
        let Pair { app, agent } = legs.pair();
        let (total, turn) = (rng.random_range(1..1 << 20), rng.random_range(0..1 << 20));
        let mut own = seed::fixed(number);
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut agent = Turning { writer: AgentWriter::new(legs, agent), written: 0, turn };
                send_messages(&mut agent, total, &mut own);
            });
            let mut stamps = Stamps::of(1);
            read_by_edges(&app, &mut &app, &mut stamps, &Until::Short, &mut rng);
            assert_eq!(stamps.at(), total);
        });
        let _ = app.shutdown(Shutdown::Both);
        sum += total;
    }
    let took = legs.took();
    let turned = took.passes[Pass::AgentBound as usize];
    println!("{turned} of {rounds} went over, {} of {sum} bytes by TCP", took.passed.bytes);
    assert_eq!((took.enrolled, took.from_agent.bytes + took.passed.bytes), (2 * rounds as u64, sum));
    assert_eq!(took.passes.iter().sum::<u64>(), turned);
    assert!(turned > 0 && took.from_agent.bytes > 0, "nothing was tried: {took:?}");
}

/// Goes over to TCP at some byte, if it has not yet.
struct Turning {
    writer: AgentWriter,
    written: u64,
    turn: u64,
}

impl Write for Turning {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.written >= self.turn && !self.writer.is_by_tcp() {
            self.writer.fall_back(Fallback::Bound);
        }
        let written = self.writer.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
