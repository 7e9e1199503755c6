//! One connection of a fake server.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
    sync::{mpsc, watch},
    time,
};

use super::{
    answer::{Answer, End, Wait},
    desk::Desk,
    request::{Call, Request, parse},
    server::{REQUESTS_KEPT, Shared},
    service::timeout_3041,
};

/// How a fake server treats a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// It serves it.
    Serve,
    /// It ends it at once.
    End(End),
    /// It reads so many bytes, answers nothing, and ends it.
    EndAfter(usize, End),
    /// It keeps it, and never reads from it.
    NeverRead,
}

/// How a connection ended.
enum Ended {
    ByPeer,
    ByServer(End),
}

/// What the tasks of one connection share.
struct Line {
    id: usize,
    shared: Arc<Shared>,
    desk: Mutex<Desk>,
    in_flight: AtomicUsize,
    outgoing: mpsc::UnboundedSender<Answer>,
}

pub(super) async fn serve(mut stream: TcpStream, id: usize, shared: Arc<Shared>, mut hang_up: watch::Receiver<(usize, End)>) {
    let welcome = Arc::clone(&shared.welcome.lock().expect("the welcome"));
    let (outgoing, answers) = mpsc::unbounded_channel();
    let desk = Mutex::new(Desk::new(shared.in_order));
    let line = Arc::new(Line { id, shared, desk, in_flight: AtomicUsize::new(0), outgoing });
    let welcome = welcome(id);
    let ended = tokio::select! {
        ended = read(&stream, &line, welcome) => ended,
        ended = write(&stream, answers) => ended,
        _ = hang_up.changed() => Ended::ByServer(hang_up.borrow().1),
    };
    let by_peer = match ended {
        Ended::ByPeer => true,
        Ended::ByServer(end) => {
            finish(&mut stream, end).await;
            end == End::HalfClose
        }
    };
    drop(stream);
    line.shared.count(|counts| {
        counts.left(line.in_flight.load(Ordering::Relaxed));
        counts.open -= 1;
        counts.ended_by_peer += usize::from(by_peer);
    });
}

async fn read(stream: &TcpStream, line: &Arc<Line>, welcome: Accept) -> Ended {
    let (most, end) = match welcome {
        Accept::Serve => (usize::MAX, End::Close),
        Accept::End(end) => return Ended::ByServer(end),
        Accept::EndAfter(bytes, end) => (bytes, end),
        Accept::NeverRead => return watch_for_close(stream).await,
    };
    let (mut buffer, mut total) = (Vec::new(), 0);
    while total < most {
        let mut chunk = vec![0; (64 << 10).min(most - total)];
        let Ok(count @ 1..) = read_some(stream, &mut chunk).await else {
            return Ended::ByPeer;
        };
        total += count;
        line.shared.count(|counts| counts.bytes += count);
        if most < usize::MAX {
            continue;
        }
        buffer.extend_from_slice(&chunk[..count]);
        if let Some(ended) = line.take_requests(&mut buffer) {
            return ended;
        }
    }
    Ended::ByServer(end)
}

async fn read_some(stream: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

async fn watch_for_close(stream: &TcpStream) -> Ended {
    while !stream.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed()) {
        time::sleep(Duration::from_millis(5)).await;
    }
    Ended::ByPeer
}

