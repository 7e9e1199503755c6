//! `/live` and `/ready`, for whoever restarts agents and sends them applications.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use super::Node;
use crate::api;

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

/// Whether applications, and other agents, should call this agent.
async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    let api::Overload { level, reason, .. } = node.proxy.overload();
    if node.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
    } else if level > 0 {
        (StatusCode::SERVICE_UNAVAILABLE, format!("overloaded: {}\n", reason.unwrap_or_default()))
    } else {
        (StatusCode::OK, "ready\n".to_owned())
    }
}
