//! What applications do with their sockets beside plain reads and writes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use agent::{kernel::Pass, proxy::Fallback};
use moa_tests::{
    PATIENCE,
    leg::{
        Legs, Route, Stamps, Took,
        options::{ReceiveLowWater, ZeroCopy},
        readable,
    },
    seed, until, until_true,
};
use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    libc::MSG_ZEROCOPY,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        sendfile::sendfile,
        socket::{ControlMessageOwned, MsgFlags, recv, recvmsg, send, setsockopt, sockopt::TcpUlp},
    },
    unistd::pipe,
};

/// A connection on which so many bytes have arrived and nothing is read.
fn arrived(legs: &Legs, route: Route, count: usize) -> (TcpStream, TcpStream) {
    let (mut sender, receiver) = route.open(legs);
    sender.write_all(&Stamps::of(1).make(count)).unwrap();
    until_true("the bytes", || readable(&receiver) == count as u64);
    (sender, receiver)
}

fn is_readable(socket: &TcpStream) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap();
    polled[0].any().unwrap()
}

#[test]
fn fionread() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = arrived(&legs, route, 1000);
        receiver.read_exact(&mut [0; 300]).unwrap();
        assert_eq!(readable(&receiver), 700, "{route:?}");
        sender.write_all(&[0; 50]).unwrap();
        until_true("more", || readable(&receiver) == 750);
        receiver.read_exact(&mut [0; 750]).unwrap();
        assert_eq!(readable(&receiver), 0, "{route:?}");
        legs.expect(&route.took(1050));
    }
}

#[test]
fn peeking() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (_sender, mut receiver) = arrived(&legs, route, 1000);
        let mut buffer = [0; 600];
        for _ in 0..3 {
            assert_eq!(receiver.peek(&mut buffer).unwrap(), 600, "{route:?}");
            Stamps::of(1).check(&buffer);
        }
        let mut stamps = Stamps::of(1);
        receiver.read_exact(&mut buffer[..100]).unwrap();
        stamps.check(&buffer[..100]);
        assert_eq!(receiver.peek(&mut buffer[..10]).unwrap(), 10, "{route:?}");
        stamps.clone().check(&buffer[..10]);
        let mut rest = [0; 900];
        receiver.read_exact(&mut rest).unwrap();
        stamps.check(&rest);
        legs.expect(&route.took(1000));
    }
}

/// MSG_WAITALL waits for TCP's bytes only: what was redirected is given at once, however little it is.
#[test]
fn msg_waitall_does_not_wait_unlike_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, receiver) = arrived(&legs, route, 100);
        let got = thread::scope(|scope| {
            let reading = scope.spawn(|| recv(receiver.as_raw_fd(), &mut [0; 200], MsgFlags::MSG_WAITALL).unwrap());
            until_true("the first bytes to be taken", || readable(&receiver) == 0);
            sender.write_all(&[0; 100]).unwrap();
            reading.join().unwrap()
        });
        assert_eq!(got, if route == Route::Plain { 200 } else { 100 }, "{route:?}");
        legs.expect(&route.took(200));
    }
}

/// SO_RCVLOWAT delays readiness for TCP's bytes only.
#[test]
fn so_rcvlowat_delays_nothing_unlike_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = route.open(&legs);
        setsockopt(&receiver, ReceiveLowWater, &100).unwrap();
        sender.write_all(&[0; 10]).unwrap();
        until_true("the bytes", || readable(&receiver) == 10);
        assert_eq!(is_readable(&receiver), route != Route::Plain, "{route:?}");
        sender.write_all(&[0; 90]).unwrap();
        until_true("the low-water mark", || is_readable(&receiver) && readable(&receiver) == 100);
        receiver.read_exact(&mut [0; 100]).unwrap();
        legs.expect(&route.took(100));
    }
}

#[test]
fn rcvtimeo() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = route.open(&legs);
        receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(receiver.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "{route:?}");
        sender.write_all(&[0; 10]).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        receiver.read_exact(&mut [0; 10]).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(receiver.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "{route:?}");
        legs.expect(&route.took(10));
    }
}

/// `splice` sees TCP's bytes only: a reader that splices waits for ever for what was redirected, which a plain read gives.
#[test]
fn splice_by_the_receiver_sees_nothing_unlike_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (_sender, mut receiver) = arrived(&legs, route, 1000);
        receiver.set_nonblocking(true).unwrap();
        let (out, into) = pipe().unwrap();
        let moved = splice(&receiver, None, &into, None, 1000, SpliceFFlags::SPLICE_F_NONBLOCK);
        let mut buffer = [0; 1000];
        if route == Route::Plain {
            assert_eq!(moved, Ok(1000));
            File::from(out).read_exact(&mut buffer).unwrap();
        } else {
            assert_eq!(moved, Err(Errno::EAGAIN), "{route:?}");
            receiver.read_exact(&mut buffer).unwrap();
        }
        Stamps::of(1).check(&buffer);
        legs.expect(&route.took(1000));
    }
}

/// A direction that goes by TCP is spliced as any other, also if it is enrolled.
#[test]
fn splice_sees_what_went_over_to_tcp() {
    let legs = Legs::attach();
    let (mut sender, receiver) = Route::FromAgent.open(&legs);
    legs.keep_to_tcp(&sender, Fallback::Bound);
    sender.write_all(&Stamps::of(1).make(1000)).unwrap();
    let (out, into) = pipe().unwrap();
    let (mut moved, mut buffer) = (0, [0; 1000]);
    while moved < 1000 {
        moved += splice(&receiver, None, &into, None, 1000, SpliceFFlags::empty()).unwrap();
    }
    File::from(out).read_exact(&mut buffer).unwrap();
    Stamps::of(1).check(&buffer);
    legs.expect(&Took { passed: 1000, passes: &[(Pass::AgentBound, 1)], ..Route::FromAgent.took(0) });
}

