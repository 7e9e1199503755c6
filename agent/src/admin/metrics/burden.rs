//! What the agent has to bear, and what it has left to do while it drains.

use std::fmt::Error;

use prometheus_client::metrics::MetricType;

use super::scrape::{Labels, Out, Scrape};
use crate::api::Remains;

impl Scrape {
    pub(super) fn burden(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let is_draining = u64::from(self.drain.is_some());
        out.gauge("moa_draining", "1 if the agent drains: it takes no calls of other agents", None, is_draining)?;
        let Remains { calls, redis, frames, services, agents } = self.drain.unwrap_or_default().remains;
        let help = "What is left of calls and connections while the agent drains; 0 while it does not";
        let left = [("calls", calls), ("redis", redis), ("frames", frames), ("services", services), ("agents", agents)];
        gauges(out, ("moa_drain_remains", help), "what", &left)?;
        let overload = &self.overload;
        let help =
            "Which calls are refused, as the agent has too much to bear: 0 none, 1 those of low priority, 2 of normal, 3 all";
        out.gauge("moa_overload_level", help, None, overload.level.into())?;
        let help = "How near the agent is to each limit of overload, in thousandths; 2000 is the hard bound";
        let all = [("calls", overload.calls_per_mille), ("memory", overload.memory_per_mille), ("lag", overload.lag_per_mille)];
        gauges(out, ("moa_overload_per_mille", help), "limit", &all.map(|(limit, value)| (limit, value.into())))?;
        out.counter("moa_overload_raised", "How often the agent began to have too much to bear", None, overload.raised)?;
        out.counter("moa_overload_refused", "Calls refused as the agent had too much to bear", None, overload.refused)
    }
}

/// A gauge for each value of a label.
fn gauges(
    out: &mut Out<'_>,
    (name, help): (&str, &str),
    label: &'static str,
    values: &[(&'static str, u64)],
) -> Result<(), Error> {
    let mut family = out.family(name, help, None, MetricType::Gauge)?;
    values.iter().try_for_each(|(of, value)| {
        let labels: Labels<'_, 1> = [(label, of)];
        family.encode_family(&labels)?.encode_gauge(value)
    })
}
