//! Spans as OTLP has them.
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions for RPC, which are stable since 1.45; what they have no name for
//! begins with `moa.`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Message, Status, span, status::StatusCode},
};

use super::{By, Event, Kind, Options, Span, Value};

/// What the names of attributes mean.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.45.0";
/// The flag of W3C that says that the trace is recorded.
const SAMPLED: u32 = 1;
/// How an error is called that has no code.
const OTHER: &str = "_OTHER";

/// A request with spans of one agent.
pub(super) fn request(resource: &Resource, scope: &InstrumentationScope, spans: &[Span]) -> ExportTraceServiceRequest {
    let spans = spans.iter().map(message).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope.clone()), spans, schema_url: SCHEMA.to_owned() }];
    let resource = Some(resource.clone());
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: SCHEMA.to_owned() }] }
}

/// Who tells.
pub(super) fn resource(options: &Options) -> Resource {
    let attributes = [
        ("service.name", "moa-agent"),
        ("service.instance.id", &options.instance),
        ("service.version", &options.version),
        ("moa.agent", &options.name),
        ("moa.zone", &options.zone),
        ("moa.data_centre", &options.data_centre),
    ];
    let given = attributes.into_iter().filter(|(_, value)| !value.is_empty());
    Resource { attributes: given.map(|(key, value)| text(key, value)).collect(), ..Resource::default() }
}

/// What made the spans.
pub(super) fn scope(options: &Options) -> InstrumentationScope {
    InstrumentationScope { name: "moa".to_owned(), version: options.version.clone(), ..InstrumentationScope::default() }
}

fn message(span: &Span) -> Message {
    let started = nanos(span.started);
    let took = u64::try_from(span.took.as_nanos()).unwrap_or(u64::MAX);
    Message {
        trace_id: span.context.trace_id.to_vec(),
        span_id: span.context.span_id.to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        flags: if span.context.sampled { SAMPLED } else { 0 },
        name: name(span),
        kind: match span.kind {
            Kind::Client => span::SpanKind::Client,
            Kind::Server => span::SpanKind::Server,
        }
        .into(),
        start_time_unix_nano: started,
        end_time_unix_nano: started.saturating_add(took),
        attributes: attributes(span),
        events: span.events.iter().map(event).collect(),
        status: failed(span).then(|| Status { message: span.error.clone(), code: StatusCode::Error.into() }),
        ..Message::default()
    }
}

/// The service and the method, as the conventions want it.
fn name(span: &Span) -> String {
    if span.method.is_empty() { span.service.to_string() } else { format!("{}/{}", span.service, span.method) }
}

fn failed(span: &Span) -> bool {
    span.code.is_some() || !span.error.is_empty()
}

fn attributes(span: &Span) -> Vec<KeyValue> {
    let mut all = vec![text("rpc.system.name", "moa"), text("moa.service", &span.service), text("moa.by", span.by.as_str())];
    if !span.method.is_empty() {
        all.push(text("rpc.method", &name(span)));
    }
    if span.by != By::Nobody {
        all.push(text("rpc.response.status_code", &span.code.unwrap_or(0).to_string()));
    }
    if failed(span) {
        all.push(text("error.type", &span.code.map_or_else(|| OTHER.to_owned(), |code| code.to_string())));
    }
    if let Some(group) = &span.group {
        all.push(text("moa.group", group));
    }
    if !span.application.is_empty() {
        all.push(text("moa.application", &span.application));
    }
    if let Some(instance) = &span.instance {
        server(instance, &mut all);
    }
    all.extend(span.attributes.iter().map(pair));
    all
}

