//! Read buffers that a whole worker shares: a connection owns bytes only while a message of it is incomplete.

use std::{
    collections::VecDeque,
    io,
    task::{Context, Poll},
};

use bytes::BytesMut;

use super::stream::Stream;

/// The size of a buffer. A message that is cut is copied out of it, so nothing holds one for long.
const BUFFER: usize = 64 * 1024;
/// A read is not begun into less room than this.
const ROOM_MIN: usize = 16 * 1024;
/// Buffers that wait for the last slice of them to be dropped.
const SPENT_MAX: usize = 16;

/// The buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffers {
    current: BytesMut,
    spent: VecDeque<BytesMut>,
}

impl ReadBuffers {
    /// Reads what there is, once. Empty at the end of the stream.
    pub(crate) fn poll_read(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        if self.current.capacity() < ROOM_MIN {
            self.renew();
        }
        match stream.poll_read_buf(cx, &mut self.current) {
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(self.current.split())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn renew(&mut self) {
        let spent = std::mem::take(&mut self.current);
        if spent.capacity() > 0 && self.spent.len() < SPENT_MAX {
            self.spent.push_back(spent);
        }
        for _ in 0..self.spent.len() {
            let Some(mut buffer) = self.spent.pop_front() else { break };
            if buffer.try_reclaim(BUFFER) {
                self.current = buffer;
                return;
            }
            self.spent.push_back(buffer);
        }
        self.current = BytesMut::with_capacity(BUFFER);
    }
}
