//! The cases: which calls in frames, and what is measured.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::bed::{FrameBed, at};
use crate::{
    bench::{
        cpu::{self, Cpus, Meter, Used},
        path::Kernel,
        rounds::{Sample, Study, Target},
        rows::Metric,
        subject::Subject,
        workshop::Workshop,
    },
    load::{
        Report,
        frames::{Flow, FrameLoad},
    },
};

/// What is called, and what for.
#[derive(Debug)]
pub(super) struct Shape {
    /// The name in reports, and on the command line.
    pub(super) name: &'static str,
    about: &'static str,
    connections: usize,
    /// On each connection.
    pub(super) flow: Flow,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Client, proxy and service on one CPU.
    Latency,
    Throughput,
    /// Latency with and without a large call in flight beside.
    Beside,
}

const LARGE: Flow = Flow { body: 1 << 20, depth: 1 };

/// Through one agent.
pub(super) const FRAMES: [Shape; 5] = [
    Shape {
        name: "frames_p50_1cpu",
        about: "1 connection, 1 call of 64 B in flight; client, proxy and service on one CPU",
        connections: 1,
        flow: Flow { body: 64, depth: 1 },
        what: What::Latency,
    },
    Shape {
        name: "frames_64B_1x128",
        about: "1 connection, 128 calls of 64 B in flight",
        connections: 1,
        flow: Flow { body: 64, depth: 128 },
        what: What::Throughput,
    },
    Shape {
        name: "frames_64B_50x8",
        about: "50 connections, 8 calls of 64 B in flight on each",
        connections: 50,
        flow: Flow { body: 64, depth: 8 },
        what: What::Throughput,
    },
    Shape {
        name: "frames_1MiB",
        about: "1 connection, 4 calls of 1 MiB in flight, answers too",
        connections: 1,
        flow: Flow { body: 1 << 20, depth: 4 },
        what: What::Throughput,
    },
    Shape {
        name: "frames_beside_1MiB",
        about: "1 connection, 1 call of 64 B in flight, alone and beside 1 call of 1 MiB on the same connection",
        connections: 1,
        flow: Flow { body: 64, depth: 1 },
        what: What::Beside,
    },
];

/// Through two.
pub(super) const MESH: [Shape; 3] = [
    Shape {
        name: "mesh_p50_64B_1cpu",
        about: "1 connection, 1 call of 64 B in flight; client, proxies and service on one CPU",
        connections: 1,
        flow: Flow { body: 64, depth: 1 },
        what: What::Latency,
    },
    Shape {
        name: "mesh_p50_4KiB_1cpu",
        about: "1 connection, 1 call of 4 KiB in flight; client, proxies and service on one CPU",
        connections: 1,
        flow: Flow { body: 4 << 10, depth: 1 },
        what: What::Latency,
    },
    Shape {
        name: "mesh_64B_1x128",
        about: "1 connection, 128 calls of 64 B in flight",
        connections: 1,
        flow: Flow { body: 64, depth: 128 },
        what: What::Throughput,
    },
];

/// A shape on this machine.
pub(super) struct Case {
    pub(super) shape: &'static Shape,
    /// The program that asks agents what went by the kernel path.
    pub(super) moa: PathBuf,
}

/// What was seen of one load.
struct Found {
    /// Of each flow.
    reports: Vec<Report>,
    used: Used,
    /// Bytes on the client's connections, from their beginning to their end.
    bytes: u64,
}

impl Study for Case {
    type Bed<'a> = FrameBed<'a>;

    fn name(&self) -> String {
        self.shape.name.to_owned()
    }

    fn about(&self) -> String {
        self.shape.about.to_owned()
    }

    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<FrameBed<'a>> {
        let cpus = if self.shape.what == What::Latency { Cpus::One(cpu::last()?) } else { Cpus::All };
        FrameBed::start(cpus, workshop)
    }

    fn sample(&self, subject: Subject, target: &Target, bed: &FrameBed<'_>, quick: bool) -> Result<Sample> {
        let time = Duration::from_millis(if quick { 300 } else { 1_500 });
        match self.shape.what {
            What::Latency => self.latency(subject, target, bed, time),
            What::Throughput => self.throughput(target, bed, time),
            What::Beside => self.beside(target, bed, time),
        }
    }
}

