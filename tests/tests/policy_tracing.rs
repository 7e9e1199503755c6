//! Spans of calls, as a collector that others wrote has them; and what callees are told of traces.

use agent_common::frame::id;
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa,
    config::{self, NO_HEALTH_CHECK},
    fleet::{Caller, Server, json_of, metric, named, section, values},
    machine::{free_address, release_address},
    otlp::{Collector, Span},
    until_true,
};

const PARENT: &str = "00f067aa0ba902b7";

fn tracing(endpoint: &str, sample: u32) -> String {
    format!("[agent]\nworkers = 1\n[tracing]\nendpoint = \"{endpoint}\"\ninterval_ms = 10\nsample_per_million = {sample}\n")
}

/// A traceparent of a trace of its own.
fn traceparent(trace: u32, sampled: bool) -> (String, String) {
    let id = format!("{:032x}", 0x4bf9_2f35_77b3_4da6_0000_0000_0000_0000_u128 + u128::from(trace) + 1);
    (format!("00-{id}-{PARENT}-0{}", u8::from(sampled)), id)
}

fn near(far: &Agent, head: &str, policy: &str) -> Agent {
    let peer = config::peer("far", far.tunnel_address());
    let near = Agent::start(&format!("{head}{peer}{}", section(DEMO, &[], &format!("agents = [\"far\"]\n{policy}"))));
    let mut caller = near.connect();
    until_true("the other agent to be reached", || {
        caller.call(&json_of(DEMO, "warm", &[("traceparent", &traceparent(999, false).0)]))["ec"] == 0
    });
    near
}

fn of_kind<'a>(spans: &'a [Span], kind: &str) -> &'a Span {
    spans.iter().find(|span| span.kind == kind).unwrap_or_else(|| panic!("no span of kind {kind} in {spans:?}"))
}