async fn write(stream: &TcpStream, mut answers: mpsc::UnboundedReceiver<Answer>) -> Ended {
    while let Some(answer) = answers.recv().await {
        let bytes = answer.bytes.unwrap_or_default();
        let (piece, pause) = answer.pace.unwrap_or((usize::MAX, Duration::ZERO));
        for part in bytes.chunks(piece) {
            if write_all(stream, part).await.is_err() {
                return Ended::ByPeer;
            }
            if !pause.is_zero() {
                time::sleep(pause).await;
            }
        }
        if let Some(end) = answer.end {
            return Ended::ByServer(end);
        }
    }
    Ended::ByPeer
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends a connection as told. What was received is read first: closing with unread bytes would be a reset.
async fn finish(stream: &mut TcpStream, end: End) {
    let mut rest = [0; 4096];
    match end {
        End::Close => while matches!(stream.try_read(&mut rest), Ok(1..)) {},
        End::HalfClose => {
            // Fails only if the other side has ended it already.
            let _ = stream.shutdown().await;
            while matches!(read_some(stream, &mut rest).await, Ok(1..)) {}
        }
        End::Reset => stream.set_zero_linger().expect("SO_LINGER"),
        End::Vanish => {
            setsockopt(&*stream, sockopt::TcpRepair, &1).expect("TCP_REPAIR: this test needs CAP_NET_ADMIN");
        }
    }
}

impl Line {
    /// Takes the whole requests off the front of `buffer`.
    fn take_requests(self: &Arc<Self>, buffer: &mut Vec<u8>) -> Option<Ended> {
        let (mut at, mut calls) = (0, Vec::new());
        let ended = loop {
            match parse(&buffer[at..]) {
                Request::Partial => break None,
                Request::Close => break Some(Ended::ByServer(End::Close)),
                Request::Reset => break Some(Ended::ByServer(End::Reset)),
                Request::Command(arguments, length) => {
                    calls.extend(self.command(&arguments, &buffer[at..at + length]));
                    at += length;
                }
            }
        };
        buffer.drain(..at);
        // Backwards: calls that came together are answered out of order.
        while let Some((call, answer)) = calls.pop() {
            self.run(call, answer);
        }
        ended
    }

    /// Carries out a command; a call is returned, with what is to be done about it.
    fn command(&self, arguments: &[Vec<u8>], raw: &[u8]) -> Option<(Call, Answer)> {
        let verb = arguments.first()?.to_ascii_uppercase();
        match (verb.as_slice(), arguments.get(1)) {
            (b"GET", Some(body)) => match Call::parse(body) {
                Some(call) => return Some(self.call(call, raw)),
                None => self.shared.count(|counts| counts.unanswerable += 1),
            },
            (b"PING", _) => self.ping(),
            (b"INFO", _) => self.say(b"+{\"moa\":{\"recv\":0,\"proc\":0,\"error\":0}}\r\n"),
            _ => self.shared.count(|counts| counts.unanswerable += 1),
        }
        None
    }

    fn ping(&self) {
        self.shared.count(|counts| counts.pings += 1);
        if self.shared.answers_pings.load(Ordering::Relaxed) {
            self.say(b"+PONG\r\n");
        }
    }

    /// Says what answers no call: at once, or in its place if this server keeps the order.
    fn say(&self, bytes: &[u8]) {
        let answer = Answer { of_call: false, ..Answer::raw(bytes) };
        if !self.shared.in_order {
            return self.answer(answer);
        }
        let mut desk = self.desk.lock().expect("the desk");
        // No call has this number.
        desk.arrive(usize::MAX);
        desk.finish(usize::MAX, answer).into_iter().for_each(|answer| self.answer(answer));
    }

    fn call(&self, mut call: Call, raw: &[u8]) -> (Call, Answer) {
        let on_connection = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.count(|counts| {
            call.number = counts.calls;
            counts.arrived(on_connection);
        });
        call.connection = self.id;
        let mut requests = self.shared.requests.lock().expect("the requests");
        if requests.len() < REQUESTS_KEPT {
            requests.push(raw.to_vec());
        }
        if call.method == "echo" {
            self.shared.ledger.enter(call.text());
        }
        let late = self.desk.lock().expect("the desk").arrive(call.number);
        late.into_iter().for_each(|answer| self.answer(answer));
        let script = Arc::clone(&self.shared.script.lock().expect("the script"));
        let answer = script(&call);
        (call, answer)
    }

    fn run(self: &Arc<Self>, call: Call, answer: Answer) {
        if answer.bytes.is_none() && answer.end.is_none() {
            return;
        }
        if let Some(limit) = self.shared.server_timeout {
            let (line, call) = (Arc::clone(self), call.clone());
            tokio::spawn(async move {
                time::sleep(limit).await;
                if line.desk.lock().expect("the desk").time_out(call.number) {
                    line.answer(timeout_3041(&call));
                }
            });
        }
        let line = Arc::clone(self);
        let done = async move {
            match &answer.wait {
                Wait::None => {}
                Wait::For(time) => time::sleep(*time).await,
                Wait::At(gate) => gate.pass().await,
            }
            let answers = line.desk.lock().expect("the desk").finish(call.number, answer);
            if answers.is_empty() {
                line.shared.count(|counts| counts.kept += 1);
            }
            answers.into_iter().for_each(|answer| line.answer(answer));
        };
        tokio::spawn(done);
    }

    fn answer(&self, answer: Answer) {
        if self.outgoing.is_closed() {
            return;
        }
        if answer.of_call {
            // Before it is written: the other side may send the next call as soon as it has read the answer.
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.shared.count(|counts| counts.left(1));
        }
        // Fails only when the connection has ended.
        let _ = self.outgoing.send(answer);
    }
}
