//! A Redis client's reading of replies, written apart from the agent's own parser so that one can find the other's
//! mistakes.

use std::io::{self, BufRead, Read};

/// One reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `+text`
    Simple(String),
    /// `-text`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3 abc`
    Bulk(Vec<u8>),
    /// `$-1`, `*-1` or `_`
    Null,
    /// `*2 …`, `~2 …` or `>2 …`
    Array(Vec<Reply>),
    /// `%1 …`
    Map(Vec<(Reply, Reply)>),
    /// `#t`
    Boolean(bool),
    /// `,1.5`, `(123…` or `=7 txt:abc`, as their text
    Other(char, Vec<u8>),
}

impl Reply {
    /// The bytes of a bulk string.
    ///
    /// # Panics
    /// If it is anything else.
    pub fn bulk(&self) -> &[u8] {
        match self {
            Self::Bulk(bytes) => bytes,
            other => panic!("expected a bulk string, got {}", other.brief()),
        }
    }

    /// The text of a bulk string.
    ///
    /// # Panics
    /// If it is anything else, or not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.bulk()).expect("a reply in UTF-8")
    }

    /// The members of an array.
    ///
    /// # Panics
    /// If it is anything else.
    pub fn array(&self) -> &[Self] {
        match self {
            Self::Array(members) => members,
            other => panic!("expected an array, got {}", other.brief()),
        }
    }

    /// The text of an error.
    ///
    /// # Panics
    /// If it is anything else.
    pub fn error(&self) -> &str {
        match self {
            Self::Error(text) => text,
            other => panic!("expected -ERR, got {}", other.brief()),
        }
    }

    /// The value that belongs to `key` in a map, or in an array of keys and values in turn.
    pub fn field(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(pairs) => pairs.iter().find(|(name, _)| name.is_text(key)).map(|(_, value)| value),
            Self::Array(flat) => flat.chunks(2).find(|pair| pair[0].is_text(key)).and_then(|pair| pair.get(1)),
            _ => None,
        }
    }

    /// Whether it is a string of either kind with this text.
    pub fn is_text(&self, text: &str) -> bool {
        match self {
            Self::Bulk(bytes) => bytes == text.as_bytes(),
            Self::Simple(have) => have == text,
            _ => false,
        }
    }

    /// Its text, cut to a length that fits a message.
    pub fn brief(&self) -> String {
        let whole = match self {
            Self::Bulk(bytes) => format!("${} {}", bytes.len(), bytes[..bytes.len().min(300)].escape_ascii()),
            other => format!("{other:?}"),
        };
        whole.chars().take(500).collect()
    }
}

/// Reads one reply.
///
/// # Errors
/// `UnexpectedEof` if the stream ends, `InvalidData` if it is no RESP, and the stream's own.
pub fn read_reply(from: &mut impl BufRead) -> io::Result<Reply> {
    let line = read_line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| bad("an empty line"))?;
    let text = || String::from_utf8_lossy(rest).into_owned();
    Ok(match kind[0] {
        b'+' => Reply::Simple(text()),
        b'-' => Reply::Error(text()),
        b':' => Reply::Integer(number(rest)?),
        b'_' => Reply::Null,
        b'#' => Reply::Boolean(rest == b"t"),
        b',' | b'(' => Reply::Other(char::from(kind[0]), rest.to_vec()),
        b'$' | b'=' => read_blob(from, kind[0], number(rest)?)?,
        b'*' | b'~' | b'>' => read_members(from, number(rest)?)?,
        b'%' => read_map(from, number(rest)?)?,
        _ => {
            return Err(bad(&format!("a line that starts like no reply: {}", line.escape_ascii())));
        }
    })
}

fn read_blob(from: &mut impl BufRead, kind: u8, length: i64) -> io::Result<Reply> {
    let Ok(length) = usize::try_from(length) else {
        return Ok(Reply::Null);
    };
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    let mut end = [0; 2];
    from.read_exact(&mut end)?;
    if &end != b"\r\n" {
        return Err(bad(&format!("no CRLF after a string of {length} bytes, but {}", end.escape_ascii())));
    }
    Ok(if kind == b'$' { Reply::Bulk(bytes) } else { Reply::Other('=', bytes) })
}

fn read_members(from: &mut impl BufRead, count: i64) -> io::Result<Reply> {
    if count < 0 {
        return Ok(Reply::Null);
    }
    (0..count).map(|_| read_reply(from)).collect::<io::Result<_>>().map(Reply::Array)
}

fn read_map(from: &mut impl BufRead, count: i64) -> io::Result<Reply> {
    (0..count).map(|_| Ok((read_reply(from)?, read_reply(from)?))).collect::<io::Result<_>>().map(Reply::Map)
}

fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.by_ref().take(1 << 20).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(text) => Ok(text.to_vec()),
        None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        None => Err(bad(&format!("a line without CRLF: {}", line.escape_ascii()))),
    }
}

fn number(text: &[u8]) -> io::Result<i64> {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| bad(&format!("not a number: {}", text.escape_ascii())))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