#[test]
fn a_call_has_a_span_on_each_side_and_the_callee_is_told_of_the_last_one() {
    let collector = Collector::start();
    let head = tracing(&collector.endpoint(), 0);
    let far = Agent::start(&format!("{head}{}", config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let near = near(&far, &head, "");
    for (nth, mut caller) in (0..).zip(Caller::both_as(&near, "web")) {
        let (text, trace) = traceparent(nth, true);
        let before = server.calls().len();
        caller.call(DEMO, "get", &[("traceparent", &text), ("tracestate", "a=1,b=2"), ("baggage", "k=v")]).by();
        let spans = collector.await_trace(&trace, 2);
        let (client, callee) = (of_kind(&spans, "client"), of_kind(&spans, "server"));
        assert_eq!(client.parent.as_deref(), Some(PARENT));
        assert_eq!(callee.parent.as_deref(), Some(&*client.span_id));
        assert!(!client.failed && !callee.failed);
        let call = &server.await_calls(before + 1)[before];
        assert_eq!(values(call, id::TRACEPARENT), [format!("00-{trace}-{}-01", callee.span_id)], "{}", caller.kind());
        if caller.kind() == "frames" {
            assert_eq!((values(call, id::TRACESTATE), values(call, id::BAGGAGE)), (vec!["a=1,b=2".into()], vec!["k=v".into()]));
        } else {
            assert_eq!(
                call.body,
                json_of(DEMO, "get", &[("traceparent", &text), ("tracestate", "a=1,b=2"), ("baggage", "k=v")]).as_bytes()
            );
        }
        assert_eq!(collector.spans().iter().filter(|span| span.trace_id == trace).count(), 2);
    }
}

#[test]
fn what_is_not_sampled_or_makes_no_sense_has_no_span_and_is_carried_on() {
    let collector = Collector::start();
    let head = tracing(&collector.endpoint(), 0);
    let far = Agent::start(&format!("{head}{}", config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let near = near(&far, &head, "");
    let unsampled = traceparent(20, false).0;
    for mut caller in Caller::both(&near) {
        for text in [&*unsampled, "nonsense"] {
            let before = server.calls().len();
            caller.call(DEMO, "get", &[("traceparent", text)]).by();
            assert_eq!(values(&server.await_calls(before + 1)[before], id::TRACEPARENT), [text], "{}", caller.kind());
        }
    }
    // Spans of later calls come after those that the former would have had.
    let (text, trace) = traceparent(21, true);
    Caller::redis(&near, "").call(DEMO, "get", &[("traceparent", &text)]).by();
    collector.await_trace(&trace, 2);
    assert!(collector.spans().iter().all(|span| span.trace_id == trace), "{:?}", collector.spans());
}

#[test]
fn traces_begin_at_the_first_agent() {
    let collector = Collector::start();
    let far =
        Agent::start(&format!("{}{}", tracing(&collector.endpoint(), 1_000_000), config::service(DEMO, &[], NO_HEALTH_CHECK)));
    let server = Server::start(&far, "server", &[DEMO]);
    let near = near(&far, &tracing(&collector.endpoint(), 1_000_000), "");
    for mut caller in Caller::both(&near) {
        let before = server.calls().len();
        caller.call(DEMO, "get", &[]).by();
        let told = values(&server.await_calls(before + 1)[before], id::TRACEPARENT);
        let trace = told.first().and_then(|text| text.get(3..35)).expect("a traceparent").to_owned();
        let spans = collector.await_trace(&trace, 2);
        assert_eq!(of_kind(&spans, "client").parent, None);
        assert_eq!(of_kind(&spans, "server").parent.as_deref(), Some(&*of_kind(&spans, "client").span_id));
    }
}

#[test]
fn errors_and_retries_are_in_the_span() {
    let collector = Collector::start();
    let fake = FakeMoa::start();
    let policy =
        "retry.tries_max = 3\nretry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [321]\nretry.backoff_ms = 1";
    let agent = Agent::start(&format!("{}{}", tracing(&collector.endpoint(), 0), section(DEMO, &[(&fake, "")], policy)));
    for (nth, mut caller) in (40..).step_by(2).zip(Caller::both(&agent)) {
        fake.script(|_| Answer::envelope(321, "again", "null"));
        let (text, trace) = traceparent(nth, true);
        assert_eq!(caller.call(DEMO, "get", &[("traceparent", &text)]).code, 321);
        let span = &collector.await_trace(&trace, 1)[0];
        assert!(span.failed, "{span:?}");
        assert!(span.attributes.values().any(|value| *value == 321 || *value == "321"), "{span:?}");
        assert_eq!(span.events.iter().filter(|event| event.name.contains("retry")).count(), 2, "{span:?}");
        let (text, trace) = traceparent(nth + 1, true);
        fake.script(|_| Answer::ok(&"fake".into()));
        caller.call(DEMO, "get", &[("traceparent", &text)]).by();
        let span = &collector.await_trace(&trace, 1)[0];
        assert!(!span.failed && span.events.is_empty(), "{span:?}");
    }
}

#[test]
fn what_is_refused_or_given_up_has_a_span_that_says_so() {
    let collector = Collector::start();
    let fake = FakeMoa::start();
    let gate = moa_tests::Gate::closed();
    let held = gate.clone();
    fake.script(move |_| Answer::ok(&"fake".into()).at(&held));
    let policy = r#"access.rules = [{ name = "no-guests", when = { application = "guest" }, verdict = "deny" }]"#;
    let agent = Agent::start(&format!("{}{}", tracing(&collector.endpoint(), 0), section(DEMO, &[(&fake, "")], policy)));
    for (nth, mut caller) in (60..).zip(Caller::both_as(&agent, "guest")) {
        let (text, trace) = traceparent(nth, true);
        caller.call(DEMO, "get", &[("traceparent", &text)]).error(506);
        let span = &collector.await_trace(&trace, 1)[0];
        assert!(span.failed, "{span:?}");
        assert!(span.attributes.values().any(|value| *value == 506 || *value == "506"), "{span:?}");
    }
    let (text, trace) = traceparent(70, true);
    let Caller::Frames(mut peer) = Caller::frames(&agent, "web") else { unreachable!() };
    let stream = moa_tests::fleet::begin(&mut peer, DEMO, "get", &[("traceparent", &text)]);
    fake.await_in_flight(1);
    peer.cancel(DEMO, stream);
    let span = &collector.await_trace(&trace, 1)[0];
    assert_eq!(span.kind, "client");
    gate.open();
}

#[test]
fn a_second_copy_is_an_event_and_knows_the_agents_span() {
    let collector = Collector::start();
    let policy = format!("hedge.after_ms = 5\nhedge.budget_percent = 100\nretry.methods = [\"get\"]\n{NO_HEALTH_CHECK}");
    let agent = Agent::start(&format!("{}{}", tracing(&collector.endpoint(), 0), config::service(DEMO, &[], &policy)));
    let servers = ["a", "b"].map(|name| Server::start(&agent, name, &[DEMO]));
    servers[0].silent();
    let mut caller = Caller::frames(&agent, "");
    let mut nth = 60;
    loop {
        let (text, trace) = traceparent(nth, true);
        nth += 1;
        assert!(nth < 400, "no call was hedged");
        caller.call(DEMO, "get", &[("traceparent", &text)]).by();
        let span = collector.await_trace(&trace, 1).remove(0);
        let told: Vec<_> = servers.iter().flat_map(Server::calls).flat_map(|call| values(&call, id::TRACEPARENT)).collect();
        let told: Vec<_> = told.into_iter().filter(|text| text.contains(&trace)).collect();
        assert!(told.iter().all(|text| text.contains(&span.span_id)), "{told:?} {span:?}");
        if span.events.iter().any(|event| event.name.contains("hedge")) {
            assert_eq!(told.len(), 2, "{told:?}");
            return;
        }
    }
}

#[test]
fn without_a_collector_calls_go_on_and_what_is_lost_is_counted() {
    let nobody = free_address();
    let fake = named("fake");
    let head = format!("{}queue_max = 10\n", tracing(&format!("http://{nobody}"), 1_000_000));
    let agent = Agent::start(&format!("{head}{}", section(DEMO, &[(&fake, "")], "")));
    for mut caller in Caller::both(&agent) {
        caller.tally(500, DEMO, "get", &[]);
    }
    until_true("spans to be dropped", || metric(&agent, "moa_spans_dropped_total") > 0);
    assert_eq!(metric(&agent, "moa_spans_sent_total"), 0);
    release_address(nobody);
}
