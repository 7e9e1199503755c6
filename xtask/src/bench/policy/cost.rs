//! What the policy's pure code costs: tests of the agent that measure, and print what they find.

use std::{
    process::{Command, Stdio},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bench::{
        goals::{self, Bound},
        rounds::Effort,
        rows::{Metric, Row, median},
    },
    command::{cargo, show},
    place::Place,
};

/// What stands before what is for this bench.
const MARK: &str = "measured ";

/// What was found of one subject in one case, a value a round.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    case: String,
    subject: String,
    metric: Metric,
    values: Vec<f64>,
}

/// Runs tests of the agent, by their full names.
pub(super) fn measure(place: &Place, tests: &[&str], effort: Effort) -> Result<Vec<Cost>> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--release", "-p", "agent", "--lib", "--", "--ignored", "--exact", "--nocapture"]);
    command.arg("--test-threads=1").args(tests).current_dir(&place.root).stdin(Stdio::null()).stderr(Stdio::inherit());
    let calls = if effort.quick { 200_000 } else { 1_000_000 };
    command.env("MOA_BENCH_ROUNDS", effort.rounds.to_string()).env("MOA_BENCH_CALLS", calls.to_string());
    let printed = run(&mut command)?;
    let found = read(&printed)?;
    ensure!(!found.is_empty(), "{} measured nothing: {printed}", show(&command));
    Ok(found)
}

/// What the tests printed. The first line of each comes behind its name.
fn read(printed: &str) -> Result<Vec<Cost>> {
    printed.lines().filter_map(|line| line.split_once(MARK)).map(|(_, found)| found.parse()).collect()
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{} cannot be started", show(command)))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{} ended with {}:\n{printed}", show(command), output.status);
    }
    Ok(printed)
}

/// What was found in a case; times next to those of the same subject in the smallest case of its kind.
pub(super) fn rows(found: &[Cost], case: &str) -> Vec<Row> {
    let row = |cost: &Cost| {
        let base = baseline(&cost.case).unwrap_or_default();
        let same = |other: &&Cost| other.case == base && other.subject == cost.subject && other.metric == cost.metric;
        let compared = found.iter().find(same).and_then(|other| median(&other.values)).filter(|median| *median > 0.0);
        Row::new(&cost.case, &cost.subject, cost.metric, &cost.values, (base, compared))
    };
    found.iter().filter(|cost| cost.case == case).filter_map(row).collect()
}

/// The cases that were measured, in their order.
pub(super) fn cases(found: &[Cost]) -> Vec<&str> {
    let mut cases: Vec<&str> = found.iter().map(|cost| cost.case.as_str()).collect();
    cases.dedup();
    cases
}

/// Nothing allocates: of each case whoever does it most.
pub(super) fn goals(found: &[Cost]) -> Vec<goals::Line> {
    let of_case = |case| {
        let of_calls = |cost: &&Cost| cost.case == case && cost.metric == Metric::Allocations;
        let worst = found.iter().filter(of_calls).max_by(|a, b| most(a).total_cmp(&most(b)))?;
        Some(goals::line(case, &worst.subject, Metric::Allocations, Bound::Most(0.0), Some(most(worst)), None))
    };
    let of_calls = |case: &&str| !case.starts_with("refresh");
    cases(found).into_iter().filter(of_calls).filter_map(of_case).collect()
}

fn most(cost: &Cost) -> f64 {
    cost.values.iter().copied().fold(0.0, f64::max)
}

/// What times of a case are compared with: how they grow with the number of instances is what counts.
fn baseline(case: &str) -> Option<&'static str> {
    [("pick_", "pick_10"), ("refresh_", "refresh_10")].into_iter().find_map(|(kind, base)| case.starts_with(kind).then_some(base))
}

impl FromStr for Cost {
    type Err = anyhow::Error;

    /// Case, subject, metric, and a value for each round.
    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let (Some(case), Some(subject), Some(metric)) = (words.next(), words.next(), words.next()) else {
            bail!("a test measured nothing: {line}")
        };
        let metric = match metric {
            "time" => Metric::TimePerCall,
            "allocations" => Metric::Allocations,
            _ => bail!("a test measured something unknown: {line}"),
        };
        let values = words.map(str::parse).collect::<Result<Vec<f64>, _>>();
        let values = values.with_context(|| format!("a test measured something that is no number: {line}"))?;
        Ok(Self { case: case.to_owned(), subject: subject.to_owned(), metric, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<Cost> {
        let printed = "
running 2 tests
test balance::benchmark::pick ... measured pick_10 random time 10.0 12.0 11.0
measured pick_10 random allocations 0.000 0.000 0.000
measured pick_1000 random time 22.0
measured pick_1000 random allocations 0.500
ok
measured rules none time 1.0
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 334 filtered out
";
        read(printed).unwrap()
    }

    #[test]
    fn what_tests_print_becomes_rows() {
        let found = found();
        let rows = cases(&found).into_iter().flat_map(|case| rows(&found, case));
        let rows: Vec<_> = rows.map(|row| serde_json::to_value(row).unwrap()).collect();
        assert_eq!(rows.len(), 5);
        assert_eq!((&rows[0]["median"], &rows[0]["unit"], &rows[0]["rounds"]), (&11.0.into(), &"ns".into(), &3.into()));
        assert_eq!((&rows[2]["ratio"], &rows[2]["baseline"]), (&2.0.into(), &"pick_10".into()));
        assert!(rows[3]["ratio"].is_null() && rows[4]["ratio"].is_null());
        for bad in ["", "a b", "a b length 1", "a b time x"] {
            assert!(bad.parse::<Cost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_call_that_allocates_misses_the_goal() {
        let verdicts: Vec<_> = goals(&found()).into_iter().map(|[case, .., verdict]| (case, verdict)).collect();
        let expected = [("pick_10", "≤ 0.00 met"), ("pick_1000", "≤ 0.00 MISSED")];
        assert_eq!(verdicts, expected.map(|(case, verdict)| (case.to_owned(), verdict.to_owned())));
        assert_eq!(cases(&found()), ["pick_10", "pick_1000", "rules"]);
    }
}
