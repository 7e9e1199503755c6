//! JSON strings as they stand in the text, and what they mean.

use std::borrow::Cow;
use std::str;

/// A string within a JSON text, not decoded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonStr<'a> {
    /// What stands between its quotes.
    pub raw: &'a [u8],
}

/// Why a string means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Its bytes are not UTF-8.
    #[error("a string is not UTF-8")]
    Utf8,
    /// It has half a surrogate pair (`\ud800` without its partner).
    #[error("a string has half a surrogate pair")]
    Surrogate,
    /// It has an escape that JSON does not know; never so in a text that was scanned.
    #[error("a string has an escape that JSON does not know")]
    Escape,
}

/// A stretch of a string.
enum Piece<'a> {
    Plain(&'a [u8]),
    Escaped(char),
}

impl<'a> JsonStr<'a> {
    pub(super) fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// Whether there is a backslash in it; if not, `raw` is the string itself.
    #[must_use]
    pub fn is_escaped(&self) -> bool {
        memchr::memchr(b'\\', self.raw).is_some()
    }

    /// What the string means. Allocates only if it has escapes.
    ///
    /// # Errors
    /// When it means nothing: it is not UTF-8, or has half a surrogate pair.
    pub fn decode(&self) -> Result<Cow<'a, str>, DecodeError> {
        if !self.is_escaped() {
            return str::from_utf8(self.raw).map(Cow::Borrowed).map_err(|_| DecodeError::Utf8);
        }
        let mut text = Vec::with_capacity(self.raw.len());
        self.unescape(&mut text)?;
        String::from_utf8(text).map(Cow::Owned).map_err(|_| DecodeError::Utf8)
    }

    /// As [`Self::decode`], with a buffer to be used again: PHP escapes every slash, so most URIs have escapes.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_with<'b>(&'b self, scratch: &'b mut Vec<u8>) -> Result<&'b str, DecodeError> {
        let text = if self.is_escaped() {
            scratch.clear();
            self.unescape(scratch)?;
            scratch
        } else {
            self.raw
        };
        str::from_utf8(text).map_err(|_| DecodeError::Utf8)
    }

    /// Whether it means `text`. Never allocates.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        if self.is_escaped() { self.is_unescaped(text) } else { self.raw == text.as_bytes() }
    }

    /// [`Self::is`] for a name that has no backslash in it.
    #[inline]
    pub(super) fn is_name(&self, name: &'static str) -> bool {
        // An escape is longer than what it stands for.
        self.raw == name.as_bytes() || self.raw.len() > name.len() && self.is_escaped() && self.is_unescaped(name)
    }

    #[cold]
    fn is_unescaped(&self, text: &str) -> bool {
        let (mut raw, mut left) = (self.raw, text.as_bytes());
        let mut utf8 = [0; 4];
        while !raw.is_empty() {
            let Ok((piece, rest)) = piece(raw) else { return false };
            let found = match piece {
                Piece::Plain(bytes) => bytes,
                Piece::Escaped(char) => char.encode_utf8(&mut utf8).as_bytes(),
            };
            let Some(behind) = left.strip_prefix(found) else { return false };
            (raw, left) = (rest, behind);
        }
        left.is_empty()
    }

    fn unescape(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let mut raw = self.raw;
        while !raw.is_empty() {
            let (piece, rest) = piece(raw)?;
            match piece {
                Piece::Plain(bytes) => out.extend_from_slice(bytes),
                Piece::Escaped(char) => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            }
            raw = rest;
        }
        Ok(())
    }
}

/// Splits the first piece off a string that is not empty.
fn piece(raw: &[u8]) -> Result<(Piece<'_>, &[u8]), DecodeError> {
    let plain = memchr::memchr(b'\\', raw).unwrap_or(raw.len());
    if plain > 0 {
        let (bytes, rest) = raw.split_at(plain);
        return Ok((Piece::Plain(bytes), rest));
    }
    let char = match raw.get(1) {
        Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return code_point(raw),
        _ => return Err(DecodeError::Escape),
    };
    Ok((Piece::Escaped(char), &raw[2..]))
}

/// Reads `\uXXXX`, or two of them that are a surrogate pair.
fn code_point(raw: &[u8]) -> Result<(Piece<'_>, &[u8]), DecodeError> {
    let first = code_unit(raw).ok_or(DecodeError::Escape)?;
    if let Some(char) = char::from_u32(first) {
        return Ok((Piece::Escaped(char), &raw[6..]));
    }
    let pair = code_unit(&raw[6..]).filter(|second| first < 0xdc00 && (0xdc00..0xe000).contains(second));
    let second = pair.ok_or(DecodeError::Surrogate)?;
    let char = char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or(DecodeError::Surrogate)?;
    Ok((Piece::Escaped(char), &raw[12..]))
}

/// The number of the `\uXXXX` that `raw` begins with.
fn code_unit(raw: &[u8]) -> Option<u32> {
    let digits = raw.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}