impl Case {
    fn latency(&self, subject: Subject, target: &Target, bed: &FrameBed, time: Duration) -> Result<Sample> {
        let before = self.kernel(subject, target)?;
        let found = self.measure(&[self.shape.flow], target, bed, time)?;
        let after = self.kernel(subject, target)?;
        let report = found.report(0)?;
        let mut values = vec![(Metric::P50, us(report, 50.0)), (Metric::P99, us(report, 99.0))];
        values.push((Metric::CpuOfAll, per_call(found.used.own_ns, report)));
        values.extend(found.cpu_per_call(target, report));
        if let (Some(before), Some(after)) = (before, after) {
            // Two legs have all that the client's connections have.
            let share = after.redirected_since(&before) as f64 / (2 * found.bytes) as f64;
            values.push((Metric::Redirected, share * 100.0));
        }
        Ok(Sample::new(values, found.used.foreign))
    }

    fn throughput(&self, target: &Target, bed: &FrameBed, time: Duration) -> Result<Sample> {
        let found = self.measure(&[self.shape.flow], target, bed, time)?;
        let report = found.report(0)?;
        let mut values = vec![(Metric::Throughput, report.per_second()), (Metric::P99, us(report, 99.0))];
        values.push((Metric::CpuOfAll, per_call(found.used.own_ns, report)));
        let of_proxy = found.cpu_per_call(target, report);
        values.extend(of_proxy.into_iter().flat_map(|(metric, us)| [(metric, us), (Metric::PerCore, 1e6 / us)]));
        Ok(Sample::new(values, found.used.foreign))
    }

    fn beside(&self, target: &Target, bed: &FrameBed, time: Duration) -> Result<Sample> {
        let alone = self.measure(&[self.shape.flow], target, bed, time)?;
        let both = self.measure(&[self.shape.flow, LARGE], target, bed, time)?;
        let (alone_us, beside_us) = (us(alone.report(0)?, 99.0), us(both.report(0)?, 99.0));
        let values = vec![
            (Metric::P99, alone_us),
            (Metric::P99Beside, beside_us),
            (Metric::Beside, beside_us / alone_us),
            (Metric::Throughput, both.report(1)?.per_second()),
        ];
        Ok(Sample::new(values, alone.used.foreign.max(both.used.foreign)))
    }

    /// Calls for so long, after a tenth of it that does not count.
    fn measure(&self, flows: &[Flow], target: &Target, bed: &FrameBed, time: Duration) -> Result<Found> {
        let load = FrameLoad {
            connections: self.shape.connections,
            flows: flows.to_vec(),
            cpu: bed.cpus.one(),
            ..FrameLoad::new(at(target.port), self.shape.flow)
        };
        let mut running = load.start()?;
        thread::sleep(time / 10);
        running.take()?;
        let meter = Meter::start(bed.cpus, &target.proxies)?;
        thread::sleep(time);
        let (reports, used) = (running.take()?, meter.stop()?);
        let (rest, bytes) = running.stop()?;
        let failed = reports.iter().chain(&rest).find(|report| report.errors > 0);
        let error = failed.map(|report| report.last_error.clone().unwrap_or_default());
        ensure!(error.is_none(), "calls failed: {}", error.unwrap_or_default());
        Ok(Found { reports, used, bytes })
    }

    fn kernel(&self, subject: Subject, target: &Target) -> Result<Option<Kernel>> {
        (subject == Subject::AgentOn).then(|| Kernel::now(&self.moa, target.port)).transpose()
    }
}

impl Found {
    /// Of one flow, which must have seen an answer.
    fn report(&self, flow: usize) -> Result<&Report> {
        self.reports.get(flow).filter(|report| report.answered() > 0).context("no call was answered in this time")
    }

    fn cpu_per_call(&self, target: &Target, report: &Report) -> Option<(Metric, f64)> {
        (!target.proxies.is_empty()).then(|| (Metric::CpuPerCall, per_call(self.used.subject_ns, report)))
    }
}

fn us(report: &Report, percent: f64) -> f64 {
    report.percentile_ns(percent) as f64 / 1e3
}

fn per_call(ns: u64, report: &Report) -> f64 {
    ns as f64 / 1e3 / report.answered() as f64
}
