use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::link::lock;

/// What is sent behind a request's or a reply's metadata: bytes that are there, or that come.
#[derive(Debug, Clone)]
pub struct Body(pub(super) Kind);

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Whole(Bytes),
    Streamed(Arc<Streamed>),
}

/// Sends a body piece by piece. Without [`Sender::finish`] the body is cut off, and the call fails.
#[derive(Debug)]
pub struct Sender(mpsc::Sender<Part>);

/// Nobody reads the body any more: the call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

#[derive(Debug)]
pub(super) struct Streamed(Mutex<Receiver>);

#[derive(Debug)]
struct Receiver {
    parts: mpsc::Receiver<Part>,
    /// Whether a piece was taken, so that the body cannot be sent from its beginning any more.
    begun: bool,
}

/// A piece of a body, or its end.
#[derive(Debug)]
pub(super) enum Part {
    Bytes(Bytes),
    End,
}

impl Body {
    /// A body that comes piece by piece. A piece waits until the one before it was taken.
    #[must_use]
    pub fn channel() -> (Sender, Self) {
        let (sender, parts) = mpsc::channel(1);
        let streamed = Streamed(Mutex::new(Receiver { parts, begun: false }));
        (Sender(sender), Self(Kind::Streamed(Arc::new(streamed))))
    }

    /// Whether it can still be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        match &self.0 {
            Kind::Whole(_) => true,
            Kind::Streamed(streamed) => !lock(&streamed.0).begun,
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self(Kind::Whole(Bytes::new()))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Kind::Whole(bytes.into()))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self(Kind::Whole(text.into()))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self(Kind::Whole(text.into()))
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self(Kind::Whole(bytes.into()))
    }
}

impl Sender {
    /// Sends a piece, once there is room for it: the receiver's window is what slows this down.
    ///
    /// # Errors
    /// When the call has ended.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Stopped> {
        self.0.send(Part::Bytes(bytes.into())).await.map_err(|_| Stopped)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// When the call has ended.
    pub async fn finish(self) -> Result<(), Stopped> {
        self.0.send(Part::End).await.map_err(|_| Stopped)
    }
}

impl Streamed {
    /// The next piece; none if the sender is gone without having finished.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Part>> {
        let mut receiver = lock(&self.0);
        let part = receiver.parts.poll_recv(cx);
        receiver.begun |= part.is_ready();
        part
    }
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the call has ended, nobody reads its body")
    }
}

impl std::error::Error for Stopped {}
