//! What is told of single calls: spans for a collector, records for whoever looks on.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_common::frame::id;

use super::{
    account::{By, End},
    dispatch::Call,
    frames::Scope,
    govern::{Begun, Copied, Origin, Refused},
    routes::{Instance, ServiceRoute},
    service::Service,
    worker::Worker,
};
use crate::{
    rules::{Name, Says, environment, is_stress},
    trace::{self, Context, Event, Kind, Record, Span, SpanId},
};

/// What is remembered of a call that is told of when it ends.
#[derive(Debug)]
pub(crate) struct Followed {
    record: Record,
    started: SystemTime,
    /// Its span, if it has one.
    span: Option<(Context, Option<SpanId>, Kind)>,
    events: Vec<Event>,
}

impl Followed {
    /// It is sent again.
    pub(super) fn retried(&mut self, instance: Option<&Instance>, reason: &str) {
        self.record.retries += 1;
        self.record.tries += 1;
        self.events.push(Event::retry(SystemTime::now(), instance.map_or("", |instance| &instance.name), reason));
    }

    /// A second copy is sent.
    pub(super) fn hedged(&mut self, instance: Option<&Instance>) {
        self.record.hedged = true;
        self.record.tries += 1;
        self.events.push(Event::hedge(SystemTime::now(), instance.map_or("", |instance| &instance.name), "its answer is late"));
    }

    /// It has waited so long for a connection.
    pub(super) fn queued(&mut self, waited: Duration) {
        self.record.queued_us = micros(waited);
    }

    /// The `traceparent` that the instance gets.
    pub(super) fn traceparent(&self) -> Option<[u8; Context::TEXT_BYTES]> {
        self.span.as_ref().map(|(context, ..)| context.text())
    }
}

impl Worker {
    /// Whether anything may have to be told of calls of this service.
    pub(super) fn is_followed(&self, service: &Service) -> bool {
        self.spans().is_some() || service.route.watch.is_on()
    }

    /// Remembers what is to be told of a call that begins.
    pub(super) fn follow(&self, begun: &mut Begun, call: &impl Says, origin: &Origin<'_>, method: &[u8], rule: Option<&str>) {
        let span = self.spans().and_then(|_| self.span_of(call, origin));
        if span.is_none() && !begun.service.route.watch.is_on() {
            return;
        }
        let mut record = self.record_of(&begun.service.route, call, origin, method);
        record.rule = rule.map(Into::into);
        record.tries = 1;
        record.fault = begun.more.as_ref().and_then(|more| more.fault.as_ref()).map(|fault| fault.name.clone());
        if let Some((context, ..)) = &span {
            (record.trace_id, record.sampled) = (Some(context.trace()), true);
        }
        let followed = Followed { record, started: SystemTime::now(), span, events: Vec::new() };
        begun.more.get_or_insert_default().followed = Some(Box::new(followed));
    }

    /// Remembers what is to be told of a copy of a call.
    pub(super) fn follow_copy(
        &self,
        copied: &Copied,
        call: &impl Says,
        origin: &Origin<'_>,
        method: &[u8],
    ) -> Option<Box<Followed>> {
        let route = &copied.service.route;
        route.watch.is_on().then(|| {
            let record = Record { rule: Some(copied.name.clone()), tries: 1, ..self.record_of(route, call, origin, method) };
            Box::new(Followed { record, started: SystemTime::now(), span: None, events: Vec::new() })
        })
    }

    /// The span of a call: below the one that it comes with, if that one is recorded; or the first one of a trace.
    fn span_of(&self, call: &impl Says, origin: &Origin<'_>) -> Option<(Context, Option<SpanId>, Kind)> {
        let kind = match origin.scope {
            Scope::Mesh => Kind::Client,
            Scope::Node => Kind::Server,
            Scope::Worker => return None,
        };
        let parent = call.get(&Name::Entry(id::TRACEPARENT)).and_then(|text| Context::parse(&text));
        let sample = self.limits().sample_per_million;
        self.dice(|dice| match parent {
            Some(parent) => parent.sampled.then(|| (parent.child(dice), Some(parent.span_id), kind)),
            None => (kind == Kind::Client && origin.sampled.unwrap_or_else(|| Context::sample(sample, dice)))
                .then(|| (Context::root(true, dice), None, kind)),
        })
    }

