use super::{Header, Kind, Overrun, ReceiveWindow, is_after};

/// What one end of a connection checks of every frame that comes, beside the frame itself.
#[derive(Debug)]
pub struct Inbox {
    window: ReceiveWindow,
    last: u32,
}

/// A rule that the peer broke: the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A second HELLO.
    Hello,
    /// A frame for which the connection's window has no room.
    Window {
        /// Of this call.
        stream: u32,
    },
    /// A frame for which the message's window has no room.
    StreamWindow {
        /// Of this call.
        stream: u32,
    },
    /// A call whose number does not come after the last one's.
    Order {
        /// Its number.
        stream: u32,
        /// The last one's.
        last: u32,
    },
    /// Two calls in flight have the same `via`.
    Via {
        /// The second one's number.
        stream: u32,
    },
    /// More credit than a window may have.
    Credit {
        /// Of this call; 0 for the connection.
        stream: u32,
    },
}

impl Inbox {
    /// Nothing came yet, into a window of this size.
    #[must_use]
    pub const fn new(window: u32) -> Self {
        Self { window: ReceiveWindow::new(window), last: 0 }
    }

    /// The number of the last call that the peer began; 0 before the first.
    #[must_use]
    pub const fn last_stream(&self) -> u32 {
        self.last
    }

    /// A frame came, and its bytes are taken from the connection. Returns what to give back of its window, once there is
    /// enough.
    ///
    /// # Errors
    /// When the peer broke a rule.
    pub fn receive(&mut self, header: &Header) -> Result<Option<u32>, Violation> {
        let Some(kind) = header.kind() else { return Ok(None) };
        if kind == Kind::Hello {
            return Err(Violation::Hello);
        }
        if kind == Kind::Request {
            if self.last != 0 && !is_after(header.stream, self.last) {
                return Err(Violation::Order { stream: header.stream, last: self.last });
            }
            self.last = header.stream;
        }
        if !kind.needs_credit() {
            return Ok(None);
        }
        let len = header.frame_len();
        self.window.receive(len).map_err(|Overrun| Violation::Window { stream: header.stream })?;
        Ok(self.window.used(len))
    }
}

impl Violation {
    /// What the GOAWAY says: [`super::status::reason`].
    #[must_use]
    pub const fn reason(&self) -> u32 {
        match self {
            Self::Window { .. } | Self::StreamWindow { .. } | Self::Credit { .. } => super::status::reason::FLOW_CONTROL,
            Self::Hello | Self::Order { .. } | Self::Via { .. } => super::status::reason::PROTOCOL,
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hello => write!(f, "a second HELLO"),
            Self::Window { stream } => write!(f, "stream {stream} overruns the connection's window"),
            Self::StreamWindow { stream } => write!(f, "stream {stream} overruns its window"),
            Self::Order { stream, last } => write!(f, "stream {stream} does not come after stream {last}"),
            Self::Via { stream } => write!(f, "stream {stream} has the via of another call in flight"),
            Self::Credit { stream } => write!(f, "credit for stream {stream} makes its window too large"),
        }
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(stream: u32, body_len: u32) -> Header {
        Header { stream, body_len, ..Header::new(Kind::Request) }
    }

    #[test]
    fn the_connections_room_is_given_back_as_it_is_read() {
        let mut inbox = Inbox::new(262_144);
        let credits: Vec<_> = (1..=10).map(|n| inbox.receive(&request(n, 16_344)).unwrap()).collect();
        let quarter = Some(4 * 16_384);
        assert_eq!(credits, [None, None, None, quarter, None, None, None, quarter, None, None]);
    }

    #[test]
    fn numbers_go_forward_all_the_way_round() {
        let mut inbox = Inbox::new(262_144);
        for stream in [7, 8, 0x8000_0000, u32::MAX, 1] {
            assert_eq!(inbox.receive(&request(stream, 0)), Ok(None));
        }
        assert_eq!(inbox.receive(&request(1, 0)), Err(Violation::Order { stream: 1, last: 1 }));
        assert_eq!(inbox.receive(&request(u32::MAX, 0)), Err(Violation::Order { stream: u32::MAX, last: 1 }));
    }
}