#[test]
fn sendfile_by_the_sender() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&Stamps::of(1).make(1 << 20)).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let (sender, mut receiver) = route.open(&legs);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut left = 1 << 20;
                while left > 0 {
                    left -= sendfile(&sender, &file, None, left).unwrap();
                }
                sender.shutdown(Shutdown::Write).unwrap();
            });
            assert_eq!(Stamps::of(1).receive_to_end(&mut receiver), 1 << 20);
        });
        legs.expect(&route.took(1 << 20));
    }
}

/// Urgent data is what any data is: the byte keeps its place in the stream, nothing marks it, and a read that asks for it
/// gets the next byte, whatever that is.
#[test]
fn msg_oob_means_nothing_unlike_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (mut sender, mut receiver) = route.open(&legs);
        sender.write_all(b"abc").unwrap();
        assert_eq!(send(sender.as_raw_fd(), b"!", MsgFlags::MSG_OOB), Ok(1));
        sender.write_all(b"def").unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
        let mut urgent = [0; 1];
        let got = until("the urgent byte", || recv(receiver.as_raw_fd(), &mut urgent, MsgFlags::MSG_OOB).ok());
        assert_eq!(got, 1, "{route:?}");
        let mut all = String::new();
        receiver.read_to_string(&mut all).unwrap();
        let (expected_urgent, expected) = if route == Route::Plain { (b"!", "abcdef") } else { (b"a", "bc!def") };
        assert_eq!((&urgent, all.as_str()), (expected_urgent, expected), "{route:?}");
        legs.expect(&route.took(7));
    }
}

/// A sender that has asked for completions sends by TCP, and gets them. An enrolled socket copies, and hands a call to TCP
/// in several parts if it likes, each of which completes, so that there may be more completions than calls.
#[test]
fn msg_zerocopy_completes_perhaps_more_often_than_with_tcp() {
    for route in Route::ALL {
        let legs = Legs::attach();
        let (sender, mut receiver) = route.open(&legs);
        setsockopt(&sender, ZeroCopy, &1).unwrap();
        let bytes = Stamps::of(1).make(100_000);
        let (mut at, mut calls) = (0, 0);
        while at < bytes.len() {
            let piece = &bytes[at..(at + 10_000).min(bytes.len())];
            at += send(sender.as_raw_fd(), piece, MsgFlags::from_bits_retain(MSG_ZEROCOPY)).unwrap();
            calls += 1;
        }
        let mut rng = seed::rng("zerocopy");
        Stamps::of(1).receive(&mut receiver, 100_000, &mut rng, |_| {});
        let mut completed = 0;
        until_true("all completions", || {
            completed += completions(&sender);
            completed >= calls
        });
        assert!(route != Route::Plain || completed == calls, "{completed} completions of {calls} calls");
        legs.expect(&match route {
            Route::Plain => Took::default(),
            _ => Took { passed: 100_000, passes: &[(Pass::ZeroCopy, 1)], ..route.took(0) },
        });
    }
}

/// From `linux/errqueue.h`.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

/// How many calls the kernel says to be through with.
fn completions(sender: &TcpStream) -> u32 {
    let mut space = cmsg_space!([u8; 64]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let Ok(message) = recvmsg::<()>(sender.as_raw_fd(), &mut [], Some(&mut space), flags) else { return 0 };
    let errors = message.cmsgs().unwrap().filter_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) if error.ee_origin == SO_EE_ORIGIN_ZEROCOPY => Some(error),
        _ => None,
    });
    errors.map(|error| error.ee_data - error.ee_info + 1).sum()
}

/// A protocol on top of the socket is refused by the kernel, or not, as on any other socket; the bytes go on.
#[test]
fn tcp_ulp_after_bytes() {
    for name in [*b"mptcp", *b"tls\0\0", *b"none\0"] {
        let refusals = Route::ALL.map(|route| {
            let legs = Legs::attach();
            let (mut sender, mut receiver) = arrived(&legs, route, 1000);
            let refused = [&sender, &receiver].map(|end| setsockopt(end, TcpUlp::default(), &name));
            sender.write_all(&Stamps::of(2).make(1000)).unwrap();
            let mut rng = seed::rng("tcp_ulp_after_bytes");
            Stamps::of(1).receive(&mut receiver, 1000, &mut rng, |_| {});
            Stamps::of(2).receive(&mut receiver, 1000, &mut rng, |_| {});
            legs.expect(&route.took(2000));
            refused
        });
        assert_eq!(refusals, [refusals[0]; 3], "{name:?}");
        assert!(refusals[0][0].is_err(), "{name:?} is there: what it does to redirected bytes is not known");
    }
}

/// What an application does that is not for redirected bytes works at a listener that is not marked.
#[test]
fn an_agent_that_marks_nothing_gives_plain_tcp() {
    let legs = Legs::attach();
    let (sender, receiver) = arrived(&legs, Route::Plain, 1000);
    assert!(legs.path().enrolled(sender.as_fd()).is_none());
    assert!(legs.path().enrolled(receiver.as_fd()).is_none());
    legs.expect(&Took::default());
}
