//! The line that says how the calls go.

use std::{
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

use anyhow::Result;

use crate::load::Report;

/// Shows a line a second: in place on a terminal, one below the other otherwise.
pub(super) struct Live {
    in_place: bool,
    total: Report,
}

impl Live {
    /// Begins with what has happened so far.
    pub(super) fn new(first: Report) -> Self {
        Self { in_place: stdout().is_terminal(), total: first }
    }

    /// Adds a stretch of time to the whole, and shows it.
    pub(super) fn show(&mut self, report: &Report, kernel_share: Option<f64>) -> Result<()> {
        self.total.absorb(report)?;
        let line = line(report, self.total.errors, kernel_share);
        let mut out = stdout().lock();
        if self.in_place {
            write!(out, "\r\u{1b}[2K{line}")?;
        } else {
            writeln!(out, "{line}")?;
        }
        Ok(out.flush()?)
    }

    /// Says something beside the line.
    pub(super) fn say(&self, text: &str) {
        println!("{}{text}", if self.in_place { "\n" } else { "" });
    }

    /// Adds the last stretch; the sum of all, below the line.
    pub(super) fn end(mut self, last: &Report) -> Result<Report> {
        self.total.absorb(last)?;
        let lead = if self.in_place { "\n" } else { "" };
        let (count, seconds) = (thousands(self.total.answered()), self.total.elapsed.as_secs_f64());
        let (p50, p99) = (milliseconds(&self.total, 50.0), milliseconds(&self.total, 99.0));
        println!("{lead}{count} calls in {seconds:.0} s: p50 {p50}, p99 {p99}, errors {}", thousands(self.total.errors));
        Ok(self.total)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive and far below 2^63")]
fn line(report: &Report, errors: u64, kernel_share: Option<f64>) -> String {
    let rate = thousands(report.per_second().round() as u64);
    let (p50, p99) = (milliseconds(report, 50.0), milliseconds(report, 99.0));
    let error = report.last_error.as_deref().unwrap_or_default().replace(['\r', '\n'], " ");
    let kernel = kernel_share.map_or_else(String::new, |share| format!("   kernel path {:.1} %", share * 100.0));
    let text = format!("{rate:>7} calls/s   p50 {p50:>8}   p99 {p99:>8}   errors {}{kernel}   {error}", thousands(errors));
    text.trim_end().to_owned()
}

fn milliseconds(report: &Report, percent: f64) -> String {
    let time = Duration::from_nanos(report.percentile_ns(percent));
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// A number in groups of three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
