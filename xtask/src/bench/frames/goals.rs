//! What is aimed for, and whether it was met.

use crate::bench::{
    rounds::{Contender, Study},
    rows::{Metric, aligned, median},
    subject::Subject,
};

use super::case::Case;

/// What a median is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Least(f64),
    Most(f64),
    /// Less than that of another subject.
    Below(Subject),
}

/// A goal for every agent of some cases.
struct Goal {
    /// What the names of the cases begin with.
    cases: &'static str,
    metric: Metric,
    bound: Bound,
}

const GOALS: [Goal; 5] = [
    Goal { cases: "frames_64B", metric: Metric::PerCore, bound: Bound::Least(500_000.0) },
    Goal { cases: "frames_64B", metric: Metric::CpuPerCall, bound: Bound::Most(1.5) },
    Goal { cases: "frames_beside", metric: Metric::Beside, bound: Bound::Most(3.0) },
    // Two agents cost less than one other proxy.
    Goal { cases: "mesh_p50", metric: Metric::P50, bound: Bound::Below(Subject::Haproxy) },
    Goal { cases: "mesh_p50", metric: Metric::CpuPerCall, bound: Bound::Below(Subject::Haproxy) },
];

/// One line: case, subject, metric, what was found, the goal and the verdict.
pub(super) type Line = [String; 5];

/// The goals of a case that was measured.
pub(super) fn of_case(case: &Case, contenders: &[Contender]) -> Vec<Line> {
    let goals = GOALS.iter().filter(|goal| case.name().starts_with(goal.cases));
    let median_of = |subject: Subject, metric| {
        let contender = contenders.iter().find(|one| one.subject == subject);
        contender.and_then(|one| median(&one.values(metric)))
    };
    let agents = || contenders.iter().filter(|one| one.subject.is_agent());
    let of_goal = |goal: &Goal| {
        let other = if let Bound::Below(other) = goal.bound { median_of(other, goal.metric) } else { None };
        let line = |one: &Contender| {
            let found = median_of(one.subject, goal.metric);
            line(&case.name(), one.subject, goal, found, other)
        };
        agents().map(line).collect::<Vec<_>>()
    };
    goals.flat_map(of_goal).collect()
}

/// All of them.
pub(super) fn table(lines: Vec<Line>) -> String {
    let head = ["case", "subject", "metric", "median", "goal"].map(str::to_owned);
    format!("goals\n{}", aligned(std::iter::once(head).chain(lines).collect(), 3))
}

fn line(case: &str, subject: Subject, goal: &Goal, found: Option<f64>, other: Option<f64>) -> Line {
    let (text, limit) = match goal.bound {
        Bound::Least(least) => (format!("≥ {}", short(least)), Some(least)),
        Bound::Most(most) => (format!("≤ {}", short(most)), Some(most)),
        Bound::Below(subject) => {
            (other.map_or_else(|| subject.name(), |most| format!("< {} {}", subject.name(), short(most))), other)
        }
    };
    let verdict = match (found, limit) {
        (Some(found), Some(limit)) if met(goal.bound, found, limit) => "met",
        (Some(_), Some(_)) => "MISSED",
        _ => "not measured",
    };
    let found = found.map_or_else(|| "-".to_owned(), short);
    [case.to_owned(), subject.name(), goal.metric.name().to_owned(), found, format!("{text} {verdict}")]
}

fn met(bound: Bound, found: f64, limit: f64) -> bool {
    match bound {
        Bound::Least(_) => found >= limit,
        Bound::Most(_) => found <= limit,
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
        let goal = Goal { cases: "", metric: Metric::P50, bound };
        let [_, _, _, _, goal] = line("case", Subject::AgentOn, &goal, found, other);
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
    }
}
