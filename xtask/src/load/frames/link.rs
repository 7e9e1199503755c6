//! A connection that speaks frames: HELLO, the connection's window, PING and GOAWAY. Calls are its users' business.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, ReceiveWindow, find, id};
use anyhow::{Context, Result, bail, ensure};

use super::{
    input::{Frame, Input},
    output::Output,
};

/// How long the peer may take for its HELLO.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// One end of it. Its socket does not block.
pub(super) struct Link {
    pub(super) socket: TcpStream,
    input: Input,
    pub(super) output: Output,
    window: ReceiveWindow,
}

/// What an end does with the frames of calls: REQUEST, RESPONSE, DATA and CANCEL.
pub(super) trait Calls {
    /// One more frame came.
    fn frame(&mut self, frame: &Frame, output: &mut Output) -> Result<()>;
}

impl Link {
    /// The side that connected: it speaks first. Returns what the peer said.
    pub(super) fn connected(mut socket: TcpStream, hello: &Hello) -> Result<(Self, Hello)> {
        say(&mut socket, hello)?;
        let peer = hear(&mut socket)?;
        Ok((Self::new(socket, hello, &peer)?, peer))
    }

    /// The side that was connected to. Returns what the peer said.
    pub(super) fn accepted(mut socket: TcpStream, hello: &Hello) -> Result<(Self, Hello)> {
        let peer = hear(&mut socket)?;
        say(&mut socket, hello)?;
        Ok((Self::new(socket, hello, &peer)?, peer))
    }

    fn new(socket: TcpStream, hello: &Hello, peer: &Hello) -> Result<Self> {
        ensure!(hello.common_version(peer).is_some(), "the peer speaks versions {:?}", peer.versions);
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let window = ReceiveWindow::new(hello.windows.connection);
        Ok(Self { socket, input: Input::new(), output: Output::new(peer.windows), window })
    }

    /// Reads once.
    pub(super) fn read(&mut self) -> Result<()> {
        Ok(self.input.read(&mut self.socket)?)
    }

    /// Takes every frame that is there.
    pub(super) fn process(&mut self, calls: &mut impl Calls) -> Result<()> {
        while let Some(frame) = self.input.take()? {
            let header = &frame.header;
            let Some(kind) = header.kind() else { continue };
            if kind.needs_credit() {
                self.window.receive(header.frame_len()).ok().context("the peer overran the connection's window")?;
                if let Some(bytes) = self.window.used(header.frame_len()) {
                    self.output.control(&Header { word: bytes, ..Header::new(Kind::Credit) });
                }
            }
            match kind {
                Kind::Request | Kind::Response | Kind::Data | Kind::Cancel => calls.frame(&frame, &mut self.output)?,
                Kind::Ping => self.output.control(&Header { via: header.via, ..Header::new(Kind::Pong) }),
                Kind::Credit => self.output.credit(header).ok().context("the peer gave more room than there may be")?,
                Kind::GoAway => bail!("the peer goes away: {}", why(&frame)),
                Kind::Hello => bail!("a second HELLO"),
                Kind::Pong => {}
            }
        }
        Ok(())
    }

    /// Writes what may be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.output.flush(&mut self.socket)?)
    }

    /// Bytes that ever came and went.
    pub(super) fn bytes(&self) -> u64 {
        self.input.bytes + self.output.bytes
    }
}

/// The words of an error, else its number.
pub(super) fn why(frame: &Frame) -> String {
    let text = find(frame.meta, id::ERROR_TEXT).map(String::from_utf8_lossy);
    format!("{} {}", frame.header.word, text.unwrap_or_default()).trim_end().to_owned()
}

fn say(socket: &mut TcpStream, hello: &Hello) -> Result<()> {
    let hello = hello.encode().context("HELLO does not fit into a frame")?;
    socket.write_all(&hello).context("HELLO cannot be sent")
}

fn hear(socket: &mut TcpStream) -> Result<Hello> {
    socket.set_read_timeout(Some(HELLO_WITHIN))?;
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).context("no HELLO")?;
    let header = Header::parse(&header)?;
    let mut meta = vec![0; usize::from(header.meta_len)];
    socket.read_exact(&mut meta).context("no whole HELLO")?;
    match header.kind() {
        Some(Kind::Hello) => Ok(Hello::decode(&meta)?),
        Some(Kind::GoAway) => bail!("the peer goes away: {}", why(&Frame { header, meta: &meta, body: &[] })),
        _ => bail!("no HELLO but kind {}", header.kind),
    }
}

/// What gives room of a message back, once enough is used up.
pub(super) fn message_credit(frame: &Header, window: &mut ReceiveWindow, flags: Flags) -> Result<Option<Header>> {
    window.receive(frame.frame_len()).ok().context("the peer overran a message's window")?;
    let Header { stream, via, service, .. } = *frame;
    // Nothing is given back for a message that has ended.
    let used = if frame.flags.has(Flags::END_STREAM) { None } else { window.used(frame.frame_len()) };
    Ok(used.map(|bytes| Header { flags, stream, via, service, word: bytes, ..Header::new(Kind::Credit) }))
}
