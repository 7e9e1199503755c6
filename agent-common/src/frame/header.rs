use super::{FRAME_MAX, Flags, HEAD_MAX, HEADER_LEN, Kind, MAGIC, VERSION};

/// Where the header's fields are, in bytes from its beginning. All integers are big-endian.
pub mod offset {
    /// Two bytes, [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// One byte, [`super::VERSION`].
    pub const VERSION: usize = 2;
    /// One byte, a [`super::Kind`].
    pub const KIND: usize = 3;
    /// Two bytes, [`super::Flags`].
    pub const FLAGS: usize = 4;
    /// Two bytes.
    pub const META_LEN: usize = 6;
    /// Four bytes.
    pub const BODY_LEN: usize = 8;
    /// Four bytes.
    pub const STREAM: usize = 12;
    /// Eight bytes.
    pub const VIA: usize = 16;
    /// Eight bytes.
    pub const SERVICE: usize = 24;
    /// Four bytes: timeout, status, credit or reason, by kind.
    pub const WORD: usize = 32;
    /// Four bytes.
    pub const RECEIPT: usize = 36;
}

/// The fixed header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The number of a [`Kind`], known or not.
    pub kind: u8,
    /// What is said of it.
    pub flags: Flags,
    /// Bytes of metadata that follow.
    pub meta_len: u16,
    /// Bytes of body that follow the metadata.
    pub body_len: u32,
    /// The call's number on this connection, as its caller counts them.
    pub stream: u32,
    /// Names the call for everybody but its caller. PING and PONG: eight bytes of the sender's choice.
    pub via: u64,
    /// [`super::service_hash`] of the service that is called.
    pub service: u64,
    /// REQUEST: milliseconds that are left, 0 for as long as the service's own timeout. RESPONSE and CANCEL: status.
    /// CREDIT: bytes. GOAWAY: reason.
    pub word: u32,
    /// Lanes only; 0 elsewhere.
    pub receipt: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// They do not begin with the magic.
    Magic,
    /// The version of the header is not known.
    Version(u8),
    /// The kind is not known, and not one that may be skipped.
    Kind(u8),
    /// The frame is longer than one may be.
    TooLong {
        /// Its length.
        len: u64,
    },
    /// The metadata is longer than it may be.
    MetaTooLong {
        /// Its length.
        len: u16,
    },
    /// A field has a value that its kind cannot have.
    Field {
        /// The kind.
        kind: Kind,
        /// The field's name.
        field: &'static str,
    },
}

impl Header {
    /// Whether the kernel path has written `via`.
    #[must_use]
    pub const fn is_routed(&self) -> bool {
        self.via & crate::lane::KERNEL_VIA != 0
    }

    /// A header with nothing in it.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind: kind as u8,
            flags: Flags::NONE,
            meta_len: 0,
            body_len: 0,
            stream: 0,
            via: 0,
            service: 0,
            word: 0,
            receipt: 0,
        }
    }

    /// The kind, if it is known.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_u8(self.kind)
    }

    /// The bytes as numbers, right or wrong.
    #[must_use]
    pub fn read(bytes: &[u8; HEADER_LEN]) -> Self {
        use offset::{BODY_LEN, FLAGS, KIND, META_LEN, RECEIPT, SERVICE, STREAM, VIA, WORD};
        Self {
            kind: bytes[KIND],
            flags: Flags(u16::from_be_bytes(field(bytes, FLAGS))),
            meta_len: u16::from_be_bytes(field(bytes, META_LEN)),
            body_len: u32::from_be_bytes(field(bytes, BODY_LEN)),
            stream: u32::from_be_bytes(field(bytes, STREAM)),
            via: u64::from_be_bytes(field(bytes, VIA)),
            service: u64::from_be_bytes(field(bytes, SERVICE)),
            word: u32::from_be_bytes(field(bytes, WORD)),
            receipt: u32::from_be_bytes(field(bytes, RECEIPT)),
        }
    }

    /// Reads a header and checks everything that can be checked without knowing the connection.
    ///
    /// # Errors
    /// When the bytes cannot be the beginning of a frame.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Broken> {
        if bytes[..2] != MAGIC {
            return Err(Broken::Magic);
        }
        if bytes[offset::VERSION] != VERSION {
            return Err(Broken::Version(bytes[offset::VERSION]));
        }
        let header = Self::read(bytes);
        header.check()?;
        Ok(header)
    }

    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        use offset::{BODY_LEN, FLAGS, KIND, META_LEN, RECEIPT, SERVICE, STREAM, VIA, WORD};
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[offset::VERSION] = VERSION;
        bytes[KIND] = self.kind;
        bytes[FLAGS..FLAGS + 2].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[META_LEN..META_LEN + 2].copy_from_slice(&self.meta_len.to_be_bytes());
        bytes[BODY_LEN..BODY_LEN + 4].copy_from_slice(&self.body_len.to_be_bytes());
        bytes[STREAM..STREAM + 4].copy_from_slice(&self.stream.to_be_bytes());
        bytes[VIA..VIA + 8].copy_from_slice(&self.via.to_be_bytes());
        bytes[SERVICE..SERVICE + 8].copy_from_slice(&self.service.to_be_bytes());
        bytes[WORD..WORD + 4].copy_from_slice(&self.word.to_be_bytes());
        bytes[RECEIPT..].copy_from_slice(&self.receipt.to_be_bytes());
        bytes
    }

    /// The same with the lengths of another frame.
    #[must_use]
    pub const fn sized_as(mut self, other: &Self) -> Self {
        self.meta_len = other.meta_len;
        self.body_len = other.body_len;
        self
    }

    /// Bytes of the whole frame, which is also what it costs in a window.
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        HEADER_LEN + self.meta_len as usize + self.body_len as usize
    }

    /// Bytes of the header and the metadata.
    #[must_use]
    pub const fn head_len(&self) -> usize {
        HEADER_LEN + self.meta_len as usize
    }

    const fn check(&self) -> Result<(), Broken> {
        if self.meta_len as usize + HEADER_LEN > HEAD_MAX {
            return Err(Broken::MetaTooLong { len: self.meta_len });
        }
        if self.body_len as usize > FRAME_MAX - self.head_len() {
            return Err(Broken::TooLong { len: self.head_len() as u64 + self.body_len as u64 });
        }
        let Some(kind) = self.kind() else {
            return if self.kind < Kind::SKIPPABLE { Err(Broken::Kind(self.kind)) } else { Ok(()) };
        };
        let to_caller = self.flags.has(Flags::TO_CALLER);
        let one_way = self.flags.has(Flags::ONE_WAY);
        let wrong = match kind {
            Kind::Request if self.stream == 0 => "stream",
            Kind::Request if to_caller => "flags",
            Kind::Response if !to_caller || one_way => "flags",
            Kind::Ping | Kind::Pong | Kind::Credit if self.meta_len > 0 => "meta_len",
            Kind::Hello | Kind::Cancel | Kind::Ping | Kind::Pong | Kind::Credit | Kind::GoAway if self.body_len > 0 => "body_len",
            Kind::Data if self.meta_len > 0 => "meta_len",
            Kind::Credit if self.word == 0 => "word",
            _ => return Ok(()),
        };
        Err(Broken::Field { kind, field: wrong })
    }
}

