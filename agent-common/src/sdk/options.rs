use std::{sync::OnceLock, time::Duration};

use super::{Address, BadAddress, backoff::random};
use crate::frame::{Hello, Role, WINDOW_MAX, WINDOW_MIN, Windows};

/// What a client and a server can be told, with what is usual.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) application: String,
    pub(super) instance: String,
    pub(super) agents: Vec<String>,
    pub(super) windows: Windows,
    /// Calls in flight on a connection.
    pub(super) calls_max: usize,
    /// Bytes of frames that wait on a connection for credit or for their turn.
    pub(super) queued_bytes_max: usize,
    /// Bytes of a body that is collected.
    pub(super) body_bytes_max: usize,
    pub(super) ping_interval: Duration,
    /// For the socket and for the agent's HELLO together.
    pub(super) connect_timeout: Duration,
    pub(super) backoff_max: Duration,
    pub(super) lanes: bool,
}

impl Options {
    pub(super) fn new(application: &str) -> Self {
        Self {
            application: application.to_owned(),
            instance: format!("{application}-{}", process()),
            agents: Vec::new(),
            windows: Windows { stream: 256 * 1024, connection: 4 * 1024 * 1024 },
            calls_max: 10_000,
            queued_bytes_max: 16 * 1024 * 1024,
            body_bytes_max: 64 * 1024 * 1024,
            ping_interval: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            backoff_max: Duration::from_secs(1),
            lanes: true,
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<Address>, BadAddress> {
        self.agents.iter().map(|text| text.parse()).collect()
    }

    pub(super) fn set_windows(&mut self, stream: u32, connection: u32) {
        let fine = |size: u32| size.clamp(WINDOW_MIN, WINDOW_MAX);
        self.windows = Windows { stream: fine(stream), connection: fine(connection) };
    }

    pub(super) fn hello(&self) -> Hello {
        Hello::new(Role::Application, &self.application, &self.instance, self.windows)
    }
}

/// What no other process is called.
fn process() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("{}-{:016x}", std::process::id(), random()))
}

/// The settings that a client and a server have in common, as methods of a builder with a field `options`.
macro_rules! common_options {
    () => {
        /// The agents, the local one first, then its siblings: `host:port`, or `unix:` and a path.
        #[must_use]
        pub fn agents<T: Into<String>>(mut self, agents: impl IntoIterator<Item = T>) -> Self {
            self.options.agents = agents.into_iter().map(Into::into).collect();
            self
        }

        /// What this process is called; usually made from the application's name, the process's number and chance.
        #[must_use]
        pub fn instance(mut self, instance: &str) -> Self {
            self.options.instance = instance.to_owned();
            self
        }

        /// Bytes that may be on their way to here, for a message and for a connection: usually 256 KiB and 4 MiB.
        #[must_use]
        pub fn windows(mut self, message: u32, connection: u32) -> Self {
            self.options.set_windows(message, connection);
            self
        }

        /// Calls in flight on a connection, usually 10,000; at the bound a call fails at once with 504.
        #[must_use]
        pub fn calls_max(mut self, calls: usize) -> Self {
            self.options.calls_max = calls.max(1);
            self
        }

        /// Bytes that may wait on a connection, usually 16 MiB; at the bound a call fails at once with 504.
        #[must_use]
        pub fn queued_bytes_max(mut self, bytes: usize) -> Self {
            self.options.queued_bytes_max = bytes;
            self
        }

        /// Bytes of a body that is collected rather than streamed, usually 64 MiB; more is a failure with 302.
        #[must_use]
        pub fn body_bytes_max(mut self, bytes: usize) -> Self {
            self.options.body_bytes_max = bytes;
            self
        }

        /// How often a connection is tried, usually each second. It is dead when three in a row are not answered.
        #[must_use]
        pub fn ping_interval(mut self, interval: Duration) -> Self {
            self.options.ping_interval = interval.max(Duration::from_millis(1));
            self
        }

        /// How long a connection may take until the agent's HELLO has come.
        #[must_use]
        pub fn connect_timeout(mut self, timeout: Duration) -> Self {
            self.options.connect_timeout = timeout;
            self
        }

        /// The longest wait between two tries to connect, usually a second.
        #[must_use]
        pub fn backoff_max(mut self, wait: Duration) -> Self {
            self.options.backoff_max = wait;
            self
        }

        /// Whether small calls go by a second connection, which the kernel routes, where the agent gives one. Usually so;
        /// nothing but speed depends on it.
        #[must_use]
        pub fn lanes(mut self, lanes: bool) -> Self {
            self.options.lanes = lanes;
            self
        }
    };
}
pub(super) use common_options;
