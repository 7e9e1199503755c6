//! Everything that is measured, at one moment, as metrics.
//!
//! Names end in their unit, as Prometheus has it. The codes of a call are those of MOA, `ok` for a success of either era and
//! `other` for what is none of MOA's codes.

use std::{collections::BTreeMap, fmt::Error};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{policy::SpanCounts, process::Process};
use crate::{
    api,
    kernel::{Counts, Pass, Refusal, Verdicts},
    proxy::{
        Routed, Unrouted,
        stats::{CallSums, Histogram, InstanceSnapshot, ServiceSnapshot, Snapshot},
    },
};

/// Buckets of the data plane that are one bucket of the metrics: four are a factor of two.
const BUCKETS_MERGED: usize = 4;

/// What is measured.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) calls: Snapshot,
    pub(super) app: api::AppStatus,
    pub(super) workers: usize,
    pub(super) drain: Option<api::Drain>,
    pub(super) overload: api::Overload,
    pub(super) config: api::ConfigSource,
    pub(super) reloads_taken: u64,
    pub(super) reloads_refused: u64,
    pub(super) kernel: Option<KernelCounts>,
    pub(super) namespaces: api::NamespacesStatus,
    /// None if connects are not diverted.
    pub(super) failover: Option<api::failover::Failover>,
    /// Connections of other agents' applications: taken, turned away.
    pub(super) foreign: (u64, u64),
    pub(super) spans: SpanCounts,
    pub(super) process: Process,
}

/// What the kernel programs counted.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::admin) struct KernelCounts {
    pub(in crate::admin) counts: Counts,
    pub(in crate::admin) verdicts: Verdicts,
    pub(in crate::admin) on: bool,
    /// What became of messages on lanes.
    pub(in crate::admin) routed: Routed,
}

/// Labels with texts that live long enough.
pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        self.agent(&mut out)?;
        self.connections(&mut out)?;
        self.calls(&mut out)?;
        self.methods(&mut out)?;
        self.instances(&mut out)?;
        self.balance(&mut out)?;
        self.policies(&mut out)?;
        self.tracing(&mut out)?;
        self.configuration(&mut out)?;
        self.kernel(&mut out)?;
        self.namespaces(&mut out)?;
        self.failover(&mut out)?;
        self.process.encode(&mut out)
    }
}

impl Scrape {
    fn agent(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let version: Labels<'_, 1> = [("version", env!("CARGO_PKG_VERSION"))];
        out.family("moa_build", "The version of the agent", None, MetricType::Info)?.encode_info(&version)?;
        out.gauge("moa_workers", "Worker threads", None, self.workers as u64)?;
        self.burden(out)
    }

    fn connections(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let app = &self.app;
        out.gauge("moa_app_connections", "Open connections of applications", None, app.connections)?;
        out.gauge("moa_app_connections_max", "The bound on connections of applications", None, app.connections_max)?;
        out.counter("moa_app_connections_accepted", "Connections of applications taken", None, app.accepted)?;
        out.counter("moa_app_connections_refused", "Connections of applications refused at the bound", None, app.refused)?;
        let help = "Connections of applications that ended, by reason";
        let mut closed = out.family("moa_app_connections_closed", help, None, MetricType::Counter)?;
        for (reason, count) in &self.calls.closed {
            let labels: Labels<'_, 1> = [("reason", reason)];
            encode_counter(&mut closed, &labels, *count)?;
        }
        let help = "Frames that were dropped, as their calls were not in flight";
        out.counter("moa_frames_dropped", help, None, self.calls.frames_dropped)?;
        out.gauge("moa_queued", "Requests and answers that wait in the agent", Some(&Unit::Bytes), app.queued_bytes)
    }

