//! Bytes that wait to be written, as slices of the buffers they came in.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};

use super::stream::Stream;

/// Slices of one `writev`.
pub(crate) const SLICES_MAX: usize = 64;
/// What must wait is copied if it is smaller than this, so that it does not hold the whole read buffer that it lies in.
pub(crate) const COPY_BELOW: usize = 8 * 1024;

/// A queue of bytes towards one socket.
#[derive(Debug, Default)]
pub(crate) struct OutQueue {
    slices: VecDeque<Bytes>,
    bytes: usize,
}

impl OutQueue {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.slices.push_back(bytes);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The front of the queue, for a vectored write.
    pub(crate) fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.slices) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// Forgets the first `written` bytes.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let Some(front) = self.slices.front_mut() else { return };
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.slices.pop_front();
        }
    }

    /// Copies what is small, as the socket takes no more for now: a slow reader holds its own bytes, not everybody's buffers.
    pub(crate) fn own(&mut self) {
        let mut owned = VecDeque::with_capacity(self.slices.len().min(8));
        let mut run = BytesMut::new();
        for slice in self.slices.drain(..) {
            if slice.len() < COPY_BELOW {
                run.extend_from_slice(&slice);
                continue;
            }
            if !run.is_empty() {
                owned.push_back(run.split().freeze());
            }
            owned.push_back(slice);
        }
        if !run.is_empty() {
            owned.push_back(run.freeze());
        }
        self.slices = owned;
    }

    /// Gives back memory that a burst left behind.
    pub(crate) fn shrink(&mut self) {
        if self.slices.is_empty() && self.slices.capacity() > 8 {
            self.slices = VecDeque::new();
        }
    }

    /// Writes until the queue is empty (`Ready(Ok)`) or the socket takes no more.
    pub(crate) fn poll_flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.fill(&mut slices);
            match stream.poll_write(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.own();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A copy if `bytes` is small, else the slice itself.
pub(crate) fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is pushed comes out in order, whatever the sizes of the writes, owned in between or not.
        #[test]
        fn keeps_order(pieces in proptest::collection::vec((0usize..20_000, any::<u8>()), 0..40), writes in proptest::collection::vec((1usize..30_000, any::<bool>()), 1..80)) {
            let mut queue = OutQueue::default();
            let mut expected = Vec::new();
            for (len, byte) in pieces {
                let piece = vec![byte; len];
                expected.extend_from_slice(&piece);
                queue.push(piece.into());
            }
            let mut seen = Vec::new();
            for (len, own) in writes {
                if own {
                    queue.own();
                }
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = queue.fill(&mut slices);
                let front: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(len).collect();
                seen.extend_from_slice(&front);
                let len = front.len();
                queue.advance(len);
                prop_assert_eq!(queue.bytes(), expected.len() - seen.len());
            }
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
        }
    }
}
