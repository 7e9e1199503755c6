//! The figure that counts: what the agent adds to a direct call, with the kernel path and without.

use crate::bench::{
    cpu::Placement,
    rounds::{Contender, Study},
    rows::{Metric, Row, aligned, median},
    subject::Subject,
};

use super::case::{Case, Size};

/// With the kernel path, the hop may have so much of what it has without: the aim, for small calls on one CPU, where
/// nothing but the path differs.
const GOAL: f64 = 0.45;
/// And never more than so much.
const WORST: f64 = 1.05;

/// A value of each round, with the round's number.
type ByRound = Vec<(usize, f64)>;

/// The added hop of each round of one case, in microseconds.
pub(super) struct Hops {
    case: String,
    goal: f64,
    /// By subject, without `direct`.
    of: Vec<(Subject, ByRound)>,
}

impl Hops {
    /// The hops of a case that was measured.
    pub(super) fn new(case: &Case, contenders: &[Contender]) -> Self {
        let p50s = |one: &Contender| one.by_round(Metric::P50);
        let direct = contenders.iter().find(|one| one.subject == Subject::Direct).map(p50s).unwrap_or_default();
        let proxied = contenders.iter().filter(|one| one.subject != Subject::Direct);
        let of = proxied.map(|one| (one.subject, added(&p50s(one), &direct))).collect();
        Self { case: case.name(), goal: goal(case.size, case.placement), of }
    }

    /// The hops as rows; their ratio is to the hop without the kernel path.
    pub(super) fn rows(&self) -> Vec<Row> {
        let baseline = (Subject::AgentOff.name(), self.median(Subject::AgentOff));
        let row = |(subject, hops): &(Subject, ByRound)| {
            Row::new(&self.case, &subject.name(), Metric::AddedHop, &values(hops), (&baseline.0, baseline.1))
        };
        self.of.iter().filter_map(row).collect()
    }

    /// The hop with the kernel path divided by that without, in medians.
    fn ratio(&self) -> Option<f64> {
        Some(self.median(Subject::AgentOn)? / self.median(Subject::AgentOff).filter(|off| *off > 0.0)?)
    }

    /// The least and the most of it in a round in which both count.
    fn range(&self) -> Option<(f64, f64)> {
        let (on, off) = (self.of(Subject::AgentOn), self.of(Subject::AgentOff));
        let ratios = on.iter().filter_map(|(round, on)| Some(on / at(off, *round)?));
        ratios.fold(None, |range, ratio| {
            let (least, most) = range.unwrap_or((ratio, ratio));
            Some((ratio.min(least), ratio.max(most)))
        })
    }

    fn median(&self, subject: Subject) -> Option<f64> {
        median(&values(self.of(subject)))
    }

    fn of(&self, subject: Subject) -> &[(usize, f64)] {
        self.of.iter().find(|(found, _)| *found == subject).map_or(&[], |(_, hops)| hops)
    }

    fn cells(&self) -> [String; 7] {
        let none = || "-".to_owned();
        let hop = |subject| self.median(subject).map_or_else(none, |hop| format!("{hop:.1}"));
        let ratio = self.ratio();
        let verdict = match ratio {
            None => "not measured",
            Some(ratio) if ratio <= self.goal => "met",
            Some(_) => "MISSED",
        };
        let ratio = ratio.map_or_else(none, |ratio| format!("{ratio:.2}×"));
        let range = self.range().map_or_else(none, |(least, most)| format!("{least:.2} to {most:.2}"));
        let [off, on, opted_out] = [Subject::AgentOff, Subject::AgentOn, Subject::AgentOptedOut].map(hop);
        [self.case.clone(), off, on, opted_out, ratio, range, format!("≤ {:.2}× {verdict}", self.goal)]
    }
}

/// All cases with their goals.
pub(super) fn table(hops: &[Hops]) -> String {
    let head = ["case", "off us", "on us", "opted out us", "on/off", "of rounds", "goal"].map(str::to_owned);
    aligned(std::iter::once(head).chain(hops.iter().map(Hops::cells)).collect(), 1)
}

/// Round by round, as both drift with the machine; where the direct call's sample does not count, its median stands in.
fn added(proxied: &[(usize, f64)], direct: &[(usize, f64)]) -> ByRound {
    let Some(usual) = median(&values(direct)) else { return Vec::new() };
    proxied.iter().map(|(round, proxied)| (*round, proxied - at(direct, *round).unwrap_or(usual))).collect()
}

fn at(values: &[(usize, f64)], round: usize) -> Option<f64> {
    values.iter().find(|(found, _)| *found == round).map(|(_, value)| *value)
}

fn values(by_round: &[(usize, f64)]) -> Vec<f64> {
    by_round.iter().map(|(_, value)| *value).collect()
}

fn goal(size: Size, placement: Placement) -> f64 {
    match (size, placement) {
        (Size::B64 | Size::K4, Placement::One) => GOAL,
        _ => WORST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(on: &[f64], off: &[f64]) -> Hops {
        let by_round = |values: &[f64]| values.iter().copied().enumerate().collect();
        let of = vec![(Subject::AgentOff, by_round(off)), (Subject::AgentOn, by_round(on))];
        Hops { case: "case".to_owned(), goal: GOAL, of }
    }

    #[test]
    fn a_hop_is_what_is_added_in_the_same_round() {
        let direct = [(0, 10.0), (2, 12.0), (3, 11.0)];
        assert_eq!(added(&[(0, 30.0), (1, 31.0), (2, 29.0)], &direct), [(0, 20.0), (1, 20.0), (2, 17.0)]);
        assert_eq!(added(&[(0, 30.0)], &[]), []);
    }

    #[test]
    fn the_goal_is_for_small_calls_on_one_cpu() {
        assert_eq!(goal(Size::B64, Placement::One), GOAL);
        assert_eq!(goal(Size::B64, Placement::Free), WORST);
        assert_eq!(goal(Size::M1, Placement::One), WORST);
    }

    #[test]
    fn the_verdict_is_that_of_the_medians() {
        let met = hops(&[4.0, 5.0, 4.0], &[10.0, 10.0, 9.0]);
        assert_eq!((met.ratio(), met.range()), (Some(0.4), Some((0.4, 0.5))));
        let expected = ["case", "10.0", "4.0", "-", "0.40×", "0.40 to 0.50", "≤ 0.45× met"];
        assert_eq!(met.cells(), expected.map(str::to_owned));
        let verdict = |on: &[f64], off: &[f64]| hops(on, off).cells()[6].clone();
        assert_eq!(verdict(&[5.0], &[10.0]), "≤ 0.45× MISSED");
        assert_eq!(verdict(&[], &[10.0]), "≤ 0.45× not measured");
        assert_eq!(verdict(&[5.0], &[-1.0]), "≤ 0.45× not measured");
    }
}
