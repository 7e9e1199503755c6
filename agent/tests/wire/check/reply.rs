//! The framing of replies against a plain reading of the whole text.

use agent::wire::reply::{ReplyError, ReplyHead, parse_head};

/// Any text and each beginning of it.
pub(crate) fn check(text: &[u8]) {
    let whole = parse_head(text);
    assert_eq!(whole, reference(text));
    // A head that was found stays, and so does an error: what comes later changes neither.
    let step = 1 + text.len() / 100;
    for cut in (0..text.len()).step_by(step) {
        match parse_head(&text[..cut]) {
            Ok(None) => {}
            found => assert_eq!(found, whole, "cut at {cut}"),
        }
    }
}

fn reference(text: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    let end = text.windows(2).position(|two| two == b"\r\n");
    let Some(kind) = text.first().copied() else { return Ok(None) };
    match (kind, end) {
        (b'$', Some(end)) => bulk(&text[1..end]),
        (b'$', None) => {
            let written = text[1..].strip_suffix(b"\r").unwrap_or(&text[1..]);
            let is_cut = bulk(written) != Err(ReplyError::Length);
            let more: &[&[u8]] = if written.len() < text.len() - 1 { &[] } else { &[b"1", b"-1"] };
            let may_go_on = more.iter().any(|more| bulk(&[written, more].concat()) != Err(ReplyError::Length));
            if is_cut || may_go_on { Ok(None) } else { Err(ReplyError::Length) }
        }
        (b'+' | b'-' | b':' | b'_', end) => match end.map(|end| end + 2).filter(|len| *len <= 65536) {
            Some(3) if kind == b'_' => Ok(Some(ReplyHead::Null { len: 3 })),
            Some(_) if kind == b'_' => Err(ReplyError::Kind(kind)),
            Some(len) => Ok(Some(ReplyHead::Line { kind, len })),
            None if text.len() >= 65536 => Err(ReplyError::Line),
            None => Ok(None),
        },
        _ => Err(ReplyError::Kind(kind)),
    }
}

/// What a length means, as it is written between `$` and CRLF.
fn bulk(written: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    match std::str::from_utf8(written).unwrap_or("?") {
        "-1" => Ok(Some(ReplyHead::Null { len: 5 })),
        digits if (1..=10).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let len: u64 = digits.parse().unwrap();
            let fits = len <= 512 * 1024 * 1024;
            if fits {
                Ok(Some(ReplyHead::Bulk { header: digits.len() + 3, len: len as usize }))
            } else {
                Err(ReplyError::TooLong(len))
            }
        }
        _ => Err(ReplyError::Length),
    }
}
