//! The trials themselves.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    thread,
};

use rustix::io::ioctl_fionread;

use super::{
    BOUND, Direction, Tried,
    pair::{Pair, pass},
};
use crate::{
    api,
    kernel::{Kernel, Verdicts},
    proxy::Fallback,
};

/// A message whose loss or change is seen.
const MESSAGE: usize = 1000;

/// What was seen, or what was seen to be wrong.
type Seen = Result<String, String>;
/// A trial by name, what relies on it, and what it does.
type Trial = (&'static str, Direction, fn(&Kernel) -> io::Result<Seen>);

const TRIALS: [Trial; 7] = [
    ("redirect", Direction::Both, redirect),
    ("order and bound", Direction::Both, order_and_bound),
    ("half-close", Direction::Both, half_close),
    ("close", Direction::Both, close),
    ("atomics", Direction::Both, atomics),
    ("FIONREAD", Direction::Both, fionread),
    ("sock_diag", Direction::FromAgent, sock_diag),
];

pub(super) fn run(kernel: &Kernel) -> Tried {
    let probes = TRIALS.into_iter().map(|(name, direction, trial)| {
        let seen = trial(kernel).unwrap_or_else(|error| Err(format!("broke off: {error}")));
        let ok = seen.is_ok();
        let found = seen.unwrap_or_else(|wrong| wrong);
        (direction, api::KernelProbe { name: name.to_owned(), ok, found })
    });
    let mut tried = Tried::new(probes.collect());
    tried.unenrols = kernel.unenrols_after_fallback();
    tried
}

/// Bytes arrive in both directions, and not by TCP.
fn redirect(kernel: &Kernel) -> io::Result<Seen> {
    let mut message = stamped(MESSAGE);
    let before = verdicts(kernel)?;
    for mut pair in [Pair::accepted(kernel)?, Pair::dialled(kernel)?] {
        pass(&mut pair.app, &mut pair.agent, &mut message)?;
        pass(&mut pair.agent, &mut pair.app, &mut message)?;
    }
    let after = verdicts(kernel)?;
    let (to, from) = (after.to_agent.bytes - before.to_agent.bytes, after.from_agent.bytes - before.from_agent.bytes);
    let expected = 2 * MESSAGE as u64;
    Ok(if message != stamped(MESSAGE) {
        Err("bytes were changed".into())
    } else if (to, from) != (expected, expected) {
        Err(format!("{to} and {from} bytes of {expected} were redirected"))
    } else {
        Ok("both directions, accepted and dialled".into())
    })
}

/// A stalled agent is sent no more than may wait, and what follows by TCP comes after it.
fn order_and_bound(kernel: &Kernel) -> io::Result<Seen> {
    let mut pair = Pair::accepted(kernel)?;
    let before = verdicts(kernel)?;
    let all = stamped(usize::try_from(BOUND).unwrap_or_default() + 64 * 1024);
    let (mut app, sent) = (pair.app.try_clone()?, all.clone());
    let sender = thread::spawn(move || sent.chunks(16 * 1024).try_for_each(|chunk| app.write_all(chunk)));
    while verdicts(kernel)?.passed.bytes == before.passed.bytes && !sender.is_finished() {
        thread::yield_now();
    }
    let redirected = verdicts(kernel)?.to_agent.bytes - before.to_agent.bytes;
    let mut received = vec![0; all.len()];
    pair.agent.read_exact(&mut received)?;
    sender.join().map_err(|_| io::Error::other("the sender ended"))??;
    Ok(if received != all {
        Err("bytes were lost, or overtook others".into())
    } else if redirected > BOUND {
        Err(format!("{redirected} bytes waited, more than {BOUND}"))
    } else {
        Ok(format!("{} KiB waited at most, the rest came by TCP after it", redirected / 1024))
    })
}

/// Whoever says that nothing more comes still gets an answer.
fn half_close(kernel: &Kernel) -> io::Result<Seen> {
    let Pair { mut app, mut agent } = Pair::accepted(kernel)?;
    app.write_all(&stamped(MESSAGE))?;
    app.shutdown(Shutdown::Write)?;
    let asked = read_to_end(&mut agent)?;
    agent.write_all(&asked)?;
    drop(agent);
    Ok(if read_to_end(&mut app)? == stamped(MESSAGE) {
        Ok("the answer came after the end of the question".into())
    } else {
        Err("bytes were lost".into())
    })
}

/// What was sent before a close is read after it.
fn close(kernel: &Kernel) -> io::Result<Seen> {
    for size in [1, MESSAGE, 100_000] {
        let Pair { app, mut agent } = Pair::dialled(kernel)?;
        (&app).write_all(&stamped(size))?;
        drop(app);
        if read_to_end(&mut agent)? != stamped(size) {
            return Ok(Err(format!("of {size} bytes some were lost")));
        }
    }
    Ok(Ok("every byte, then the end".into()))
}

/// Counters that two threads add to at once lose nothing.
fn atomics(kernel: &Kernel) -> io::Result<Seen> {
    const EACH: u64 = 1000;
    let before = verdicts(kernel)?;
    let run = |mut pair: Pair| thread::spawn(move || (0..EACH).try_for_each(|_| pass(&mut pair.app, &mut pair.agent, &mut [0])));
    let threads = [run(Pair::accepted(kernel)?), run(Pair::accepted(kernel)?)];
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a sender ended"))??;
    }
    let counted = verdicts(kernel)?.to_agent.messages - before.to_agent.messages;
    let sent = 2 * EACH;
    Ok(if counted == sent { Ok(format!("{sent} of {sent} counted")) } else { Err(format!("{counted} of {sent} counted")) })
}

