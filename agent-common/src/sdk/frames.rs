use std::{
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::address::Socket;
use crate::frame::{Broken, COPY_BELOW, HEADER_LEN, Header};

/// A frame that came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) header: Header,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
}

/// Makes frames of the bytes that come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: BytesMut,
}

/// Room that a read has at least.
const READ_MIN: usize = 8 * 1024;
/// Room that is made when there is less.
const READ: usize = 64 * 1024;

impl Frames {
    /// Reads what there is; 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, socket: &Socket) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < READ_MIN {
            self.buffer.reserve(READ);
        }
        let read = ready!(socket.poll_read(cx, &mut self.buffer));
        Poll::Ready(read)
    }

    /// The same from a socket that takes less than there is room for as a sign that there is no more, and is not asked again.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, socket: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < READ_MIN {
            self.buffer.reserve(READ);
        }
        pin!(socket.read_buf(&mut self.buffer)).poll(cx)
    }

    /// Bytes that were read elsewhere.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. Small ones are copied, so that one that is kept does not keep the whole buffer.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Broken> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else { return self.wrong_already() };
        let header = Header::parse(header)?;
        let len = header.frame_len();
        if self.buffer.len() < len {
            return Ok(None);
        }
        let mut rest = if len > COPY_BELOW {
            let mut frame = self.buffer.split_to(len);
            frame.advance(HEADER_LEN);
            frame.freeze()
        } else {
            let rest = Bytes::copy_from_slice(&self.buffer[HEADER_LEN..len]);
            self.buffer.advance(len);
            rest
        };
        let meta = rest.split_to(usize::from(header.meta_len));
        Ok(Some(Received { header, meta, body: rest }))
    }

    /// A peer that speaks something else may never send as much as a header.
    fn wrong_already(&self) -> Result<Option<Received>, Broken> {
        if crate::frame::MAGIC.iter().zip(&self.buffer).any(|(magic, byte)| magic != byte) {
            return Err(Broken::Magic);
        }
        Ok(None)
    }
}
