//! Frames out of what a socket gives.

use std::io::{self, Read};

use agent_common::frame::{Broken, HEADER_LEN, Header};

/// Bytes of one read at most.
const ROOM: usize = 256 << 10;

/// A frame as it lies in the buffer.
pub(super) struct Frame<'a> {
    /// Its header, which was checked.
    pub(super) header: Header,
    /// Its metadata.
    pub(super) meta: &'a [u8],
    /// Its body.
    pub(super) body: &'a [u8],
}

/// Bytes that were read and are not used up.
pub(super) struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// All that ever came.
    pub(super) bytes: u64,
}

impl Input {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { buf: vec![0; ROOM].into(), start: 0, end: 0, bytes: 0 }
    }

    /// Reads once. Nothing to read is no error; the end is one.
    pub(super) fn read(&mut self, socket: &mut impl Read) -> io::Result<()> {
        // There is at most a part of a frame, as all whole ones are taken before the next read.
        self.buf.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match socket.read(&mut self.buf[self.end..]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(len) => {
                self.end += len;
                self.bytes += len as u64;
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the next frame, if it is whole.
    pub(super) fn take(&mut self) -> Result<Option<Frame<'_>>, Broken> {
        let rest = &self.buf[self.start..self.end];
        let Some((header, _)) = rest.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(header)?;
        let Some(frame) = rest.get(..header.frame_len()) else { return Ok(None) };
        self.start += frame.len();
        let (head, body) = frame.split_at(header.head_len());
        Ok(Some(Frame { header, meta: &head[HEADER_LEN..], body }))
    }
}

#[cfg(test)]
mod tests {
    use agent_common::frame::Kind;

    use super::*;

    /// Two frames, the second of which has metadata and a body.
    fn two() -> Vec<u8> {
        let second = Header { stream: 1, via: 7, meta_len: 3, body_len: 4, ..Header::new(Kind::Request) };
        [&Header { via: 9, ..Header::new(Kind::Ping) }.bytes()[..], &second.bytes(), b"abc", b"body"].concat()
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        for step in [1, 7, 39, 40, 41, 80, 83, 87] {
            let (mut input, mut found) = (Input::new(), Vec::new());
            for mut piece in two().chunks(step) {
                input.read(&mut piece).unwrap();
                while let Some(frame) = input.take().unwrap() {
                    found.push((frame.header.via, frame.meta.to_vec(), frame.body.to_vec()));
                }
            }
            assert_eq!(found, [(9, vec![], vec![]), (7, b"abc".to_vec(), b"body".to_vec())], "in pieces of {step}");
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let mut input = Input::new();
        input.read(&mut &b"*2\r\n$3\r\nGET\r\n$20\r\n....................\r\n"[..]).unwrap();
        assert_eq!(input.take().err(), Some(Broken::Magic));
        assert!(input.read(&mut io::empty()).is_err());
    }
}
