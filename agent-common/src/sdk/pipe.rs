use std::{
    collections::VecDeque,
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{Error, link::lock};
use crate::frame::{Overrun, ReceiveWindow};

/// What has come of a streamed message and was not taken: bounded by the message's window.
#[derive(Debug)]
pub(super) struct Pipe(Mutex<Held>);

#[derive(Debug)]
struct Held {
    window: ReceiveWindow,
    /// Pieces of the body, each with what its frame took of the window.
    pieces: VecDeque<(Bytes, usize)>,
    end: Option<Result<(), Error>>,
    reader: Option<Waker>,
}

/// A piece that was taken, and the room that is to be given back.
pub(super) type Taken = (Bytes, Option<u32>);

impl Pipe {
    pub(super) fn new(window: u32) -> Self {
        let held = Held { window: ReceiveWindow::new(window), pieces: VecDeque::new(), end: None, reader: None };
        Self(Mutex::new(held))
    }

    /// A frame came. Returns the room that is to be given back at once.
    pub(super) fn push(&self, piece: Bytes, cost: usize, end: bool) -> Result<Option<u32>, Overrun> {
        let mut held = lock(&self.0);
        held.window.receive(cost)?;
        let mut credit = None;
        if piece.is_empty() {
            credit = held.window.used(cost);
        } else {
            held.pieces.push_back((piece, cost));
        }
        if end {
            held.end = Some(Ok(()));
        }
        let reader = held.reader.take();
        drop(held);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(credit.filter(|_| !end))
    }

    /// Nothing more comes.
    pub(super) fn fail(&self, error: Error) {
        let mut held = lock(&self.0);
        held.end.get_or_insert(Err(error));
        let reader = held.reader.take();
        drop(held);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Taken, Error>>> {
        let mut held = lock(&self.0);
        if let Some((piece, cost)) = held.pieces.pop_front() {
            let credit = held.window.used(cost).filter(|_| held.end.is_none());
            return Poll::Ready(Some(Ok((piece, credit))));
        }
        match held.end.take() {
            Some(Err(error)) => {
                held.end = Some(Ok(()));
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(())) => {
                held.end = Some(Ok(()));
                Poll::Ready(None)
            }
            None => {
                held.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
