//! What is aimed for, and whether it was met.

use super::{
    rounds::{Contender, Study},
    rows::{Metric, aligned, median},
    subject::Subject,
};

/// What a median is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    Least(f64),
    Most(f64),
    /// At least so many times that of another subject.
    Times(f64, Subject),
    /// Less than that of another subject.
    Below(Subject),
    /// At most so much of that of another subject.
    Share(f64, Subject),
}

/// A goal for agents in some cases.
struct Goal {
    /// What the names of the cases begin with.
    cases: &'static str,
    /// For which agent; none is for all.
    of: Option<Subject>,
    metric: Metric,
    bound: Bound,
}

const GOALS: [Goal; 13] = [
    Goal::new("frames_64B", Metric::PerCore, Bound::Least(500_000.0)),
    Goal::new("frames_64B", Metric::CpuPerCall, Bound::Most(1.5)),
    Goal::new("frames_beside", Metric::Beside, Bound::Most(3.0)),
    // Two agents cost less than one other proxy.
    Goal::new("mesh_p50", Metric::P50, Bound::Below(Subject::Haproxy)),
    Goal::new("mesh_p50", Metric::CpuPerCall, Bound::Below(Subject::Haproxy)),
    Goal {
        of: Some(Subject::AgentPeakEwma),
        ..Goal::new("tail_1_slow", Metric::P99, Bound::Share(0.5, Subject::EnvoyLeastRequest))
    },
    // A call through the mesh is faster than a direct one by TCP, and nowhere slower than by way of the agent.
    Goal::routed("kernel_64B_1cpu", Metric::P50, Bound::Share(0.65, Subject::Direct)),
    Goal::routed("kernel_16KiB_1cpu", Metric::P50, Bound::Share(0.7, Subject::Direct)),
    Goal::routed("kernel_64B_1cpu", Metric::CpuOfAll, Bound::Share(0.7, Subject::Direct)),
    Goal::routed("kernel_64B_50_1cpu", Metric::Throughput, Bound::Times(1.3, Subject::Direct)),
    Goal::routed("kernel_64B_50", Metric::Throughput, Bound::Times(1.0, Subject::AgentOn)),
    Goal::routed("kernel_", Metric::P50, Bound::Share(1.0, Subject::AgentOn)),
    // Services and connections that have nothing to do with a call cost it nothing.
    Goal {
        of: Some(Subject::AgentCrowded),
        ..Goal::new("kernel_64B_1cpu", Metric::P50, Bound::Share(1.1, Subject::AgentRouted))
    },
];

impl Goal {
    const fn new(cases: &'static str, metric: Metric, bound: Bound) -> Self {
        Self { cases, of: None, metric, bound }
    }

    /// For the agent whose kernel programs route calls.
    const fn routed(cases: &'static str, metric: Metric, bound: Bound) -> Self {
        Self { cases, of: Some(Subject::AgentRouted), metric, bound }
    }
}

/// One line: case, subject, metric, what was found, the goal and the verdict.
pub(super) type Line = [String; 5];

/// The goals of a case that was measured.
pub(super) fn of_case(case: &impl Study, contenders: &[Contender]) -> Vec<Line> {
    let goals = GOALS.iter().filter(|goal| case.name().starts_with(goal.cases));
    let median_of = |subject: Subject, metric| {
        let contender = contenders.iter().find(|one| one.subject == subject);
        contender.and_then(|one| median(&one.values(metric)))
    };
    let of_goal = |goal: &Goal| {
        let other = match goal.bound {
            Bound::Below(other) | Bound::Share(_, other) | Bound::Times(_, other) => median_of(other, goal.metric),
            Bound::Least(_) | Bound::Most(_) => None,
        };
        let is_meant = |one: &&Contender| one.subject.is_agent() && goal.of.is_none_or(|agent| agent == one.subject);
        let line = |one: &Contender| {
            let found = median_of(one.subject, goal.metric);
            line(&case.name(), &one.subject.name(), goal.metric, goal.bound, found, other)
        };
        contenders.iter().filter(is_meant).map(line).collect::<Vec<_>>()
    };
    goals.flat_map(of_goal).collect()
}

