//! The paths of the admin socket.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRef, Query, State, rejection::QueryRejection},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use super::{Node, Reloader, calls, trace};
use crate::{api, config::effective, proxy::DrainError, trace::Taps};

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
        .route("/v1/services", get(services))
        .route("/v1/routes", get(policies))
        .route("/v1/routes/explain", get(explain))
        .route("/v1/conns", get(conns))
        .route("/v1/namespaces", get(async |State(admin): State<Admin>| Json(admin.node.proxy.namespaces())))
        .route("/v1/calls", get(calls::calls))
        .route("/v1/kernel", get(async |State(admin): State<Admin>| shown(admin.node.kernel())))
        .route("/v1/kernel/on", post(async |State(admin): State<Admin>| shown(admin.node.switch_kernel(true))))
        .route("/v1/kernel/off", post(async |State(admin): State<Admin>| shown(admin.node.switch_kernel(false))))
        .route("/v1/kernel/trace", get(trace::trace))
        .route("/v1/failover", get(async |State(admin): State<Admin>| shown(admin.node.failover(None).await)))
        .route("/v1/failover/on", post(async |State(admin): State<Admin>| shown(admin.node.failover(Some(true)).await)))
        .route("/v1/failover/off", post(async |State(admin): State<Admin>| shown(admin.node.failover(Some(false)).await)))
        .route("/v1/failover/send-home", post(async |State(admin): State<Admin>| shown(admin.node.send_home().await)))
        .route("/v1/drain", get(async |State(admin): State<Admin>| Json(admin.node.proxy.drain_status().await)).post(drain))
        .route("/v1/drain/cancel", post(async |State(admin): State<Admin>| drained(admin.node.proxy.cancel_drain().await)))
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesQuery {
    service: Option<String>,
    #[serde(default)]
    methods: bool,
}

async fn services(State(admin): State<Admin>, query: Result<Query<ServicesQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => found(admin.node.proxy.services(query.service.as_deref(), query.methods).await),
        Err(wrong) => {
            let text = format!("{}; the parameters are service=URI and methods=true", wrong.body_text());
            error(StatusCode::BAD_REQUEST, text)
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoliciesQuery {
    service: Option<String>,
}

async fn policies(State(admin): State<Admin>, query: Result<Query<PoliciesQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => found(admin.node.proxy.policies(query.service.as_deref())),
        Err(wrong) => error(StatusCode::BAD_REQUEST, format!("{}; the one parameter is service=URI", wrong.body_text())),
    }
}

async fn explain(State(admin): State<Admin>, query: Result<Query<Vec<(String, String)>>, QueryRejection>) -> Response {
    let asked = query.map_err(|wrong| wrong.body_text()).and_then(|Query(pairs)| Asked::of(pairs));
    match asked {
        Ok(Asked { uri, group, says }) => found(admin.node.proxy.explain((&uri, &group), says).await),
        Err(wrong) => {
            let text =
                format!("{wrong}; the parameters are uri=URI, group=NAME and meta=NAME=VALUE, the last as often as needed");
            error(StatusCode::BAD_REQUEST, text)
        }
    }
}

/// A call that is asked about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    uri: String,
    group: String,
    /// What it says of itself, by the names that rules use.
    says: Vec<(String, String)>,
}

impl Asked {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in pairs {
            match &*name {
                "uri" => asked.uri = value,
                "group" => asked.group = value,
                "meta" => {
                    let says = value.split_once('=').filter(|(name, _)| !name.is_empty());
                    let (name, value) = says.ok_or_else(|| format!("meta={value} is no NAME=VALUE"))?;
                    asked.says.push((name.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("unknown parameter {name}")),
            }
        }
        if let (true, Some((uri, group))) = (asked.group.is_empty(), asked.uri.split_once('#')) {
            (asked.uri, asked.group) = (uri.to_owned(), group.to_owned());
        }
        if asked.uri.is_empty() { Err("the service is missing".to_owned()) } else { Ok(asked) }
    }
}

fn found<T: Serialize>(found: Result<T, String>) -> Response {
    match found {
        Ok(found) => Json(found).into_response(),
        Err(why) => error(StatusCode::NOT_FOUND, why),
    }
}

fn shown<T: Serialize>(shown: Result<T, String>) -> Response {
    match shown {
        Ok(shown) => Json(shown).into_response(),
        Err(why) => error(StatusCode::CONFLICT, why),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainQuery {
    #[serde(default)]
    to_siblings: bool,
}

async fn drain(State(admin): State<Admin>, query: Result<Query<DrainQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => drained(admin.node.proxy.begin_drain(query.to_siblings).await),
        Err(wrong) => error(StatusCode::BAD_REQUEST, format!("{}; the one parameter is to_siblings=true", wrong.body_text())),
    }
}

fn drained(drain: Result<api::Drain, DrainError>) -> Response {
    match drain {
        Ok(drain) => Json(drain).into_response(),
        Err(why) => error(StatusCode::CONFLICT, why.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        Asked::of(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_call_that_is_asked_about_has_a_service_and_says_something() {
        let all = asked(&[("uri", "/s#two"), ("meta", "moa.env.pre="), ("meta", "a=b=c")]).expect("well-formed");
        let says = [("moa.env.pre", ""), ("a", "b=c")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(all, Asked { uri: "/s".into(), group: "two".into(), says: says.to_vec() });
        for (pairs, says) in [
            (&[("meta", "a=b")][..], "the service is missing"),
            (&[("uri", "/s"), ("meta", "a")], "meta=a is no NAME=VALUE"),
            (&[("uri", "/s"), ("meta", "=a")], "meta==a is no NAME=VALUE"),
            (&[("uri", "/s"), ("method", "m")], "unknown parameter method"),
        ] {
            assert_eq!(asked(pairs), Err(says.to_owned()), "{pairs:?}");
        }
    }
}
