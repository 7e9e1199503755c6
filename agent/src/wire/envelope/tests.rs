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

fn error(body: &str) -> String {
    scan_request(body.as_bytes()).unwrap_err().to_string()
}

fn action_and_method(body: &str) -> (Option<String>, Option<String>) {
    let (action, method, _) = parts(body);
    (action, method)
}

#[test]
fn the_order_of_keys_and_white_space_do_not_matter() {
    let both = (Some("/s".to_owned()), Some("f".to_owned()));
    assert_eq!(action_and_method(r#"{"params":{"args":[],"m":"f"},"traceId":"t","action":"/s"}"#), both);
    assert_eq!(action_and_method(" \t\r\n{ \"action\" : \"/s\" ,\n\"params\"\t:\r{ \"m\" : \"f\" } } \n"), both);
}

#[test]
fn what_is_absent_or_null_is_none() {
    for body in [
        "{}",
        r#"{"args":null}"#,
        r#"{"action":null,"params":null,"props":null}"#,
        r#"{"params":{}}"#,
        r#"{"params":{"m":null}}"#,
    ] {
        assert_eq!(parts(body), (None, None, vec![]), "{body}");
    }
    assert!(scan_request(br#"{"props":{}}"#).unwrap().props.is_some());
    assert!(scan_request(br#"{"props":[ ]}"#).unwrap().props.is_none(), "PHP's empty map");
}

#[test]
fn only_top_level_keys_count() {
    let body =
        r#"{"args":{"action":"/x","params":{"m":"x"}},"params":{"args":[{"m":"y"}],"action":"/z","params":{"m":"z"}},"m":"w"}"#;
    assert_eq!(parts(body), (None, None, vec![]));
}

#[test]
fn the_last_of_duplicates_counts() {
    assert_eq!(action_and_method(r#"{"action":"/a","action":"/b"}"#).0, Some("/b".to_owned()));
    assert_eq!(action_and_method(r#"{"action":"/a","act\u0069on":"/b"}"#).0, Some("/b".to_owned()));
    assert_eq!(action_and_method(r#"{"action":"/a","action":null}"#).0, None);
    assert_eq!(action_and_method(r#"{"params":{"m":"a","m":"b"}}"#).1, Some("b".to_owned()));
    assert_eq!(action_and_method(r#"{"params":{"m":"a"},"params":{}}"#).1, None, "a later object replaces an earlier one wholly");
    assert_eq!(action_and_method(r#"{"params":{"m":"a"},"params":null}"#).1, None);
    assert_eq!(parts(r#"{"props":{"a":"1"},"props":{"b":"2"}}"#).2, [("b".to_owned(), "2".to_owned())]);
    let call = scan_request(br#"{"props":{"k":"1","\u006b":"2","j":"3"}}"#).unwrap();
    assert_eq!(call.props.unwrap().get("k").unwrap().raw, b"2");
    assert_eq!(call.props.unwrap().get("x"), None);
}

#[test]
fn a_wrong_type_is_an_error_unless_a_duplicate_mends_it() {
    assert_eq!(error(r#"{"action":1}"#), "`action` must be a string, but is a number, at byte 10");
    assert_eq!(error(r#"{"params":[]}"#), "`params` must be an object, but is an array, at byte 10");
    assert_eq!(error(r#"{"params":{"m":{}}}"#), "`m` of `params` must be a string, but is an object, at byte 15");
    assert_eq!(error(r#"{"props":true}"#), "`props` must be an object of strings, but is a boolean, at byte 9");
    assert_eq!(error(r#"{"props":[1]}"#), "`props` must be an object of strings, but is an array, at byte 9");
    assert_eq!(error(r#"{"props":{"a":"b","hashid": 7}}"#), "a value of `props` must be a string, but is a number, at byte 28");
    assert_eq!(error(r#"{"props":{"a":null}}"#), "a value of `props` must be a string, but is null, at byte 14");
    assert_eq!(error(r#" ["action"]"#), "a call must be an object, but is an array, at byte 1");
    assert_eq!(action_and_method(r#"{"action":1,"action":"/a","params":1,"params":{"m":1,"m":"f"}}"#).1, Some("f".to_owned()));
    assert!(error(r#"{"action":"/a","action":1}"#).starts_with("`action`"));
    assert!(error(r#"{"props":{"a":1,"a":"b"}}"#).starts_with("a value of `props`"), "within `props` it stays an error");
}

#[test]
fn what_is_not_json_is_an_error_with_its_place() {
    let cases = [
        ("", "a value is missing at byte 0"),
        ("{", "a key in quotes or '}' is missing at byte 1"),
        ("{not json", "a key in quotes or '}' is missing at byte 1"),
        ("{\"a\"", "':' is missing at byte 4"),
        ("{\"a\":", "a value is missing at byte 5"),
        ("{\"a\":1", "',' or '}' is missing at byte 6"),
        ("{\"a\":1,}", "a key in quotes is missing at byte 7"),
        ("{\"a\":[1,]}", "a value is missing at byte 8"),
        ("{\"a\":[1}", "',' or ']' is missing at byte 7"),
        ("{\"a\":\"b", "a string does not end at byte 7"),
        ("{\"a\":\"\n\"}", "a control character in a string at byte 6"),
        ("{\"a\":\"\\x\"}", "an escape that JSON does not know at byte 6"),
        ("{\"a\":\"\\u12g4\"}", "an escape that JSON does not know at byte 6"),
        ("{\"a\":01}", "a number with a leading zero before this at byte 7"),
        ("{\"a\":-}", "a digit is missing at byte 6"),
        ("{\"a\":1.}", "a digit is missing at byte 7"),
        ("{\"a\":1e+}", "a digit is missing at byte 8"),
        ("{\"a\":nul}", "a word that JSON does not know at byte 5"),
        ("{} x", "more than one value at byte 3"),
        ("{}\0", "more than one value at byte 2"),
    ];
    for (body, what) in cases {
        assert_eq!(error(body), format!("the body is not JSON: {what}"), "{body:?}");
    }
    assert!(error(r#"{"action":1,}"#).starts_with("the body is not JSON"), "this comes before a wrong type");
}

#[test]
fn bytes_after_what_was_found_are_still_checked() {
    assert!(scan_request(br#"{"action":"/a","params":{"m":"f"},"props":{},"args":[}"#).is_err());
}

#[test]
fn strings_that_mean_nothing_pass_until_they_are_decoded() {
    let body =
        b"{\"action\":\"\xff\",\"params\":{\"m\":\"\\ud800\"},\"props\":{\"a\":\"\\udc00\\ud800\"},\"args\":\"\xc3(\\udfff\"}";
    let call = scan_request(body).unwrap();
    assert_eq!(call.action.unwrap().decode(), Err(DecodeError::Utf8));
    assert_eq!(call.method.unwrap().decode(), Err(DecodeError::Surrogate));
    let value = call.props.unwrap().get("a").unwrap();
    assert_eq!(value.decode(), Err(DecodeError::Surrogate));
    assert_eq!(value.decode_with(&mut Vec::new()), Err(DecodeError::Surrogate));
    assert!(!value.is(""));
}

#[test]
fn strings_mean_what_they_say() {
    let call = scan_request(br#"{"action":"\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00x","params":{"m":"plain"}}"#).unwrap();
    let action = call.action.unwrap();
    assert_eq!(action.decode().unwrap(), "\"\\/\u{8}\u{c}\n\r\t\0\u{e9}\u{1f600}x");
    let mut scratch = b"before".to_vec();
    assert_eq!(action.decode_with(&mut scratch).unwrap(), "\"\\/\u{8}\u{c}\n\r\t\0\u{e9}\u{1f600}x");
    let method = call.method.unwrap();
    assert!(matches!(method.decode(), Ok(std::borrow::Cow::Borrowed("plain"))), "nothing is copied");
    assert!(method.is("plain") && !method.is("plai") && !method.is("plain "));
}

#[test]
fn a_special_byte_is_found_wherever_it_stands() {
    for len in 0..200 {
        for (special, works) in
            [("\\\"", true), ("\"", false), ("\u{1f}", false), ("\0", false), ("\\", false), ("\u{7f}é", true)]
        {
            let body = format!("{{\"a\":\"{}{special}{}\"}}", "é".repeat(len / 2) + &"x".repeat(len % 2), "y".repeat(len % 9));
            assert_eq!(scan_request(body.as_bytes()).is_ok(), works, "{body:?}");
        }
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(scan_request(nested(DEPTH_MAX - 1).as_bytes()).is_ok());
    assert!(error(&nested(DEPTH_MAX)).contains("more than 127 objects and arrays within each other at byte 131"));
    assert!(error(&nested(1_000_000)).contains("more than 127"), "and the stack is not");
}

#[test]
fn the_code_of_a_reply_is_found_wherever_it_is() {
    assert_eq!(scan_reply_code(br#"{"ec":0,"em":"","result":null}"#), Some(0));
    assert_eq!(scan_reply_code(br#"{"ec":200,"em":""}"#), Some(200));
    assert_eq!(scan_reply_code(br#"{"em":"","result":{"ec":1},"ec":3041}"#), Some(3041));
    assert_eq!(scan_reply_code(br#" { "em" : "x" , "e\u0063" : -7 } "#), Some(-7));
    assert_eq!(scan_reply_code(br#"{"ec":504,"em":"","result":"cut of"#), Some(504), "the beginning will do");
    for none in [
        "",
        "{}",
        "[0]",
        r#"{"em":""}"#,
        r#"{"ec":"0"}"#,
        r#"{"ec":1.5}"#,
        r#"{"ec":1e3}"#,
        r#"{"ec":1E3}"#,
        r#"{"ec":99999999999999999999}"#,
    ] {
        assert_eq!(scan_reply_code(none.as_bytes()), None, "{none}");
    }
    assert_eq!(scan_reply_code(br#"{"ec":30"#), None, "it may be 3041");
}