/// Applications that ask how much there is to read are told, of what was redirected and of what came by TCP. Some kernels
/// know nothing of the latter while the socket is in the map.
fn fionread(kernel: &Kernel) -> io::Result<Seen> {
    let redirected = waiting(&mut Pair::accepted(kernel)?)?;
    let by_tcp = || -> io::Result<u64> {
        let mut pair = Pair::accepted(kernel)?;
        kernel.path().keep_to_tcp(pair.agent.as_fd(), Fallback::Off, true)?;
        waiting(&mut pair)
    };
    let first = by_tcp()?;
    let expected = MESSAGE as u64;
    if (redirected, first) == (expected, expected) {
        return Ok(Ok("right for both queues".into()));
    }
    kernel.unenrol_after_fallback();
    Ok(if (redirected, by_tcp()?) == (expected, expected) {
        let seen = format!("{first} of {expected} bytes by TCP");
        Ok(format!("wrong after a fall-back ({seen}): what has gone over to TCP is taken out of the map"))
    } else {
        Err(format!("{redirected} of {expected} bytes that were redirected, {first} of {expected} by TCP"))
    })
}

/// Bytes that an application is told are there for it.
fn waiting(pair: &mut Pair) -> io::Result<u64> {
    pair.agent.write_all(&stamped(MESSAGE))?;
    pair.app.peek(&mut [0])?;
    Ok(ioctl_fionread(&pair.app)?)
}

/// The kernel tells how much an application has not read.
fn sock_diag(kernel: &Kernel) -> io::Result<Seen> {
    let mut pair = Pair::accepted(kernel)?;
    let unread = |pair: &Pair| kernel.path().unread(pair.agent.as_fd(), pair.agent.local_addr()?, pair.agent.peer_addr()?);
    pair.agent.write_all(&stamped(MESSAGE))?;
    let before = unread(&pair)?.unwrap_or(0);
    pair.app.read_exact(&mut [0; MESSAGE])?;
    let after = unread(&pair)?.unwrap_or(u64::MAX);
    Ok(if before >= MESSAGE as u64 && after == 0 {
        Ok("tells what is unread".into())
    } else {
        Err(format!("tells {before} bytes where {MESSAGE} are unread, and {after} where none are"))
    })
}

fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

/// Bytes of which no two that are near each other are the same.
fn stamped(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at ^ at >> 8 ^ at >> 16) & 0xff).unwrap_or_default()).collect()
}

fn verdicts(kernel: &Kernel) -> io::Result<Verdicts> {
    kernel.verdicts().map_err(io::Error::other)
}