    /// A call was refused, as nobody knows its service.
    pub(super) fn report_unknown(&self, service: &str, origin: &Origin<'_>, (code, reason): (u16, &str)) {
        if self.unknown.is_on() {
            self.unknown.offer(Record {
                unix_ms: unix_ms(SystemTime::now()),
                worker: self.id(),
                protocol: origin.protocol.into(),
                peer: origin.peer.to_string(),
                application: origin.application.to_owned(),
                service: service.into(),
                code: code.into(),
                by: trace::By::Mesh,
                reason: reason.to_owned(),
                ..Record::default()
            });
        }
    }

    fn record_of(&self, route: &ServiceRoute, call: &impl Says, origin: &Origin<'_>, method: &[u8]) -> Record {
        let text = |bytes: Cow<'_, [u8]>| String::from_utf8_lossy(&bytes).into_owned();
        let parent = call.get(&Name::Entry(id::TRACEPARENT)).and_then(|text| Context::parse(&text));
        Record {
            worker: self.id(),
            protocol: origin.protocol.into(),
            peer: origin.peer.to_string(),
            application: origin.application.to_owned(),
            service: route.uri.clone(),
            group: (!route.group.is_empty()).then(|| route.group.clone()),
            method: text(Cow::Borrowed(method)),
            environment: environment(call).map(text),
            stress: is_stress(call),
            trace_id: parent.map(|parent| parent.trace()),
            ..Record::default()
        }
    }

    /// A call was refused before it began.
    pub(super) fn report_refused(&self, service: &Service, call: &impl Says, origin: &Origin<'_>, refused: &Refused) {
        let (route, spans) = (&service.route, self.spans());
        let span = spans.and_then(|spans| Some((spans, self.span_of(call, origin)?)));
        if span.is_none() && !route.watch.is_on() {
            return;
        }
        let method = call.get(&Name::Method).unwrap_or_default();
        let record = self.record_of(route, call, origin, &method);
        let now = SystemTime::now();
        if let Some((spans, (context, parent, kind))) = span {
            let (code, error) = (Some(refused.code), refused.reason.clone());
            let base = Span::of(&record, (context, parent, kind), now);
            spans.offer(Span { code, error, by: trace::By::Mesh, ..base });
        }
        if route.watch.is_on() {
            let (code, reason) = (refused.code.into(), refused.reason.clone());
            route.watch.offer(Record { unix_ms: unix_ms(now), code, reason, by: trace::By::Mesh, ..record });
        }
    }

    /// A call has ended.
    pub(super) fn report(&self, call: &mut Call, took: Duration, end: &End<'_>) {
        let Some(followed) = call.more.as_mut().and_then(|more| more.followed.take()) else { return };
        let Followed { record, started, span, events } = *followed;
        let tried = self.now().saturating_duration_since(call.tried_at);
        let instance = call.place.instance().map(|instance| instance.name.clone());
        let by = match end.by {
            By::Service => trace::By::Service,
            By::Mesh => trace::By::Mesh,
            By::Nobody => trace::By::Nobody,
        };
        let route = &call.service.route;
        if let (Some((context, parent, kind)), Some(spans)) = (span, self.spans()) {
            let base = Span::of(&record, (context, parent, kind), started);
            let (instance, error) = (instance.clone(), end.text.to_owned());
            spans.offer(Span { service: route.uri.clone(), instance, took, code: end.code, by, error, events, ..base });
        }
        if route.watch.is_on() {
            route.watch.offer(Record {
                unix_ms: unix_ms(SystemTime::now()),
                try_us: if instance.is_some() { micros(tried) } else { 0 },
                tries: if instance.is_some() { record.tries } else { record.tries.saturating_sub(1) },
                instance,
                code: end.code.unwrap_or(0).into(),
                by,
                reason: end.text.to_owned(),
                duration_us: micros(took),
                request_bytes: call.bytes() as u64,
                response_bytes: end.bytes as u64,
                shadow: call.more.as_ref().is_some_and(|more| more.is_shadow()),
                ..record
            });
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the agents of one process tell to others, besides their counters.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// Whoever looks on.
    pub taps: Arc<trace::Taps>,
    /// Spans for a collector, if there is one.
    pub spans: Option<trace::Spans>,
}
