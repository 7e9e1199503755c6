//! The collector, asked over HTTP: one connection, one request at a time.

use std::{error::Error, str::FromStr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long the collector may take for a request: what OTLP has as its default.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer: a count and a text.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A collector's base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    /// What `Host` says.
    authority: String,
    path: String,
}

/// A URL that spans can't be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// It is no URL.
    #[error("{0:?} is no URL: expected one such as http://127.0.0.1:4318")]
    NoUrl(String),
    /// It wants another protocol.
    #[error(
        "{0:?} does not begin with http://: spans are sent over plain HTTP, so name a collector on this node or in this network"
    )]
    NotHttp(String),
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The collector has taken it, but for so many spans.
    Taken { refused: u64, why: String },
    /// It may be taken later.
    Later { why: String, after: Option<Duration> },
    /// It is never taken.
    Refused { why: String },
}

/// The collector.
pub(super) struct Collector {
    endpoint: Endpoint,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

type Failure = Box<dyn Error + Send + Sync>;

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let no_url = || BadEndpoint::NoUrl(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => return Err(BadEndpoint::NotHttp(url.to_owned())),
            None => return Err(no_url()),
        }
        let authority = uri.authority().ok_or_else(no_url)?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(no_url());
        }
        let host = authority.host();
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Ok(Self {
            host: inner.unwrap_or(host).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            path: format!("{}/v1/traces", uri.path().trim_end_matches('/')),
        })
    }
}

impl Collector {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, connection: None }
    }

    /// Sends a request. If that is given up, the connection is too.
    pub(super) async fn send(&mut self, body: Bytes) -> Outcome {
        // One that was used before may have been closed meanwhile, which is no fault of the collector's.
        if let Some(connection) = self.connection.take()
            && let Ok(outcome) = self.exchange(connection, body.clone()).await
        {
            return outcome;
        }
        let answer = match self.connect().await {
            Ok(connection) => self.exchange(connection, body).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| Outcome::Later { why: chain(&*error), after: None })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let target = (&*self.endpoint.host, self.endpoint.port);
        let stream = timeout(CONNECT_WITHIN, TcpStream::connect(target)).await;
        let stream = stream.map_err(|_| format!("no connection within {CONNECT_WITHIN:?}"))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the request.
        Ok(Connection { sender, driver: tokio::spawn(async move { drop(connection.await) }) })
    }

    async fn exchange(&mut self, mut connection: Connection, body: Bytes) -> Result<Outcome, Failure> {
        let request = Request::post(&self.endpoint.path)
            .header(header::HOST, &self.endpoint.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("moa/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        let answer = async {
            connection.sender.ready().await?;
            let response = connection.sender.send_request(request).await?;
            read(response).await
        };
        let outcome = match timeout(ANSWER_WITHIN, answer).await {
            Ok(answer) => answer?,
            // Not an error, so that it is not sent again at once.
            Err(_) => return Ok(Outcome::Later { why: format!("no answer within {ANSWER_WITHIN:?}"), after: None }),
        };
        self.connection = Some(connection);
        Ok(outcome)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn read(response: Response<Incoming>) -> Result<Outcome, Failure> {
    let status = response.status();
    let after = response.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
    Ok(outcome(status, after.map(Duration::from_secs), &body))
}

/// What an answer says, by the rules of OTLP.
fn outcome(status: StatusCode, after: Option<Duration>, body: &[u8]) -> Outcome {
    const LATER: [StatusCode; 4] =
        [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    if LATER.contains(&status) {
        return Outcome::Later { why: format!("it answers {status}"), after };
    }
    if !status.is_success() {
        return Outcome::Refused { why: format!("it answers {status}") };
    }
    // What is no message of OTLP says nothing about spans that were not taken.
    let partial = ExportTraceServiceResponse::decode(body).ok().and_then(|response| response.partial_success);
    let (refused, why) = partial.map(|partial| (partial.rejected_spans, partial.error_message)).unwrap_or_default();
    Outcome::Taken { refused: u64::try_from(refused).unwrap_or(0), why }
}

/// An error with its causes.
fn chain(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    #[test]
    fn the_path_comes_behind_the_base() {
        let endpoint = |url: &str| {
            let endpoint: Endpoint = url.parse().expect("a URL");
            (endpoint.host, endpoint.port, endpoint.authority, endpoint.path)
        };
        let expected =
            |host: &str, port, authority: &str, path: &str| (host.to_owned(), port, authority.to_owned(), path.to_owned());
        assert_eq!(endpoint("http://127.0.0.1:4318"), expected("127.0.0.1", 4318, "127.0.0.1:4318", "/v1/traces"));
        assert_eq!(endpoint("http://otel/"), expected("otel", 80, "otel", "/v1/traces"));
        assert_eq!(endpoint("http://[::1]:1/a/b/"), expected("::1", 1, "[::1]:1", "/a/b/v1/traces"));
    }

    #[test]
    fn what_is_no_collector_is_refused() {
        let refused = |url: &str| url.parse::<Endpoint>().expect_err("refused").to_string();
        for url in ["", "127.0.0.1:4318", "/v1/traces", "http://", "http://a b", "http://user@host", "http://host/?a=b"] {
            assert!(refused(url).contains("expected one such as http://127.0.0.1:4318"), "{url}");
        }
        assert!(refused("https://otel:4318").contains("plain HTTP"));
    }

    #[test]
    fn answers_mean_what_otlp_says() {
        let of = |status: u16, body: &[u8]| outcome(StatusCode::from_u16(status).expect("a status"), None, body);
        for status in [429, 502, 503, 504] {
            assert!(matches!(of(status, b""), Outcome::Later { .. }), "{status}");
        }
        for status in [301, 400, 401, 404, 413, 500, 501] {
            assert!(matches!(of(status, b""), Outcome::Refused { .. }), "{status}");
        }
        let taken = Outcome::Taken { refused: 0, why: String::new() };
        assert_eq!((of(200, b""), of(202, b"<html>")), (taken, Outcome::Taken { refused: 0, why: String::new() }));
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans: 3, error_message: "too old".into() });
        let body = ExportTraceServiceResponse { partial_success }.encode_to_vec();
        assert_eq!(of(200, &body), Outcome::Taken { refused: 3, why: "too old".into() });
    }
}
