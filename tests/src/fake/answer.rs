//! What a fake server does about a call.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::watch;

/// What a fake server does about a call: when it answers, with which bytes, how fast, and what happens then.
#[derive(Clone)]
pub struct Answer {
    pub(super) wait: Wait,
    /// None: it never answers.
    pub(super) bytes: Option<Arc<[u8]>>,
    pub(super) pace: Option<(usize, Duration)>,
    pub(super) end: Option<End>,
    /// Whether it answers a call, and not a PING.
    pub(super) of_call: bool,
}

/// When a call is done.
#[derive(Clone)]
pub(super) enum Wait {
    None,
    For(Duration),
    At(Gate),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With FIN.
    Close,
    /// With FIN for what the server sends; it goes on reading.
    HalfClose,
    /// With RST.
    Reset,
    /// With nothing: the server is gone, and nobody was told.
    Vanish,
}

impl Answer {
    /// `{"ec":0,…}` with this result, as servers of 2016 write it.
    pub fn ok(result: &Value) -> Self {
        Self::envelope(0, "\\u003cnil\\u003e", &result.to_string())
    }

    /// An envelope with this code, this text and this result, both as they stand in JSON.
    pub fn envelope(code: i64, text: &str, result: &str) -> Self {
        Self::bulk(format!(r#"{{"ec":{code},"em":"{text}","result":{result}}}"#).as_bytes())
    }

    /// A bulk string.
    pub fn bulk(body: &[u8]) -> Self {
        let mut bytes = format!("${}\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        Self::raw(bytes)
    }

    /// These bytes, whatever they are.
    pub fn raw(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { wait: Wait::None, bytes: Some(bytes.into()), pace: None, end: None, of_call: true }
    }

    /// No answer ever.
    pub fn silence() -> Self {
        Self { wait: Wait::None, bytes: None, pace: None, end: None, of_call: true }
    }

    /// Its bytes; none if it never answers.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// After this time.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.wait = Wait::For(time);
        self
    }

    /// When the gate is opened.
    #[must_use]
    pub fn at(mut self, gate: &Gate) -> Self {
        self.wait = Wait::At(gate.clone());
        self
    }

    /// In pieces of so many bytes, with a pause after each.
    #[must_use]
    pub fn slowly(mut self, piece: usize, pause: Duration) -> Self {
        self.pace = Some((piece, pause));
        self
    }

    /// Only the first bytes of it.
    #[must_use]
    pub fn cut(mut self, length: usize) -> Self {
        self.bytes = self.bytes.map(|bytes| bytes[..length.min(bytes.len())].into());
        self
    }

    /// Then the connection ends.
    #[must_use]
    pub fn then(mut self, end: End) -> Self {
        self.end = Some(end);
        self
    }
}

/// Holds calls back until the test opens it: so a test knows that they were all at the server at the same time.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self::closed()
    }
}

impl Gate {
    /// A gate that is closed.
    pub fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Holds everybody back from now on.
    pub fn close(&self) {
        self.0.send_replace(false);
    }

    pub(super) async fn pass(&self) {
        // Fails only when the sender is gone, which this holds.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}
