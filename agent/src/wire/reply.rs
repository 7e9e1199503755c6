//! Replies: the framing of those that backends send, and the encoding of those that the agent itself makes.

mod encode;
#[cfg(test)]
mod tests;

pub use encode::{BulkHeader, Writer, array_header, array_of_bulks, bulk_header, error, error_envelope, whole_bulk};

/// The longest reply that is a line: the bound keeps a peer that sends no line end from filling the memory.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest bulk: Redis's own bound.
const BULK_BYTES_MAX: usize = 512 << 20;

/// The head of a reply, which tells where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// A bulk string. The whole reply takes `header + len + 2` bytes.
    Bulk {
        /// Bytes before the payload.
        header: usize,
        /// Bytes of the payload.
        len: usize,
    },
    /// A simple string, an error or an integer.
    Line {
        /// Its first byte: `+`, `-` or `:`.
        kind: u8,
        /// The whole reply, with its first byte and its line end.
        len: usize,
    },
    /// RESP2's null bulk, or RESP3's null.
    Null {
        /// The whole reply.
        len: usize,
    },
}

/// Bytes that are no reply to a call. What follows them can't be told apart: the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The first byte stands for no type, or for one that a call never has, such as an array.
    #[error("a reply begins with '{}', which no reply to a call does", .0.escape_ascii())]
    Kind(u8),
    /// `$` is followed by something else than a length.
    #[error("a bulk reply has no valid length")]
    Length,
    /// A bulk is longer than any Redis server may send.
    #[error("a bulk reply of {0} bytes is over 512 MiB")]
    TooLong(u64),
    /// A line does not end.
    #[error("a reply line has no end within 64 KiB")]
    Line,
}

/// Reads the head of the reply that `buf` begins with. None if it is cut: there is more to read.
///
/// A line is a head as a whole; of a bulk only the length is read, so that its payload can pass while it arrives.
///
/// # Errors
/// When `buf` does not begin with a reply that a call or a `PING` can have.
pub fn parse_head(buf: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    let Some(kind) = buf.first() else { return Ok(None) };
    match kind {
        b'$' => bulk(buf),
        b'+' | b'-' | b':' => Ok(line(buf)?.map(|len| ReplyHead::Line { kind: *kind, len })),
        b'_' => match line(buf)? {
            None => Ok(None),
            Some(3) => Ok(Some(ReplyHead::Null { len: 3 })),
            Some(_) => Err(ReplyError::Kind(*kind)),
        },
        other => Err(ReplyError::Kind(*other)),
    }
}

/// The length of the line that `buf` begins with, its CRLF included.
fn line(buf: &[u8]) -> Result<Option<usize>, ReplyError> {
    let window = &buf[..buf.len().min(LINE_BYTES_MAX)];
    let mut from = 0;
    while let Some(found) = memchr::memchr(b'\r', &window[from..]) {
        match window.get(from + found + 1) {
            Some(b'\n') => return Ok(Some(from + found + 2)),
            Some(_) => from += found + 1,
            None => break,
        }
    }
    if window.len() == LINE_BYTES_MAX { Err(ReplyError::Line) } else { Ok(None) }
}

fn bulk(buf: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    // 10 digits hold the bound, and as many bytes again are more than any honest header has.
    let header = &buf[1..buf.len().min(16)];
    let digits = header.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(header.len());
    match &header[digits..] {
        _ if digits > 10 => Err(ReplyError::Length),
        [b'-', ..] if digits == 0 => null(header),
        [] => Ok(None),
        [b'\r'] if digits > 0 => Ok(None),
        [b'\r', b'\n', ..] if digits > 0 => {
            let len = header[..digits].iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
            match usize::try_from(len) {
                Ok(len) if len <= BULK_BYTES_MAX => Ok(Some(ReplyHead::Bulk { header: digits + 3, len })),
                _ => Err(ReplyError::TooLong(len)),
            }
        }
        _ => Err(ReplyError::Length),
    }
}

/// `-1\r\n`, behind the `$`.
fn null(header: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    let whole = b"-1\r\n";
    if header.starts_with(whole) {
        Ok(Some(ReplyHead::Null { len: whole.len() + 1 }))
    } else if whole.starts_with(header) {
        Ok(None)
    } else {
        Err(ReplyError::Length)
    }
}
