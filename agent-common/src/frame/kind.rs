/// What a frame is.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first frame each way: who is speaking, and what it can do.
    Hello = 1,
    /// Begins a call.
    Request = 2,
    /// Answers a call, or begins to.
    Response = 3,
    /// More of the body of a REQUEST or RESPONSE.
    Data = 4,
    /// Ends a call early, in either direction.
    Cancel = 5,
    /// Asks for a PONG.
    Ping = 6,
    /// Answers a PING with the same bytes.
    Pong = 7,
    /// Gives back room in a window.
    Credit = 8,
    /// Ends the connection, at once or when its calls have ended.
    GoAway = 9,
}

impl Kind {
    /// Kinds from here on may be skipped by who does not know them; an unknown one below is an error.
    pub const SKIPPABLE: u8 = 128;

    /// How much an agent has to bear. Its `word` is the level that it sheds at.
    pub const LOAD: u8 = 129;

    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Data,
            5 => Self::Cancel,
            6 => Self::Ping,
            7 => Self::Pong,
            8 => Self::Credit,
            9 => Self::GoAway,
            _ => return None,
        })
    }

    /// Whether frames of this kind need credit.
    #[must_use]
    pub const fn needs_credit(self) -> bool {
        matches!(self, Self::Request | Self::Response | Self::Data)
    }
}
