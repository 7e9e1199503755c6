//! Inline commands: a line that a person types, split into words as Redis's `sdssplitargs` does.

use super::ProtocolError;

/// Splits a line, without its end, into its words. A blank line has none.
///
/// One thing differs from Redis: `GET {…` takes the rest of the line as its argument, so that a call can be typed
/// without escaping every quote of its JSON.
pub(super) fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = trim_start(line);
    while !rest.is_empty() {
        let (word, behind) = unquote(rest)?;
        rest = trim_start(behind);
        let is_call = words.is_empty() && word.eq_ignore_ascii_case(b"GET") && rest.starts_with(b"{");
        words.push(word);
        if is_call {
            let blank = rest.iter().rev().take_while(|byte| is_space(**byte)).count();
            words.push(rest[..rest.len() - blank].to_vec());
            break;
        }
    }
    Ok(words)
}

/// The first word of a text that begins with one, and what is behind it.
fn unquote(text: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut word = Vec::new();
    let mut rest = text;
    while let [byte, behind @ ..] = rest {
        match byte {
            b'"' => return quoted(behind, word, double_quoted),
            b'\'' => return quoted(behind, word, single_quoted),
            _ if ends_word(*byte) => break,
            _ => word.push(*byte),
        }
        rest = behind;
    }
    Ok((word, rest))
}

/// Reads one byte of a quoted text: the byte and the rest; or None for what closes the quote.
type ReadQuoted = fn(&[u8]) -> Option<(u8, &[u8])>;

/// Reads a quoted text from behind its opening quote. The closing one must end the word.
fn quoted(text: &[u8], mut word: Vec<u8>, read: ReadQuoted) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut rest = text;
    while let Some((byte, behind)) = read(rest) {
        word.push(byte);
        rest = behind;
    }
    match rest {
        [_] => Ok((word, &[])),
        [_, next, ..] if is_space(*next) => Ok((word, &rest[1..])),
        _ => Err(ProtocolError::Quotes),
    }
}

fn double_quoted(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [] | [b'"', ..] => None,
        [b'\\', b'x', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            Some((hex(*high) << 4 | hex(*low), rest))
        }
        [b'\\', escape, rest @ ..] => {
            let byte = match escape {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'b' => 0x08,
                b'a' => 0x07,
                other => *other,
            };
            Some((byte, rest))
        }
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

fn single_quoted(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [] | [b'\'', ..] => None,
        [b'\\', b'\'', rest @ ..] => Some((b'\'', rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// What C's `isspace` takes for blank.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// What ends a word that is not quoted. Fewer than [`is_space`]: Redis does so.
fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trim_start(text: &[u8]) -> &[u8] {
    let blank = text.iter().take_while(|byte| is_space(**byte)).count();
    &text[blank..]
}
