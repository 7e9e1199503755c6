//! Encoders of replies.

use std::ops::Deref;

use bytes::{BufMut, Bytes, BytesMut};

/// `$<length>\r\n`, on the stack.
#[derive(Debug, Clone, Copy)]
pub struct BulkHeader {
    bytes: [u8; 24],
    start: u8,
}

/// Writes replies to an application, in the version of the protocol that it speaks.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    resp3: bool,
}

/// The header of a bulk of `len` bytes.
#[must_use]
pub fn bulk_header(len: usize) -> BulkHeader {
    prefixed(b'$', len as u64)
}

/// A bulk string, whole.
#[must_use]
pub fn whole_bulk(body: &[u8]) -> Bytes {
    let header = bulk_header(body.len());
    let mut whole = BytesMut::with_capacity(header.len() + body.len() + 2);
    whole.put_slice(&header);
    whole.put_slice(body);
    whole.put_slice(b"\r\n");
    whole.freeze()
}

/// A failed call's answer, whole: a bulk with MOA's envelope `{"ec":code,"em":"text","result":null}`.
#[must_use]
pub fn error_envelope(code: u16, text: &str) -> Bytes {
    let mut json = Vec::with_capacity(text.len() + 48);
    json.extend_from_slice(b"{\"ec\":");
    json.extend_from_slice(decimal(u64::from(code), &mut [0; 20]));
    json.extend_from_slice(b",\"em\":\"");
    escape_json(text, &mut json);
    json.extend_from_slice(b"\",\"result\":null}");
    whole_bulk(&json)
}

/// `-text\r\n`, whole. The text's first word is the error's code, such as `ERR`; a line end within it becomes a space.
#[must_use]
pub fn error(text: &str) -> Bytes {
    let mut out = Vec::with_capacity(text.len() + 3);
    Writer::new(&mut out, false).error(text);
    out.into()
}

/// The header of an array of `len` replies.
#[must_use]
pub fn array_header(len: usize) -> Bytes {
    Bytes::copy_from_slice(&prefixed(b'*', len as u64))
}

/// A whole array of bulk strings, which is also how a command is sent.
#[must_use]
pub fn array_of_bulks(items: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(items.iter().map(|item| item.len() + 16).sum::<usize>() + 16);
    let mut writer = Writer::new(&mut out, false);
    writer.array(items.len());
    items.iter().for_each(|item| writer.bulk(item));
    out
}

impl Deref for BulkHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..]
    }
}

impl<'a> Writer<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut Vec<u8>, resp3: bool) -> Self {
        Self { out, resp3 }
    }

    /// `+text`. A line end within the text becomes a space.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// `-text`, whose first word is the error's code, such as `ERR`. A line end within the text becomes a space.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// A bulk string.
    pub fn bulk(&mut self, payload: &[u8]) {
        self.out.extend_from_slice(&bulk_header(payload.len()));
        self.out.extend_from_slice(payload);
        self.out.extend_from_slice(b"\r\n");
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        self.out.extend_from_slice(if value < 0 { b":-" } else { b":" });
        self.out.extend_from_slice(decimal(value.unsigned_abs(), &mut [0; 20]));
        self.out.extend_from_slice(b"\r\n");
    }

    /// The header of an array; `len` replies follow.
    pub fn array(&mut self, len: usize) {
        self.out.extend_from_slice(&prefixed(b'*', len as u64));
    }

    /// The header of a map; `len` keys follow, each with its value. In RESP2 it is an array.
    pub fn map(&mut self, len: usize) {
        if self.resp3 {
            self.out.extend_from_slice(&prefixed(b'%', len as u64));
        } else {
            self.array(2 * len);
        }
    }

    /// Null, where otherwise a string is.
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Null, where otherwise an array is.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    fn line(&mut self, kind: u8, text: &str) {
        self.out.push(kind);
        self.out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
        self.out.extend_from_slice(b"\r\n");
    }
}

/// `<kind><value>\r\n`.
fn prefixed(kind: u8, value: u64) -> BulkHeader {
    let mut header = BulkHeader { bytes: [0; 24], start: 0 };
    header.bytes[22..].copy_from_slice(b"\r\n");
    let mut digits = [0; 20];
    let digits = decimal(value, &mut digits);
    let first = 22 - digits.len();
    header.bytes[first..22].copy_from_slice(digits);
    header.bytes[first - 1] = kind;
    header.start = u8::try_from(first - 1).unwrap_or_default();
    header
}

/// A number's digits, at the end of `space`, which holds the most that there can be.
fn decimal(mut value: u64, space: &mut [u8; 20]) -> &[u8] {
    let mut start = space.len();
    loop {
        start -= 1;
        space[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &space[start..];
        }
    }
}

/// What stands between the quotes of a JSON string.
fn escape_json(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
}