/// All of them.
pub(super) fn table(lines: Vec<Line>) -> String {
    let head = ["case", "subject", "metric", "median", "goal"].map(str::to_owned);
    format!("goals\n{}", aligned(std::iter::once(head).chain(lines).collect(), 3))
}

/// What was found, held against a bound; `other` is what was found of the subject that the bound names.
pub(super) fn line(case: &str, subject: &str, metric: Metric, bound: Bound, found: Option<f64>, other: Option<f64>) -> Line {
    let (text, limit) = match bound {
        Bound::Least(least) => (format!("≥ {}", short(least)), Some(least)),
        Bound::Most(most) => (format!("≤ {}", short(most)), Some(most)),
        Bound::Below(subject) => {
            (other.map_or_else(|| subject.name(), |most| format!("< {} {}", subject.name(), short(most))), other)
        }
        Bound::Share(share, subject) | Bound::Times(share, subject) => {
            let sign = if matches!(bound, Bound::Times(..)) { '≥' } else { '≤' };
            let text = format!("{sign} {share:.2}× {}", subject.name());
            (other.map_or_else(|| text.clone(), |other| format!("{text} {}", short(other))), other.map(|other| share * other))
        }
    };
    let verdict = match (found, limit) {
        (Some(found), Some(limit)) if met(bound, found, limit) => "met",
        (Some(_), Some(_)) => "MISSED",
        _ => "not measured",
    };
    let found = found.map_or_else(|| "-".to_owned(), short);
    [case.to_owned(), subject.to_owned(), metric.name().to_owned(), found, format!("{text} {verdict}")]
}

fn met(bound: Bound, found: f64, limit: f64) -> bool {
    match bound {
        Bound::Least(_) | Bound::Times(..) => found >= limit,
        Bound::Most(_) | Bound::Share(..) => found <= limit,
        Bound::Below(_) => found < limit,
    }
}

fn short(value: f64) -> String {
    if value < 1e3 { format!("{value:.2}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bound: Bound, found: Option<f64>, other: Option<f64>) -> String {
        let [_, _, _, _, goal] = line("case", "agent-on", Metric::P50, bound, found, other);
        goal
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        assert_eq!(verdict(Bound::Least(500_000.0), Some(500_000.0), None), "≥ 500000 met");
        assert_eq!(verdict(Bound::Least(500_000.0), Some(499_999.0), None), "≥ 500000 MISSED");
        assert_eq!(verdict(Bound::Most(1.5), Some(1.51), None), "≤ 1.50 MISSED");
        assert_eq!(verdict(Bound::Most(1.5), None, None), "≤ 1.50 not measured");
        assert_eq!(verdict(Bound::Below(Subject::Haproxy), Some(20.0), Some(21.0)), "< haproxy 21.00 met");
        assert_eq!(verdict(Bound::Below(Subject::Haproxy), Some(21.0), Some(21.0)), "< haproxy 21.00 MISSED");
        assert_eq!(verdict(Bound::Below(Subject::Haproxy), Some(21.0), None), "haproxy not measured");
        let half = Bound::Share(0.5, Subject::Haproxy);
        assert_eq!(verdict(half, Some(10.0), Some(20.0)), "≤ 0.50× haproxy 20.00 met");
        assert_eq!(verdict(half, Some(10.1), Some(20.0)), "≤ 0.50× haproxy 20.00 MISSED");
        assert_eq!(verdict(half, Some(10.0), None), "≤ 0.50× haproxy not measured");
        let more = Bound::Times(1.3, Subject::Direct);
        assert_eq!(verdict(more, Some(13.0), Some(10.0)), "≥ 1.30× direct 10.00 met");
        assert_eq!(verdict(more, Some(12.9), Some(10.0)), "≥ 1.30× direct 10.00 MISSED");
    }
}
