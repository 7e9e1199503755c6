//! Who is answered: the application, or the other agent, that a call came from.

use std::rc::Rc;

use agent_common::frame::{Flags, Header, Kind, Message, MetaBuilder, id};
use tokio::time::Instant;

use super::{
    app::App,
    frames::{FrameConn, Scope},
    replies::Seq,
    turn::Task,
};
use crate::wire::reply::error_envelope;

/// Bytes of an error's text.
const TEXT_MAX: usize = 4 * 1024;

/// The origin of a call.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// A Redis client, with the place of the reply.
    Redis(Rc<App>, Seq),
    /// A connection that speaks frames.
    Frames(Framed),
    /// Nobody waits any more, or nobody ever did.
    Nobody,
}

/// A call that came in frames, as its caller numbers it.
#[derive(Debug, Clone)]
pub(crate) struct Framed {
    pub(crate) conn: Rc<FrameConn>,
    pub(crate) stream: u32,
    pub(crate) via: u64,
    pub(crate) service: u64,
    /// It is not answered.
    pub(crate) one_way: bool,
}

/// The mesh's own answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure<'a> {
    pub(crate) code: u16,
    pub(crate) text: &'a str,
    /// Certainly nobody has executed the call.
    pub(crate) not_executed: bool,
}

impl Framed {
    /// The header of a frame that goes back.
    pub(crate) fn header(&self, kind: Kind) -> Header {
        let Self { stream, via, service, .. } = *self;
        Header { flags: Flags::TO_CALLER, stream, via, service, ..Header::new(kind) }
    }

    /// What is sent back of it.
    pub(crate) fn answer(&self) -> Message {
        Message { via: self.via, to_caller: true }
    }

    /// Answers with an error; with a CANCEL if an answer has begun.
    pub(crate) fn fail(&self, failure: Failure<'_>, begun: bool) {
        self.conn.ended(self.via);
        if self.one_way {
            return;
        }
        let mut meta = MetaBuilder::new();
        meta.put(id::ERROR_TEXT, cut(failure.text).as_bytes());
        let not_executed = if failure.not_executed { Flags::NOT_EXECUTED } else { Flags::NONE };
        let flags = Flags::TO_CALLER | not_executed;
        let meta_len = u16::try_from(meta.len()).unwrap_or(0);
        let header = Header { flags, meta_len, word: u32::from(failure.code), ..self.header(Kind::Cancel) };
        // Who has too much to read already gets what needs no credit, and is let go when it does not take even that.
        if begun || self.conn.is_crowded() {
            self.conn.drop_message(self.answer());
            self.conn.control(&header, meta.as_ref());
        } else {
            let flags = flags | Flags::END_STREAM;
            self.conn.send(Header { kind: Kind::Response as u8, flags, ..header }, meta.as_ref(), &[]);
        }
    }
}

impl Caller {
    /// How far its call may go.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Redis(app, _) => app.side.scope(),
            Self::Frames(framed) => framed.conn.side.scope(),
            Self::Nobody => Scope::Mesh,
        }
    }

    /// Whether what waits for it is so much that the answer must be left where it is; it wakes the reader later.
    pub(crate) fn pause_reader(&self, queued_bytes_max: usize, reader: &Task) -> bool {
        match self {
            Self::Redis(app, seq) => app.pause_reader(*seq, queued_bytes_max, reader),
            Self::Frames(framed) => framed.conn.pause_reader(framed.answer(), queued_bytes_max, reader),
            Self::Nobody => false,
        }
    }

    /// Whether nothing is to be answered.
    pub(crate) fn is_one_way(&self) -> bool {
        matches!(self, Self::Frames(framed) if framed.one_way)
    }

    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        match self {
            Self::Redis(app, _) => app.blocked_since(),
            Self::Frames(framed) => framed.conn.blocked_since(),
            Self::Nobody => None,
        }
    }

    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, Self::Redis(app, _) if app.is_stalled())
    }

    pub(crate) fn set_stalled(&self) {
        if let Self::Redis(app, _) = self {
            app.set_stalled();
        }
    }

    /// Answers with the mesh's own error. `begun`: the beginning of another answer was passed on.
    pub(crate) fn fail(&self, failure: Failure<'_>, begun: bool) {
        match self {
            Self::Redis(app, seq) => app.fail(*seq, error_envelope(failure.code, failure.text)),
            Self::Frames(framed) => framed.fail(failure, begun),
            Self::Nobody => {}
        }
    }
}

/// A text that is not too long for a frame, whatever it was made of.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
