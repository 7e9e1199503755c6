//! From samples to rows, and rows as a table or JSON.

use serde::Serialize;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// The median of a round's latencies.
    P50,
    /// The 99th percentile of them.
    P99,
    /// The 99.9th of them.
    P999,
    /// The 99th percentile of small calls beside large ones.
    P99Beside,
    /// What that is of what it is without the large ones.
    Beside,
    /// The share of the calls that took as long as those of a slow instance.
    SlowCalls,
    /// Calls per second.
    Throughput,
    /// Calls per second of the proxy's CPU time.
    PerCore,
    /// What a proxy adds to a direct call, in medians.
    AddedHop,
    /// CPU time of the proxy's processes.
    CpuPerCall,
    /// CPU time of client, proxy and server.
    CpuOfAll,
    /// The share of the bytes that went by the kernel path.
    Redirected,
    /// The share of the calls that the kernel programs routed.
    Routed,
    /// How often a kernel program ran.
    RunsPerCall,
    /// How long it ran each time.
    TimePerRun,
    /// How long a part of a call takes that needs no system call.
    TimePerCall,
    /// How often it allocates memory.
    Allocations,
    /// Instructions of the proxy's processes, in userspace.
    Instructions,
    /// Growth of resident memory.
    Rss,
    /// The same, with shared pages divided among their users.
    Pss,
}

impl Metric {
    /// In the order of reports.
    pub(super) const ALL: [Self; 20] = [
        Self::P50,
        Self::P99,
        Self::P999,
        Self::P99Beside,
        Self::Beside,
        Self::AddedHop,
        Self::SlowCalls,
        Self::Throughput,
        Self::PerCore,
        Self::CpuPerCall,
        Self::CpuOfAll,
        Self::Redirected,
        Self::Routed,
        Self::RunsPerCall,
        Self::TimePerRun,
        Self::TimePerCall,
        Self::Allocations,
        Self::Instructions,
        Self::Rss,
        Self::Pss,
    ];

    /// The name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::P99Beside => "p99_beside",
            Self::Beside => "p99_beside_to_alone",
            Self::SlowCalls => "slow_calls",
            Self::Throughput => "throughput",
            Self::PerCore => "throughput_per_core",
            Self::AddedHop => "added_hop",
            Self::CpuPerCall => "cpu_per_call",
            Self::CpuOfAll => "cpu_per_call_of_all",
            Self::Redirected => "redirected",
            Self::Routed => "routed",
            Self::RunsPerCall => "runs_per_call",
            Self::TimePerRun => "time_per_run",
            Self::TimePerCall => "time_per_call",
            Self::Allocations => "allocations_per_call",
            Self::Instructions => "instructions_per_call",
            Self::Rss => "rss_per_connection",
            Self::Pss => "pss_per_connection",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::P50 | Self::P99 | Self::P999 | Self::P99Beside | Self::AddedHop | Self::CpuPerCall | Self::CpuOfAll => "us",
            Self::SlowCalls | Self::Redirected | Self::Routed => "%",
            Self::RunsPerCall => "runs",
            Self::TimePerRun | Self::TimePerCall => "ns",
            Self::Throughput | Self::PerCore => "calls/s",
            Self::Beside => "x",
            Self::Allocations => "allocs",
            Self::Instructions => "instr",
            Self::Rss | Self::Pss => "B",
        }
    }
}

/// One metric of one subject in one case, over all rounds that count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    /// The case's name.
    pub(super) case: String,
    /// The subject's name.
    pub(super) subject: String,
    /// What `ratio` compares with.
    pub(super) baseline: String,
    metric: &'static str,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    /// The median divided by the baseline's; none if the baseline has no such metric.
    ratio: Option<f64>,
    rounds: usize,
}

impl Row {
    /// A row of the values of all rounds, none if there are none.
    pub(super) fn new(case: &str, subject: &str, metric: Metric, values: &[f64], baseline: (&str, Option<f64>)) -> Option<Self> {
        let median = median(values)?;
        Some(Self {
            case: case.to_owned(),
            subject: subject.to_owned(),
            baseline: baseline.0.to_owned(),
            metric: metric.name(),
            unit: metric.unit(),
            median: rounded(median),
            min: rounded(values.iter().copied().fold(f64::INFINITY, f64::min)),
            max: rounded(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ratio: baseline.1.map(|base| (median / base * 1e3).round() / 1e3),
            rounds: values.len(),
        })
    }
}

/// The middle of the values in their order, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], upper) } else { upper })
}

/// The rows of one case, aligned.
pub(super) fn table(rows: &[Row]) -> String {
    let head = ["subject", "metric", "unit", "median", "min", "max", "ratio", "rounds"].map(str::to_owned);
    aligned(std::iter::once(head).chain(rows.iter().map(cells)).collect(), 3)
}

/// Lines of cells as text; so many columns of words, the rest numbers.
pub(super) fn aligned<const COLUMNS: usize>(lines: Vec<[String; COLUMNS]>, words: usize) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |cells: &[String; COLUMNS]| {
        let pad = |(column, cell): (usize, &String)| {
            if column < words { format!("{cell:<0$}", widths[column]) } else { format!("{cell:>0$}", widths[column]) }
        };
        cells.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ") + "\n"
    };
    lines.iter().map(line).collect()
}

fn cells(row: &Row) -> [String; 8] {
    let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}×"));
    let digits = if row.median < 10.0 { 2 } else { usize::from(row.median < 1e3) };
    let text = [row.median, row.min, row.max].map(|value| format!("{value:.digits$}"));
    let [median, min, max] = text;
    [row.subject.clone(), row.metric.to_owned(), row.unit.to_owned(), median, min, max, ratio, row.rounds.to_string()]
}

/// A hundredth is finer than anything that is measured here.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_median_extremes_and_ratio() {
        let row = Row::new("case", "agent", Metric::P50, &[30.0, 10.0, 20.004], ("direct", Some(10.0))).expect("has values");
        let json = serde_json::to_value(&row).expect("plain data");
        let expected = serde_json::json!({
            "case": "case", "subject": "agent", "baseline": "direct", "metric": "p50", "unit": "us",
            "median": 20.0, "min": 10.0, "max": 30.0, "ratio": 2.0, "rounds": 3,
        });
        assert_eq!(json, expected);
        assert_eq!(Row::new("case", "agent", Metric::P50, &[], ("direct", None)), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[8.0, 1.0, 4.0, 2.0]), Some(3.0));
    }
}
