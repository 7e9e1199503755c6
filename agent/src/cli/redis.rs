//! One command to a Redis server, as the simplest client sends it.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::wire::reply::{ReplyHead, array_of_bulks, parse_head};

/// An answer that is no null.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Bulk(Vec<u8>),
    /// With its first byte, which says what it is.
    Line(String),
}

/// Sends a command and waits for its answer.
pub(super) fn ask(address: &str, command: &[&[u8]], within: Duration) -> Result<Reply> {
    let deadline = Instant::now() + within;
    let resolved = address.to_socket_addrs().with_context(|| format!("{address} is no address: write host:port"))?;
    let resolved = resolved.into_iter().next().with_context(|| format!("{address} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&resolved, within).with_context(|| format!("can't connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(within))?;
    stream.write_all(&array_of_bulks(command)).with_context(|| format!("{address} takes no command"))?;
    let mut buf = Vec::new();
    loop {
        if let Some(reply) = parse(&buf)? {
            return Ok(reply);
        }
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| anyhow!("{address} gave no answer within {within:?}"))?;
        stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 16 << 10];
        match stream.read(&mut chunk) {
            Ok(0) => bail!("{address} closed the connection instead of an answer"),
            Ok(read) => buf.extend_from_slice(&chunk[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).with_context(|| format!("{address} broke off")),
        }
    }
}

/// The reply in `buf`, once it is whole.
fn parse(buf: &[u8]) -> Result<Option<Reply>> {
    match parse_head(buf)? {
        Some(ReplyHead::Null { .. }) => bail!("the answer is a null, which no call has"),
        Some(ReplyHead::Line { len, .. }) => Ok(Some(Reply::Line(String::from_utf8_lossy(&buf[..len - 2]).into_owned()))),
        Some(ReplyHead::Bulk { header, len }) if buf.len() >= header + len + 2 => {
            Ok(Some(Reply::Bulk(buf[header..header + len].to_vec())))
        }
        Some(ReplyHead::Bulk { .. }) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// A server that reads a command and says `answer`.
    fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut command = [0; 14];
            stream.read_exact(&mut command).expect("a command");
            assert_eq!(&command, b"*1\r\n$4\r\nPING\r\n");
            stream.write_all(answer).expect("the client is there");
        });
        address
    }

    #[test]
    fn answers_are_read_whole() {
        let ping = |answer| ask(&server(answer), &[b"PING"], Duration::from_secs(5));
        assert_eq!(ping(b"+PONG\r\n").expect("an answer"), Reply::Line("+PONG".into()));
        assert_eq!(ping(b"$4\r\na\r\nb\r\n").expect("an answer"), Reply::Bulk(b"a\r\nb".to_vec()));
        let cut = ping(b"$4\r\na").expect_err("cut").to_string();
        assert!(cut.ends_with("closed the connection instead of an answer"), "{cut}");
        assert!(ping(b"$-1\r\n").is_err());
    }
}