    fn calls(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let help = "Calls answered, by who answered and with which code; no instance: none was reached";
        let mut family = out.family("moa_calls", help, None, MetricType::Counter)?;
        for (service, instance, sums) in self.sums() {
            for ((by, code), count) in by_code(sums) {
                let labels: Labels<'_, 4> = [("service", service), ("instance", instance), ("by", by), ("code", &code)];
                encode_counter(&mut family, &labels, count)?;
            }
        }
        let help = "Calls that named no service of the configuration, by the code that they were answered with";
        let mut family = out.family("moa_unrouted_calls", help, None, MetricType::Counter)?;
        for (code, count) in &self.calls.unrouted {
            let code = name_of(*code);
            let labels: Labels<'_, 1> = [("code", &code)];
            encode_counter(&mut family, &labels, *count)?;
        }
        let help = "Time from a call to its answer";
        let mut family = out.family("moa_call_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (service, instance, sums) in self.sums() {
            let labels: Labels<'_, 2> = [("service", service), ("instance", instance)];
            let latency = &sums.latency;
            let encoder = &mut family.encode_family(&labels)?;
            encoder.encode_histogram::<NoLabelSet>(
                latency.sum.as_secs_f64(),
                latency.count(),
                &buckets(latency, BUCKETS_MERGED),
                None,
            )?;
        }
        Ok(())
    }

    fn instances(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let in_flight = "Calls that are being served";
        self.each_instance(out, ("moa_calls_in_flight", in_flight, MetricType::Gauge), |instance| instance.sums.in_flight)?;
        let queued = "Calls that wait for a connection to an instance";
        self.each_instance(out, ("moa_calls_queued", queued, MetricType::Gauge), |instance| instance.sums.queued)?;
        let open = "Open connections to an instance";
        self.each_instance(out, ("moa_instance_connections", open, MetricType::Gauge), |instance| instance.sums.connections)?;
        let retries = "Calls sent to another instance, as no byte of them had been written to this one";
        self.each_instance(out, ("moa_call_retries", retries, MetricType::Counter), |instance| instance.sums.retries)?;
        let healthy = "1 if an instance is healthy; it gets calls if it is not ejected besides";
        self.each_instance(out, ("moa_instance_healthy", healthy, MetricType::Gauge), |instance| u64::from(instance.healthy))
    }

    fn configuration(&self, out: &mut Out<'_>) -> Result<(), Error> {
        out.gauge("moa_config_generation", "Configurations since the start", None, self.config.generation)?;
        let help = "When the configuration in force was taken over";
        out.seconds("moa_config_loaded_timestamp", help, MetricType::Gauge, self.config.loaded_unix_ms as f64 / 1e3)?;
        let failed = u64::from(self.config.last_error.is_some());
        out.gauge("moa_config_last_reload_failed", "1 if the latest reload was refused", None, failed)?;
        let mut reloads = out.family("moa_config_reloads", "Reloads, by result", None, MetricType::Counter)?;
        for (result, count) in [("success", self.reloads_taken), ("failure", self.reloads_refused)] {
            let labels: Labels<'_, 1> = [("result", result)];
            encode_counter(&mut reloads, &labels, count)?;
        }
        Ok(())
    }

    fn kernel(&self, out: &mut Out<'_>) -> Result<(), Error> {
        out.gauge("moa_kernel_attached", "1 if the kernel programs are attached", None, u64::from(self.kernel.is_some()))?;
        let accepted = self.kernel.map_or(0, |kernel| kernel.counts.accepted());
        out.counter("moa_kernel_established", "Connections to the agent that the kernel programs saw", None, accepted)?;
        let KernelCounts { on, verdicts, .. } = self.kernel.unwrap_or_default();
        out.gauge("moa_kernel_on", "1 if new connections are taken onto the kernel path", None, u64::from(on))?;
        out.counter("moa_kernel_enrolled", "Sockets taken onto the kernel path", None, verdicts.enrolled)?;
        let paths = [("to_agent", verdicts.to_agent), ("from_agent", verdicts.from_agent), ("tcp", verdicts.passed)];
        let help = "Sent on sockets of the kernel path, by the way that it took";
        let bytes = paths.map(|(path, sent)| (path, sent.bytes));
        out.labelled("moa_kernel_sent", help, Some(&Unit::Bytes), "path", &bytes)?;
        let help = "What was given to the kernel at once on sockets of the kernel path, by the way that it took";
        out.labelled("moa_kernel_messages", help, None, "path", &paths.map(|(path, sent)| (path, sent.messages)))?;
        let fallbacks: Vec<_> = Pass::ALL.into_iter().map(Pass::name).zip(verdicts.passes).collect();
        out.labelled("moa_kernel_fallbacks", "Directions of connections that went over to TCP", None, "reason", &fallbacks)?;
        let refusals: Vec<_> = Refusal::ALL.into_iter().map(Refusal::name).zip(verdicts.refusals).collect();
        out.labelled("moa_kernel_refusals", "Connections not taken onto the kernel path", None, "reason", &refusals)?;
        let Routed { calls, answers, bytes, unrouted, .. } = self.kernel.unwrap_or_default().routed;
        out.counter("moa_kernel_routed_calls", "Calls that the kernel routed from application to application", None, calls)?;
        out.counter("moa_kernel_routed_answers", "Answers that it routed back", None, answers)?;
        out.counter("moa_kernel_routed", "Bytes of routed answers and of their calls", Some(&Unit::Bytes), bytes)?;
        let unrouted: Vec<_> = Unrouted::ALL.into_iter().map(Unrouted::name).zip(unrouted).collect();
        out.labelled("moa_kernel_unrouted", "Messages on lanes that went to the agent", None, "reason", &unrouted)
    }

