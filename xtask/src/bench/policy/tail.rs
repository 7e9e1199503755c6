//! Tail latency beside a slow instance.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::bed::{Instances, request};
use crate::{
    bench::{
        case::cpu_per_call,
        cpu::{Cpus, Meter},
        rounds::{Sample, Study, Target},
        rows::Metric,
        subject::Subject,
        workshop::Workshop,
    },
    load::Load,
};

/// Calls a second. The instances could take any number, and a proxy with one CPU some twenty times as many.
const RATE: f64 = 2_000.0;
/// Many times those that wait at once, so that a call is never late for want of a caller.
const CALLERS: usize = 64;

/// Ten instances, of which one may be slow.
pub(super) struct Tail {
    pub(super) name: String,
    pub(super) about: String,
    /// How much longer calls of the first instance take.
    pub(super) slower: Duration,
}

impl Study for Tail {
    type Bed<'a> = Instances<'a>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn about(&self) -> String {
        self.about.clone()
    }

    fn baseline(&self) -> Subject {
        Subject::EnvoyLeastRequest
    }

    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<Instances<'a>> {
        Instances::start(self.slower, workshop)
    }

    /// Calls for so long, after a tenth of it that does not count.
    fn sample(&self, _: Subject, target: &Target, _: &Instances<'_>, quick: bool) -> Result<Sample> {
        let time = Duration::from_millis(if quick { 900 } else { 4_000 });
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, target.port));
        let load = Load { connections: CALLERS, rate: Some(RATE), ..Load::new(to, vec![request()]) };
        let mut running = load.start_open()?;
        thread::sleep(time / 10);
        running.take()?;
        let meter = Meter::start(Cpus::All, &target.proxies)?;
        thread::sleep(time);
        let (report, used) = (running.take()?, meter.stop()?);
        let rest = running.stop()?;
        let error = report.last_error.or(rest.last_error).unwrap_or_default();
        ensure!(report.errors + rest.errors == 0, "calls failed: {error}");
        let us = |percent| report.latency_ns.value_at_percentile(percent) as f64 / 1e3;
        let mut values = vec![(Metric::P50, us(50.0)), (Metric::P99, us(99.0)), (Metric::P999, us(99.9))];
        if let Ok(slow_ns @ 1..) = u64::try_from(self.slower.as_nanos()) {
            let slow = report.latency_ns.count_between(slow_ns, report.latency_ns.max());
            values.push((Metric::SlowCalls, slow as f64 * 100.0 / report.latency_ns.len() as f64));
        }
        values.push((Metric::Throughput, report.latency_ns.len() as f64 / report.elapsed.as_secs_f64()));
        values.extend(cpu_per_call(target, used, report.latency_ns.len()));
        Ok(Sample::new(values, used.foreign))
    }
}
