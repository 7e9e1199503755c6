//! Failover in numbers: this agent's applications, and those of others.

use std::fmt::Error;

use prometheus_client::metrics::MetricType;

use super::scrape::{Labels, Out, Scrape, encode_counter};
use crate::api::failover::Sibling;

impl Scrape {
    pub(super) fn failover(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let (accepted, refused) = self.foreign;
        out.counter("moa_failover_foreign_accepted", "Connections of other agents' applications taken", None, accepted)?;
        let help = "Connections turned away, as their addresses belong to no application";
        out.counter("moa_failover_foreign_refused", help, None, refused)?;
        let Some(failover) = &self.failover else { return Ok(()) };
        out.gauge("moa_failover_on", "Whether connects are diverted at all", None, u64::from(failover.on))?;
        out.gauge("moa_failover_gates", "Addresses where applications connect", None, failover.gates.len() as u64)?;
        let help = "Connects of applications, by what was decided about them";
        let mut family = out.family("moa_failover_connects", help, None, MetricType::Counter)?;
        for (decision, count) in &failover.decisions {
            let labels: Labels<'_, 1> = [("decision", decision)];
            encode_counter(&mut family, &labels, *count)?;
        }
        let help = "Whether a sibling is believed to take applications";
        let mut family = out.family("moa_failover_sibling_alive", help, None, MetricType::Gauge)?;
        for sibling in &failover.siblings {
            let labels: Labels<'_, 1> = [("sibling", &sibling.name)];
            family.encode_family(&labels)?.encode_gauge(&u64::from(sibling.alive))?;
        }
        let diverted = ("moa_failover_sibling_diverted", "Connects that were sent to a sibling");
        by_sibling(out, &failover.siblings, diverted, |sibling| sibling.diverted_total)?;
        let failed = ("moa_failover_sibling_failed", "Connects that were sent to a sibling and failed");
        by_sibling(out, &failover.siblings, failed, |sibling| sibling.failed_total)
    }
}

/// A counter for each sibling.
fn by_sibling(
    out: &mut Out<'_>,
    siblings: &[Sibling],
    (name, help): (&str, &str),
    count: impl Fn(&Sibling) -> u64,
) -> Result<(), Error> {
    let mut family = out.family(name, help, None, MetricType::Counter)?;
    siblings.iter().try_for_each(|sibling| {
        let labels: Labels<'_, 1> = [("sibling", &sibling.name)];
        encode_counter(&mut family, &labels, count(sibling))
    })
}