/// An instance: `host:port`, `[::1]:port`, or the path of a unix socket.
fn server(instance: &str, all: &mut Vec<KeyValue>) {
    let parts = instance.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts else {
        all.push(text("server.address", instance));
        return;
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    all.push(text("server.address", inner.unwrap_or(host)));
    all.push(pair(&("server.port", Value::Number(port.into()))));
}

fn event(event: &Event) -> span::Event {
    span::Event {
        time_unix_nano: nanos(event.at),
        name: event.name.to_owned(),
        attributes: event.attributes.iter().map(pair).collect(),
        ..span::Event::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    any(key, any_value::Value::StringValue(value.to_owned()))
}

fn pair((key, value): &(&'static str, Value)) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(*number),
        Value::Flag(flag) => any_value::Value::BoolValue(*flag),
    };
    any(key, value)
}

fn any(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::span;

    fn shown(attributes: &[KeyValue]) -> Vec<String> {
        let value = |of: &KeyValue| match of.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(any_value::Value::StringValue(text)) => text.clone(),
            Some(any_value::Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        attributes.iter().map(|of| format!("{}={}", of.key, value(of))).collect()
    }

    #[test]
    fn a_call_has_the_names_of_the_conventions() {
        let message = message(&Span { attributes: vec![("moa.tries", 2u32.into())], ..span(1) });
        assert_eq!(message.name, "/service/user/get");
        assert_eq!((message.kind, message.flags, message.status), (span::SpanKind::Client.into(), 1, None));
        assert_eq!((message.start_time_unix_nano, message.end_time_unix_nano), (1_000_000_001, 1_002_000_001));
        assert_eq!((message.trace_id.len(), message.span_id.len(), message.parent_span_id.len()), (16, 8, 8));
        let expected = [
            "rpc.system.name=moa",
            "moa.service=/service/user",
            "moa.by=service",
            "rpc.method=/service/user/get",
            "rpc.response.status_code=0",
            "moa.group=two",
            "moa.application=web",
            "server.address=10.0.0.1",
            "server.port=5000",
            "moa.tries=2",
        ];
        assert_eq!(shown(&message.attributes), expected);
    }

    #[test]
    fn an_error_is_one_by_its_code_or_its_text() {
        let failing = Span { code: Some(304), by: By::Mesh, error: "no answer within 5 ms".into(), ..span(1) };
        let of_code = message(&failing);
        let status = of_code.status.expect("an error");
        assert_eq!((status.code, &*status.message), (StatusCode::Error.into(), "no answer within 5 ms"));
        let attributes = shown(&of_code.attributes);
        for expected in ["moa.by=mesh", "rpc.response.status_code=304", "error.type=304"] {
            assert!(attributes.iter().any(|one| one == expected), "{expected}: {attributes:?}");
        }
        let gone = Span { by: By::Nobody, error: "the caller went away".into(), method: String::new(), ..span(1) };
        let of_text = message(&gone);
        let attributes = shown(&of_text.attributes);
        assert!(attributes.iter().any(|one| one == "error.type=_OTHER"), "{attributes:?}");
        assert!(!attributes.iter().any(|one| one.starts_with("rpc.response") || one.starts_with("rpc.method")), "{attributes:?}");
        assert_eq!(of_text.name, "/service/user");
    }

    #[test]
    fn an_instance_is_an_address_and_a_port_or_a_path() {
        let of = |instance| {
            let mut all = Vec::new();
            server(instance, &mut all);
            shown(&all)
        };
        assert_eq!(of("host:80"), ["server.address=host", "server.port=80"]);
        assert_eq!(of("[fe80::1]:80"), ["server.address=fe80::1", "server.port=80"]);
        assert_eq!(of("/run/user.sock"), ["server.address=/run/user.sock"]);
    }

    #[test]
    fn the_resource_says_what_is_known() {
        let options = Options { zone: "z1".into(), data_centre: String::new(), ..crate::trace::tests::options("http://x:1") };
        let expected =
            ["service.name=moa-agent", "service.instance.id=test@host", "service.version=1.2.3", "moa.agent=test", "moa.zone=z1"];
        assert_eq!(shown(&resource(&options).attributes), expected);
    }
}
