//! A connection that speaks frames: HELLO, the connection's window, PING and GOAWAY. Calls are its users' business.

use std::{
    io::{Read, Write},
    time::Duration,
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, ReceiveWindow, find, id};
use anyhow::{Context, Result, bail, ensure};

use super::{
    Setup,
    events::Events,
    input::{Frame, Input},
    lane::{Lane, LaneOutput},
    output::Output,
    socket::Socket,
};

/// How long the peer may take for its HELLO.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// One end of it. Its socket does not block.
pub(super) struct Link {
    pub(super) socket: Socket,
    input: Input,
    pub(super) output: Output,
    window: ReceiveWindow,
    lane: Option<Lane>,
}

/// Where frames can be sent.
pub(super) struct Ways<'a> {
    /// The stream connection.
    pub(super) stream: &'a mut Output,
    /// The lane, if there is one.
    pub(super) lane: Option<&'a mut LaneOutput>,
    /// Whether what is looked at came by the lane.
    pub(super) by_lane: bool,
}

/// What an end does with the frames of calls: REQUEST, RESPONSE, DATA and CANCEL.
pub(super) trait Calls {
    /// One more frame came.
    fn frame(&mut self, frame: &Frame, ways: &mut Ways) -> Result<()>;
}

impl Link {
    /// The side that connected: it speaks first. Returns what the peer said.
    pub(super) fn connected(mut socket: Socket, hello: &Hello, setup: Setup) -> Result<(Self, Hello)> {
        say(&mut socket, hello)?;
        let peer = hear(&mut socket)?;
        Ok((Self::new(socket, hello, &peer, setup)?, peer))
    }

    /// The side that was connected to. Returns what the peer said.
    pub(super) fn accepted(mut socket: Socket, hello: &Hello, setup: Setup) -> Result<(Self, Hello)> {
        let peer = hear(&mut socket)?;
        say(&mut socket, hello)?;
        Ok((Self::new(socket, hello, &peer, setup)?, peer))
    }

    fn new(socket: Socket, hello: &Hello, peer: &Hello, setup: Setup) -> Result<Self> {
        ensure!(hello.common_version(peer).is_some(), "the peer speaks versions {:?}", peer.versions);
        socket.set_up()?;
        let window = ReceiveWindow::new(hello.windows.connection);
        let lane = if setup.lanes { Some(Lane::open(&socket, hello, peer)?) } else { None };
        let output = Output::new(peer.windows).with_frames_of(setup.frame_max);
        Ok(Self { socket, input: Input::new(), output, window, lane })
    }

    /// Waits for what comes on its sockets from now on.
    pub(super) fn add_to(&self, events: &mut Events, number: usize) -> Result<()> {
        events.add(2 * number, &self.socket)?;
        if let Some(lane) = &self.lane {
            events.add(2 * number + 1, &lane.socket)?;
        }
        Ok(())
    }

    /// Waits for whether its sockets take more, if there is more.
    pub(super) fn renew_in(&self, events: &mut Events, number: usize) -> Result<()> {
        events.renew(2 * number, &self.socket, self.output.waits_for_socket())?;
        if let Some(lane) = &self.lane {
            events.renew(2 * number + 1, &lane.socket, lane.output.is_waiting())?;
        }
        Ok(())
    }

    /// Reads what has come, of the lane or of the stream connection, and takes it.
    pub(super) fn take(&mut self, of_lane: bool, calls: &mut impl Calls) -> Result<()> {
        if !of_lane {
            self.read()?;
            return self.process(calls);
        }
        let Some(lane) = &mut self.lane else { return Ok(()) };
        lane.input.read(&mut lane.socket).context("the lane")?;
        while let Some(frame) = lane.input.take()? {
            match frame.header.kind() {
                Some(Kind::Request | Kind::Response) => {}
                _ => bail!("a frame of kind {} on the lane: {}", frame.header.kind, why(&frame)),
            }
            lane.output.receipt(&frame.header);
            let mut ways = Ways { stream: &mut self.output, lane: Some(&mut lane.output), by_lane: true };
            calls.frame(&frame, &mut ways)?;
        }
        Ok(())
    }

    /// Where frames can be sent.
    pub(super) fn ways(&mut self) -> Ways<'_> {
        Ways { stream: &mut self.output, lane: self.lane.as_mut().map(|lane| &mut lane.output), by_lane: false }
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
                Kind::Request | Kind::Response | Kind::Data | Kind::Cancel => {
                    let lane = self.lane.as_mut().map(|lane| &mut lane.output);
                    calls.frame(&frame, &mut Ways { stream: &mut self.output, lane, by_lane: false })?;
                }
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
        if let Some(lane) = &mut self.lane {
            lane.output.flush(&mut lane.socket)?;
        }
        Ok(self.output.flush(&mut self.socket)?)
    }

    /// Bytes that ever came and went.
    pub(super) fn bytes(&self) -> u64 {
        let of_lane = self.lane.as_ref().map_or(0, |lane| lane.input.bytes + lane.output.bytes);
        self.input.bytes + self.output.bytes + of_lane
    }
}

/// The words of an error, else its number.
pub(super) fn why(frame: &Frame) -> String {
    let text = find(frame.meta, id::ERROR_TEXT).map(String::from_utf8_lossy);
    format!("{} {}", frame.header.word, text.unwrap_or_default()).trim_end().to_owned()
}

fn say(socket: &mut Socket, hello: &Hello) -> Result<()> {
    let hello = hello.encode().context("HELLO does not fit into a frame")?;
    socket.write_all(&hello).context("HELLO cannot be sent")
}

fn hear(socket: &mut Socket) -> Result<Hello> {
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
