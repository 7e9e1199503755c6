//! The task of one connection to an instance: connects, writes calls, reads answers.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::{dial::Dialled, link::Link, pool::Pool, service::Upstream, socket::Socket, stream::Stream, worker::Worker};
use crate::{
    netns::absent,
    wire::{
        envelope::scan_reply_code,
        reply::{ReplyHead, parse_head},
    },
};

/// An answer up to this size is held until it is whole: then it can still be replaced by an error if it breaks off.
/// A larger one is passed on as it comes.
const WHOLE_MAX: usize = 64 * 1024;
/// What a server of 2016 says when it has timed out. Its late result will follow, for whoever comes next.
const SERVER_TIMEOUT: u16 = 3041;

/// Room to read the rest of an answer's first line, which is not read a byte at a time.
const HEAD_ROOM: usize = 4 * 1024;
/// What a bulk ends with.
const END: &[u8] = b"\r\n";
const NO_END: &str = "the server's answer does not end where it says";
/// How much of an answer that is none is shown.
const EXCERPT: usize = 200;

/// Opens a connection for a pool and serves it until it ends.
pub(crate) async fn run(worker: Rc<Worker>, pool: Rc<Pool>) {
    let policy = pool.policy();
    let within = Duration::from_millis(policy.connect_timeout_ms);
    let kernel = worker.kernel().filter(|_| policy.kernel);
    let connected = timeout(within, pool.server.connect(&worker.namespaces, kernel.as_deref())).await;
    worker.turn_begins();
    match connected {
        // Whoever closes what is open in a namespace has not seen this one.
        Ok(Ok(Dialled { namespace: Some(gone), .. })) if gone.is_gone() => pool.connect_failed(&worker, &absent(&gone.name)),
        Ok(Ok(Dialled { stream: tcp, namespace })) => {
            let stream = Stream::new(Socket::Tcp(tcp), worker.counters.clone(), kernel);
            let link = Rc::new(Link::new(policy.pipelined, namespace));
            serve(worker, pool, stream, link).await;
        }
        Ok(Err(error)) => pool.connect_failed(&worker, &format!("can't connect: {error}")),
        Err(_) => pool.connect_failed(&worker, &format!("can't connect within {} ms", within.as_millis())),
    }
}

async fn serve(worker: Rc<Worker>, pool: Rc<Pool>, stream: Stream, link: Rc<Link>) {
    pool.opened(&worker, &link);
    let mut backend = Backend { stream, worker, pool, link, partial: BytesMut::new(), needed: 0, rest: 0 };
    let reason = std::future::poll_fn(|cx| backend.poll(cx)).await;
    let Backend { worker, pool, link, .. } = backend;
    let (unsent, sent) = link.take();
    pool.closed(&worker, &link, &reason);
    for key in sent {
        worker.not_answered(key, (&pool, &link), &reason);
    }
    if !unsent.is_empty() {
        // Connections that ended together with this one have said so when it is this task's turn again.
        tokio::task::yield_now().await;
        worker.turn_begins();
    }
    for (key, request) in unsent {
        // Its try may have been given up meanwhile.
        if worker.is_on(key, &link) {
            worker.send_elsewhere(key, request, &Upstream::Pool(pool.clone()), &reason);
        }
    }
}

struct Backend {
    stream: Stream,
    worker: Rc<Worker>,
    pool: Rc<Pool>,
    link: Rc<Link>,
    /// The beginning of an answer that is not whole yet, with room for the rest.
    partial: BytesMut,
    /// How long `partial` must be before it is worth looking at.
    needed: usize,
    /// Bytes that are still to come of an answer that is passed on as it comes.
    rest: usize,
}

