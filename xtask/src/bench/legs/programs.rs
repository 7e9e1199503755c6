//! How long the kernel programs run: a round of its own, as counting it makes each of them slower.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::case::{Case, Size};
use crate::{
    bench::{
        bed::wait_until,
        call::Connection,
        cpu::{Cpus, Placement},
        latency::Latency,
        path::{Kernel, KernelProgram},
        rounds::TestBed,
        rows::{Metric, Row},
        subject::{Subject, installed},
        workshop::{Program, Workshop},
    },
    run::children::Process,
};

/// Connections that are opened, so that the program that enrols them runs.
const CONNECTIONS: u32 = 200;
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Turns the switch back when the pipe closes that nobody writes to, however the bench ends.
const SCRIPT: &str = "trap '' TERM; switch=/proc/sys/kernel/bpf_stats_enabled; before=$(cat $switch) && echo 1 >$switch && \
                      { cat >/dev/null; echo $before >$switch; }";

/// Calls of one size on one CPU, with every run of a program counted.
pub(super) fn measure(size: Size, moa: &Path, workshop: &Workshop) -> Result<Vec<Row>> {
    let case = Case { size, placement: Placement::One, moa: moa.to_owned() };
    let bed = case.start(workshop)?;
    let serving = bed.serve(Subject::AgentOn, Some(moa))?;
    let counting = count(workshop)?;
    let before = Kernel::now(moa, serving.target.port)?;
    for _ in 0..CONNECTIONS {
        Connection::open(serving.target.port, &bed.call)?.call()?;
    }
    let found = Latency::measure(&serving.target, &bed, Duration::from_millis(300))?;
    let mut after = Kernel::now(moa, serving.target.port)?;
    drop(counting);
    let calls = found.calls_in_all as f64 + f64::from(CONNECTIONS);
    after.programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(after.programs.iter().flat_map(|program| rows(&size.name(), program, &before.programs, calls)).collect())
}

/// Has the kernel count, for as long as what is returned lives.
pub(in crate::bench) fn count(workshop: &Workshop) -> Result<Process> {
    let args = ["-c", SCRIPT].map(str::to_owned).to_vec();
    let mut counting = workshop.start("bpf-stats", &Program { file: installed("sh")?, args }, Cpus::All)?;
    let counts = || {
        let found = fs::read_to_string(SWITCH)?;
        ensure!(found.trim() == "1", "{SWITCH} is {found}");
        Ok(())
    };
    wait_until(&mut counting, counts).context("the kernel does not count how long programs run")?;
    Ok(counting)
}

/// How often a program ran since `before`, and how long each time.
pub(in crate::bench) fn rows(size: &str, program: &KernelProgram, before: &[KernelProgram], calls: f64) -> Vec<Row> {
    let former = before.iter().find(|former| former.name == program.name).cloned().unwrap_or_default();
    let runs = program.runs.saturating_sub(former.runs);
    // One that another program goes on to counts as that one's.
    if runs == 0 {
        return Vec::new();
    }
    let time = program.run_ns.saturating_sub(former.run_ns) as f64 / runs as f64;
    let row = |metric, value| Row::new("programs", &format!("{} {size}", program.name), metric, &[value], ("", None));
    [row(Metric::RunsPerCall, runs as f64 / calls), row(Metric::TimePerRun, time)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_runs_count() {
        let program = |name: &str, runs, run_ns| KernelProgram { name: name.to_owned(), runs, run_ns };
        let before = [program("stub", 10, 1_000)];
        let found = rows("64B", &program("stub", 50, 9_000), &before, 10.0);
        let found: Vec<_> = found.iter().map(|row| serde_json::to_value(row).unwrap()["median"].clone()).collect();
        assert_eq!(found, [4.0, 200.0]);
        assert!(rows("64B", &program("stub", 10, 1_000), &before, 10.0).is_empty());
    }
}
