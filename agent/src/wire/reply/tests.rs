//! Framing and encoding, one by one.

use super::*;

#[test]
fn heads_are_found_however_they_are_cut() {
    let heads: [(&[u8], _); 7] = [
        (b"$5\r\n", ReplyHead::Bulk { header: 4, len: 5 }),
        (b"$0\r\n", ReplyHead::Bulk { header: 4, len: 0 }),
        (b"$536870912\r\n", ReplyHead::Bulk { header: 12, len: 512 << 20 }),
        (b"$-1\r\n", ReplyHead::Null { len: 5 }),
        (b"_\r\n", ReplyHead::Null { len: 3 }),
        (b"+PONG\r\n", ReplyHead::Line { kind: b'+', len: 7 }),
        (b"-a\rb\r\n", ReplyHead::Line { kind: b'-', len: 6 }),
    ];
    for (text, head) in heads {
        for cut in 0..text.len() {
            assert_eq!(parse_head(&text[..cut]), Ok(None), "{text:?} cut at {cut}");
        }
        assert_eq!(parse_head(text), Ok(Some(head)));
        assert_eq!(parse_head(&[text, b"+more\r\n"].concat()), Ok(Some(head)));
    }
}

#[test]
fn what_is_no_reply_to_a_call_is_an_error() {
    for kind in [b'*', b'%', b'{', b'(', b' ', b'\r', 0] {
        assert_eq!(parse_head(&[kind]), Err(ReplyError::Kind(kind)));
    }
    for bad in ["$\r\n", "$a", "$-2\r\n", "$-x", "$1x\r\n", "$1\n", "$1\rx", "$12345678901", "$--1\r\n"] {
        assert_eq!(parse_head(bad.as_bytes()), Err(ReplyError::Length), "{bad:?}");
    }
    assert_eq!(parse_head(b"_x\r\n"), Err(ReplyError::Kind(b'_')));
    assert_eq!(parse_head(b"$536870913\r\n"), Err(ReplyError::TooLong(536_870_913)));
    assert_eq!(ReplyError::Kind(b'*').to_string(), "a reply begins with '*', which no reply to a call does");
}

#[test]
fn a_line_ends_within_64_kib() {
    let mut line = vec![b'+'; LINE_BYTES_MAX - 2];
    assert_eq!(parse_head(&line), Ok(None));
    line.extend_from_slice(b"\r\n");
    assert_eq!(parse_head(&line), Ok(Some(ReplyHead::Line { kind: b'+', len: LINE_BYTES_MAX })));
    line.insert(0, b'+');
    assert_eq!(parse_head(&line), Err(ReplyError::Line));
}

#[test]
fn replies_are_written_in_the_protocol_of_the_connection() {
    let write = |resp3| {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, resp3);
        writer.simple("OK");
        writer.error("ERR a\r\nb");
        writer.bulk(b"a\r\nb");
        [0, -1, i64::MAX, i64::MIN].iter().for_each(|value| writer.integer(*value));
        writer.array(10);
        writer.map(3);
        writer.null();
        writer.null_array();
        String::from_utf8(out).unwrap()
    };
    let both = "+OK\r\n-ERR a  b\r\n$4\r\na\r\nb\r\n:0\r\n:-1\r\n:9223372036854775807\r\n:-9223372036854775808\r\n*10\r\n";
    assert_eq!(write(false), format!("{both}*6\r\n$-1\r\n*-1\r\n"));
    assert_eq!(write(true), format!("{both}%3\r\n_\r\n_\r\n"));
}

#[test]
fn whole_replies_are_written() {
    assert_eq!(&error("ERR no\nway")[..], b"-ERR no way\r\n");
    assert_eq!(&array_header(513)[..], b"*513\r\n");
    assert_eq!(array_of_bulks(&[b"GET", b""]), b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n");
    for len in [0, 9, 10, 62, 1 << 29, usize::MAX] {
        assert_eq!(&bulk_header(len)[..], format!("${len}\r\n").as_bytes());
    }
}

#[test]
fn an_error_envelope_is_the_bulk_that_moa_clients_read() {
    let whole = error_envelope(504, "/service/demo: no answer");
    assert_eq!(&whole[..], b"$56\r\n{\"ec\":504,\"em\":\"/service/demo: no answer\",\"result\":null}\r\n");
    let text: String = ('\0'..='\u{7f}').chain("é中\u{2028}\u{1f600}".chars()).collect();
    let whole = error_envelope(65535, &text);
    let Ok(Some(ReplyHead::Bulk { header, len })) = parse_head(&whole) else { panic!("{whole:?}") };
    assert_eq!(whole.len(), header + len + 2);
    let json: serde_json::Value = serde_json::from_slice(&whole[header..header + len]).unwrap();
    assert_eq!(json, serde_json::json!({"ec": 65535, "em": text, "result": null}));
}
