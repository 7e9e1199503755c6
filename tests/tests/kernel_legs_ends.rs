//! How connections end: close, half-close, reset, with and without bytes that nobody has read.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use agent::{kernel::Pass, proxy::Fallback};
use moa_tests::{
    leg::{Legs, Route, Stamps, Took, readable},
    seed, until_true,
};
use rand::RngExt;
use socket2::SockRef;

/// Writes in one call, as far as the other end's bound may allow.
const LARGE: u64 = 8 << 20;

#[test]
fn so_many_bytes_and_then_the_end() {
    let mut sizes: Vec<u64> = (0..=20).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]).collect();
    let mut rng = seed::rng("so_many_bytes_and_then_the_end");
    sizes.extend((0..seed::count(200, 2_000)).map(|_| rng.random_range(1..=1 << 20)));
    for route in Route::REDIRECTED {
        let legs = Legs::bounded(LARGE);
        for (at, size) in (0..).zip(&sizes) {
            let (mut sender, mut receiver) = route.open(&legs);
            Stamps::of(at).send(&mut sender, *size, 64 << 10, &mut rng);
            drop(sender);
            assert_eq!(Stamps::of(at).receive_to_end(&mut receiver), *size, "{route:?}");
        }
        let (count, total) = (sizes.len() as u64, sizes.iter().sum());
        match route {
            Route::FromAgent => legs.expect_redirected(count, 0, total),
            _ => legs.expect_redirected(count, total, 0),
        }
    }
}

#[test]
fn one_large_write_and_then_the_end() {
    for route in Route::REDIRECTED {
        let legs = Legs::bounded(LARGE);
        let (mut sender, mut receiver) = route.open(&legs);
        thread::scope(|scope| {
            scope.spawn(move || sender.write_all(&Stamps::of(1).make(4 << 20)).unwrap());
            assert_eq!(Stamps::of(1).receive_to_end(&mut receiver), 4 << 20);
        });
        legs.expect(&route.took(4 << 20));
    }
}

#[test]
fn the_reader_learns_of_the_end_only_after_all_bytes() {
    for route in Route::REDIRECTED {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = route.open(&legs);
        sender.write_all(&Stamps::of(1).make(100_000)).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
        // The FIN came by TCP, long before the bytes are read.
        until_true("the end to have come", || readable(&receiver) == 100_000);
        let (mut stamps, mut rng) = (Stamps::of(1), seed::rng("the_reader_learns_of_the_end_only_after_all_bytes"));
        while stamps.at() < 100_000 {
            let mut buffer = vec![0; rng.random_range(1..3_000)];
            let read = receiver.read(&mut buffer).unwrap();
            assert!(read > 0, "an end after {} bytes", stamps.at());
            stamps.check(&buffer[..read]);
        }
        assert_eq!(receiver.read(&mut [0]).unwrap(), 0);
        legs.expect(&route.took(100_000));
    }
}

#[test]
fn half_close_and_an_answer() {
    let legs = Legs::bounded(LARGE);
    let mut rng = seed::rng("half_close_and_an_answer");
    for route in Route::REDIRECTED {
        let (mut asks, mut answers) = route.open(&legs);
        Stamps::of(1).send(&mut asks, 1 << 20, 50_000, &mut rng);
        asks.shutdown(Shutdown::Write).unwrap();
        assert_eq!(Stamps::of(1).receive_to_end(&mut answers), 1 << 20);
        Stamps::of(2).send(&mut answers, 1 << 20, 50_000, &mut rng);
        answers.shutdown(Shutdown::Write).unwrap();
        assert_eq!(Stamps::of(2).receive_to_end(&mut asks), 1 << 20);
    }
    legs.expect_redirected(2, 2 << 20, 2 << 20);
}

