//! `/live` and `/ready`, for whoever restarts agents and sends them applications.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use super::Node;

pub(super) fn routes(node: Arc<Node>) -> Router {
    Router::new().route("/live", get(live)).route("/ready", get(ready)).with_state(node)
}

/// Whether the agent should be left running: every worker answers.
async fn live(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    if node.proxy.alive().await {
        (StatusCode::OK, "live\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer: restart the agent\n")
    }
}

/// Whether applications should call this agent.
async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    if node.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}
