//! As much of the Redis protocol as a load generator needs: requests, and where an answer ends.

/// A `GET` of a key, as bytes.
pub(crate) fn get(key: &str) -> Vec<u8> {
    format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes()
}

/// An answer at the beginning of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// How many bytes it takes.
    pub(super) len: usize,
    /// What is wrong with it, if it is an error.
    pub(super) error: Option<String>,
}

/// The bytes are not that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The answer at the beginning of the buffer, if it is whole.
pub(super) fn answer(buf: &[u8]) -> Result<Option<Answer>, Malformed> {
    let Some(end) = buf.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = buf[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let (kind, rest) = line.split_first().ok_or(Malformed)?;
    let whole = |error| Ok(Some(Answer { len: end + 1, error }));
    match kind {
        b'+' => whole(None),
        b'-' => whole(Some(text(line))),
        b'_' => whole(Some("no value".to_owned())),
        b'$' if rest == b"-1" => whole(Some("no value".to_owned())),
        b'$' => bulk(buf, end + 1, rest),
        _ => Err(Malformed),
    }
}

/// A request at the beginning of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// How many bytes it takes.
    pub(super) len: usize,
    /// How many words it has.
    pub(super) words: usize,
}

/// The request at the beginning of the buffer, if it is whole.
pub(super) fn request(buf: &[u8]) -> Result<Option<Request>, Malformed> {
    let Some((words, mut len)) = count(buf, b'*')? else { return Ok(None) };
    for _ in 0..words {
        let Some((bytes, start)) = count(&buf[len..], b'$')? else { return Ok(None) };
        len += start + bytes + 2;
        if len > buf.len() {
            return Ok(None);
        }
    }
    Ok(Some(Request { len, words }))
}

/// The number on a line of this kind, and where the line ends.
fn count(buf: &[u8], kind: u8) -> Result<Option<(usize, usize)>, Malformed> {
    let Some(end) = buf.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = buf[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let digits = line.strip_prefix(&[kind]).and_then(|digits| std::str::from_utf8(digits).ok());
    Ok(Some((digits.and_then(|digits| digits.parse().ok()).ok_or(Malformed)?, end + 1)))
}

fn bulk(buf: &[u8], start: usize, length: &[u8]) -> Result<Option<Answer>, Malformed> {
    let length: usize = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok()).ok_or(Malformed)?;
    let Some(body) = buf.get(start..start + length) else { return Ok(None) };
    match buf.get(start + length..start + length + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some(Answer { len: start + length + 2, error: failed(body) })),
        Some(_) => Err(Malformed),
    }
}

/// The beginning of the body if it is an envelope whose first code is neither 0 nor 200.
fn failed(body: &[u8]) -> Option<String> {
    let at = body.windows(5).position(|window| window == br#""ec":"#)?;
    let code: Vec<u8> =
        body[at + 5..].iter().copied().skip_while(u8::is_ascii_whitespace).take_while(u8::is_ascii_digit).collect();
    if matches!(code.as_slice(), b"0" | b"200") { None } else { Some(text(body)) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Answer {
        for cut in 0..bytes.len() {
            assert_eq!(answer(&bytes[..cut]), Ok(None), "{cut} bytes of it");
        }
        let more = [bytes, b"$1\r\nx\r\n"].concat();
        let found = answer(&more).unwrap().unwrap();
        assert_eq!(found.len, bytes.len());
        found
    }

    #[test]
    fn a_request_is_what_redis_cli_sends() {
        assert_eq!(get("{}"), b"*2\r\n$3\r\nGET\r\n$2\r\n{}\r\n");
    }

    #[test]
    fn requests_are_found() {
        let get = get("{\r\n}");
        for cut in 0..get.len() {
            assert_eq!(request(&get[..cut]), Ok(None), "{cut} bytes of it");
        }
        let more = [&get[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        assert_eq!(request(&more), Ok(Some(Request { len: get.len(), words: 2 })));
        assert_eq!(request(&more[get.len()..]), Ok(Some(Request { len: 14, words: 1 })));
        assert_eq!(request(b"GET a\r\n"), Err(Malformed));
    }

    #[test]
    fn good_answers() {
        for good in [
            &b"+PONG\r\n"[..],
            b"$0\r\n\r\n",
            b"$16\r\n{\"ec\":0,\"em\":\"\"}\r\n",
            b"$12\r\n{\"ec\": 200 }\r\n",
            b"$5\r\na\r\nb\n\r\n",
        ] {
            assert_eq!(whole(good).error, None, "{}", text(good));
        }
    }

    #[test]
    fn errors_are_told() {
        assert_eq!(whole(b"-ERR no\r\n").error.as_deref(), Some("-ERR no"));
        assert_eq!(whole(b"$-1\r\n").error.as_deref(), Some("no value"));
        assert_eq!(whole(b"_\r\n").error.as_deref(), Some("no value"));
        assert_eq!(whole(b"$10\r\n{\"ec\":501}\r\n").error.as_deref(), Some("{\"ec\":501}"));
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [&b"HTTP/1.1 400\r\n"[..], b"\n", b"$x\r\n", b"$-2\r\n", b"$1\r\nabc", b"*1\r\n$1\r\nx\r\n"] {
            assert_eq!(answer(bad), Err(Malformed), "{}", text(bad));
        }
    }
}
