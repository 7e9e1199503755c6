//! The lane of a connection: whole frames, each of which is one message to its socket.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use agent_common::frame::{Flags, HEADER_LEN, Header, Hello, Kind, Role};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::PollFlags;

use super::{
    input::Input,
    link::{Ways, why},
    socket::{Socket, never_blocking, wait},
};

/// How long the agent may take for the lane's HELLO.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// The connection beside a stream connection.
pub(super) struct Lane {
    pub(super) socket: TcpStream,
    pub(super) input: Input,
    pub(super) output: LaneOutput,
}

/// What goes by it.
pub(super) struct LaneOutput {
    body_max: usize,
    /// Of the last answer that had one.
    receipt: u32,
    waiting: VecDeque<Vec<u8>>,
    /// Buffers that are used again.
    spare: Vec<Vec<u8>>,
    pub(super) bytes: u64,
}

impl Lane {
    /// Opens the lane of a connection, which said and heard these.
    pub(super) fn open(beside: &Socket, ours: &Hello, theirs: &Hello) -> Result<Self> {
        let lane = theirs.lane.context("the agent gives no lanes: there is no token in its HELLO")?;
        let Socket::Tcp(beside) = beside else { bail!("the agent gives no lanes: not by unix sockets") };
        let hello = Hello::new(Role::Lane, &ours.application, &ours.instance, ours.windows);
        let hello = Hello { connection: ours.connection, lane: Some(lane), ..hello };
        let mut socket = never_blocking(beside.peer_addr()?, HELLO_WITHIN)?;
        let said = hello.encode().context("HELLO does not fit into a frame")?;
        ensure!(socket.write(&said)? == said.len(), "a part of the lane's HELLO was sent");
        let mut input = Input::new();
        let deadline = Instant::now() + HELLO_WITHIN;
        loop {
            if let Some(frame) = input.take()? {
                let theirs = match frame.header.kind() {
                    Some(Kind::Hello) => Hello::decode(frame.meta)?,
                    _ => bail!("the agent gives no lanes: it has refused one: {}", why(&frame)),
                };
                let same = theirs.lane.is_some_and(|theirs| theirs.token == lane.token);
                ensure!(same, "the agent gives no lanes: its HELLO on one has another token");
                break;
            }
            wait(&socket, PollFlags::POLLIN, deadline.saturating_duration_since(Instant::now()))
                .and_then(|()| Ok(input.read(&mut socket)?))
                .context("the agent gives no lanes: it does not answer the HELLO of one")?;
        }
        let body_max = usize::try_from(lane.body_max)?;
        let output = LaneOutput { body_max, receipt: 0, waiting: VecDeque::new(), spare: Vec::new(), bytes: 0 };
        Ok(Self { socket, input, output })
    }
}

impl LaneOutput {
    /// An answer came: what it proves is said with the next call.
    pub(super) fn receipt(&mut self, came: &Header) {
        if came.receipt != 0 {
            self.receipt = came.receipt;
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends what waits, a frame at a time.
    pub(super) fn flush(&mut self, socket: &mut impl Write) -> Result<()> {
        while let Some(frame) = self.waiting.front() {
            match socket.write(frame) {
                Ok(sent) => ensure!(sent == frame.len(), "a part of a frame was sent on the lane"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("the lane"),
            }
            self.bytes += frame.len() as u64;
            self.spare.extend(self.waiting.pop_front());
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a frame has at most 64 KiB")]
    fn push(&mut self, header: Header, meta: &[u8], body: &[u8]) {
        let flags = header.flags | Flags::END_STREAM;
        let header = Header { flags, meta_len: meta.len() as u16, body_len: body.len() as u32, ..header };
        let mut frame = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(HEADER_LEN + meta.len() + body.len()));
        frame.clear();
        frame.extend_from_slice(&header.bytes());
        frame.extend_from_slice(meta);
        frame.extend_from_slice(body);
        self.waiting.push_back(frame);
    }
}

impl Ways<'_> {
    /// Begins a call in one frame: by the lane if it fits there, else by the stream connection if it fits there at once.
    pub(super) fn call(&mut self, header: Header, meta: &[u8], body: &[u8]) -> bool {
        match &mut self.lane {
            Some(lane) if body.len() <= lane.body_max => {
                let header = Header { stream: self.stream.take_number(), receipt: lane.receipt, ..header };
                lane.push(header, meta, body);
                true
            }
            _ => self.stream.at_once(header, meta, body),
        }
    }

    /// Answers a call the way that it came, if the answer fits there at once.
    pub(super) fn answer(&mut self, header: Header, body: &[u8]) -> bool {
        match &mut self.lane {
            Some(lane) if self.by_lane && body.len() <= lane.body_max => {
                lane.push(header, &[], body);
                true
            }
            _ => self.stream.at_once(header, &[], body),
        }
    }
}
