//! A collector of spans that others wrote: OpenTelemetry's own messages, read by Google's protobuf. None of the agent's code is in it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    external::{python, script},
    wait::until,
};

/// A collector in a process of its own.
pub struct Collector {
    child: Child,
    input: ChildStdin,
    port: u16,
    said: Arc<Mutex<Said>>,
}

/// A span, as the collector has read it.
#[derive(Debug, Clone, Deserialize, PartialEq)]
pub struct Span {
    /// In hexadecimal.
    pub trace_id: String,
    /// In hexadecimal.
    pub span_id: String,
    /// In hexadecimal; none if the trace begins here.
    pub parent: Option<String>,
    /// The flags of W3C, and of OTLP.
    pub flags: u32,
    /// Its name.
    pub name: String,
    /// `client`, `server` and so on.
    pub kind: String,
    /// When it began, in nanoseconds since 1970.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// Its attributes.
    pub attributes: BTreeMap<String, Value>,
    /// What happened meanwhile.
    pub events: Vec<Event>,
    /// Whether its status is an error.
    pub failed: bool,
    /// The text of its status.
    pub error: String,
    /// Who sent it.
    pub resource: BTreeMap<String, Value>,
    /// What made it: a name and a version.
    pub scope: String,
}

/// Something that happened during a span.
#[derive(Debug, Clone, Deserialize, PartialEq)]
pub struct Event {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// What.
    pub name: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, Value>,
}

/// What it has said so far.
#[derive(Debug, Default)]
struct Said {
    spans: Vec<Span>,
    /// Requests that it did not take, as it was told to.
    refused: usize,
    wrong: Vec<String>,
    answers: Option<u16>,
}

/// A line of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Request { status: u16, spans: Vec<Span> },
    Answers { answers: u16 },
    Wrong { wrong: String },
}

impl Collector {
    /// Starts one that takes everything.
    pub fn start() -> Self {
        Self::start_at(0)
    }

    /// Starts one at a port, such as that of one that has ended.
    pub fn start_at(port: u16) -> Self {
        let mut command = python();
        command.arg(script("otlp.py")).arg(port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("the collector cannot be run: {error}"));
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        let port = first.strip_prefix("port ").and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("the collector did not start ({first:?}): run `cargo xtask setup`"));
        let said = Arc::new(Mutex::new(Said::default()));
        let heard = said.clone();
        thread::spawn(move || lines.for_each(|line| hear(&line, &heard)));
        Self { input: child.stdin.take().expect("piped"), child, port, said }
    }

    /// Its base URL, as `tracing.endpoint` has it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers with this status from now on; only with 200 it keeps what it is sent.
    pub fn answer(&mut self, status: u16) {
        writeln!(self.input, "{status}").expect("it runs");
        until("the collector to change its mind", || self.with(|said| (said.answers == Some(status)).then_some(())));
    }

    /// The spans that it has taken, in the order in which they came.
    ///
    /// # Panics
    /// If anything came that is no OTLP.
    pub fn spans(&self) -> Vec<Span> {
        self.with(|said| said.spans.clone())
    }

    /// Waits for as many spans, and returns all that it has taken.
    pub fn await_spans(&self, count: usize) -> Vec<Span> {
        let what = format!("{count} spans");
        until(&what, || self.with(|said| (said.spans.len() >= count).then(|| said.spans.clone())))
    }

    /// Waits for the spans of a trace, as many as that, and returns them in the order in which they began.
    pub fn await_trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let what = format!("{count} spans of the trace {trace_id}");
        until(&what, || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace_id == trace_id);
            spans.sort_by_key(|span| span.start_ns);
            (spans.len() >= count).then_some(spans)
        })
    }

    /// How many requests it did not take, as it was told to.
    pub fn refused(&self) -> usize {
        self.with(|said| said.refused)
    }

    fn with<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(said.wrong.is_empty(), "the collector was sent what is no OTLP: {:?}", said.wrong);
        look(&said)
    }
}

fn hear(line: &str, said: &Mutex<Said>) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    match serde_json::from_str(line) {
        Ok(Line::Request { status: 200, spans }) => said.spans.extend(spans),
        Ok(Line::Request { .. }) => said.refused += 1,
        Ok(Line::Answers { answers }) => said.answers = Some(answers),
        Ok(Line::Wrong { wrong }) => said.wrong.push(wrong),
        Err(error) => said.wrong.push(format!("{error}: {line}")),
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
