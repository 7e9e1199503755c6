//! The cases: what is done, how often, and what is measured.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::{
    bed::Bed,
    cpu::{Meter, Used},
    memory,
    redis_benchmark::RedisBenchmark,
    rows::Metric,
    subject::Subject,
};
use crate::load::Load;

/// A case, under the name that reports have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Case {
    /// 1 connection; client, proxy and server on one CPU
    #[value(name = "p50_1conn_1cpu")]
    OneCpu,
    /// 50 connections, answers of 64 B
    #[value(name = "tput_50conn_64B")]
    Small,
    /// 50 connections, answers of 64 B, 16 calls sent at once
    #[value(name = "tput_50conn_p16")]
    Pipeline,
    /// 50 connections, answers of 16 KiB
    #[value(name = "tput_50conn_16KiB")]
    Large,
    /// 5,000 connections that idle after one call each
    #[value(name = "memory_idle")]
    Memory,
}

/// Where a sample is taken.
pub(super) struct Target {
    /// What takes the calls.
    pub(super) port: u16,
    /// The proxy's process; none for a direct call.
    pub(super) proxy: Option<u32>,
}

/// One subject's share of a round.
pub(super) struct Sample {
    /// What was found.
    pub(super) values: Vec<(Metric, f64)>,
    /// The share of CPU that went to strangers meanwhile.
    pub(super) foreign: f64,
}

impl Case {
    /// The name in reports, and on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What is done, in words.
    pub(super) fn about(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Bytes of an answer.
    pub(super) fn answer_bytes(self) -> usize {
        if self == Self::Large { 16 << 10 } else { 64 }
    }

    /// The threads that each proxy gets, as far as it can have several: one a CPU.
    pub(super) fn workers(self, cpus: usize) -> usize {
        if self == Self::OneCpu { 1 } else { cpus }
    }

    /// Samples of each subject. Memory is the same every time, so it needs few.
    pub(super) fn rounds(self, wanted: Option<usize>, quick: bool) -> usize {
        let default = match self {
            Self::Memory => (3, 1),
            _ => (5, 3),
        };
        wanted.unwrap_or(if quick { default.1 } else { default.0 })
    }

    /// Whether others that use the CPUs change what is measured.
    pub(super) fn minds_strangers(self) -> bool {
        self != Self::Memory
    }

    /// Whether every sample needs a process that has served nobody yet.
    pub(super) fn wants_fresh_processes(self) -> bool {
        self == Self::Memory
    }

    /// Whether it says anything about a subject.
    pub(super) fn applies_to(self, subject: Subject) -> bool {
        self != Self::Memory || subject != Subject::Direct
    }

    /// Measures once.
    pub(super) fn sample(self, target: &Target, bed: &Bed, quick: bool) -> Result<Sample> {
        let share = if quick { 5 } else { 1 };
        let bench = |pipeline, calls| RedisBenchmark { connections: 50, pipeline, calls: calls / share };
        match self {
            Self::OneCpu => latency(target, bed, Duration::from_millis(1_500 / share)),
            Self::Small => throughput(target, bed, &bench(1, 100_000)),
            Self::Pipeline => throughput(target, bed, &bench(16, 800_000)),
            Self::Large => throughput(target, bed, &bench(1, 60_000)),
            Self::Memory => memory::sample(target, bed),
        }
    }
}

/// The client is on the same CPU as all else.
fn latency(target: &Target, bed: &Bed, time: Duration) -> Result<Sample> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target.port));
    let cpu = bed.cpus.one();
    let mut load = Load { cpu, ..Load::new(address, vec![bed.call.request()]) }.start()?;
    thread::sleep(time / 10);
    load.take()?;
    let meter = Meter::start(bed.cpus, target.proxy)?;
    thread::sleep(time);
    let (report, used) = (load.take()?, meter.stop()?);
    load.stop()?;
    let error = report.last_error.as_deref().unwrap_or_default();
    ensure!(report.errors == 0 && report.answered() > 0, "{} calls failed: {error}", report.errors);
    let us = |percent| report.percentile_ns(percent) as f64 / 1e3;
    let mut values = vec![(Metric::P50, us(50.0)), (Metric::P99, us(99.0))];
    values.extend(cpu_per_call(target, used, report.answered()));
    Ok(Sample { values, foreign: used.foreign })
}

fn throughput(target: &Target, bed: &Bed, bench: &RedisBenchmark) -> Result<Sample> {
    let meter = Meter::start(bed.cpus, target.proxy)?;
    let calls_per_s = bench.run(bed.workshop, target.port, &bed.call)?;
    let used = meter.stop()?;
    let mut values = vec![(Metric::Throughput, calls_per_s)];
    values.extend(cpu_per_call(target, used, bench.calls));
    Ok(Sample { values, foreign: used.foreign })
}

fn cpu_per_call(target: &Target, used: Used, calls: u64) -> Option<(Metric, f64)> {
    target.proxy.map(|_| (Metric::CpuPerCall, used.subject_ns as f64 / 1e3 / calls as f64))
}
