use std::{future::poll_fn, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::{
    Error,
    link::{Link, Ticket},
    pipe::Pipe,
    state::Names,
};
use crate::frame::status;

/// The body of a request or a response: all there, or still coming.
#[derive(Debug)]
pub struct Incoming {
    whole: Bytes,
    coming: Option<Coming>,
    collected_max: usize,
}

#[derive(Debug)]
struct Coming {
    pipe: Arc<Pipe>,
    link: Link,
    names: Names,
    deadline: Option<Instant>,
    /// Of the one who called: cancels the call when it is dropped.
    ticket: Option<Ticket>,
}

impl Incoming {
    pub(super) fn whole(whole: Bytes) -> Self {
        Self { whole, coming: None, collected_max: usize::MAX }
    }

    pub(super) fn coming(pipe: Arc<Pipe>, link: Link, names: Names, deadline: Option<Instant>, collected_max: usize) -> Self {
        let coming = Coming { pipe, link, names, deadline, ticket: None };
        Self { whole: Bytes::new(), coming: Some(coming), collected_max }
    }

    pub(super) fn with_ticket(mut self, ticket: Ticket) -> Self {
        if let Some(coming) = &mut self.coming {
            coming.ticket = Some(ticket);
        }
        self
    }

    /// The next piece; none at the end. Room is given back to the sender for each piece that is taken.
    ///
    /// # Errors
    /// When the call was cancelled, its connection broke or its deadline passed. What was taken is not all.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if !self.whole.is_empty() {
            return Some(Ok(std::mem::take(&mut self.whole)));
        }
        let coming = self.coming.as_mut()?;
        let next = poll_fn(|cx| coming.pipe.poll_next(cx));
        let next = match coming.deadline {
            Some(deadline) => timeout_at(deadline, next).await.unwrap_or_else(|_| Some(Err(Error::late()))),
            None => next.await,
        };
        match next {
            Some(Ok((piece, credit))) => {
                if let Some(credit) = credit {
                    coming.link.credit(coming.names, credit);
                }
                Some(Ok(piece))
            }
            Some(Err(error)) => {
                self.coming = None;
                Some(Err(error))
            }
            None => {
                self.coming = None;
                None
            }
        }
    }

    /// All of it that was not taken yet.
    ///
    /// # Errors
    /// As [`Self::next`]; and with status 302 when it is more than the bound for collected bodies.
    pub async fn bytes(mut self) -> Result<Bytes, Error> {
        let Some(first) = self.next().await.transpose()? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await.transpose()? else { return Ok(first) };
        let mut all = BytesMut::from(&first[..]);
        all.extend_from_slice(&second);
        while let Some(piece) = self.next().await.transpose()? {
            all.extend_from_slice(&piece);
            if all.len() > self.collected_max {
                let text = format!("the body has more than {} bytes: stream it, or raise body_bytes_max", self.collected_max);
                return Err(Error::new(status::SERIALIZATION, text));
            }
        }
        Ok(all.freeze())
    }

    /// Whether there was nothing but an end, and it is known by now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.coming.is_none()
    }
}
