//! The exporter against a collector with real sockets.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

use super::*;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A span whose number is `n`.
pub(super) fn span(n: u64) -> Span {
    let context = Context { trace_id: [7; 16], span_id: (n + 1).to_be_bytes(), sampled: true };
    Span {
        context,
        parent: Some([9; 8]),
        kind: Kind::Client,
        service: "/service/user".into(),
        group: Some("two".into()),
        method: "get".into(),
        application: "web".into(),
        instance: Some("10.0.0.1:5000".into()),
        started: UNIX_EPOCH + Duration::new(1, 1),
        took: Duration::from_millis(2),
        code: None,
        by: By::Service,
        error: String::new(),
        events: vec![Event::retry(UNIX_EPOCH, "10.0.0.2:5000", "connection refused")],
        attributes: Vec::new(),
    }
}

pub(super) fn options(endpoint: &str) -> Options {
    Options {
        endpoint: endpoint.to_owned(),
        queue_max: 8_192,
        interval: Duration::from_millis(10),
        name: "test".into(),
        instance: "test@host".into(),
        version: "1.2.3".into(),
        zone: String::new(),
        data_centre: String::new(),
    }
}

/// What the collector does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Take,
    /// Takes it, and ends the connection.
    TakeAndClose,
    TakeAllBut(i64),
    Answer(u16),
    HangUp,
    NeverAnswer,
}

/// A collector that misbehaves on demand.
struct Fake {
    url: String,
    mode: Arc<Mutex<Mode>>,
    /// The numbers of the spans of each request, taken or not.
    requests: UnboundedReceiver<Vec<u64>>,
}

impl Fake {
    async fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/base", listener.local_addr().expect("bound"));
        let mode = Arc::new(Mutex::new(mode));
        let (sender, requests) = unbounded_channel();
        let of_requests = mode.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (mode, sender) = (of_requests.clone(), sender.clone());
                let service = service_fn(move |request| answer(request, *mode.lock().expect("no panic"), sender.clone()));
                // An error is how it hangs up.
                tokio::spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await) });
            }
        });
        Self { url, mode, requests }
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().expect("no panic") = mode;
    }

    async fn request(&mut self) -> Vec<u64> {
        timeout(PATIENCE, self.requests.recv()).await.expect("a request in time").expect("it runs")
    }
}

type Answer = Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(request: Request<Incoming>, mode: Mode, sender: UnboundedSender<Vec<u64>>) -> Answer {
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/base/v1/traces"));
    assert_eq!(request.headers()[header::CONTENT_TYPE], "application/x-protobuf");
    assert!(request.headers().contains_key(header::HOST));
    let body = request.into_body().collect().await?.to_bytes();
    let message = ExportTraceServiceRequest::decode(body).expect("a message");
    let spans = message.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
    let id = |id: Vec<u8>| u64::from_be_bytes(id.try_into().expect("eight bytes")) - 1;
    let _ = sender.send(spans.map(|span| id(span.span_id)).collect());
    let mut response = Response::builder();
    let mut body = ExportTraceServiceResponse::default();
    match mode {
        Mode::Take => {}
        Mode::TakeAndClose => response = response.header(header::CONNECTION, "close"),
        Mode::TakeAllBut(rejected_spans) => {
            body.partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message: "no".into() });
        }
        Mode::Answer(status) => response = response.status(status),
        Mode::HangUp => return Err("hangs up".into()),
        Mode::NeverAnswer => match std::future::pending::<Infallible>().await {},
    }
    Ok(response.body(Full::new(body.encode_to_vec().into()))?)
}

/// Waits for what the task counts behind the answer.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::task::yield_now().await;
    }
}

fn counts(spans: &Spans) -> (u64, u64, u64) {
    (spans.sent(), spans.dropped(), spans.failed())
}

#[tokio::test]
async fn spans_arrive_once_in_requests_of_a_bounded_size() {
    let mut fake = Fake::start(Mode::Take).await;
    let (spans, exporter) = Exporter::start(&options(&fake.url)).expect("started");
    (0..3_000).for_each(|n| spans.offer(span(n)));
    let mut seen = Vec::new();
    while seen.len() < 3_000 {
        let request = fake.request().await;
        assert!(request.len() <= 512, "{}", request.len());
        seen.extend(request);
    }
    assert!(seen.iter().copied().eq(0..3_000));
    until("the last answer", || spans.sent() == 3_000).await;
    exporter.stop().await;
    assert_eq!(counts(&spans), (3_000, 0, 0));
}

