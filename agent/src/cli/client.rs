//! Asks a running agent over its admin socket.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, runtime, time::timeout};

use crate::{
    api,
    instance::{Name, RunDir},
};

/// How long an answer may take. A reload checks a whole file and waits for every worker.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The longest answer: some 100,000 connections or instances.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A running agent, or one that should run.
pub(super) struct Client {
    run_dir: RunDir,
    name: Name,
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

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("can't make a runtime")?;
        let answer = runtime.block_on(async { timeout(ANSWER_WITHIN, self.exchange(method, path)).await });
        let body = answer.map_err(|_| anyhow!("{} does not answer within {ANSWER_WITHIN:?}", self.who()))??;
        serde_json::from_slice(&body)
            .with_context(|| format!("{} gave an answer that is not known here: is it of another version?", self.who()))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes> {
        let stream = UnixStream::connect(self.socket()).await.map_err(|error| self.unreachable(&error))?;
        let failed = || format!("{} broke off", self.who());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(failed)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "moa").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow!(error).context(failed()))?.to_bytes();
        driver.abort();
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<api::Error>(&body) {
            Ok(api::Error { error }) => bail!(error),
            Err(_) => bail!("{} answered {status}", self.who()),
        }
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
