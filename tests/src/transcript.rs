//! A peer that plays a transcript, and says at which line the other side left it.

use std::net::SocketAddr;

use crate::{
    client::{Client, command},
    resp::Reply,
};

/// Plays transcripts on one connection. A line is one of
///
/// ```text
/// # a comment
/// $ SET key 'a value'     send a command, as an array of bulk strings
/// > PING\r\n              send these bytes (\r \n \t \\ \xNN)
/// < +PONG\r\n             expect exactly these bytes
/// ~ -ERR unknown          expect one reply: a line that starts so, or a bulk string that holds it
/// half-close              say that nothing more will be sent
/// closed                  expect the connection to be closed
/// ```
pub struct ScriptedPeer {
    client: Client,
}

impl ScriptedPeer {
    /// Connects to `address` and plays `transcript`.
    pub fn play(address: SocketAddr, transcript: &str) -> Self {
        let mut peer = Self { client: Client::connect(address) };
        peer.go_on(transcript);
        peer
    }

    /// Plays further lines on the same connection.
    pub fn go_on(&mut self, transcript: &str) {
        for (number, line) in transcript.lines().enumerate() {
            let line = line.trim();
            println!("{:3} {line}", number + 1);
            self.step(line);
        }
    }

    fn step(&mut self, line: &str) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("" | "#", _) => {}
            ("$", words) => {
                let words: Vec<String> = split_words(words).iter().map(|word| text(unescape(word))).collect();
                self.client.send(command(&words.iter().map(String::as_str).collect::<Vec<_>>()));
            }
            (">", text) => self.client.send(unescape(text)),
            ("<", text) => {
                let expected = unescape(text);
                let got = self.client.read_exact(expected.len());
                assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string());
            }
            ("~", text) => self.expect_like(text),
            ("half-close", _) => self.client.half_close(),
            ("closed", _) => self.client.expect_closed(),
            _ => panic!("no line of a transcript: {line}"),
        }
    }

    fn expect_like(&mut self, text: &str) {
        let reply = self.client.read();
        let alike = match &reply {
            Reply::Simple(line) => format!("+{line}").starts_with(text),
            Reply::Error(line) => format!("-{line}").starts_with(text),
            Reply::Integer(value) => format!(":{value}").starts_with(text),
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).contains(text),
            _ => false,
        };
        assert!(alike, "expected a reply like {text}, got {}", reply.brief());
    }
}

/// Splits at spaces outside of single quotes.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("a word in UTF-8")
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, used) = match (first, tail) {
            (b'\\', [b'x', high, low, ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two hex digits after \\x");
                (u8::from_str_radix(digits, 16).expect("two hex digits after \\x"), 4)
            }
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            _ => (first, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes
}
