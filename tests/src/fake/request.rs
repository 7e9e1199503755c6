//! A fake server's reading of requests, as strict as the real one's.

use serde_json::Value;

/// The longest argument that a server of 2016 takes.
pub(super) const ARGUMENT_MAX: usize = 32_767;

/// A call that reached a fake server.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Which call of this server it is, counted from 0.
    pub number: usize,
    /// The argument of GET as it came.
    pub body: Vec<u8>,
    /// The service's URI.
    pub service: String,
    /// The method.
    pub method: String,
    /// Its arguments.
    pub args: Vec<Value>,
}

impl Call {
    /// The call in this argument of GET; none if it is no envelope.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        Some(Self {
            connection: 0,
            number: 0,
            body: body.to_vec(),
            service: value.get("action")?.as_str()?.to_owned(),
            method: value.get("params")?.get("m")?.as_str()?.to_owned(),
            args: value["params"]["args"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// The first argument, if it is text.
    pub fn text(&self) -> &str {
        self.args.first().and_then(Value::as_str).unwrap_or_default()
    }
}

/// What the bytes at the front of a connection's buffer are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Not all of them have come.
    Partial,
    /// A command, with how many bytes it took. Without arguments it is to be passed over.
    Command(Vec<Vec<u8>>, usize),
    /// What a server of 2016 closes the connection at.
    Close,
    /// What a server of 2016 resets the connection at.
    Reset,
}

/// Parses the front of `buffer`.
pub(super) fn parse(buffer: &[u8]) -> Request {
    let Some((line, mut at)) = line(buffer, 0) else {
        return Request::Partial;
    };
    if line.is_empty() {
        return Request::Command(Vec::new(), at);
    }
    let Some(count) = number(line, b'*') else {
        return Request::Close;
    };
    let mut arguments = Vec::new();
    for _ in 0..count {
        let Some((line, start)) = self::line(buffer, at) else {
            return Request::Partial;
        };
        match number(line, b'$') {
            None | Some(0) => return Request::Close,
            Some(length) if length > ARGUMENT_MAX => return Request::Reset,
            Some(length) => {
                let Some(bytes) = buffer.get(start..start + length + 2) else {
                    return Request::Partial;
                };
                if !bytes.ends_with(b"\r\n") {
                    return Request::Close;
                }
                arguments.push(bytes[..length].to_vec());
                at = start + length + 2;
            }
        }
    }
    Request::Command(arguments, at)
}

fn line(buffer: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let rest = buffer.get(from..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..end], from + end + 2))
}

fn number(line: &[u8], kind: u8) -> Option<usize> {
    let digits = line.strip_prefix(&[kind])?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
