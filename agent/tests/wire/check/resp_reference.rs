//! Redis's protocol for commands, read from a text that is there as a whole: slow and plain.

use agent::wire::resp::{Limits, ProtocolError, Refusal};

/// What a caller sees of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Command {
        args: Vec<Vec<u8>>,
        array: bool,
    },
    Refused {
        refusal: Refusal,
        name: Vec<u8>,
        args: usize,
    },
    Error(ProtocolError),
    /// The last thing, if there is no error: so many bytes are missing at least.
    Missing(usize),
}

/// What is read of the beginning of a text: a thing and what is behind it.
enum Read<'a> {
    Seen(Seen, &'a [u8]),
    Nothing(&'a [u8]),
    Missing(usize),
    Error(ProtocolError),
}

/// All that is to be seen in a text.
pub(crate) fn read(mut text: &[u8], limits: &Limits) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        let read = if text.starts_with(b"*") { array(text, limits) } else { inline(text, limits) };
        text = match read {
            Read::Seen(seen, rest) => {
                all.push(seen);
                rest
            }
            Read::Nothing(rest) => rest,
            Read::Missing(bytes) => {
                all.push(Seen::Missing(bytes));
                return all;
            }
            Read::Error(error) => {
                all.push(Seen::Error(error));
                return all;
            }
        };
    }
}

enum Line<'a> {
    Number(i64, &'a [u8]),
    Cut,
    Bad,
}

/// A line's number must be written as it would be printed, with 9 digits at most.
fn number(text: &[u8]) -> Line<'_> {
    let whole = |text: &[u8]| {
        let end = text.windows(2).position(|two| two == b"\r\n")?;
        let written = std::str::from_utf8(&text[..end]).ok()?;
        let value: i64 = written.parse().ok()?;
        (value.to_string() == written && value.abs() < 1_000_000_000).then_some((value, end + 2))
    };
    match whole(text) {
        Some((value, len)) => Line::Number(value, &text[len..]),
        // It is cut if some end would make it a number.
        None if ["\r\n", "\n", "1\r\n"].iter().any(|end| whole(&[text, end.as_bytes()].concat()).is_some()) => Line::Cut,
        None => Line::Bad,
    }
}

fn array<'a>(text: &'a [u8], limits: &Limits) -> Read<'a> {
    let (count, mut rest) = match number(&text[1..]) {
        Line::Number(count, rest) if count <= 0 => return Read::Nothing(rest),
        Line::Number(count, rest) if count <= 1024 * 1024 => (count, rest),
        Line::Cut => return Read::Missing(1),
        Line::Number(..) | Line::Bad => return Read::Error(ProtocolError::MultibulkLength),
    };
    let mut args = Vec::new();
    let mut refusal = None;
    for _ in 0..count {
        match rest.first() {
            None => return Read::Missing(1),
            Some(b'$') => {}
            Some(other) => return Read::Error(ProtocolError::Dollar(*other)),
        }
        let (len, payload) = match number(&rest[1..]) {
            Line::Number(len, payload) if (0..=512 * 1024 * 1024).contains(&len) => (len as usize, payload),
            Line::Cut => return Read::Missing(1),
            Line::Number(..) | Line::Bad => return Read::Error(ProtocolError::BulkLength),
        };
        let so_far = text.len() - payload.len() + len + 2;
        let known = args.first().cloned().unwrap_or_default();
        if refusal.is_none() {
            refusal = over(len, so_far, limits).map(|refusal| (refusal, known));
        }
        if payload.len() < len + 2 {
            // What is refused is not waited for.
            return Read::Missing(if refusal.is_some() { 1 } else { len + 2 - payload.len() });
        }
        if &payload[len..len + 2] != b"\r\n" {
            return Read::Error(ProtocolError::BulkEnd);
        }
        args.push(payload[..len].to_vec());
        rest = &payload[len + 2..];
    }
    Read::Seen(seen(args, refusal, true), rest)
}

fn seen(args: Vec<Vec<u8>>, refusal: Option<(Refusal, Vec<u8>)>, array: bool) -> Seen {
    match refusal {
        None => Seen::Command { args, array },
        Some((refusal, mut name)) => {
            name.truncate(16);
            Seen::Refused { refusal, name, args: args.len() }
        }
    }
}

