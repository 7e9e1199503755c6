//! `GET /v1/calls`: calls as they end, a line of JSON each, until the reader hangs up.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
use serde::{Deserialize, Serialize};

use super::{routes::error, serve::Lasting};
use crate::trace::{Filter, Taps};

/// How many bytes of lines are written at a time, about.
const FRAME_BYTES: usize = 16 << 10;

/// Which calls.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallsQuery {
    service: Option<String>,
    #[serde(default)]
    errors: bool,
    slower_than_ms: Option<u64>,
}

/// Answers it.
pub(crate) async fn calls(
    State(taps): State<Arc<Taps>>,
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
    match taps.open(query.into()) {
        Ok(mut reader) => {
            lasting.set();
            lines(move |task| reader.poll_next(task))
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

/// An answer that goes on: lines of JSON, as they come.
pub(super) fn lines<T: Serialize>(next: impl FnMut(&mut Context<'_>) -> Poll<Option<T>> + Send + Unpin + 'static) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(next))).into_response()
}

fn push(line: &impl Serialize, text: &mut Vec<u8>) {
    // Plain structs always serialise.
    text.extend(serde_json::to_vec(line).unwrap_or_default());
    text.push(b'\n');
}

/// The lines, as a body. Dropped when the reader hangs up, which ends the looking on.
struct Lines<F>(F);

impl<T: Serialize, F: FnMut(&mut Context<'_>) -> Poll<Option<T>> + Unpin> hyper::body::Body for Lines<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut text = Vec::new();
        // As many as there are: each frame is written by a system call.
        loop {
            match (self.0)(task) {
                Poll::Ready(Some(line)) => push(&line, &mut text),
                Poll::Ready(None) if text.is_empty() => return Poll::Ready(None),
                Poll::Pending if text.is_empty() => return Poll::Pending,
                _ => break,
            }
            if text.len() >= FRAME_BYTES {
                break;
            }
        }
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}
