//! `GET /v1/calls`: calls as they end, a line of JSON each, until the reader hangs up.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Frame;
use serde::Deserialize;

use super::{
    routes::{Admin, error},
    serve::Lasting,
};
use crate::trace::{Filter, TapReader};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallsQuery {
    service: Option<String>,
    #[serde(default)]
    errors: bool,
    slower_than_ms: Option<u64>,
}

pub(super) async fn calls(
    State(admin): State<Admin>,
    Extension(lasting): Extension<Lasting>,
    query: Result<Query<CallsQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(wrong) => {
            let text = "the parameters are service=URI, errors=true and slower_than_ms=NUMBER";
            return error(StatusCode::BAD_REQUEST, format!("{}; {text}", wrong.body_text()));
        }
    };
    match admin.node.taps.open(query.into()) {
        Ok(reader) => {
            lasting.set();
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(reader))).into_response()
        }
        Err(wrong) => error(StatusCode::CONFLICT, wrong.to_string()),
    }
}

impl From<CallsQuery> for Filter {
    fn from(query: CallsQuery) -> Self {
        let slower_than = query.slower_than_ms.map(Duration::from_millis);
        Self { service: query.service, errors: query.errors, slower_than }
    }
}

/// The lines, as a body. Dropped when the reader hangs up, which ends the looking on.
struct Lines(TapReader);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(line) = ready!(self.0.poll_next(task)) else { return Poll::Ready(None) };
        // Plain structs always serialise.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}
