//! The paths of the admin socket.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRef, Query, State, rejection::QueryRejection},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;

use super::{Node, Reloader, calls};
use crate::{api, config::effective, trace::Taps};

/// Connections that are listed unless the caller says how many.
const CONNS_DEFAULT: usize = 1000;

/// What the handlers know.
#[derive(Clone)]
pub(super) struct Admin {
    pub(super) node: Arc<Node>,
    pub(super) reloader: Reloader,
}

impl FromRef<Admin> for Arc<Taps> {
    fn from_ref(admin: &Admin) -> Self {
        admin.node.taps.clone()
    }
}

pub(super) fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(admin): State<Admin>| Json(admin.node.status())))
        .route("/v1/services", get(async |State(admin): State<Admin>| Json(admin.node.proxy.services())))
        .route("/v1/conns", get(conns))
        .route("/v1/calls", get(calls::calls))
        .route("/v1/kernel", get(async |State(admin): State<Admin>| kernel(admin.node.kernel())))
        .route("/v1/kernel/on", post(async |State(admin): State<Admin>| kernel(admin.node.switch_kernel(true))))
        .route("/v1/kernel/off", post(async |State(admin): State<Admin>| kernel(admin.node.switch_kernel(false))))
        .route("/v1/config", get(config))
        .route("/v1/config/reload", post(reload))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(admin)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnsQuery {
    limit: Option<usize>,
}

async fn conns(State(admin): State<Admin>, query: Result<Query<ConnsQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => Json(admin.node.proxy.conns(query.limit.unwrap_or(CONNS_DEFAULT)).await).into_response(),
        Err(wrong) => error(StatusCode::BAD_REQUEST, format!("{}; the one parameter is limit=NUMBER", wrong.body_text())),
    }
}

fn kernel(kernel: Result<api::Kernel, String>) -> Response {
    match kernel {
        Ok(kernel) => Json(kernel).into_response(),
        Err(why) => error(StatusCode::CONFLICT, why),
    }
}

async fn config(State(admin): State<Admin>) -> Json<api::EffectiveConfig> {
    let loaded = admin.node.loaded();
    Json(api::EffectiveConfig { keys: effective(&loaded.checked), source: loaded.source })
}

async fn reload(State(admin): State<Admin>) -> Response {
    match admin.reloader.reload().await {
        Ok(source) => Json(source).into_response(),
        Err(refused) => error(StatusCode::UNPROCESSABLE_ENTITY, format!("refused, and what was in force stays:\n{refused}")),
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Response {
    error(StatusCode::NOT_FOUND, format!("there is no {}; is this moa of another version than the agent?", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

pub(super) fn error(status: StatusCode, error: String) -> Response {
    (status, Json(api::Error { error })).into_response()
}
