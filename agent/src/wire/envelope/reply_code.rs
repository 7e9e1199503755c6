//! The code of a reply.

use super::Kind;
use super::json::Cursor;

/// The top-level `ec` of a reply, in any order of keys; none if there is none, or if it is no integer.
///
/// It ends the scan: the body behind it is neither checked nor needed, so the beginning of a large reply will do.
#[must_use]
pub fn scan_reply_code(body: &[u8]) -> Option<i64> {
    // What every server writes, as `ec` is the first field of their types.
    match body {
        [b'{', b'"', b'e', b'c', b'"', b':', b'0', b',', ..] => Some(0),
        [b'{', b'"', b'e', b'c', b'"', b':', b'2', b'0', b'0', b',', ..] => Some(200),
        _ => search(body),
    }
}

fn search(body: &[u8]) -> Option<i64> {
    let mut cursor = Cursor::new(body);
    if cursor.kind().ok()? != Kind::Object {
        return None;
    }
    let mut more = cursor.enter_object().ok()?;
    while more {
        let is_code = cursor.key().ok()?.is_name("ec");
        let kind = cursor.kind().ok()?;
        let from = cursor;
        cursor.skip_value(1).ok()?;
        more = cursor.next_member().ok()?;
        if is_code {
            return if kind == Kind::Number { integer(from.until(&cursor)) } else { None };
        }
    }
    None
}

/// The number that `text` begins with, if it is an integer.
fn integer(text: &[u8]) -> Option<i64> {
    let sign = usize::from(text.starts_with(b"-"));
    let digits = text[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if matches!(text.get(sign + digits), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    std::str::from_utf8(&text[..sign + digits]).ok()?.parse().ok()
}
