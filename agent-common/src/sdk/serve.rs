use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{Body, Incoming, Metadata, body::Kind, driver::Serve, link::Link, request::finish, state::Names, taken::Start};
use crate::frame::{Flags, HEAD_MAX, HEADER_LEN, Header, Kind as FrameKind, MetaBuilder, id, status};

/// A call that is to be executed.
#[derive(Debug)]
pub struct Call {
    /// Its entries: URI, method, who calls.
    pub metadata: Metadata,
    /// What it says.
    pub body: Incoming,
    /// Its flags.
    pub flags: Flags,
    deadline: Option<Instant>,
    over: Over,
}

/// Tells when a call has ended: cancelled, answered, or without its connection.
#[derive(Debug, Clone)]
pub struct Over {
    link: Link,
    names: Names,
}

/// The answer to a call.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u32,
    flags: Flags,
    meta: MetaBuilder,
    body: Body,
}

impl Call {
    /// The service's URI.
    #[must_use]
    pub fn uri(&self) -> &str {
        self.metadata.text(id::URI).unwrap_or_default()
    }

    /// The service's group; empty for the default one.
    #[must_use]
    pub fn group(&self) -> &str {
        self.metadata.text(id::GROUP).unwrap_or_default()
    }

    /// The method; empty if the call names none.
    #[must_use]
    pub fn method(&self) -> &str {
        self.metadata.text(id::METHOD).unwrap_or_default()
    }

    /// When the caller stops waiting.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nothing answers it.
    #[must_use]
    pub fn is_one_way(&self) -> bool {
        self.flags.has(Flags::ONE_WAY)
    }

    /// For work that goes on outside of the handler: the handler itself is dropped when the call has ended.
    #[must_use]
    pub fn over(&self) -> Over {
        self.over.clone()
    }
}

impl Over {
    /// Waits until the call has ended: cancelled by its caller, late, without its connection, or answered.
    pub async fn wait(&self) {
        poll_fn(|cx| self.link.poll_over(self.names, cx)).await;
    }
}

impl Reply {
    /// Success, with this body: bytes, or a [`Body::channel`].
    #[must_use]
    pub fn new(body: impl Into<Body>) -> Self {
        Self { status: status::OK, flags: Flags::NONE, meta: MetaBuilder::new(), body: body.into() }
    }

    /// A failure.
    #[must_use]
    pub fn error(status: u32, text: &str) -> Self {
        Self { status, ..Self::new(Bytes::new()) }.metadata(id::ERROR_TEXT, text.as_bytes())
    }

    /// Says that the call was not executed, so that it may be sent again elsewhere. Only for errors.
    #[must_use]
    pub fn not_executed(mut self) -> Self {
        self.flags |= Flags::NOT_EXECUTED;
        self
    }

    /// Says more of it, as [`Flags::COMPRESSED`].
    #[must_use]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags |= flags.without(Flags::END_STREAM | Flags::ONE_WAY);
        self
    }

    /// One more entry of metadata.
    #[must_use]
    pub fn metadata(mut self, id: u8, value: &[u8]) -> Self {
        self.meta.put(id, value);
        self
    }

    /// Another body, for errors too.
    #[must_use]
    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }
}

impl<T: Into<Body>> From<T> for Reply {
    fn from(body: T) -> Self {
        Self::new(body)
    }
}

/// A handler, and what its calls get.
pub(super) struct Service<F> {
    pub(super) handler: Arc<F>,
    pub(super) body_bytes_max: usize,
}

impl<F, Fut> Serve for Service<F>
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    fn start(&self, link: &Link, start: Start) -> AbortHandle {
        let Start { header, names, meta, body, pipe } = start;
        let deadline = (header.word > 0).then(|| Instant::now() + Duration::from_millis(u64::from(header.word)));
        let over = Over { link: link.clone(), names };
        let body = match pipe {
            None => Incoming::whole(body),
            Some(pipe) => Incoming::coming(pipe, link.clone(), names, deadline, self.body_bytes_max),
        };
        let answers = Answers { link: link.clone(), names, one_way: header.flags.has(Flags::ONE_WAY), open: true };
        let call = Call { metadata: Metadata(meta), body, flags: header.flags, deadline, over };
        let handler = Arc::clone(&self.handler);
        tokio::spawn(async move {
            let reply = within(deadline, handler(call)).await;
            answers.answer(reply.unwrap_or_else(|| Reply::error(status::TIMEOUT, "no answer in time")), deadline).await;
        })
        .abort_handle()
    }
}

/// Answers a call, once. Dropped without having done so, it says that the service failed.
struct Answers {
    link: Link,
    names: Names,
    one_way: bool,
    open: bool,
}

impl Answers {
    async fn answer(mut self, reply: Reply, deadline: Option<Instant>) {
        if self.one_way {
            return;
        }
        self.open = false;
        let Some(streamed) = self.begin(reply) else { return };
        match within(deadline, self.link.pump(self.names, &streamed)).await {
            Some(true) => {}
            Some(false) => self.link.end_taken(self.names, Some((status::FAILED, "the answer was cut off"))),
            None => self.link.end_taken(self.names, Some((status::TIMEOUT, "no answer in time"))),
        }
    }

    /// Sends what there is. Returns what is still to be streamed.
    fn begin(&self, mut reply: Reply) -> Option<Arc<super::body::Streamed>> {
        if reply.meta.len() > HEAD_MAX - HEADER_LEN - BODY_LEN_ENTRY {
            reply = Reply::error(status::SERIALIZATION, "the answer's metadata is too long for a frame");
        }
        let (meta, whole) = finish(reply.meta, &reply.body);
        let header = Header { word: reply.status, ..self.names.header(FrameKind::Response) };
        let header = Header { flags: header.flags | reply.flags, ..header };
        let sent = self.link.answer(self.names, header, meta, whole);
        match reply.body.0 {
            Kind::Streamed(streamed) if sent => Some(streamed),
            _ => None,
        }
    }
}

/// Bytes of the entry that [`finish`] may add.
const BODY_LEN_ENTRY: usize = 11;

impl Drop for Answers {
    fn drop(&mut self) {
        if self.one_way {
            self.link.end_taken(self.names, None);
        } else if self.open {
            self.begin(Reply::error(status::FAILED, "the service ended without an answer"));
        }
    }
}

async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}
