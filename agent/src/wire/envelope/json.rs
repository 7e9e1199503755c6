//! A cursor over JSON text that checks what it passes, and keeps nothing.

use super::{DEPTH_MAX, JsonStr, Kind, Syntax};

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

    /// Where it is: at the fault, after an error.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The type of the next value, by its first byte: the rest of it is not checked.
    #[inline]
    pub(super) fn kind(&mut self) -> Result<Kind, Syntax> {
        match self.peek() {
            b'"' => Ok(Kind::String),
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            b't' | b'f' => Ok(Kind::Bool),
            b'n' => Ok(Kind::Null),
            _ => Err(Syntax::Value),
        }
    }

    /// Passes the brace of an object that was seen by [`Self::kind`]; whether it has a member.
    #[inline]
    pub(super) fn enter_object(&mut self) -> Result<bool, Syntax> {
        self.at += 1;
        match self.peek() {
            b'"' => Ok(true),
            b'}' => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(Syntax::KeyOrEnd),
        }
    }

    /// Passes what is behind a member; whether another follows.
    #[inline]
    pub(super) fn next_member(&mut self) -> Result<bool, Syntax> {
        match self.peek() {
            b',' => self.at += 1,
            b'}' => {
                self.at += 1;
                return Ok(false);
            }
            _ => return Err(Syntax::MemberEnd),
        }
        Ok(true)
    }

    /// Passes a key and its colon.
    #[inline]
    pub(super) fn key(&mut self) -> Result<JsonStr<'a>, Syntax> {
        if self.peek() != b'"' {
            return Err(Syntax::Key);
        }
        let key = self.string()?;
        if self.peek() != b':' {
            return Err(Syntax::Colon);
        }
        self.at += 1;
        Ok(key)
    }

    /// The text from here to a place further on.
    pub(super) fn until(&self, other: &Self) -> &'a [u8] {
        self.text.get(self.at..other.at).unwrap_or_default()
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        self.peek();
        if self.at == self.text.len() { Ok(()) } else { Err(Syntax::Trailing) }
    }

    /// Passes a string whose opening quote was seen.
    #[inline]
    pub(super) fn string(&mut self) -> Result<JsonStr<'a>, Syntax> {
        let rest = self.text.get(self.at + 1..).unwrap_or_default();
        // Most strings are short and without escapes.
        let len = short_plain_len(rest);
        if rest.get(len) == Some(&b'"') {
            self.at += len + 2;
            return Ok(JsonStr::new(&rest[..len]));
        }
        self.long_string()
    }

    #[inline(never)]
    fn long_string(&mut self) -> Result<JsonStr<'a>, Syntax> {
        let start = self.at + 1;
        self.at = start;
        loop {
            self.at += plain_len(&self.text[self.at..]);
            match self.text.get(self.at) {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(JsonStr::new(raw));
                }
                Some(b'\\') => self.escapes()?,
                Some(_) => return Err(Syntax::Control),
                None => return Err(Syntax::StringEnd),
            }
        }
    }

    /// Passes escapes that follow each other: text that is not ASCII often is nothing else.
    fn escapes(&mut self) -> Result<(), Syntax> {
        loop {
            self.at += match &self.text[self.at..] {
                [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => 6,
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                [b'\\', ..] => return Err(Syntax::Escape),
                _ => return Ok(()),
            };
        }
    }

    /// Passes a value of any type that lies within `depth` objects.
    ///
    /// Not recursive: what is open is a bit each, 1 for an object.
    pub(super) fn skip_value(&mut self, depth: usize) -> Result<(), Syntax> {
        let mut objects = 0_u128;
        let mut open = 0;
        loop {
            let kind = self.kind()?;
            let mut is_empty = true;
            if matches!(kind, Kind::Object | Kind::Array) {
                if depth + open == DEPTH_MAX {
                    return Err(Syntax::Depth);
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
    fn enter(&mut self, kind: Kind) -> Result<bool, Syntax> {
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
    fn next_item(&mut self) -> Result<bool, Syntax> {
        match self.peek() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            b']' => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(Syntax::ItemEnd),
        }
    }

    /// Passes a value that is neither an object nor an array.
    #[inline]
    fn scalar(&mut self, kind: Kind) -> Result<(), Syntax> {
        match kind {
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.number(),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<(), Syntax> {
        let rest = &self.text[self.at..];
        match ["true", "false", "null"].iter().find(|word| rest.starts_with(word.as_bytes())) {
            Some(word) => {
                self.at += word.len();
                Ok(())
            }
            None => Err(Syntax::Word),
        }
    }

    fn number(&mut self) -> Result<(), Syntax> {
        self.at += usize::from(self.byte() == b'-');
        let leading_zero = self.byte() == b'0';
        let digits = self.digits()?;
        if leading_zero && digits > 1 {
            return Err(Syntax::LeadingZero);
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
    fn digits(&mut self) -> Result<usize, Syntax> {
        let start = self.at;
        while self.byte().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(Syntax::Digit) } else { Ok(self.at - start) }
    }

    /// Passes white space; the byte behind it, or 0 at the end, which is nowhere valid either.
    #[inline]
    fn peek(&mut self) -> u8 {
        let byte = self.byte();
        if byte > b' ' { byte } else { self.behind_space() }
    }

    fn behind_space(&mut self) -> u8 {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    #[inline]
    fn byte(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }
}

/// [`plain_len`] for the first 16 bytes, in whole words only.
#[inline]
fn short_plain_len(text: &[u8]) -> usize {
    let Some((word, rest)) = text.split_first_chunk() else { return 0 };
    match (plain_in(*word), rest.first_chunk()) {
        (8, Some(word)) => 8 + plain_in(*word),
        (plain, _) => plain,
    }
}

/// How many bytes go by before one that means something in a string: a quote, a backslash, a control character.
#[inline]
fn plain_len(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = text[at..].first_chunk() {
        let plain = plain_in(*word);
        at += plain;
        if plain < 8 {
            return at;
        }
        // Blocks take longer to begin, so only long strings get them.
        if at == 16 {
            at += 64 * text[at..].as_chunks::<64>().0.iter().take_while(|block| is_plain(block)).count();
        }
    }
    at + text[at..].iter().position(|byte| is_special(*byte)).unwrap_or(text.len() - at)
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

/// [`plain_len`] of a word.
#[inline]
fn plain_in(word: [u8; 8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const TOPS: u64 = ONES << 7;
    let word = u64::from_le_bytes(word);
    // Each sets the top bit of the bytes it looks for; above the lowest of them it may err.
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = is_zero(word ^ (ONES * b'"' as u64));
    let backslash = is_zero(word ^ (ONES * b'\\' as u64));
    (((control | quote | backslash) & TOPS).trailing_zeros() / 8) as usize
}
