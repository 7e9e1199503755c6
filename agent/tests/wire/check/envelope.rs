//! The scan of envelopes against `serde_json`.

use agent::wire::envelope::{DEPTH_MAX, EnvelopeError, Field, JsonStr, Props, scan_reply_code, scan_request};
use serde::de::IgnoredAny;

use super::json::Json;

/// Where a full parser is stricter: what only shows when strings and numbers are turned into values. The scan passes
/// these; of the strings that it gives out, decoding finds them.
const ONLY_IN_VALUES: [&str; 4] =
    ["invalid unicode code point", "number out of range", "lone leading surrogate in hex escape", "unexpected end of hex escape"];

/// Any body. One in a RESP frame, as the recorded bytes have it, is taken out of it first.
pub(crate) fn check(text: &[u8]) {
    let body = unframed(text);
    let scanned = scan_request(body);
    let is_syntax_fault = matches!(scanned, Err(EnvelopeError::Syntax { .. }));
    // This one checks grammar only, as the scan does, and has no bound on depth.
    let grammar = serde_json::from_slice::<IgnoredAny>(body);
    let expected = grammar.is_ok() && depth(body) <= DEPTH_MAX && first_byte(body) == Some(b'{');
    match serde_json::from_slice::<Json>(body) {
        Ok(json @ Json::Object(_)) => {
            assert!(!is_syntax_fault, "{scanned:?}");
            check_parts(body, &json);
            check_code(body, &json);
        }
        Ok(_) => assert!(matches!(scanned, Err(EnvelopeError::Type { field: Field::Call, .. })) || is_syntax_fault),
        Err(error) if expected => {
            let error = error.to_string();
            assert!(ONLY_IN_VALUES.iter().any(|known| error.starts_with(known)), "{error}");
            assert!(!is_syntax_fault, "{scanned:?}");
            exhaust(body);
        }
        Err(_) => assert!(scanned.is_err(), "{scanned:?}"),
    }
    let whole = scan_reply_code(body);
    for cut in (0..body.len()).step_by(1 + body.len() / 100) {
        let code = scan_reply_code(&body[..cut]);
        assert!(code.is_none() || code == whole, "cut at {cut}");
    }
}

fn unframed(text: &[u8]) -> &[u8] {
    match (text.first(), text.iter().position(|byte| *byte == b'{')) {
        (Some(b'*' | b'$'), Some(brace)) => text[brace..].strip_suffix(b"\r\n").unwrap_or(&text[brace..]),
        _ => text,
    }
}

/// How deep brackets and braces go, in a text whose grammar is right.
fn depth(body: &[u8]) -> usize {
    let (mut open, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => open += 1,
            b'}' | b']' if !in_string => open -= 1,
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

fn first_byte(body: &[u8]) -> Option<u8> {
    body.iter().copied().find(|byte| !b" \t\r\n".contains(byte))
}

type Expected = (Option<String>, Option<String>, Option<Vec<(String, String)>>);

/// What a full parser makes of a call; none if a type is wrong.
fn expected(json: &Json) -> Option<Expected> {
    let string = |json: &Json| match json {
        Json::Null => Some(None),
        Json::String(text) => Some(Some(text.clone())),
        _ => None,
    };
    let params = json.last("params");
    let props = match json.last("props") {
        Json::Null => None,
        Json::Array(items) if items.is_empty() => None,
        Json::Object(members) => {
            Some(members.iter().map(|(key, value)| Some((key.clone(), string(value)??))).collect::<Option<_>>()?)
        }
        _ => return None,
    };
    matches!(params, Json::Null | Json::Object(_)).then_some(())?;
    Some((string(json.last("action"))?, string(params.last("m"))?, props))
}

fn check_parts(body: &[u8], json: &Json) {
    let Some((action, method, props)) = expected(json) else {
        assert!(matches!(scan_request(body), Err(EnvelopeError::Type { .. })));
        return;
    };
    let found = scan_request(body).unwrap();
    assert_eq!(found.action.map(decoded), action);
    assert_eq!(found.method.map(decoded), method);
    let pairs = |props: Props<'_>| props.iter().map(|(key, value)| (decoded(key), decoded(value))).collect();
    assert_eq!(found.props.map(pairs), props);
    for (key, _) in props.iter().flatten() {
        let last = props.iter().flatten().rfind(|(name, _)| name == key).map(|(_, value)| value.clone());
        assert_eq!(found.props.and_then(|props| props.get(key)).map(decoded), last);
    }
}

/// Decodes a string in each way that there is.
fn decoded(string: JsonStr<'_>) -> String {
    let text = string.decode().unwrap().into_owned();
    assert_eq!(string.decode_with(&mut b"left over".to_vec()), Ok(&text[..]));
    assert!(string.is(&text));
    assert!(!string.is(&format!("{text}x")));
    assert!(text.is_empty() || !string.is(&text[..text.char_indices().next_back().unwrap().0]));
    assert_eq!(string.is_escaped(), string.raw.contains(&b'\\'));
    text
}

/// Looks at all of a body that a full parser would not take, for the sake of panics.
fn exhaust(body: &[u8]) {
    let Ok(found) = scan_request(body) else { return };
    let pairs = found.props.iter().flat_map(|props| props.iter()).flat_map(|(key, value)| [key, value]);
    for string in found.action.into_iter().chain(found.method).chain(pairs) {
        match string.decode() {
            Ok(text) => assert!(string.is(&text)),
            Err(error) => assert_eq!(string.decode_with(&mut Vec::new()), Err(error)),
        }
    }
}

/// The first `ec` counts: that is all that is read of a reply.
fn check_code(body: &[u8], json: &Json) {
    let Json::Object(members) = json else { return };
    let expected = match members.iter().find(|(key, _)| key == "ec") {
        // This parser takes -0 for a fraction; so it says nothing about it.
        Some((_, Json::Number(number))) if number.as_f64() == Some(0.0) => return,
        Some((_, Json::Number(number))) => number.as_i64(),
        _ => None,
    };
    assert_eq!(scan_reply_code(body), expected);
}
