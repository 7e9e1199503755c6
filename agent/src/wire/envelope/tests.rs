//! The scan, rule by rule.

use super::*;

/// The action, method and props of a body, decoded.
fn parts(body: &str) -> (Option<String>, Option<String>, Vec<(String, String)>) {
    let found = scan_request(body.as_bytes()).unwrap();
    let text = |part: JsonStr<'_>| part.decode().unwrap().into_owned();
    let props = found.props.iter().flat_map(|props| props.iter().map(|(key, value)| (text(key), text(value))));
    (found.action.map(text), found.method.map(text), props.collect())
}

#[test]
fn a_call_as_php_writes_it_is_read() {
    let body = r#"{"action":"\/service\/demo","params":{"m":"echo","args":["hi",{"m":"no"}]},"props":{"hashid":"\u4e2d"}}"#;
    let props = vec![("hashid".to_owned(), "中".to_owned())];
    assert_eq!(parts(body), (Some("/service/demo".to_owned()), Some("echo".to_owned()), props));
}
