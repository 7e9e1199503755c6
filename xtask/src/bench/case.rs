//! The cases: what is done, how often, and what is measured.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::{
    bed::Bed,
    call::Call,
    cpu::{self, Cpus, Meter, Used},
    latency::Latency,
    memory,
    redis_benchmark::RedisBenchmark,
    rounds::{Sample, Study, Target},
    rows::Metric,
    subject::Subject,
    workshop::Workshop,
};

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

impl Case {
    /// Samples of each subject. Memory is the same every time, so it needs few.
    pub(super) fn rounds(self, wanted: Option<usize>, quick: bool) -> usize {
        let default = match self {
            Self::Memory => (3, 1),
            _ => (5, 3),
        };
        wanted.unwrap_or(if quick { default.1 } else { default.0 })
    }

    /// Whether it says anything about a subject.
    pub(super) fn applies_to(self, subject: Subject) -> bool {
        self != Self::Memory || subject != Subject::Direct
    }

    fn call(&self) -> Call {
        Call::new(if *self == Self::Large { 16 << 10 } else { 64 })
    }

    fn cpus(&self) -> Result<Cpus> {
        Ok(if *self == Self::OneCpu { Cpus::One(cpu::last()?) } else { Cpus::All })
    }
}

impl Study for Case {
    type Bed<'a> = Bed<'a>;

    fn name(&self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn about(&self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<Bed<'a>> {
        Bed::start(self.call(), self.cpus()?, workshop)
    }

    fn minds_strangers(&self) -> bool {
        *self != Self::Memory
    }

    fn wants_fresh_processes(&self) -> bool {
        *self == Self::Memory
    }

    fn sample(&self, _: Subject, target: &Target, bed: &Bed<'_>, quick: bool) -> Result<Sample> {
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
    let found = Latency::measure(target, bed, time)?;
    let mut values = vec![(Metric::P50, found.p50_us), (Metric::P99, found.p99_us)];
    values.extend(cpu_per_call(target, found.used, found.calls));
    Ok(Sample::new(values, found.used.foreign))
}

fn throughput(target: &Target, bed: &Bed, bench: &RedisBenchmark) -> Result<Sample> {
    let meter = Meter::start(bed.cpus, &target.proxies)?;
    let calls_per_s = bench.run(bed.workshop, target.port, &bed.call)?;
    let used = meter.stop()?;
    let mut values = vec![(Metric::Throughput, calls_per_s)];
    values.extend(cpu_per_call(target, used, bench.calls));
    Ok(Sample::new(values, used.foreign))
}

/// What the proxies use for a call, if there are any.
pub(super) fn cpu_per_call(target: &Target, used: Used, calls: u64) -> Option<(Metric, f64)> {
    (!target.proxies.is_empty()).then(|| (Metric::CpuPerCall, used.subject_ns as f64 / 1e3 / calls as f64))
}