/// The `N` bytes of a field; the offsets are constants, so the bounds are known.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => write!(f, "a frame does not begin with 0x4D4F"),
            Self::Version(version) => write!(f, "the header has version {version}, not {VERSION}"),
            Self::Kind(kind) => write!(f, "a frame has kind {kind}, which is not known and may not be skipped"),
            Self::TooLong { len } => write!(f, "a frame has {len} bytes, more than {FRAME_MAX}"),
            Self::MetaTooLong { len } => {
                write!(f, "a frame has {len} bytes of metadata, more than {}", HEAD_MAX - HEADER_LEN)
            }
            Self::Field { kind, field } => write!(f, "a frame of kind {kind:?} can't have this value in its {field}"),
        }
    }
}

impl core::error::Error for Broken {}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Header {
        Header {
            flags: Flags::END_STREAM | Flags::IDEMPOTENT,
            meta_len: 0x0102,
            body_len: 0x0304,
            stream: 0x0506_0708,
            via: 0x090a_0b0c_0d0e_0f10,
            service: 0x1112_1314_1516_1718,
            word: 0x191a_1b1c,
            receipt: 0x1d1e_1f20,
            ..Header::new(Kind::Request)
        }
    }

    #[test]
    fn fields_lie_where_the_protocol_says() {
        let expected = [
            0x4d, 0x4f, 1, 2, 0, 5, 1, 2, 0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
            25, 26, 27, 28, 29, 30, 31, 32,
        ];
        assert_eq!(request().bytes(), expected);
        assert_eq!(Header::parse(&expected), Ok(request()));
    }

    #[test]
    fn what_no_frame_can_be_is_refused() {
        let broken = |change: fn(&mut Header)| {
            let mut header = request();
            change(&mut header);
            Header::parse(&header.bytes())
        };
        assert_eq!(broken(|header| header.kind = 77), Err(Broken::Kind(77)));
        assert!(broken(|header| header.kind = 200).is_ok());
        assert_eq!(broken(|header| header.body_len = 65_536), Err(Broken::TooLong { len: 65_536 + 40 + 0x102 }));
        assert_eq!(broken(|header| header.body_len = u32::MAX), Err(Broken::TooLong { len: 40 + 0x102 + u64::from(u32::MAX) }));
        assert_eq!(broken(|header| header.meta_len = 40_000), Err(Broken::MetaTooLong { len: 40_000 }));
        assert_eq!(broken(|header| header.stream = 0), Err(Broken::Field { kind: Kind::Request, field: "stream" }));
        assert_eq!(broken(|header| header.flags = Flags::TO_CALLER), Err(Broken::Field { kind: Kind::Request, field: "flags" }));
        let credit = Header { stream: 1, ..Header::new(Kind::Credit) };
        assert_eq!(Header::parse(&credit.bytes()), Err(Broken::Field { kind: Kind::Credit, field: "word" }));
        let mut bytes = request().bytes();
        bytes[2] = 2;
        assert_eq!(Header::parse(&bytes), Err(Broken::Version(2)));
        bytes[0] = b'*';
        assert_eq!(Header::parse(&bytes), Err(Broken::Magic));
    }

    #[test]
    fn a_frame_may_have_all_the_bytes_there_are() {
        let header = Header { meta_len: 0, body_len: 65_496, ..request() };
        assert_eq!(Header::parse(&header.bytes()).map(|header| header.frame_len()), Ok(FRAME_MAX));
    }
}
