//! What traffic policies do, and the golden signals of methods.

use std::fmt::Error;

use prometheus_client::{encoding::NoLabelSet, metrics::MetricType, registry::Unit};

use super::scrape::{Labels, Out, Scrape, buckets, encode_counter};

/// Buckets of the data plane that are one bucket of a method's: eight are a factor of four. Methods are many.
const BUCKETS_MERGED: usize = 8;

/// What became of spans.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpanCounts {
    pub(super) sent: u64,
    pub(super) dropped: u64,
    pub(super) failed: u64,
}

impl Scrape {
    /// Calls, errors and latencies by method.
    pub(super) fn methods(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let all = || {
            let services = self.calls.services.iter();
            // The one that stands for all others is there from the beginning.
            services
                .flat_map(|service| service.methods.iter().map(move |method| (service, method)))
                .filter(|(_, method)| method.calls > 0)
        };
        let help = "Calls answered, by method, who answered and whether with an error; no method: all that are not counted by \
                    themselves, of which there are 64 a service";
        let mut family = out.family("moa_method_calls", help, None, MetricType::Counter)?;
        for (service, method) in all() {
            let ok = method.calls.saturating_sub(method.mesh_errors + method.service_errors);
            let counts =
                [("service", "ok", ok), ("service", "error", method.service_errors), ("mesh", "error", method.mesh_errors)];
            for (by, result, count) in counts {
                let labels: Labels<'_, 4> = [("service", &service.uri), ("method", &method.name), ("by", by), ("result", result)];
                encode_counter(&mut family, &labels, count)?;
            }
        }
        let help = "Time from a call to its answer, by method";
        let mut family = out.family("moa_method_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (service, method) in all() {
            let labels: Labels<'_, 2> = [("service", &service.uri), ("method", &method.name)];
            let (latency, encoder) = (&method.latency, &mut family.encode_family(&labels)?);
            let buckets = buckets(latency, BUCKETS_MERGED);
            encoder.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), latency.count(), &buckets, None)?;
        }
        Ok(())
    }

    /// What the policies of services did, and what is left of their bounds.
    pub(super) fn policies(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let help = "What the policy of a service did: calls sent again, second copies, calls refused and by what, and so on";
        let mut family = out.family("moa_policy_events", help, None, MetricType::Counter)?;
        for service in &self.calls.services {
            for (event, count) in &service.policy.counts {
                let labels: Labels<'_, 2> = [("service", &service.uri), ("event", event)];
                encode_counter(&mut family, &labels, *count)?;
            }
        }
        let help = "Retries that the budget has left, over all workers";
        let mut family = out.family("moa_retry_budget_left", help, None, MetricType::Gauge)?;
        for service in &self.calls.services {
            let labels: Labels<'_, 1> = [("service", &service.uri)];
            family.encode_family(&labels)?.encode_gauge(&service.policy.budget_left)?;
        }
        let help = "Calls that may be in flight now by concurrency.adaptive, over all workers; only where there is that limit";
        let mut family = out.family("moa_concurrency_limit", help, None, MetricType::Gauge)?;
        for service in self.calls.services.iter().filter(|service| service.policy.limit > 0) {
            let labels: Labels<'_, 1> = [("service", &service.uri)];
            family.encode_family(&labels)?.encode_gauge(&service.policy.limit)?;
        }
        Ok(())
    }

    /// How balancers and outlier detection see instances.
    pub(super) fn balance(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let help = "The configured share of an instance in the calls, in relation to those of others";
        self.each_instance(out, ("moa_instance_weight", help, MetricType::Gauge), |instance| u64::from(instance.weight))?;
        let help = "1 while an instance is out of traffic for what its calls showed";
        self.each_instance(out, ("moa_instance_ejected", help, MetricType::Gauge), |instance| u64::from(instance.ejected))?;
        let help = "How often an instance was taken out of traffic for what its calls showed";
        self.each_instance(out, ("moa_instance_ejections", help, MetricType::Counter), |instance| instance.ejections)?;
        let help = "What balancers take an instance's latency for, on average over the workers; 0 before anything was seen";
        let mut family = out.family("moa_instance_ewma", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for service in &self.calls.services {
            for instance in &service.instances {
                let labels: Labels<'_, 2> = [("service", &service.uri), ("instance", &instance.address)];
                family.encode_family(&labels)?.encode_gauge(&instance.sums.ewma_mean().as_secs_f64())?;
            }
        }
        Ok(())
    }

    /// What became of spans.
    pub(super) fn tracing(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let SpanCounts { sent, dropped, failed } = self.spans;
        out.counter("moa_spans_sent", "Spans that the collector took", None, sent)?;
        out.counter("moa_spans_dropped", "Spans that were dropped, as too many waited (tracing.queue_max)", None, dropped)?;
        out.counter("moa_spans_failed", "Spans that the collector refused, or could not be sent", None, failed)
    }
}
