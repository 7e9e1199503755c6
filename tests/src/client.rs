//! A Redis client that sends exactly what it is told.

use std::{
    io::{self, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::{
    resp::{Reply, read_reply},
    wait::PATIENCE,
};

/// One connection to an agent (or straight to a fake MOA server).
pub struct Client {
    reader: BufReader<Patient>,
    sent: u64,
}

impl Client {
    /// Connects; each read waits as long as [`PATIENCE`].
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"))
    }

    /// Connects, or says why not.
    ///
    /// # Errors
    /// Those of `connect`.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let socket = Patient { stream, received: 0 };
        Ok(Self { reader: BufReader::with_capacity(64 << 10, socket), sent: 0 })
    }

    /// Bytes that were sent whole, and bytes that were received.
    pub fn traffic(&self) -> (u64, u64) {
        (self.sent, self.reader.get_ref().received)
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.reader.get_ref().stream
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("sending to the agent");
    }

    /// Sends these bytes, or says why not.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream().write_all(bytes.as_ref())?;
        self.sent += bytes.as_ref().len() as u64;
        Ok(())
    }

    /// Reads one reply.
    pub fn read(&mut self) -> Reply {
        self.try_read().unwrap_or_else(|error| panic!("reading a reply: {error}"))
    }

    /// Reads one reply, or says why not.
    ///
    /// # Errors
    /// `UnexpectedEof` when the connection is closed, `InvalidData` for what is no RESP, and the socket's own.
    pub fn try_read(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.reader)
    }

    /// Reads as many bytes as `expected` has, for comparing them exactly.
    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).unwrap_or_else(|error| panic!("reading {count} bytes: {error}"));
        bytes
    }

    /// Sends one command and reads its reply.
    pub fn command(&mut self, arguments: &[&str]) -> Reply {
        self.send(command(arguments));
        self.read()
    }

    /// Calls with this envelope.
    pub fn get(&mut self, json: &str) -> Reply {
        self.command(&["GET", json])
    }

    /// Calls with this envelope, or says why not.
    ///
    /// # Errors
    /// As [`Client::try_read`].
    pub fn try_get(&mut self, json: &str) -> io::Result<Reply> {
        self.try_send(command(&["GET", json]))?;
        self.try_read()
    }

    /// Calls with this envelope, and returns the answer's `ec` and the whole of it.
    pub fn call(&mut self, json: &str) -> Value {
        let reply = self.get(json);
        serde_json::from_slice(reply.bulk()).unwrap_or_else(|error| panic!("{error} in {}", reply.brief()))
    }

    /// Says that nothing more will be sent; replies are still read.
    pub fn half_close(&self) {
        self.stream().shutdown(Shutdown::Write).expect("half-closing");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.stream(), sockopt::Linger, &linger).expect("SO_LINGER");
    }

    /// Expects the connection to be closed, with no byte before that.
    pub fn expect_closed(&mut self) {
        match self.try_read() {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {}
            Err(error) => panic!("expected the connection to be closed, but: {error}"),
            Ok(reply) => panic!("expected the connection to be closed, got {}", reply.brief()),
        }
    }

    /// Expects that the connection still serves.
    pub fn expect_usable(&mut self) {
        assert_eq!(self.command(&["PING"]), Reply::Simple("PONG".to_owned()), "the connection no longer serves");
    }
}

/// A socket that is read until something comes. On the kernel path, `recv` of a blocking socket is woken by the end of its own
/// sending direction, and then says EAGAIN before any time is over (docs/kernel.md).
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    received: u64,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                result => {
                    self.received += result.as_ref().map_or(0, |count| *count as u64);
                    return result;
                }
            }
        }
    }
}

/// A command as an array of bulk strings.
pub fn command(arguments: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n{argument}\r\n", argument.len()).as_bytes());
    }
    bytes
}
