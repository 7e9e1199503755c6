//! Instructions of a call, which callgrind counts: the same on any machine.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::bed::{FrameBed, at};
use crate::{
    bench::{
        cpu::Cpus,
        prepare::Ready,
        rounds::TestBed,
        rows::{Metric, Row},
        subject::Subject,
        workshop::Workshop,
    },
    load::frames::{Flow, FrameLoad},
};

const CASE: &str = "frames_64B_1x128_callgrind";
const FLOW: Flow = Flow { body: 64, depth: 128 };

/// Two runs of each subject, whose difference is that of their calls: what a start and an end take is in both.
pub(super) fn measure(ready: &Ready, quick: bool, profiles: Option<&Path>) -> Result<Vec<Row>> {
    let calls = if quick { [10_000, 30_000] } else { [50_000, 150_000] };
    let mut rows = Vec::new();
    for (subject, file) in ready.programs.iter().filter(|(subject, _)| counts(*subject)) {
        let Some(file) = file else { continue };
        let run = |calls| count(*subject, file, calls, (&ready.workshop, profiles)).with_context(|| subject.name());
        let [fewer, more] = [run(calls[0])?, run(calls[1])?];
        let of_call = more.saturating_sub(fewer) as f64 / (calls[1] - calls[0]) as f64;
        rows.extend(Row::new(CASE, &subject.name(), Metric::Instructions, &[of_call], ("", None)));
    }
    Ok(rows)
}

/// Valgrind knows no BPF, and counts one process.
fn counts(subject: Subject) -> bool {
    subject.chain().1 == 1 && !subject.needs_kernel() && subject != Subject::Nginx
}

fn count(subject: Subject, file: &Path, calls: u64, (workshop, profiles): (&Workshop, Option<&Path>)) -> Result<u64> {
    let counts = profiles.unwrap_or(workshop.path()).join(format!("callgrind-{}-{calls}", subject.name()));
    let bed = FrameBed::start(Cpus::All, workshop)?.counting(&counts);
    let mut serving = bed.serve(subject, Some(file))?;
    let load = FrameLoad { calls: Some(calls), ..FrameLoad::new(at(serving.target.port), FLOW) };
    let reports = load.start()?.end()?;
    let answered: u64 = reports.iter().map(|report| report.answered() - report.errors.min(report.answered())).sum();
    ensure!(answered == calls, "{answered} of {calls} calls were answered rightly");
    for process in &mut serving.processes {
        ensure!(process.stop()?, "it did not end when it was told to; its log ends:\n{}", process.tail());
    }
    let found = fs::read_to_string(&counts).with_context(|| format!("{} cannot be read", counts.display()))?;
    total(&found).with_context(|| format!("{} has no sum", counts.display()))
}

/// The sum of all instructions in a file of callgrind's.
fn total(file: &str) -> Option<u64> {
    let line = file.lines().rev().find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")));
    line?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sum_is_that_of_the_whole_run() {
        assert_eq!(super::total("events: Ir\nfn=(1) main\n16 2\n\ntotals: 123456\n"), Some(123_456));
        assert_eq!(super::total("events: Ir\nsummary: 77 1\n"), Some(77));
        assert_eq!(super::total("events: Ir\n"), None);
    }
}
