//! Headers, metadata, HELLO, and the frames of a stream.

use agent_common::frame::{FRAME_MAX, HEAD_MAX, HEADER_LEN, Header, Hello, MetaBuilder, entries, find, id, property};

use super::{
    reader::read,
    reference::{self, Fields, Seen},
};

/// Any bytes as a connection's stream, whole and in pieces of sizes that derive from them, and as metadata.
pub(crate) fn check(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk() {
        check_header(header);
    }
    check_meta(bytes);
    check_hello(bytes);
    let seen = reference::frames(bytes);
    let size = 1 + bytes.iter().fold(bytes.len(), |sum, byte| sum.wrapping_mul(31) + usize::from(*byte)) % 90;
    assert_eq!(read([bytes]), seen, "whole");
    assert_eq!(read(bytes.chunks(size)), seen, "in pieces of {size}");
    for frame in &seen {
        if let Seen::Frame(frame) | Seen::Skipped(frame) = frame {
            check_frame(frame);
        }
    }
}

/// A stream cut in two everywhere, and everywhere at once; and ended everywhere.
pub(crate) fn check_cuts(bytes: &[u8]) {
    let seen = reference::frames(bytes);
    assert_eq!(read(bytes.chunks(1)), seen, "bytewise");
    for cut in 0..=bytes.len() {
        let (start, rest) = bytes.split_at(cut);
        assert_eq!(read([start, rest]), seen, "cut at {cut}");
        check(start);
    }
}

/// 40 bytes are a header or not as the reference has it, and come back as they were.
pub(crate) fn check_header(bytes: &[u8; HEADER_LEN]) {
    let parsed = Header::parse(bytes);
    assert_eq!(parsed.ok().map(fields), reference::header(bytes));
    if let Ok(header) = parsed {
        assert_eq!(header.bytes(), *bytes);
        assert!(header.head_len() <= HEAD_MAX && header.head_len() <= header.frame_len() && header.frame_len() <= FRAME_MAX);
    }
    let mut read = Header::read(bytes).bytes();
    read[..3].copy_from_slice(&bytes[..3]);
    assert_eq!(read, *bytes, "reading without checking loses nothing");
}

/// Entries are those of the reference, what comes behind them is one error, and written again they are the same bytes.
pub(crate) fn check_meta(meta: &[u8]) {
    let (expected, len) = reference::entries(meta);
    let mut found = entries(meta);
    for entry in &expected {
        assert_eq!(found.next(), Some(Ok(*entry)));
    }
    assert_eq!(found.next().map(|end| end.unwrap_err().at), (len < meta.len()).then_some(len));
    assert_eq!(found.next(), None);
    let mut written = MetaBuilder::new();
    for (id, value) in &expected {
        written.put(*id, value);
        let first = expected.iter().find(|(other, _)| other == id).map(|(_, value)| *value);
        assert_eq!(find(meta, *id), first);
        check_property(meta, &expected, value);
    }
    assert_eq!(written.as_ref(), &meta[..len]);
}

/// A property is found by its name, if it is one; a value of any entry serves as the name to look for.
fn check_property(meta: &[u8], expected: &[(u8, &[u8])], value: &[u8]) {
    let parts = |value: &[u8]| {
        let (len, rest) = value.split_first()?;
        rest.split_at_checked(usize::from(*len)).map(|(name, value)| (name.to_vec(), value.to_vec()))
    };
    let name = parts(value).map_or(value.to_vec(), |(name, _)| name);
    let properties = expected.iter().filter(|(id, _)| *id == id::PROPERTY).filter_map(|(_, value)| parts(value));
    let first = properties.into_iter().find(|(other, _)| *other == name).map(|(_, value)| value);
    assert_eq!(property(meta, &name).map(<[u8]>::to_vec), first);
}

/// A HELLO that is understood is written so that it means the same.
pub(crate) fn check_hello(meta: &[u8]) {
    let Ok(hello) = Hello::decode(meta) else { return };
    assert!(hello.versions.0 <= hello.versions.1 && hello.application.len() <= 255);
    assert_eq!(hello.common_version(&hello), Some(hello.versions.1));
    let Some(frame) = hello.encode() else {
        assert!(meta.len() > HEAD_MAX - 200, "what was read fits again, but for what it did not say");
        return;
    };
    assert!(matches!(&reference::frames(&frame)[..], [Seen::Frame(whole), Seen::Missing(HEADER_LEN)] if *whole == frame));
    assert_eq!(Hello::decode(&frame[HEADER_LEN..]), Ok(hello));
}

fn check_frame(frame: &[u8]) {
    let bytes = frame.first_chunk().unwrap();
    check_header(bytes);
    let header = Header::parse(bytes).unwrap();
    assert_eq!(header.frame_len(), frame.len());
    let meta = &frame[HEADER_LEN..header.head_len()];
    check_meta(meta);
    check_hello(meta);
}

fn fields(header: Header) -> Fields {
    Fields {
        kind: header.kind.into(),
        flags: header.flags.0.into(),
        meta_len: header.meta_len.into(),
        body_len: header.body_len.into(),
        stream: header.stream.into(),
        via: header.via,
        service: header.service,
        word: header.word.into(),
        receipt: header.receipt.into(),
    }
}
