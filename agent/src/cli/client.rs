//! Asks a running agent over its admin socket.

use std::{
    fmt::Write,
    future::pending,
    io::{self, ErrorKind},
    ops::ControlFlow,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    net::UnixStream,
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::{
    api,
    instance::{Name, RunDir},
};

/// How long an answer may take. A reload checks a whole file and waits for every worker.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The longest answer: some 100,000 connections or instances.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The longest line of an answer that goes on.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A running agent, or one that should run.
pub(super) struct Client {
    run_dir: RunDir,
    name: Name,
}

/// Why lines came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// There were enough.
    Enough,
    /// Time was over.
    Time,
    /// Ctrl-C.
    Interrupt,
    /// The agent ended.
    Agent,
}

/// A connection, which ends when dropped.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub(super) fn new(run_dir: RunDir, name: Name) -> Self {
        Self { run_dir, name }
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.run_dir.socket(&self.name)
    }

    /// Asks for what is at a path.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path)
    }

    /// Tells it to do what is at a path.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::POST, path)
    }

    /// Asks for what goes on. Says when it begins, and hands on each line of it until that has seen enough, time is over, or either
    /// end has had enough.
    pub(super) fn lines(
        &self,
        path: &str,
        within: Option<Duration>,
        begins: impl FnOnce() -> Result<()>,
        each: impl FnMut(&[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<Ended> {
        runtime()?.block_on(async {
            let opened = timeout(ANSWER_WITHIN, self.send(Method::GET, path)).await;
            let (response, _connection) = opened.map_err(|_| self.silent())??;
            let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
            begins()?;
            let time = async {
                match within {
                    Some(within) => sleep(within).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ended = self.read_lines(response.into_body(), each) => ended,
                () = time => Ok(Ended::Time),
                _ = interrupt.recv() => Ok(Ended::Interrupt),
            }
        })
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        let answer = runtime()?.block_on(async { timeout(ANSWER_WITHIN, self.exchange(method, path)).await });
        let body = answer.map_err(|_| self.silent())??;
        serde_json::from_slice(&body)
            .with_context(|| format!("{} gave an answer that is not known here: is it of another version?", self.who()))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes> {
        let (response, _connection) = self.send(method, path).await?;
        self.body(response).await
    }

    /// An answer that is a good one, and what it needs to be read.
    async fn send(&self, method: Method, path: &str) -> Result<(Response<Incoming>, Connection)> {
        let stream = UnixStream::connect(self.socket()).await.map_err(|error| self.unreachable(&error))?;
        let failed = || self.broke_off();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(failed)?;
        let connection = Connection(tokio::spawn(connection).abort_handle());
        let request = Request::builder().method(method).uri(path).header("host", "moa").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok((response, connection));
        }
        match serde_json::from_slice::<api::Error>(&self.body(response).await?) {
            Ok(api::Error { error }) => bail!(error),
            Err(_) => bail!("{} answered {status}", self.who()),
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| anyhow!(error).context(self.broke_off()))?.to_bytes())
    }

    async fn read_lines(&self, mut body: Incoming, mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>>) -> Result<Ended> {
        let mut text = BytesMut::new();
        while let Some(frame) = body.frame().await {
            text.extend_from_slice(&frame.with_context(|| self.broke_off())?.into_data().unwrap_or_default());
            while let Some(end) = memchr::memchr(b'\n', &text) {
                if each(&text.split_to(end + 1)[..end])?.is_break() {
                    return Ok(Ended::Enough);
                }
            }
            if text.len() > LINE_BYTES_MAX {
                bail!("{} gave a line that does not end: is it of another version?", self.who());
            }
        }
        Ok(Ended::Agent)
    }

    fn silent(&self) -> anyhow::Error {
        anyhow!("{} does not answer within {ANSWER_WITHIN:?}", self.who())
    }

    fn broke_off(&self) -> String {
        format!("{} broke off", self.who())
    }

    fn unreachable(&self, error: &io::Error) -> anyhow::Error {
        let socket = self.socket();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("no agent named {} runs: nobody listens on {}; {}", self.name, socket.display(), self.others())
            }
            ErrorKind::PermissionDenied => anyhow!(
                "this user may not open {}: be root, the agent's own user, or a member of the group moa (usermod -aG moa NAME)",
                socket.display()
            ),
            _ => anyhow!("can't connect to {}: {error}", socket.display()),
        }
    }

    /// What to do instead of asking an agent that is not there.
    fn others(&self) -> String {
        match self.run_dir.running()[..] {
            [] => "start it by `moa agent`".into(),
            ref names => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                format!("choose by --name one that runs: {}", names.join(", "))
            }
        }
    }

    fn who(&self) -> String {
        format!("the agent at {}", self.socket().display())
    }
}

fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("can't make a runtime")
}

/// A text as the value of a parameter.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte.into()),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}
