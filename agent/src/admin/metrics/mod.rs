//! `/metrics`, in the OpenMetrics format or in Prometheus' own, as the scraper accepts.

mod burden;
mod failover;
mod namespaces;
mod policy;
mod process;
mod scrape;
#[cfg(test)]
mod tests;
mod text;

use std::{fmt, sync::Arc, sync::atomic::Ordering::Relaxed};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

pub(super) use self::scrape::KernelCounts;
use self::{policy::SpanCounts, process::Process, scrape::Scrape};
use super::{Node, routes::error};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes(node: Arc<Node>) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(node)
}

async fn metrics(State(node): State<Arc<Node>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let open = accept.contains("application/openmetrics-text");
    match render(scrape(&node)) {
        Ok(text) if open => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(text) => ([(header::CONTENT_TYPE, PROMETHEUS)], text::prometheus(&text)).into_response(),
        Err(wrong) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics can't be written: {wrong}")),
    }
}

fn scrape(node: &Node) -> Scrape {
    Scrape {
        calls: node.proxy.snapshot(),
        app: node.proxy.app_status(),
        workers: node.proxy.workers(),
        drain: node.proxy.drain_now(),
        overload: node.proxy.overload(),
        config: node.loaded().source,
        reloads_taken: node.reloads.taken.load(Relaxed),
        reloads_refused: node.reloads.refused.load(Relaxed),
        kernel: node.kernel_counts(),
        namespaces: node.proxy.namespaces_status().unwrap_or_default(),
        failover: node.proxy.gates().map(|gates| gates.look()),
        foreign: node.proxy.foreign_totals(),
        spans: node.spans.as_ref().map_or_else(SpanCounts::default, |spans| SpanCounts {
            sent: spans.sent(),
            dropped: spans.dropped(),
            failed: spans.failed(),
        }),
        process: Process::read(),
    }
}

/// In the OpenMetrics format.
fn render(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
