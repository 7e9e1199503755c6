//! What a running agent tells and is told: the admin socket for operators, and metrics and health for machines.
//!
//! [`Node`] is the running agent as both see it. Both speak HTTP with bounds on everything ([`serve()`]): connections, time, bodies.

pub(crate) mod calls;
mod health;
mod metrics;
mod node;
mod reload;
mod routes;
mod serve;
mod socket;
mod trace;

pub use node::{Loaded, Node};
pub use reload::{Reloader, reloader};
pub use serve::{Server, serve};
pub use socket::{SocketError, bind, serve_admin};

use std::sync::Arc;

use axum::Router;

/// The routes of `metrics.listen`: `/metrics`, `/live` and `/ready`.
pub fn machine_routes(node: Arc<Node>) -> Router {
    metrics::routes(node.clone()).merge(health::routes(node)).fallback(routes::no_such_path)
}
