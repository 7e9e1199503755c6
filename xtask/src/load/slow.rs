//! Services that take their time for a call, and are not busy meanwhile: however many calls one has, each takes as long.
//!
//! Answers of a connection come in the order of its calls, as Redis's protocol wants it.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::resp;

/// What every call is answered with.
pub(crate) const ANSWER: &[u8] = b"$31\r\n{\"ec\":0,\"em\":\"\",\"result\":\"abc\"}\r\n";

/// Options of the services.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A port for each service
    #[arg(long, value_delimiter = ',', required = true)]
    ports: Vec<u16>,
    /// What a call takes on average; each takes between half and one and a half of it, by chance
    #[arg(long)]
    mean_us: u32,
    /// How much longer calls of the first service take
    #[arg(long)]
    first_us: u32,
}

/// What calls take.
#[derive(Debug, Clone, Copy)]
struct Delay {
    mean: Duration,
    more: Duration,
    dice: u64,
}

/// An answer, and when it is due.
type Due = (Instant, &'static [u8]);

/// Serves until it is killed.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let micros = |us: u32| Duration::from_micros(us.into());
    let mut threads = Vec::new();
    for (service, port) in args.ports.iter().enumerate() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).with_context(|| format!("cannot listen on {port}"))?;
        let more = if service == 0 { micros(args.first_us) } else { Duration::ZERO };
        let delay = Delay { mean: micros(args.mean_us), more, dice: service as u64 };
        threads.push(thread::spawn(move || accept(&listener, delay)));
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

/// Serves every connection, with one thread for calls and one for answers.
fn accept(listener: &TcpListener, mut delay: Delay) {
    for socket in listener.incoming().map_while(Result::ok) {
        delay.next();
        // Without both halves the connection is closed, which its client sees.
        let Ok(answers) = socket.set_nodelay(true).and_then(|()| socket.try_clone()) else { continue };
        let (calls, due) = channel();
        thread::spawn(move || take(socket, &calls, delay));
        thread::spawn(move || answer(answers, &due));
    }
}

/// Takes calls until the connection ends.
fn take(mut socket: TcpStream, answers: &Sender<Due>, mut delay: Delay) {
    let (mut buf, mut piece) = (Vec::new(), [0; 16 << 10]);
    while let Ok(len @ 1..) = socket.read(&mut piece) {
        let now = Instant::now();
        buf.extend_from_slice(&piece[..len]);
        while let Ok(Some(request)) = resp::request(&buf) {
            buf.drain(..request.len);
            // One word is a check of health.
            let due: Due = if request.words == 1 { (now, b"+PONG\r\n") } else { (now + delay.next(), ANSWER) };
            if answers.send(due).is_err() {
                return;
            }
        }
    }
}

/// Answers until the connection ends.
fn answer(mut socket: TcpStream, answers: &Receiver<Due>) {
    for (due, answer) in answers {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if socket.write_all(answer).is_err() {
            return;
        }
    }
}

impl Delay {
    /// Of the next call.
    fn next(&mut self) -> Duration {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (self.dice >> 40) as f64 / f64::from(1 << 24);
        self.mean.mul_f64(0.5 + share) + self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_take_what_they_should_on_average() {
        let mut delay = Delay { mean: Duration::from_millis(1), more: Duration::from_millis(20), dice: 0 };
        let all: Vec<Duration> = (0..10_000).map(|_| delay.next()).collect();
        let within = Duration::from_micros(20_500)..Duration::from_micros(21_500);
        assert!(all.iter().all(|one| within.contains(one)));
        let mean = all.iter().sum::<Duration>() / 10_000;
        assert!(mean.abs_diff(Duration::from_millis(21)) < Duration::from_micros(20), "{mean:?}");
    }

    #[test]
    fn the_answer_is_one() {
        let answer = resp::answer(ANSWER).unwrap().unwrap();
        assert_eq!((answer.len, answer.error), (ANSWER.len(), None));
    }

    #[test]
    fn calls_that_are_sent_at_once_take_no_longer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || accept(&listener, Delay { mean: Duration::from_millis(40), more: Duration::ZERO, dice: 1 }));
        let mut socket = TcpStream::connect(to).unwrap();
        socket.write_all(&[&b"*1\r\n$4\r\nPING\r\n"[..], &resp::get("a").repeat(50)].concat()).unwrap();
        let began = Instant::now();
        let mut answers = vec![0; 7 + 50 * ANSWER.len()];
        socket.read_exact(&mut answers).unwrap();
        assert_eq!(answers, [&b"+PONG\r\n"[..], &ANSWER.repeat(50)].concat());
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(20) && took < Duration::from_secs(1), "{took:?}");
    }
}