impl Backend {
    /// Ready, with the reason, when the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        let link = self.link.clone();
        link.task.turn(cx, |cx| self.drive(cx))
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        self.worker.turn_begins();
        // Reading comes first: a call must not be written to a connection that the server has closed.
        while !self.reader_is_slow() {
            match self.poll_read(cx) {
                Poll::Ready(Ok(data)) if data.is_empty() => return Poll::Ready("the server closed the connection".to_owned()),
                Poll::Ready(Ok(data)) => {
                    if let Err(reason) = self.feed(data) {
                        return Poll::Ready(reason);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(format!("connection lost: {error}")),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(error)) = self.link.poll_flush(&mut self.stream, cx) {
            return Poll::Ready(format!("connection lost: {error}"));
        }
        self.link.stopped().map_or(Poll::Pending, Poll::Ready)
    }

    /// The application that the next bytes are for takes none: leave them in the socket. It wakes this task.
    fn reader_is_slow(&self) -> bool {
        self.link.next_answer().is_some_and(|key| self.worker.must_pause(key, &self.pool, &self.link))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.partial.is_empty() {
            return self.worker.poll_read(&mut self.stream, cx).map_ok(BytesMut::freeze);
        }
        loop {
            match self.stream.poll_read_buf(cx, &mut self.partial) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Bytes::new())),
                Poll::Ready(Ok(_)) if self.partial.len() < self.needed => {}
                Poll::Ready(Ok(_)) => return Poll::Ready(Ok(std::mem::take(&mut self.partial).freeze())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn feed(&mut self, mut data: Bytes) -> Result<(), String> {
        while !data.is_empty() {
            if self.rest > 0 {
                let piece = data.split_to(self.rest.min(data.len()));
                self.pass_on(piece)?;
                continue;
            }
            if self.link.next_answer().is_none() {
                return Err("the server sent an answer that nobody waits for".to_owned());
            }
            match parse_head(&data).map_err(|error| format!("the server's answer is not Redis protocol: {error}"))? {
                None => self.keep(&data, data.len() + 1, HEAD_ROOM),
                Some(head) => {
                    self.link.set_proven();
                    let len = frame_len(&head);
                    if len <= data.len() {
                        self.answered(&head, data.split_to(len))?;
                        continue;
                    }
                    if len <= WHOLE_MAX {
                        self.keep(&data, len, 0);
                    } else {
                        if let (ReplyHead::Bulk { header, len }, Some(key)) = (&head, self.link.next_answer()) {
                            self.worker.begins_large(key, &self.link, *header, *len);
                        }
                        self.rest = len;
                        continue;
                    }
                }
            }
            break;
        }
        Ok(())
    }

    /// Waits for the rest of an answer in a buffer of its own.
    fn keep(&mut self, data: &Bytes, needed: usize, room: usize) {
        self.partial = BytesMut::with_capacity(needed + room);
        self.partial.extend_from_slice(data);
        self.needed = needed;
    }

    /// A whole answer.
    fn answered(&mut self, head: &ReplyHead, whole: Bytes) -> Result<(), String> {
        let Some(key) = self.link.next_answer() else { return Ok(()) };
        let body = match *head {
            ReplyHead::Bulk { header, len } if whole.ends_with(END) => header..header + len,
            ReplyHead::Bulk { .. } => return Err(NO_END.to_owned()),
            ReplyHead::Line { .. } | ReplyHead::Null { .. } => {
                let text = String::from_utf8_lossy(&whole[..whole.len().min(EXCERPT)]);
                let reason = format!("the server sent no answer of a MOA service but {:?}", text.trim_end());
                self.worker.not_answered(key, (&self.pool, &self.link), &reason);
                return self.next(None);
            }
        };
        let code = code(&whole[body.clone()]);
        self.worker.answered(key, (&self.pool, &self.link), whole, body, code);
        self.next(code)
    }

    /// A piece of an answer that is too large to hold.
    fn pass_on(&mut self, piece: Bytes) -> Result<(), String> {
        self.rest -= piece.len();
        // The last two bytes, as far as they are here: each with how many come after it.
        let ends = piece.iter().rev().zip(self.rest..END.len()).all(|(byte, after)| *byte == END[END.len() - 1 - after]);
        if !ends {
            return Err(NO_END.to_owned());
        }
        let Some(key) = self.link.next_answer() else { return Ok(()) };
        self.worker.append(key, &self.link, piece, self.rest == 0);
        if self.rest == 0 { self.next(None) } else { Ok(()) }
    }

    fn next(&mut self, code: Option<u16>) -> Result<(), String> {
        if !self.link.answered() {
            return Err("the server answered before it had the whole call".to_owned());
        }
        if code == Some(SERVER_TIMEOUT) {
            return Err("the server timed out (3041), and its late result would be taken for the next call's".to_owned());
        }
        self.pool.ready(&self.worker, &self.link);
        Ok(())
    }
}

fn frame_len(head: &ReplyHead) -> usize {
    match *head {
        ReplyHead::Bulk { header, len } => header + len + 2,
        ReplyHead::Line { len, .. } | ReplyHead::Null { len } => len,
    }
}

/// The error code of an answer; none if it is a success.
fn code(body: &[u8]) -> Option<u16> {
    match scan_reply_code(body) {
        None | Some(0 | 200) => None,
        Some(code) => Some(u16::try_from(code).unwrap_or(0)),
    }
}
