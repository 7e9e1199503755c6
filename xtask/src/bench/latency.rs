//! How long a call takes: one connection, one call in flight.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    bed::Bed,
    cpu::{Meter, Used},
    rounds::Target,
};
use crate::load::Load;

/// What was found.
pub(super) struct Latency {
    /// The median.
    pub(super) p50_us: f64,
    /// The 99th percentile.
    pub(super) p99_us: f64,
    /// How many calls it was.
    pub(super) calls: u64,
    /// The same, with those that do not count.
    pub(super) calls_in_all: u64,
    /// The CPU time that they took.
    pub(super) used: Used,
}

impl Latency {
    /// Calls for so long, after a tenth of it that does not count. The client is on the bed's CPU, if that is one.
    pub(super) fn measure(target: &Target, bed: &Bed, time: Duration) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target.port));
        let cpu = bed.cpus.one();
        let mut load = Load { cpu, ..Load::new(address, vec![bed.call.request()]) }.start()?;
        thread::sleep(time / 10);
        let before = load.take()?.answered();
        let meter = Meter::start(bed.cpus, &target.proxies)?;
        thread::sleep(time);
        let (report, used) = (load.take()?, meter.stop()?);
        let calls_in_all = before + report.answered() + load.stop()?.answered();
        let error = report.last_error.as_deref().unwrap_or_default();
        ensure!(report.errors == 0 && report.answered() > 0, "{} calls failed: {error}", report.errors);
        let us = |percent| report.percentile_ns(percent) as f64 / 1e3;
        Ok(Self { p50_us: us(50.0), p99_us: us(99.0), calls: report.answered(), calls_in_all, used })
    }
}
