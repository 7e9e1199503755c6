//! A cursor over JSON text that checks what it passes, and keeps nothing.

use super::{DEPTH_MAX, EnvelopeError, JsonStr, Kind};

/// A place in a JSON text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// The type of the next value, by its first byte: the rest of it is not checked.
    #[inline]
    pub(super) fn kind(&mut self) -> Result<Kind, EnvelopeError> {
        match self.peek() {
            b'"' => Ok(Kind::String),
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            b't' | b'f' => Ok(Kind::Bool),
            b'n' => Ok(Kind::Null),
            _ => Err(self.fault("a value is missing")),
        }
    }

    /// The complaint that the next value has the wrong type.
    pub(super) fn wrong_type(&mut self, part: &'static str, expected: &'static str) -> Result<EnvelopeError, EnvelopeError> {
        let found = self.kind()?;
        Ok(EnvelopeError::Type { part, expected, found, at: self.at })
    }

    /// Passes the brace of an object that was seen by [`Self::kind`]; whether it has a member.
    #[inline]
    pub(super) fn enter_object(&mut self) -> Result<bool, EnvelopeError> {
        self.at += 1;
        match self.peek() {
            b'"' => Ok(true),
            b'}' => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.fault("a key in quotes or '}' is missing")),
        }
    }

    /// Passes what is behind a member; whether another follows.
    #[inline]
    pub(super) fn next_member(&mut self) -> Result<bool, EnvelopeError> {
        match self.peek() {
            b',' => self.at += 1,
            b'}' => {
                self.at += 1;
                return Ok(false);
            }
            _ => return Err(self.fault("',' or '}' is missing")),
        }
        Ok(true)
    }

    /// Passes a key and its colon.
    #[inline]
    pub(super) fn key(&mut self) -> Result<JsonStr<'a>, EnvelopeError> {
        if self.peek() != b'"' {
            return Err(self.fault("a key in quotes is missing"));
        }
        let key = self.string()?;
        if self.peek() != b':' {
            return Err(self.fault("':' is missing"));
        }
        self.at += 1;
        Ok(key)
    }

    /// The text from here to a place further on.
    pub(super) fn until(&self, other: &Self) -> &'a [u8] {
        self.text.get(self.at..other.at).unwrap_or_default()
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), EnvelopeError> {
        self.peek();
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault("more than one value")) }
    }

    /// Passes a string whose opening quote was seen.
    #[inline]
    pub(super) fn string(&mut self) -> Result<JsonStr<'a>, EnvelopeError> {
        let start = self.at + 1;
        let mut escaped = false;
        self.at = start;
        loop {
            self.at += plain_len(&self.text[self.at..]);
            match self.text.get(self.at) {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(JsonStr::new(raw, escaped));
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escapes()?;
                }
                Some(_) => return Err(self.fault("a control character in a string")),
                None => return Err(self.fault("a string does not end")),
            }
        }
    }

    /// Passes escapes that follow each other: text that is not ASCII often is nothing else.
    fn escapes(&mut self) -> Result<(), EnvelopeError> {
        loop {
            self.at += match &self.text[self.at..] {
                [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => 6,
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                [b'\\', ..] => return Err(self.fault("an escape that JSON does not know")),
                _ => return Ok(()),
            };
        }
    }

    /// Passes a value of any type that lies within `depth` objects.
    ///
    /// Not recursive: what is open is a bit each, 1 for an object.
    pub(super) fn skip_value(&mut self, depth: usize) -> Result<(), EnvelopeError> {
        let mut objects = 0_u128;
        let mut open = 0;
        loop {
            let kind = self.kind()?;
            let mut is_empty = true;
            if matches!(kind, Kind::Object | Kind::Array) {
                if depth + open == DEPTH_MAX {
                    return Err(self.fault("more than 127 objects and arrays within each other"));
                }
                open += 1;
                objects = objects << 1 | u128::from(kind == Kind::Object);
                is_empty = !self.enter(kind)?;
                open -= usize::from(is_empty);
                objects >>= u32::from(is_empty);
            } else {
                self.scalar(kind)?;
            }
            while is_empty {
                if open == 0 {
                    return Ok(());
                }
                let ended = !if objects & 1 == 1 { self.next_member()? } else { self.next_item()? };
                open -= usize::from(ended);
                objects >>= u32::from(ended);
                is_empty = ended;
            }
            if objects & 1 == 1 {
                self.key()?;
            }
        }
    }

    /// Passes the opening bracket or brace; whether it holds something.
    #[inline]
    fn enter(&mut self, kind: Kind) -> Result<bool, EnvelopeError> {
        if kind == Kind::Object {
            return self.enter_object();
        }
        self.at += 1;
        let filled = self.peek() != b']';
        self.at += usize::from(!filled);
        Ok(filled)
    }

    /// Passes what is behind an array's item; whether another follows.
    #[inline]
    fn next_item(&mut self) -> Result<bool, EnvelopeError> {
        match self.peek() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            b']' => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.fault("',' or ']' is missing")),
        }
    }

    /// Passes a value that is neither an object nor an array.
    #[inline]
    fn scalar(&mut self, kind: Kind) -> Result<(), EnvelopeError> {
        match kind {
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.number(),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<(), EnvelopeError> {
        let rest = &self.text[self.at..];
        match ["true", "false", "null"].iter().find(|word| rest.starts_with(word.as_bytes())) {
            Some(word) => {
                self.at += word.len();
                Ok(())
            }
            None => Err(self.fault("a word that JSON does not know")),
        }
    }

    fn number(&mut self) -> Result<(), EnvelopeError> {
        self.at += usize::from(self.byte() == b'-');
        let leading_zero = self.byte() == b'0';
        let digits = self.digits()?;
        if leading_zero && digits > 1 {
            return Err(self.fault("a number with a leading zero before this"));
        }
        if self.byte() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), b'e' | b'E') {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), b'+' | b'-'));
            self.digits()?;
        }
        Ok(())
    }

    /// Passes digits, of which there must be one; how many.
    #[inline]
    fn digits(&mut self) -> Result<usize, EnvelopeError> {
        let start = self.at;
        while self.byte().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.fault("a digit is missing")) } else { Ok(self.at - start) }
    }

    /// Passes white space; the byte behind it, or 0 at the end, which is nowhere valid either.
    #[inline]
    fn peek(&mut self) -> u8 {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    #[inline]
    fn byte(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    #[cold]
    fn fault(&self, what: &'static str) -> EnvelopeError {
        EnvelopeError::Syntax { what, at: self.at }
    }
}

/// How many bytes go by before one that means something in a string: a quote, a backslash, a control character.
#[inline]
fn plain_len(text: &[u8]) -> usize {
    let mut at = 0;
    // Most strings are short: a few words of 8 bytes before the blocks, which take longer to begin.
    while at < 32 {
        let Some(word) = text[at..].first_chunk() else { return at + plain_tail(&text[at..]) };
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at += 64 * text[at..].as_chunks::<64>().0.iter().take_while(|block| is_plain(block)).count();
    while let Some(word) = text[at..].first_chunk() {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + plain_tail(&text[at..])
}

fn plain_tail(text: &[u8]) -> usize {
    text.iter().position(|byte| is_special(*byte)).unwrap_or(text.len())
}

#[inline]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Without branches within the block, so that the compiler uses vectors.
#[inline]
fn is_plain(block: &[u8; 64]) -> bool {
    block.iter().fold(0, |found, byte| found | u8::from(is_special(*byte))) == 0
}

/// Sets the top bit of each byte that is special. Bytes above the lowest such byte may be set wrongly.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const TOPS: u64 = ONES << 7;
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = is_zero(word ^ (ONES * b'"' as u64));
    let backslash = is_zero(word ^ (ONES * b'\\' as u64));
    (control | quote | backslash) & TOPS
}
