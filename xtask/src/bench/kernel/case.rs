//! The cases: a size of calls, how many are in flight, and where everything runs.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{
    bench::{
        cpu::{Meter, Placement, Used},
        frames::bed::{FrameBed, to},
        path::Kernel,
        rounds::{Sample, Study, Target},
        rows::Metric,
        subject::Subject,
        workshop::Workshop,
    },
    load::{
        Report,
        frames::{Flow, FrameLoad, Setup},
    },
};

/// Frames of a stream connection are as long as those of a lane, so that nothing but the path differs.
pub(super) const WHOLE: Setup = Setup { lanes: false, frame_max: 40 << 10 };

/// The share of calls that the programs must have routed for a sample to say something of them.
const SHARE_MIN: f64 = 0.99;

/// Bytes of a call, and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Size {
    #[value(name = "64B")]
    B64,
    #[value(name = "1KiB")]
    K1,
    #[value(name = "16KiB")]
    K16,
    #[value(name = "32KiB")]
    K32,
    /// By the stream connection
    #[value(name = "64KiB")]
    K64,
    /// By the stream connection
    #[value(name = "1MB")]
    M1,
}

/// Calls of one size in one place.
pub(super) struct Case {
    pub(super) size: Size,
    /// Each with one call in flight.
    pub(super) connections: usize,
    pub(super) placement: Placement,
    /// The program that asks agents what became of calls.
    pub(super) moa: PathBuf,
}

/// What was seen of a load.
pub(super) struct Found {
    report: Report,
    used: Used,
    /// All calls, with those that do not count.
    pub(super) calls: u64,
}

impl Size {
    /// The name in reports, and on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn bytes(self) -> usize {
        match self {
            Self::B64 => 64,
            Self::K1 => 1 << 10,
            Self::K16 => 16 << 10,
            Self::K32 => 32 << 10,
            Self::K64 => 64 << 10,
            Self::M1 => 1_000_000,
        }
    }

    /// Whether calls of this size go by a lane.
    pub(super) fn fits_lanes(self) -> bool {
        self.bytes() <= 32 << 10
    }
}

impl Study for Case {
    type Bed<'a> = FrameBed<'a>;

    fn name(&self) -> String {
        let many = if self.connections > 1 { format!("_{}", self.connections) } else { String::new() };
        format!("kernel_{}{many}_{}", self.size.name(), self.placement.name())
    }

    fn about(&self) -> String {
        let place = match self.placement {
            Placement::One => "caller, agent and service on one CPU",
            Placement::Free => "caller, agent and service wherever the scheduler puts them",
        };
        let plural = if self.connections > 1 { "s, each with" } else { "," };
        format!("{} connection{plural} 1 call of {} in flight, answers too; {place}", self.connections, self.size.name())
    }

    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<FrameBed<'a>> {
        FrameBed::start_with(WHOLE, self.placement.cpus()?, workshop)
    }

    fn sample(&self, subject: Subject, target: &Target, bed: &FrameBed<'_>, quick: bool) -> Result<Sample> {
        let before = self.routed(subject, target)?;
        let found = self.measure(target, bed, Duration::from_millis(if quick { 200 } else { 1_000 }))?;
        let after = self.routed(subject, target)?;
        let mut sample = Sample::new(found.values(self.connections, target), found.used.foreign);
        if let (Some(before), Some(after)) = (before, after) {
            let share = after.routed_since(&before) as f64 / found.calls as f64;
            sample.values.push((Metric::Routed, share * 100.0));
            if share < SHARE_MIN {
                let why = after.unrouted_since(&before);
                sample.invalid = Some(format!("{:.1} % of the calls were routed: {why}", share * 100.0));
            }
        }
        Ok(sample)
    }
}

impl Case {
    /// Whether it is looked at beside many others: once, where the path is most of a call.
    pub(super) fn shows_crowds(&self) -> bool {
        (self.size, self.connections, self.placement) == (Size::B64, 1, Placement::One)
    }

    /// Calls for so long, after a tenth of it that does not count.
    pub(super) fn measure(&self, target: &Target, bed: &FrameBed, time: Duration) -> Result<Found> {
        let load = FrameLoad {
            connections: self.connections,
            setup: Setup { lanes: target.lanes, ..WHOLE },
            cpu: bed.cpus.one(),
            ..FrameLoad::new(to(target), Flow { body: self.size.bytes(), depth: 1 })
        };
        let mut running = load.start()?;
        thread::sleep(time / 10);
        let first = running.take()?;
        let meter = Meter::start(bed.cpus, &target.proxies)?;
        thread::sleep(time);
        let (mut reports, used) = (running.take()?, meter.stop()?);
        let (last, _) = running.stop()?;
        let all = || first.iter().chain(&reports).chain(&last);
        let failed = all().find(|report| report.errors > 0);
        let error = failed.map(|report| report.last_error.clone().unwrap_or_default());
        ensure!(error.is_none(), "calls failed: {}", error.unwrap_or_default());
        let calls = all().map(Report::answered).sum();
        let report = reports.pop().filter(|report| report.answered() > 0).context("no call was answered in this time")?;
        Ok(Found { report, used, calls })
    }

    fn routed(&self, subject: Subject, target: &Target) -> Result<Option<Kernel>> {
        (subject.has_lanes() && self.size.fits_lanes()).then(|| Kernel::now(&self.moa, target.port)).transpose()
    }
}

impl Found {
    fn values(&self, connections: usize, target: &Target) -> Vec<(Metric, f64)> {
        let us = |percent| self.report.percentile_ns(percent) as f64 / 1e3;
        let per_call = |ns: u64| ns as f64 / 1e3 / self.report.answered() as f64;
        let mut values = vec![(Metric::P50, us(50.0)), (Metric::P99, us(99.0)), (Metric::CpuOfAll, per_call(self.used.own_ns))];
        values.extend((connections > 1).then(|| (Metric::Throughput, self.report.per_second())));
        values.extend((!target.proxies.is_empty()).then(|| (Metric::CpuPerCall, per_call(self.used.subject_ns))));
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(connections: usize) -> Case {
        Case { size: Size::K16, connections, placement: Placement::One, moa: PathBuf::new() }
    }

    #[test]
    fn names_say_size_load_and_place() {
        assert_eq!(case(1).name(), "kernel_16KiB_1cpu");
        assert_eq!(case(50).name(), "kernel_16KiB_50_1cpu");
        assert!(case(50).about().starts_with("50 connections, each with 1 call of 16KiB"), "{}", case(50).about());
    }

    #[test]
    fn a_call_that_fits_a_lane_is_one_frame_elsewhere_too() {
        for size in Size::value_variants().iter().filter(|size| size.fits_lanes()) {
            assert!(size.bytes() + 1024 <= WHOLE.frame_max, "{size:?}");
        }
    }
}
