//! Spans on their way to a collector that others wrote.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent::trace::{By, Context, Event, Exporter, Kind, Options, Span, Spans};
use moa_tests::{otlp::Collector, seed, until_true};
use serde_json::json;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

fn options(endpoint: String) -> Options {
    Options {
        endpoint,
        queue_max: 1_000,
        interval: Duration::from_millis(10),
        name: "blue".into(),
        instance: "blue@host".into(),
        version: "1.2.3".into(),
        zone: "z1".into(),
        data_centre: String::new(),
    }
}

fn span(context: Context) -> Span {
    Span {
        context,
        parent: None,
        kind: Kind::Server,
        service: "/service/demo".into(),
        group: None,
        method: "echo".into(),
        application: String::new(),
        instance: None,
        started: SystemTime::now(),
        took: Duration::from_micros(1_234),
        code: None,
        by: By::Service,
        error: String::new(),
        events: Vec::new(),
        attributes: Vec::new(),
    }
}

/// A thread like the agent's that runs what is not the data plane.
struct Control {
    handle: Handle,
    /// Ends the thread when dropped.
    _until: oneshot::Sender<()>,
}

impl Control {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (until, dropped) = oneshot::channel::<()>();
        thread::spawn(move || drop(runtime.block_on(dropped)));
        Self { handle, _until: until }
    }

    fn export_to(&self, collector: &Collector) -> (Spans, Exporter) {
        let _context = self.handle.enter();
        Exporter::start(&options(collector.endpoint())).expect("the endpoint of a collector")
    }

    fn stop(&self, exporter: Exporter) {
        self.handle.block_on(exporter.stop());
    }
}

#[test]
fn a_collector_reads_what_was_said() {
    let (control, collector, mut dice) = (Control::start(), Collector::start(), seed::fixed(1));
    let (spans, exporter) = control.export_to(&collector);
    let root = Context::root(true, &mut dice);
    let child = root.child(&mut dice);
    let started = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    spans.offer(span(root));
    spans.offer(Span {
        parent: Some(root.span_id),
        kind: Kind::Client,
        group: Some("two".into()),
        application: "wéb".into(),
        instance: Some("[::1]:5000".into()),
        started,
        code: Some(304),
        by: By::Mesh,
        error: "no answer within 5 ms".into(),
        events: vec![Event::hedge(started, "10.0.0.2:5000", "late")],
        attributes: vec![("moa.tries", (-1i64).into()), ("moa.shadow", true.into())],
        ..span(child)
    });
    let seen = collector.await_trace(&root.trace(), 2);
    let (client, server) = (&seen[0], &seen[1]);
    assert_eq!((server.kind.as_str(), &server.parent, server.failed, server.flags), ("server", &None, false, 1));
    assert_eq!(server.end_ns - server.start_ns, 1_234_000);
    assert_eq!((client.kind.as_str(), client.parent.as_ref()), ("client", Some(&server.span_id)));
    assert_eq!(
        (client.start_ns, client.failed, client.error.as_str()),
        (1_700_000_000_123_456_789, true, "no answer within 5 ms")
    );
    let attributes = json!({
        "rpc.system.name": "moa",
        "rpc.method": "/service/demo/echo",
        "rpc.response.status_code": "304",
        "error.type": "304",
        "server.address": "::1",
        "server.port": 5000,
        "moa.service": "/service/demo",
        "moa.group": "two",
        "moa.application": "wéb",
        "moa.by": "mesh",
        "moa.tries": -1,
        "moa.shadow": true,
    });
    assert_eq!(json!(client.attributes), attributes);
    let event = json!({"moa.instance": "10.0.0.2:5000", "moa.reason": "late"});
    assert_eq!((client.events.len(), client.events[0].name.as_str()), (1, "hedge"));
    assert_eq!((client.events[0].at_ns, json!(client.events[0].attributes)), (client.start_ns, event));
    let resource = json!({
        "service.name": "moa-agent",
        "service.instance.id": "blue@host",
        "service.version": "1.2.3",
        "moa.agent": "blue",
        "moa.zone": "z1",
    });
    assert_eq!((json!(client.resource), client.scope.as_str()), (resource, "moa 1.2.3"));
    control.stop(exporter);
    assert_eq!((spans.sent(), spans.dropped(), spans.failed()), (2, 0, 0));
}

#[test]
fn a_collector_that_was_away_gets_what_waited() {
    let (control, mut collector, mut dice) = (Control::start(), Collector::start(), seed::fixed(2));
    let (spans, exporter) = control.export_to(&collector);
    collector.answer(503);
    (0..100).for_each(|_| spans.offer(span(Context::root(true, &mut dice))));
    until_true("it to be tried twice", || collector.refused() >= 2);
    let port = collector.port();
    drop(collector);
    (0..100).for_each(|_| spans.offer(span(Context::root(true, &mut dice))));
    let collector = Collector::start_at(port);
    let seen = collector.await_spans(200);
    let mut ids: Vec<_> = seen.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((seen.len(), ids.len()), (200, 200));
    control.stop(exporter);
    assert_eq!((spans.sent(), spans.dropped(), spans.failed()), (200, 0, 0));
}

#[test]
fn a_collector_that_is_away_costs_spans_and_no_time() {
    let (control, mut collector, mut dice) = (Control::start(), Collector::start(), seed::fixed(3));
    collector.answer(503);
    let (spans, exporter) = control.export_to(&collector);
    let context = Context::root(true, &mut dice);
    (0..5_000).for_each(|_| spans.offer(span(context.child(&mut dice))));
    assert!(spans.dropped() >= 5_000 - 1_512, "{}", spans.dropped());
    control.stop(exporter);
    assert_eq!(spans.sent() + spans.dropped() + spans.failed(), 5_000);
    assert_eq!((spans.sent(), collector.spans().len()), (0, 0));
}
