//! `GET /v1/kernel/trace`: what the kernel decides about the messages of a service, a line of JSON each, until the reader hangs
//! up.

use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;

use super::{
    calls::lines,
    routes::{Admin, error},
    serve::Lasting,
};

/// Which service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceQuery {
    service: String,
}

/// Answers it.
pub(super) async fn trace(
    State(admin): State<Admin>,
    Extension(lasting): Extension<Lasting>,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(wrong) => {
            return error(StatusCode::BAD_REQUEST, format!("{}; the one parameter is service=URI", wrong.body_text()));
        }
    };
    match admin.node.trace(&query.service) {
        Ok(mut tracer) => {
            lasting.set();
            lines(move |task| tracer.poll_next(task))
        }
        Err(why) => error(StatusCode::CONFLICT, why),
    }
}
