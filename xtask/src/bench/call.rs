//! The call that every client makes, and a connection that makes it once at a time and looks at every byte of the answer.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::load;

/// Longer than any answer takes, so that a subject that hangs is an error and not a hang.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A call and its right answer.
pub(super) struct Call {
    /// What a client gives to `GET`.
    pub(super) key: String,
    value: String,
}

/// A connection to a server or a proxy.
pub(super) struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Call {
    /// A call of `/service/bench` whose answer, an MOA envelope, has `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let key = format!(r#"{{"action":"/service/bench","params":{{"m":"get","args":["{bytes:010}"]}}}}"#);
        let (head, tail) = (r#"{"ec":0,"em":"","result":""#, r#""}"#);
        let filler = "x".repeat(bytes - head.len() - tail.len());
        Self { key, value: format!("{head}{filler}{tail}") }
    }

    /// A call of so many bytes whose answer has as many.
    pub(super) fn echo(bytes: usize) -> Self {
        let (head, tail) = (r#"{"action":"/service/bench","params":{"m":"get","args":[""#, r#""]}}"#);
        let filler = "x".repeat(bytes - head.len() - tail.len());
        Self { key: format!("{head}{filler}{tail}"), ..Self::new(bytes) }
    }

    /// The call as it goes over the wire.
    pub(super) fn request(&self) -> Vec<u8> {
        load::get(&self.key)
    }

    /// Bytes of the call and its answer on the wire.
    pub(super) fn wire_bytes(&self) -> usize {
        self.request().len() + self.answer().len()
    }

    /// Puts the answer where a Redis server finds it.
    pub(super) fn store(&self, port: u16) -> Result<()> {
        let (key, value) = (&self.key, &self.value);
        let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len());
        Connection::with(port, set.into_bytes(), b"+OK\r\n".to_vec())?.call()
    }

    fn answer(&self) -> Vec<u8> {
        format!("${}\r\n{}\r\n", self.value.len(), self.value).into_bytes()
    }
}

impl Connection {
    /// Connects to a port on this machine.
    pub(super) fn open(port: u16, call: &Call) -> Result<Self> {
        Self::with(port, call.request(), call.answer())
    }

    /// Makes the call; fails if the answer is not the right one.
    pub(super) fn call(&mut self) -> Result<()> {
        self.socket.write_all(&self.request).context("the call cannot be sent")?;
        let mut found = vec![0; self.answer.len()];
        self.socket.read_exact(&mut found).context("no answer")?;
        ensure!(found == self.answer, "a wrong answer: {}", String::from_utf8_lossy(&found));
        Ok(())
    }

    /// Connects for any call.
    pub(super) fn with(port: u16, request: Vec<u8>, answer: Vec<u8>) -> Result<Self> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("no connection to port {port}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { socket, request, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_as_long_as_its_answer() {
        for bytes in [64, 1 << 20] {
            let call = Call::echo(bytes);
            assert_eq!((call.key.len(), call.value.len()), (bytes, bytes));
            let envelope: serde_json::Value = serde_json::from_str(&call.key).unwrap();
            assert_eq!((&envelope["action"], &envelope["params"]["m"]), (&"/service/bench".into(), &"get".into()));
        }
    }

    #[test]
    fn an_answer_has_the_size_that_was_asked_for() {
        for bytes in [64, 16 << 10] {
            let call = Call::new(bytes);
            assert_eq!(call.value.len(), bytes);
            let answer: serde_json::Value = serde_json::from_str(&call.value).unwrap();
            assert_eq!(answer["ec"], 0);
            let envelope: serde_json::Value = serde_json::from_str(&call.key).unwrap();
            assert_eq!(envelope["action"], "/service/bench");
        }
    }
}
