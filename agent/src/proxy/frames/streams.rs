//! What only calls of more than one frame each way have: windows, and what is gathered where it must be whole.

use agent_common::frame::{COPY_BELOW, FRAME_MAX, Flags, Header, Kind, MetaBuilder, ReceiveWindow, id};
use bytes::{Buf, Bytes, BytesMut};

use super::task::Incoming;
use crate::proxy::{
    caller::{Failure, Framed},
    dispatch::code,
    request::{Request, split},
};

/// The state of a call's messages.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// What comes of the request, while it is not whole.
    pub(super) request: Option<ReceiveWindow>,
    /// The request, for a server that needs it whole.
    pub(super) gathered: Option<Gathered>,
    /// What comes of the answer, while it is not whole.
    pub(super) answer: Option<ReceiveWindow>,
    /// The whole answer has come; its end waits for the caller to take what is before it.
    pub(super) ended: bool,
    /// The caller was sent the beginning of an answer.
    pub(crate) begun: bool,
    /// What the answer's first frame said.
    pub(super) status: u32,
    /// Bytes of a large Redis answer that are not its body.
    pub(crate) skip: usize,
    /// Bytes of its body that are to come.
    pub(crate) left: usize,
    /// An answer for a Redis client that does not say how long it is.
    pub(super) held: Option<BytesMut>,
    /// Bytes whose room is given back when the caller has taken more.
    pub(super) owed: usize,
}

/// A request that is held until it is whole.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) header: Header,
    pub(super) meta: Bytes,
    pub(super) body: BytesMut,
}

impl Gathered {
    /// Begins with the first frame, under these flags.
    pub(super) fn of(frame: &Incoming<'_>, flags: Flags) -> Self {
        let (meta, body) = frame.keep();
        Self { header: Header { flags, ..frame.header }, meta, body: BytesMut::from(&body[..]) }
    }

    pub(super) fn finish(self) -> Request {
        Request::framed(self.header, self.meta, self.body.freeze())
    }
}

impl Framed {
    /// Answers with a whole body.
    pub(crate) fn answer_whole(&self, error: Option<u16>, body: Bytes) {
        if self.conn.is_crowded() {
            let text = "too many bytes wait already for this connection's peer (queued_bytes_max)";
            return self.fail(Failure { code: code::POOL_FULL, text, not_executed: false }, true);
        }
        self.conn.ended(self.via);
        if self.one_way {
            return;
        }
        let header = Header { word: error.map_or(0, u32::from), ..self.header(Kind::Response) };
        if body.len() <= COPY_BELOW {
            return self.conn.send(Header { flags: header.flags | Flags::END_STREAM, ..header }, &[], &body);
        }
        let mut meta = MetaBuilder::new();
        if body.len() + HEAD > FRAME_MAX {
            meta.put(id::BODY_LEN, &(body.len() as u64).to_be_bytes());
        }
        split(header, meta.finish(), body, &mut |frame| self.conn.push(frame));
    }

    /// Passes on a piece of a large reply of Redis.
    pub(crate) fn answer_large(&self, streams: &mut Streams, mut piece: Bytes) {
        let skipped = streams.skip.min(piece.len());
        piece.advance(skipped);
        streams.skip -= skipped;
        piece.truncate(streams.left);
        if piece.is_empty() || self.one_way {
            return;
        }
        let mut meta = MetaBuilder::new();
        let kind = if streams.begun {
            Kind::Data
        } else {
            meta.put(id::BODY_LEN, &(streams.left as u64).to_be_bytes());
            Kind::Response
        };
        streams.begun = true;
        streams.left -= piece.len();
        let ends = streams.left == 0;
        crate::proxy::request::pieces(self.header(kind), meta.finish(), piece, ends, &mut |frame| self.conn.push(frame));
    }
}

/// Header and metadata of an answer whose length is said.
const HEAD: usize = 64;
