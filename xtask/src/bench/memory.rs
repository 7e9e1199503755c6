//! What a proxy's memory grows by for each connection that has made one call and is idle.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    bed::Bed,
    call::Connection,
    cpu::{self, Meter},
    rounds::{Sample, Target},
    rows::Metric,
};

const CONNECTIONS: usize = 5_000;

/// A proxy may free or allocate a while after the last call.
const SETTLE_DEADLINE: Duration = Duration::from_secs(3);
const SETTLE_STEP: Duration = Duration::from_millis(100);

/// Resident memory of a process and its descendants, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resident {
    rss: u64,
    pss: u64,
}

/// Opens the connections on a proxy that has served none but the first.
pub(super) fn sample(target: &Target, bed: &Bed) -> Result<Sample> {
    let proxy = *target.proxies.first().context("a direct call has no proxy whose memory could grow")?;
    let meter = Meter::start(bed.cpus, &target.proxies)?;
    let before = settled(proxy)?;
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for number in 1..=CONNECTIONS {
        let mut connection = Connection::open(target.port, &bed.call)?;
        connection.call().with_context(|| format!("connection {number} of {CONNECTIONS}"))?;
        connections.push(connection);
    }
    let after = settled(proxy)?;
    let per_connection = |after: u64, before: u64| (after as f64 - before as f64) / CONNECTIONS as f64;
    let values = vec![(Metric::Rss, per_connection(after.rss, before.rss)), (Metric::Pss, per_connection(after.pss, before.pss))];
    // Closing them belongs to the sample: the next subject should not have to share the CPU with it.
    drop(connections);
    Ok(Sample::new(values, meter.stop()?.foreign))
}

/// The memory once it is the same twice in a row.
fn settled(proxy: u32) -> Result<Resident> {
    let end = Instant::now() + SETTLE_DEADLINE;
    let mut last = resident(proxy)?;
    loop {
        thread::sleep(SETTLE_STEP);
        let now = resident(proxy)?;
        if now == last || Instant::now() > end {
            return Ok(now);
        }
        last = now;
    }
}

fn resident(root: u32) -> Result<Resident> {
    let mut sum = Resident { rss: 0, pss: 0 };
    for pid in cpu::tree(root) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        sum.rss += kib(&text, "Rss:")? * 1024;
        sum.pss += kib(&text, "Pss:")? * 1024;
    }
    Ok(sum)
}

fn kib(smaps: &str, key: &str) -> Result<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.with_context(|| format!("smaps_rollup has no {key}"))?.parse().with_context(|| format!("smaps_rollup, {key}"))
}
