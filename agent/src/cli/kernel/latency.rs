//! `moa kernel latency`.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    api::{Kernel, LatencyBucket, RoutedService},
    cli::{
        Global, Out,
        out::OUT,
        units::{count, micros, nanos},
    },
};

/// Characters of the longest bar.
const BAR: u64 = 40;
/// Lines of a histogram at most, unless it takes more with a line for every doubling of the time.
const LINES: usize = 20;
/// Buckets of a doubling.
const OCTAVE: usize = 4;

/// Show how long routed calls took to their answers, service by service.
#[derive(Debug, Args)]
pub(super) struct Latency {
    /// Only this one, such as /service/user, or /service/user#two for one of its groups.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
}

impl Latency {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let shown: Kernel = global.client().get("/v1/kernel")?;
        let services = shown.routing.map_or_else(Vec::new, |routing| routing.services);
        let all = self.service.is_none();
        let wanted = |service: &RoutedService| self.service.as_ref().is_none_or(|name| service.service == *name);
        let services: Vec<_> = services.into_iter().filter(wanted).collect();
        if services.is_empty() && !all {
            let name = self.service.unwrap_or_default();
            bail!(
                "the kernel knows no service {name}: `moa kernel` lists those that it routes, and why it does not route others"
            );
        }
        out.show(&services, |services| render(services))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn render(services: &[RoutedService]) -> String {
    if services.is_empty() {
        return "no service has an instance with a lane\n".to_owned();
    }
    services.iter().map(service).collect::<Vec<_>>().join("\n")
}

fn service(service: &RoutedService) -> String {
    let name = OUT.bold(&service.service);
    let why_not = service.why_not.as_ref().map_or_else(String::new, |why| OUT.doubtful(&format!("; not routed now: {why}")));
    if service.answered == 0 {
        return format!("{name}  no call was routed and answered{why_not}\n");
    }
    let [p50, p90, p99, max] = [service.p50_us, service.p90_us, service.p99_us, service.max_us].map(micros);
    let answered = count(service.answered);
    format!("{name}  {answered} answered; p50 {p50}, p90 {p90}, p99 {p99}, max {max}{why_not}\n{}", histogram(&service.latency))
}

/// A line for each bucket from the first to the last, or for each four of them.
fn histogram(latency: &[LatencyBucket]) -> String {
    let lines = lines(latency);
    let most = lines.iter().map(|line| line.calls).max().unwrap_or(0).max(1);
    let texts: Vec<_> = lines.iter().map(|line| (nanos(line.from_ns), count(line.calls))).collect();
    let width = |of: fn(&(String, String)) -> &String| texts.iter().map(|text| of(text).chars().count()).max().unwrap_or(0);
    let (froms, counts) = (width(|(from, _)| from), width(|(_, calls)| calls));
    let mut text = String::new();
    for (line, (from, calls)) in lines.iter().zip(&texts) {
        let shown = format!("  from {from:>froms$}  {calls:>counts$}  {}", bar(line.calls, most));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    text
}

/// As long as its share says, in eighths of a character; whoever has any has one of them.
fn bar(calls: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = u128::from(calls) * u128::from(BAR) * 8 / u128::from(most);
    let eighths = usize::try_from(eighths).unwrap_or(0).max(usize::from(calls > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// All buckets from the first to the last that have calls, those without calls too.
fn lines(latency: &[LatencyBucket]) -> Vec<LatencyBucket> {
    let mut lines: Vec<LatencyBucket> = Vec::new();
    for bucket in latency {
        while let Some(from_ns) = lines.last().and_then(|last| last.below_ns).filter(|from| *from < bucket.from_ns) {
            lines.push(LatencyBucket { from_ns, below_ns: Some(after(from_ns)), calls: 0 });
        }
        lines.push(bucket.clone());
    }
    if lines.len() <= LINES {
        return lines;
    }
    let sum = |lines: &[LatencyBucket]| LatencyBucket {
        from_ns: lines[0].from_ns,
        below_ns: lines[lines.len() - 1].below_ns,
        calls: lines.iter().map(|line| line.calls).sum(),
    };
    lines.chunks(OCTAVE).map(sum).collect()
}

/// The upper bound of the bucket that begins there: a quarter of the power of two below.
fn after(from_ns: u64) -> u64 {
    from_ns + (1 << from_ns.max(4).ilog2()) / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::stats::{BUCKETS, Histogram};

    fn bucket(at: usize, calls: u64) -> LatencyBucket {
        let bound = |at| u64::try_from(Histogram::upper_bound(at).as_nanos()).expect("a time");
        LatencyBucket { from_ns: bound(at - 1), below_ns: Some(bound(at)), calls }
    }

    #[test]
    fn buckets_follow_each_other_as_they_are_counted() {
        for at in 1..BUCKETS {
            let bucket = bucket(at, 0);
            assert_eq!(Some(after(bucket.from_ns)), bucket.below_ns, "{at}");
        }
    }

    #[test]
    fn bars_are_as_long_as_their_share() {
        let latency = [bucket(12, 400), bucket(13, 100), bucket(16, 1)];
        let shown = RoutedService {
            service: "/service/a".into(),
            answered: 501,
            p50_us: 10,
            p90_us: 12,
            p99_us: 12,
            max_us: 20,
            latency: latency.to_vec(),
            why_not: None,
        };
        let expected = "\
/service/a  501 answered; p50 10 µs, p90 12 µs, p99 12 µs, max 20 µs
  from  8.1 µs  400  ████████████████████████████████████████
  from 10.2 µs  100  ██████████
  from 12.2 µs    0
  from 14.3 µs    0
  from 16.3 µs    1  ▏
";
        assert_eq!(render(&[shown]), expected);
        let none = RoutedService { service: "/service/b".into(), why_not: Some("rules".into()), ..RoutedService::default() };
        assert_eq!(render(&[none]), "/service/b  no call was routed and answered; not routed now: rules\n");
    }

    #[test]
    fn a_wide_one_has_a_line_for_a_doubling() {
        let lines = lines(&[bucket(8, 1), bucket(11, 2), bucket(12, 4), bucket(60, 8)]);
        assert_eq!(lines.iter().map(|line| line.calls).collect::<Vec<_>>()[..2], [3, 4]);
        assert_eq!((lines.len(), lines.last().map(|line| line.calls)), (14, Some(8)));
    }
}
