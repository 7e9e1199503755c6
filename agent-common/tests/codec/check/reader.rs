//! A connection's reader, to which bytes come in pieces.

use agent_common::frame::{HEADER_LEN, Header};

use super::reference::Seen;

/// Keeps what is not a whole frame yet.
#[derive(Debug, Default)]
struct Reader {
    buf: Vec<u8>,
    /// Of the frame that begins the buffer, once enough of it came.
    header: Option<Header>,
}

/// What the reader makes of these pieces.
pub(crate) fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut reader = Reader::default();
    let mut seen = Vec::new();
    for piece in pieces {
        reader.buf.extend_from_slice(piece);
        while let Some(found) = reader.next() {
            let is_end = found == Seen::Broken;
            seen.push(found);
            if is_end {
                return seen;
            }
        }
    }
    let needed = reader.header.map_or(HEADER_LEN, |header| header.frame_len());
    seen.push(Seen::Missing(needed - reader.buf.len()));
    seen
}

impl Reader {
    fn next(&mut self) -> Option<Seen> {
        if self.header.is_none() {
            match Header::parse(self.buf.first_chunk()?) {
                Ok(header) => self.header = Some(header),
                Err(_) => return Some(Seen::Broken),
            }
        }
        let header = self.header.take_if(|header| header.frame_len() <= self.buf.len())?;
        let frame = self.buf.drain(..header.frame_len()).collect();
        Some(if header.kind().is_some() { Seen::Frame(frame) } else { Seen::Skipped(frame) })
    }
}