#[test]
fn a_direction_that_went_over_to_tcp_and_then_ends() {
    let legs = Legs::attach();
    let mut rng = seed::rng("a_direction_that_went_over_to_tcp_and_then_ends");
    let (mut sender, mut receiver) = Route::FromAgent.open(&legs);
    let (mut sent, mut received) = (Stamps::of(1), Stamps::of(1));
    sent.send(&mut sender, 10_000, 3_000, &mut rng);
    received.receive(&mut receiver, 10_000, &mut rng, |_| {});
    legs.keep_to_tcp(&sender, Fallback::Bound);
    sent.send(&mut sender, 20_000, 3_000, &mut rng);
    drop(sender);
    assert_eq!(received.receive_to_end(&mut receiver), 20_000);
    legs.expect(&Took { passed: 20_000, passes: &[(Pass::AgentBound, 1)], ..Route::FromAgent.took(10_000) });
}

/// What an end sees when it reads until there is nothing more: how many bytes, and how it ended.
fn reads(socket: &mut TcpStream) -> (usize, Result<(), ErrorKind>) {
    let (mut total, mut buffer) = (0, [0; 4096]);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return (total, Ok(())),
            Ok(read) => total += read,
            Err(error) => return (total, Err(error.kind())),
        }
    }
}

/// The sender has sent 100 bytes, the receiver has answered 50, and neither has read anything.
fn unread(legs: &Legs, route: Route) -> (TcpStream, TcpStream) {
    let (mut sender, mut receiver) = route.open(legs);
    sender.write_all(&[1; 100]).unwrap();
    receiver.write_all(&[1; 50]).unwrap();
    until_true("the bytes", || readable(&receiver) == 100);
    until_true("the answer", || readable(&sender) == 50);
    (sender, receiver)
}

/// What is counted of such a connection when an end has sent something to the other that is gone.
fn unread_and_after(route: Route, sent_after: u64) -> Took {
    let took =
        Took { enrolled: 2, to_agent: 100, from_agent: 50, passed: sent_after, passes: &[(Pass::NoPeer, 1)], ..Took::default() };
    match route {
        Route::Plain => Took::default(),
        Route::ToAgent => took,
        Route::FromAgent => Took { to_agent: 50, from_agent: 100, ..took },
    }
}

#[test]
fn a_write_after_the_own_half_close_fails() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = unread(&legs, route);
        sender.shutdown(Shutdown::Write).unwrap();
        assert_eq!(sender.write(&[1; 10]).unwrap_err().kind(), ErrorKind::BrokenPipe, "{route:?}");
        assert_eq!(reads(&mut receiver), (100, Ok(())), "{route:?}");
        // TCP refuses the bytes, and says so; the end of the stream is what went by TCP before them.
        legs.expect(&match route {
            Route::Plain => Took::default(),
            _ => Took { passes: &[(Pass::NotFirst, 1)], ..unread_and_after(route, 10) },
        });
    }
}

#[test]
fn a_reset_is_seen_behind_the_unread_bytes_as_with_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (sender, mut receiver) = unread(&legs, route);
        SockRef::from(&sender).set_linger(Some(Duration::ZERO)).unwrap();
        drop(sender);
        assert_eq!(readable(&receiver), 100, "{route:?}");
        assert_eq!(reads(&mut receiver), (100, Err(ErrorKind::ConnectionReset)), "{route:?}");
        assert_eq!(reads(&mut receiver), (0, Ok(())), "{route:?}");
        assert_eq!(receiver.write(&[1; 10]).unwrap_err().kind(), ErrorKind::BrokenPipe, "{route:?}");
        legs.expect(&unread_and_after(route, 10));
    }
}

