//! The sections that describe the agent itself: `[agent]`, `[app]`, `[tunnel]`, `[kernel]`, `[metrics]`, `[tracing]`.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    check::Conflict,
    schema::{BYTES_MAX, COUNT_MAX, DAY_MS, REDIS_BULK_MAX, address_schema},
};

/// The least and the greatest window of the frame protocol.
const WINDOW_MIN: u32 = 65_536;
const WINDOW_MAX: u32 = 1 << 30;
/// The longest path of a unix socket: `sun_path` has a byte more, for the zero behind it.
const UNIX_BYTES_MAX: usize = 107;
/// A URL as `tracing.endpoint` could be.
const EXAMPLE_COLLECTOR: &str = "http://127.0.0.1:4318";
/// How a collector's URL begins.
const HTTP: &str = "http://";
/// A path as `app.unix` could be.
const EXAMPLE_UNIX: &str = "/run/moa/app.sock";

/// The agent's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Worker threads; 0 is one for each CPU that the process may use.
    #[schemars(range(max = 1024))]
    pub workers: usize,
    /// Calls in flight in the whole agent; one more is answered with 504.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub calls_in_flight_max: usize,
    /// Bytes of requests and answers that may wait in the whole agent; at the bound a call is answered with 504.
    #[schemars(range(min = 65_536, max = BYTES_MAX))]
    pub queued_bytes_max: usize,
    /// How long a graceful stop waits for calls in flight.
    #[schemars(range(max = DAY_MS))]
    pub drain_timeout_ms: u64,
    /// The zone that this node is in; empty if it does not matter.
    pub zone: String,
    /// The data centre that this node is in; empty if it does not matter.
    pub data_centre: String,
}

/// Spans of calls, for a collector that takes OTLP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// The collector's base URL, for OTLP over HTTP with protobuf. Without it, no spans are made.
    #[schemars(example = EXAMPLE_COLLECTOR)]
    pub endpoint: Option<String>,
    /// How many of a million calls that come without a `traceparent` begin a trace. What comes with one is sampled if it says so.
    #[schemars(range(max = 1_000_000))]
    pub sample_per_million: u32,
    /// Spans that may wait for the collector; beyond that they are dropped, and counted.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub queue_max: usize,
    /// How long spans are gathered before they are sent.
    #[schemars(range(min = 10, max = DAY_MS))]
    pub interval_ms: u64,
}

impl Tracing {
    /// Of a million calls, how many begin a trace.
    pub(crate) fn share_per_million(&self) -> u32 {
        if self.endpoint.is_some() { self.sample_per_million } else { 0 }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self { endpoint: None, sample_per_million: 1_000, queue_max: 8_192, interval_ms: 1_000 }
    }
}

/// The side of the applications: Redis, and the frame protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct App {
    /// The address that applications call. Without it, the port belongs to the instance's name.
    #[schemars(schema_with = "address_schema")]
    pub listen: SocketAddr,
    /// A unix socket for applications besides `listen`: an absolute path of at most 107 bytes.
    #[schemars(example = EXAMPLE_UNIX)]
    pub unix: Option<PathBuf>,
    /// Open connections; one more gets `-ERR max number of clients reached`. 0 is what the file limit allows, less a reserve for backends.
    #[schemars(range(max = COUNT_MAX))]
    pub connections_max: usize,
    /// Calls in flight on one connection; one more is answered with 504 in its place.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub pipeline_max: usize,
    /// Size of one argument; a longer one is answered with 302 in its place.
    #[schemars(range(min = 64, max = REDIS_BULK_MAX))]
    pub argument_bytes_max: usize,
    /// Size of one command with all its arguments; a longer one is answered with 302 in its place.
    #[schemars(range(min = 64, max = BYTES_MAX))]
    pub command_bytes_max: usize,
    /// Bytes of answers that may wait for one application to read them; at the bound the agent stops reading its calls.
    #[schemars(range(min = 4096, max = BYTES_MAX))]
    pub queued_bytes_max: usize,
    /// How long an application may take nothing of the answers that wait for it, or leave a command half sent, before its
    /// connection is closed.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub stall_timeout_ms: u64,
    /// Keys of one MGET; one more is a protocol error.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub mget_keys_max: usize,
    /// How long a whole MGET may take; calls that are late are answered with 304 in their place.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub mget_timeout_ms: u64,
    /// Bytes of one call that may be on their way from an application that speaks frames.
    #[schemars(range(min = WINDOW_MIN, max = WINDOW_MAX))]
    pub stream_window_bytes: u32,
    /// Bytes of all calls that may be on their way on one connection of an application that speaks frames.
    #[schemars(range(min = WINDOW_MIN, max = WINDOW_MAX))]
    pub connection_window_bytes: u32,
}

/// The connections with other agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tunnel {
    /// The address that other agents connect to. Without it, the port belongs to the instance's name.
    #[schemars(schema_with = "address_schema")]
    pub listen: SocketAddr,
    /// Connections to each other agent that a worker keeps.
    #[schemars(range(min = 1, max = 16))]
    pub connections: usize,
    /// How often a PING is sent; after three without any byte from the other agent, the connection counts as dead.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub keepalive_ms: u64,
    /// How long opening a connection may take.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub connect_timeout_ms: u64,
    /// Bytes of one call that may be on their way from another agent.
    #[schemars(range(min = WINDOW_MIN, max = WINDOW_MAX))]
    pub stream_window_bytes: u32,
    /// Bytes of all calls that may be on their way on one connection from another agent.
    #[schemars(range(min = WINDOW_MIN, max = WINDOW_MAX))]
    pub connection_window_bytes: u32,
    /// Bytes that may wait for one other agent, and bytes of calls that may wait for an application that has dialled in; at the
    /// bound calls are answered with 504.
    #[schemars(range(min = 65_536, max = BYTES_MAX))]
    pub queued_bytes_max: usize,
    /// Calls in flight on one connection; one more is answered with 504.
    #[schemars(range(min = 1, max = COUNT_MAX))]
    pub calls_max: usize,
}