    /// The calls of every instance, and of every service those that reached none.
    fn sums(&self) -> impl Iterator<Item = (&str, &str, &CallSums)> {
        self.calls.services.iter().flat_map(|ServiceSnapshot { uri, unsent, instances, .. }| {
            let reached = instances.iter().map(move |instance| (uri.as_str(), instance.address.as_str(), &instance.sums));
            reached.chain([(uri.as_str(), "", unsent)])
        })
    }

    pub(super) fn each_instance(
        &self,
        out: &mut Out<'_>,
        (name, help, kind): (&str, &str, MetricType),
        of: impl Fn(&InstanceSnapshot) -> u64,
    ) -> Result<(), Error> {
        let mut family = out.family(name, help, None, kind)?;
        for (service, instance) in
            self.calls.services.iter().flat_map(|service| service.instances.iter().map(move |one| (service, one)))
        {
            let labels: Labels<'_, 2> = [("service", &service.uri), ("instance", &instance.address)];
            match kind {
                MetricType::Counter => encode_counter(&mut family, &labels, of(instance))?,
                _ => family.encode_family(&labels)?.encode_gauge(&of(instance))?,
            }
        }
        Ok(())
    }
}

/// Where metrics are written.
pub(super) struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    pub(super) fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> Result<(), Error> {
        self.family(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> Result<(), Error> {
        self.family(name, help, unit, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// A counter for each value of a label.
    fn labelled(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &'static str,
        counts: &[(&'static str, u64)],
    ) -> Result<(), Error> {
        let mut family = self.family(name, help, unit, MetricType::Counter)?;
        counts.iter().try_for_each(|(value, count)| {
            let labels: Labels<'_, 1> = [(label, value)];
            encode_counter(&mut family, &labels, *count)
        })
    }

    /// A gauge or a counter of seconds.
    pub(super) fn seconds(&mut self, name: &str, help: &str, kind: MetricType, value: f64) -> Result<(), Error> {
        let mut family = self.family(name, help, Some(&Unit::Seconds), kind)?;
        match kind {
            MetricType::Counter => family.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => family.encode_gauge(&value),
        }
    }

    /// `name` is without its unit, which is written behind it.
    pub(super) fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, Error> {
        self.0.encode_descriptor(name, &format!("{help}."), unit, kind)
    }
}

pub(super) fn encode_counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> Result<(), Error> {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// The calls of an instance by who answered them and with which code.
fn by_code(sums: &CallSums) -> BTreeMap<(&'static str, String), u64> {
    let mut counts = BTreeMap::new();
    let mut errors = 0;
    for (by, codes) in [("mesh", &sums.mesh_errors), ("service", &sums.service_errors)] {
        for (code, count) in codes {
            errors += count;
            *counts.entry((by, name_of(*code))).or_default() += count;
        }
    }
    // The counters are read one after the other while calls go on.
    counts.insert(("service", "ok".to_owned()), sums.calls.saturating_sub(errors));
    counts
}

fn name_of(code: u16) -> String {
    if code == 0 { "other".to_owned() } else { code.to_string() }
}

/// Upper bounds in seconds with the calls in each, so many of the data plane's in one; the last one has everything above.
pub(super) fn buckets(latency: &Histogram, merged: usize) -> Vec<(f64, u64)> {
    let merged = latency.counts.chunks(merged).enumerate().map(|(n, counts)| {
        let last = n * merged + counts.len() - 1;
        let bound = if last + 1 == latency.counts.len() { f64::INFINITY } else { Histogram::upper_bound(last).as_secs_f64() };
        (bound, counts.iter().sum())
    });
    merged.collect()
}