/// TCP resets a connection that is closed with bytes which nobody has read, so that their sender learns of it. Bytes that
/// were redirected are not TCP's, and do not count: the sender reads an orderly end, and its next write goes to a socket
/// that is gone, as after any close.
#[test]
fn closing_with_unread_bytes_is_an_orderly_end_unlike_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, receiver) = unread(&legs, route);
        drop(receiver);
        let end = if route == Route::Plain { Err(ErrorKind::ConnectionReset) } else { Ok(()) };
        assert_eq!(reads(&mut sender), (50, end), "{route:?}");
        let first = sender.write(&[1; 10]).map_err(|error| error.kind());
        assert_eq!(first, if route == Route::Plain { Err(ErrorKind::BrokenPipe) } else { Ok(10) }, "{route:?}");
        legs.expect(&unread_and_after(route, 10));
        until_true("the answer to that to be a reset", || sender.write(&[1]).is_err());
        assert_eq!(sender.write(&[1]).unwrap_err().kind(), ErrorKind::BrokenPipe, "{route:?}");
    }
}

/// With TCP, that reset makes the kernel refuse further bytes; bytes that went over to TCP before make it come again.
#[test]
fn closing_with_unread_bytes_of_tcp_is_a_reset_there_too() {
    let legs = Legs::attach();
    let (mut sender, receiver) = Route::FromAgent.open(&legs);
    legs.keep_to_tcp(&sender, Fallback::Bound);
    sender.write_all(&[1; 100]).unwrap();
    until_true("the bytes", || legs.unread_by_app(&sender) > 0);
    drop(receiver);
    assert_eq!(reads(&mut sender), (0, Err(ErrorKind::ConnectionReset)));
    legs.expect(&Took { enrolled: 2, passed: 100, passes: &[(Pass::AgentBound, 1)], ..Took::default() });
}

#[test]
fn a_write_to_an_end_that_closed_is_taken_once_as_with_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = unread(&legs, route);
        receiver.read_exact(&mut [0; 100]).unwrap();
        drop(receiver);
        assert_eq!(sender.write(&[1; 10]).unwrap(), 10, "{route:?}");
        legs.expect(&unread_and_after(route, 10));
        until_true("the answer to that to be a reset", || sender.write(&[1]).is_err());
        let kind = sender.write(&[1]).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::BrokenPipe, "{route:?}");
        assert_eq!(reads(&mut sender), (50, Ok(())), "{route:?}");
    }
}

/// A sender in the middle of a large write learns that the other end has closed: with TCP by a reset (`ECONNRESET`), with
/// redirected bytes by the closed socket (`EPIPE`, with SIGPIPE for those who do not ignore it).
#[test]
fn closing_in_mid_send_is_a_broken_pipe_unlike_tcp() {
    let mut rng = seed::rng("closing_in_mid_send_is_a_broken_pipe_unlike_tcp");
    for route in Route::ALL {
        let legs = Legs::bounded(LARGE);
        let rounds = seed::count(200, 1_000) as u64;
        for _ in 0..rounds {
            let (mut sender, mut receiver) = route.open(&legs);
            let (piece, read) = (rng.random_range(1..100_000), rng.random_range(1..1_000_000));
            let error = thread::scope(|scope| {
                let sending = scope.spawn(move || send_until_refused(&mut sender, piece));
                Stamps::of(1).receive(&mut receiver, read, &mut rng, |_| {});
                drop(receiver);
                sending.join().unwrap()
            });
            let possible: &[_] = match route {
                Route::Plain => &[ErrorKind::ConnectionReset, ErrorKind::BrokenPipe],
                _ => &[ErrorKind::BrokenPipe, ErrorKind::ConnectionReset],
            };
            assert!(possible.contains(&error), "{route:?}: {error:?}");
        }
        let took = legs.took();
        let redirected = if route == Route::Plain { 0 } else { rounds };
        assert_eq!(took.enrolled, 2 * redirected);
        // The end is met when a message is to be redirected, or on the way. A direction may have met its bound before.
        let passes = took.passes[Pass::NoPeer as usize] + took.passes[Pass::Bound as usize];
        assert!(passes <= redirected && took.passes.iter().sum::<u64>() == passes, "{took:?}");
    }
}

fn send_until_refused(sender: &mut TcpStream, piece: usize) -> ErrorKind {
    let mut stamps = Stamps::of(1);
    loop {
        if let Err(error) = sender.write_all(&stamps.make(piece)) {
            return error.kind();
        }
    }
}