fn over(argument: usize, command: usize, limits: &Limits) -> Option<Refusal> {
    if argument > limits.argument_bytes_max {
        return Some(Refusal::Argument { len: argument });
    }
    (command > limits.command_bytes_max).then_some(Refusal::Command)
}

fn inline<'a>(text: &'a [u8], limits: &Limits) -> Read<'a> {
    let Some(end) = text.iter().position(|byte| *byte == b'\n').filter(|end| *end <= 65536) else {
        return if text.len() > 65536 { Read::Error(ProtocolError::InlineLength) } else { Read::Missing(1) };
    };
    let rest = &text[end + 1..];
    let mut line = text[..end].to_vec();
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    let Some(args) = call_as_typed(&line).or_else(|| split_args(&line)) else { return Read::Error(ProtocolError::Quotes) };
    let Some(longest) = args.iter().map(Vec::len).max() else { return Read::Nothing(rest) };
    let refusal = over(longest, end + 1, limits).map(|refusal| (refusal, args[0].clone()));
    Read::Seen(seen(args, refusal, false), rest)
}

/// `GET {…`, with the verb in any spelling that is the word GET.
fn call_as_typed(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let brace = (0..line.len()).find(|at| {
        line[*at] == b'{'
            && *at > 0
            && is_space(line[at - 1])
            && split_args(&line[..*at]).is_some_and(|words| words.len() == 1 && words[0].eq_ignore_ascii_case(b"GET"))
    })?;
    let mut body = line[brace..].to_vec();
    while body.last().is_some_and(|byte| is_space(*byte)) {
        body.pop();
    }
    Some(vec![split_args(&line[..brace])?.remove(0), body])
}

fn is_space(byte: u8) -> bool {
    b" \t\n\x0b\x0c\r".contains(&byte)
}

/// Redis's `sdssplitargs`, line by line, but that a NUL is a byte like any other: here the end is `None`.
fn split_args(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let at = |p: usize| line.get(p).copied();
    let space_or_end = |p: usize| at(p).is_none_or(is_space);
    let hex = |p: usize| at(p).and_then(|byte| char::from(byte).to_digit(16));
    let mut vector = Vec::new();
    let mut p = 0;
    loop {
        while at(p).is_some_and(is_space) {
            p += 1;
        }
        if at(p).is_none() {
            return Some(vector);
        }
        let (mut inq, mut insq, mut done) = (false, false, false);
        let mut current = Vec::new();
        while !done {
            let here = at(p);
            if inq {
                match here {
                    Some(b'\\') if at(p + 1) == Some(b'x') && hex(p + 2).is_some() && hex(p + 3).is_some() => {
                        current.push((hex(p + 2)? * 16 + hex(p + 3)?) as u8);
                        p += 3;
                    }
                    Some(b'\\') if at(p + 1).is_some() => {
                        p += 1;
                        let escape = [(b'n', b'\n'), (b'r', b'\r'), (b't', b'\t'), (b'b', 8), (b'a', 7)];
                        let meaning = escape.iter().find(|(letter, _)| at(p) == Some(*letter));
                        current.push(meaning.map_or(at(p)?, |(_, byte)| *byte));
                    }
                    Some(b'"') if space_or_end(p + 1) => done = true,
                    Some(b'"') | None => return None,
                    Some(byte) => current.push(byte),
                }
            } else if insq {
                match here {
                    Some(b'\\') if at(p + 1) == Some(b'\'') => {
                        p += 1;
                        current.push(b'\'');
                    }
                    Some(b'\'') if space_or_end(p + 1) => done = true,
                    Some(b'\'') | None => return None,
                    Some(byte) => current.push(byte),
                }
            } else {
                match here {
                    Some(b' ' | b'\n' | b'\r' | b'\t') | None => done = true,
                    Some(b'"') => inq = true,
                    Some(b'\'') => insq = true,
                    Some(byte) => current.push(byte),
                }
            }
            if here.is_some() {
                p += 1;
            }
        }
        vector.push(current);
    }
}
