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