#[tokio::test]
async fn a_collector_that_is_away_is_tried_again() {
    for mode in [Mode::Answer(503), Mode::HangUp, Mode::Answer(429)] {
        let mut fake = Fake::start(mode).await;
        let (spans, exporter) = Exporter::start(&options(&fake.url)).expect("started");
        (0..10).for_each(|n| spans.offer(span(n)));
        let first = fake.request().await;
        assert_eq!(fake.request().await, first, "{mode:?}");
        assert_eq!(counts(&spans), (0, 0, 0), "{mode:?}");
        fake.set(Mode::Take);
        until("the spans to be taken", || spans.sent() == 10).await;
        exporter.stop().await;
        assert_eq!(counts(&spans), (10, 0, 0), "{mode:?}");
    }
}

#[tokio::test]
async fn nobody_listens_at_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let (spans, exporter) = Exporter::start(&options(&format!("http://{address}"))).expect("started");
    spans.offer(span(1));
    // The first that is not taken is what the exporter gives up at its end.
    exporter.stop().await;
    assert_eq!(counts(&spans), (0, 0, 1));
    spans.offer(span(2));
    assert_eq!(counts(&spans), (0, 1, 1));
}

#[tokio::test]
async fn what_is_refused_is_not_sent_again() {
    let mut fake = Fake::start(Mode::Answer(400)).await;
    let (spans, exporter) = Exporter::start(&options(&fake.url)).expect("started");
    (0..10).for_each(|n| spans.offer(span(n)));
    until("the refusal", || spans.failed() == 10).await;
    fake.set(Mode::TakeAllBut(3));
    (10..20).for_each(|n| spans.offer(span(n)));
    until("the partial success", || spans.sent() == 7).await;
    exporter.stop().await;
    assert_eq!(counts(&spans), (7, 0, 13));
    let mut seen = HashSet::new();
    while seen.len() < 20 {
        assert!(fake.request().await.into_iter().all(|n| seen.insert(n)), "sent twice");
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_between_requests_costs_nothing() {
    let mut fake = Fake::start(Mode::TakeAndClose).await;
    let (spans, exporter) = Exporter::start(&options(&fake.url)).expect("started");
    for n in 0..5 {
        spans.offer(span(n));
        assert_eq!(fake.request().await, [n]);
        until("the answer", || spans.sent() == n + 1).await;
    }
    exporter.stop().await;
    assert_eq!(counts(&spans), (5, 0, 0));
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let mut fake = Fake::start(Mode::NeverAnswer).await;
    let (spans, exporter) = Exporter::start(&Options { queue_max: 100, ..options(&fake.url) }).expect("started");
    spans.offer(span(0));
    assert_eq!(fake.request().await, [0]);
    (1..1_000).for_each(|n| spans.offer(span(n)));
    assert_eq!(counts(&spans), (0, 899, 0));
    let started = Instant::now();
    exporter.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(counts(&spans), (0, 899, 101));
}

#[tokio::test]
async fn the_end_flushes_what_waits() {
    let mut fake = Fake::start(Mode::Take).await;
    let patient = Options { interval: Duration::from_secs(3_600), ..options(&fake.url) };
    // A second may be too short where a machine has other things to do.
    let (spans, exporter) = Exporter::start_with(&patient, PATIENCE).expect("started");
    (0..1_000).for_each(|n| spans.offer(span(n)));
    exporter.stop().await;
    assert_eq!(counts(&spans), (1_000, 0, 0));
    assert_eq!((fake.request().await.len(), fake.request().await.len()), (512, 488));
}

#[tokio::test]
async fn half_a_queue_does_not_wait_for_the_interval() {
    let mut fake = Fake::start(Mode::Take).await;
    let patient = Options { interval: Duration::from_secs(3_600), queue_max: 100, ..options(&fake.url) };
    let (spans, exporter) = Exporter::start(&patient).expect("started");
    // The task waits before the queue is filled.
    tokio::task::yield_now().await;
    (0..50).for_each(|n| spans.offer(span(n)));
    assert_eq!(fake.request().await.len(), 50);
    exporter.stop().await;
}

#[tokio::test]
async fn the_endpoint_must_be_of_http() {
    assert!(Exporter::start(&options("https://collector")).is_err());
}
