//! What is called: a size of calls, and where everything runs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::{
    bed::Bed,
    call::Call,
    cpu::Placement,
    latency::Latency,
    path::Kernel,
    rounds::{Sample, Study, Target},
    rows::Metric,
    subject::Subject,
    workshop::Workshop,
};

/// The share of the bytes that must have been redirected for a sample to say something of the kernel path.
const SHARE_MIN: f64 = 0.99;

/// Bytes of a call, and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Size {
    #[value(name = "64B")]
    B64,
    #[value(name = "1KiB")]
    K1,
    #[value(name = "4KiB")]
    K4,
    #[value(name = "16KiB")]
    K16,
    #[value(name = "64KiB")]
    K64,
    #[value(name = "1MiB")]
    M1,
}

/// Calls of one size in one place.
pub(super) struct Case {
    pub(super) size: Size,
    pub(super) placement: Placement,
    /// The program that asks agents what went by the kernel path.
    pub(super) moa: PathBuf,
}

impl Size {
    /// The name in reports, and on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::B64 => 64,
            Self::K1 => 1 << 10,
            Self::K4 => 4 << 10,
            Self::K16 => 16 << 10,
            Self::K64 => 64 << 10,
            Self::M1 => 1 << 20,
        }
    }
}

impl Study for Case {
    type Bed<'a> = Bed<'a>;

    fn name(&self) -> String {
        format!("legs_{}_{}", self.size.name(), self.placement.name())
    }

    fn about(&self) -> String {
        let place = match self.placement {
            Placement::One => "client, agent and server on one CPU",
            Placement::Free => "client, agent and server wherever the scheduler puts them",
        };
        format!("1 connection, calls and answers of {}; {place}", self.size.name())
    }

    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<Bed<'a>> {
        self.start(workshop)
    }

    fn sample(&self, subject: Subject, target: &Target, bed: &Bed<'_>, quick: bool) -> Result<Sample> {
        let before = self.kernel(subject, target)?;
        let found = Latency::measure(target, bed, Duration::from_millis(if quick { 150 } else { 1_000 }))?;
        let after = self.kernel(subject, target)?;
        let per_call = |ns: u64| ns as f64 / 1e3 / found.calls as f64;
        let mut values =
            vec![(Metric::P50, found.p50_us), (Metric::P99, found.p99_us), (Metric::CpuOfAll, per_call(found.used.own_ns))];
        values.extend((!target.proxies.is_empty()).then(|| (Metric::CpuPerCall, per_call(found.used.subject_ns))));
        let mut sample = Sample::new(values, found.used.foreign);
        if let (Some(before), Some(after)) = (before, after) {
            // From what the client did, and not from what the agent says that it did.
            let bytes = 2 * found.calls_in_all * bed.call.wire_bytes() as u64;
            let share = after.redirected_since(&before) as f64 / bytes as f64;
            sample.values.push((Metric::Redirected, share * 100.0));
            if subject == Subject::AgentOn && share < SHARE_MIN {
                let why = after.fallbacks_since(&before);
                sample.invalid = Some(format!("{:.1} % of the bytes went by the kernel path: {why}", share * 100.0));
            }
        }
        Ok(sample)
    }
}

impl Case {
    /// Starts the server.
    pub(super) fn start<'a>(&self, workshop: &'a Workshop) -> Result<Bed<'a>> {
        Bed::start(Call::echo(self.size.bytes()), self.placement.cpus()?, workshop)
    }

    fn kernel(&self, subject: Subject, target: &Target) -> Result<Option<Kernel>> {
        let moa: &Path = &self.moa;
        subject.needs_kernel().then(|| Kernel::now(moa, target.port)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_size_and_place() {
        let case = Case { size: Size::K4, placement: Placement::One, moa: PathBuf::new() };
        assert_eq!(case.name(), "legs_4KiB_1cpu");
        assert!(case.about().contains("4KiB") && case.about().contains("one CPU"));
    }
}