/// Metrics and health for machines, by HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The address of `/metrics`, `/live` and `/ready`. Without it, the port belongs to the instance's name.
    #[schemars(schema_with = "address_schema")]
    pub listen: SocketAddr,
}

/// The way through the kernel, for connections that stay on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// Whether it is used.
    pub mode: KernelMode,
    /// Bytes that may wait in the kernel at either end of a connection; at the bound, what follows goes by TCP.
    #[schemars(range(min = 65_536, max = 1_073_741_824))]
    pub leg_bytes_max: u64,
    /// Files of network namespaces, as in `/run/netns`, whose connections go by TCP.
    pub exclude_namespaces: Vec<PathBuf>,
}

/// Whether the way through the kernel is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelMode {
    /// Where it is possible, and faster on this machine; not for applications and services whose sockets block.
    Auto,
    /// Where it is possible, also for sockets that block: see docs/kernel.md.
    On,
    /// Not at all.
    Off,
}

impl App {
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        if self.argument_bytes_max > self.command_bytes_max {
            conflicts.push(Conflict {
                keys: &["argument_bytes_max", "command_bytes_max"],
                found: format!(
                    "an argument of {} bytes in a command of at most {} bytes",
                    self.argument_bytes_max, self.command_bytes_max
                ),
                expected: "argument_bytes_max to be at most command_bytes_max".into(),
                advice: "raise command_bytes_max, or lower argument_bytes_max".into(),
            });
        }
        conflicts.extend(self.unix.as_deref().and_then(wrong_unix).map(|found| Conflict {
            keys: &["unix"],
            found,
            expected: format!("an absolute path of at most {UNIX_BYTES_MAX} bytes"),
            advice: format!("write a path such as {EXAMPLE_UNIX:?}"),
        }));
        conflicts.extend(narrow_connection(self.stream_window_bytes, self.connection_window_bytes));
        conflicts
    }
}

impl Tunnel {
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        narrow_connection(self.stream_window_bytes, self.connection_window_bytes).into_iter().collect()
    }
}

impl Tracing {
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let wrong = self.endpoint.as_deref().and_then(wrong_url).map(|found| Conflict {
            keys: &["endpoint"],
            found,
            expected: "an http:// URL with a host, and if need be a port and a path".into(),
            advice: format!("write a URL such as {EXAMPLE_COLLECTOR:?}"),
        });
        wrong.into_iter().collect()
    }
}

/// What is wrong with the URL of a collector.
fn wrong_url(url: &str) -> Option<String> {
    if url.starts_with("https://") {
        return Some(format!("the URL {url:?}, but TLS is not spoken"));
    }
    let Some(rest) = url.strip_prefix(HTTP) else { return Some(format!("{url:?}, which does not begin with {HTTP}")) };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let what = if authority.contains('@') {
        "a user"
    } else if url.contains(['?', '#']) {
        "a query or a fragment"
    } else if !is_authority(authority) {
        "a host or a port that is none"
    } else if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        "a path that is none"
    } else {
        return None;
    };
    Some(format!("the URL {url:?} with {what}"))
}

/// Whether a text is a host's name or address, with a port or without one.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0 && !port.starts_with('+')));
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let good_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(named),
    };
    good_host && good_port
}

/// What is wrong with the path of a unix socket.
fn wrong_unix(path: &Path) -> Option<String> {
    let bytes = path.as_os_str().len();
    if !path.is_absolute() {
        Some(format!("the relative path {:?}", path.display()))
    } else {
        (bytes > UNIX_BYTES_MAX).then(|| format!("a path of {bytes} bytes"))
    }
}

/// A connection that has less room than one call on it.
fn narrow_connection(stream: u32, connection: u32) -> Option<Conflict> {
    (connection < stream).then(|| Conflict {
        keys: &["connection_window_bytes", "stream_window_bytes"],
        found: format!("a window of {stream} bytes for a call on a connection with one of {connection}"),
        expected: "stream_window_bytes to be at most connection_window_bytes".into(),
        advice: "raise connection_window_bytes, or lower stream_window_bytes".into(),
    })
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            workers: 0,
            calls_in_flight_max: 100_000,
            queued_bytes_max: 512 << 20,
            drain_timeout_ms: 10_000,
            zone: String::new(),
            data_centre: String::new(),
        }
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 13000)),
            unix: None,
            connections_max: 0,
            pipeline_max: 4096,
            argument_bytes_max: 1 << 20,
            command_bytes_max: 4 << 20,
            queued_bytes_max: 4 << 20,
            stall_timeout_ms: 30_000,
            mget_keys_max: 512,
            mget_timeout_ms: 4_500,
            stream_window_bytes: 256 << 10,
            connection_window_bytes: 4 << 20,
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 13100)),
            connections: 1,
            keepalive_ms: 1_000,
            connect_timeout_ms: 1_000,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 16 << 20,
            queued_bytes_max: 64 << 20,
            calls_max: 65_536,
        }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self { mode: KernelMode::Auto, leg_bytes_max: 2 << 20, exclude_namespaces: Vec::new() }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 13900)) }
    }
}
