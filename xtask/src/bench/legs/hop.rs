//! The figure that counts: what the agent adds to a direct call, with the kernel path and without.

use crate::bench::{
    rounds::{Contender, Study},
    rows::{Metric, Row, aligned, median},
    subject::Subject,
};

use super::case::{Case, Placement, Size};

/// With the kernel path, the hop may have so much of what it has without: the aim, for small calls on one CPU, where
/// nothing but the path differs.
const GOAL: f64 = 0.45;
/// And never more than so much.
const WORST: f64 = 1.05;

/// The added hop of each round of one case, in microseconds.
pub(super) struct Hops {
    case: String,
    goal: f64,
    /// By subject, without `direct`.
    of: Vec<(Subject, Vec<f64>)>,
}

impl Hops {
    /// The hops of a case that was measured.
    pub(super) fn new(case: &Case, contenders: &[Contender]) -> Self {
        let p50s = |one: &Contender| one.values(Metric::P50);
        let direct = contenders.iter().find(|one| one.subject == Subject::Direct).map(p50s).unwrap_or_default();
        let proxied = contenders.iter().filter(|one| one.subject != Subject::Direct);
        let of = proxied.map(|one| (one.subject, added(&p50s(one), &direct))).collect();
        Self { case: case.name(), goal: goal(case.size, case.placement), of }
    }

    /// The hops as rows; their ratio is to the hop without the kernel path.
    pub(super) fn rows(&self) -> Vec<Row> {
        let baseline = (Subject::AgentOff.name(), median(self.of(Subject::AgentOff)));
        let row = |(subject, hops): &(Subject, Vec<f64>)| {
            Row::new(&self.case, &subject.name(), Metric::AddedHop, hops, (&baseline.0, baseline.1))
        };
        self.of.iter().filter_map(row).collect()
    }

    /// The hop with the kernel path divided by that without: of the medians, and the least and the most of a round.
    fn ratio(&self) -> Option<(f64, f64, f64)> {
        let (on, off) = (self.of(Subject::AgentOn), self.of(Subject::AgentOff));
        let all = median(on)? / median(off).filter(|off| *off > 0.0)?;
        let rounds = on.iter().zip(off).map(|(on, off)| on / off);
        Some((all, rounds.clone().fold(f64::INFINITY, f64::min), rounds.fold(f64::NEG_INFINITY, f64::max)))
    }

    fn of(&self, subject: Subject) -> &[f64] {
        self.of.iter().find(|(found, _)| *found == subject).map_or(&[], |(_, hops)| hops)
    }

    fn cells(&self) -> [String; 7] {
        let hop = |subject| median(self.of(subject)).map_or_else(|| "-".to_owned(), |hop| format!("{hop:.1}"));
        let (ratio, range, verdict) = match self.ratio() {
            None => ("-".to_owned(), "-".to_owned(), "not measured"),
            Some((all, least, most)) => {
                let verdict = if all <= self.goal { "met" } else { "MISSED" };
                (format!("{all:.2}×"), format!("{least:.2}–{most:.2}"), verdict)
            }
        };
        let [off, on, opted_out] = [Subject::AgentOff, Subject::AgentOn, Subject::AgentOptedOut].map(hop);
        [self.case.clone(), off, on, opted_out, ratio, range, format!("≤ {:.2}× {verdict}", self.goal)]
    }
}

/// All cases with their goals.
pub(super) fn table(hops: &[Hops]) -> String {
    let head = ["case", "off us", "on us", "opted out us", "on/off", "of rounds", "goal"].map(str::to_owned);
    aligned(std::iter::once(head).chain(hops.iter().map(Hops::cells)).collect(), 1)
}

/// Round by round, as both drift with the machine.
fn added(proxied: &[f64], direct: &[f64]) -> Vec<f64> {
    proxied.iter().zip(direct).map(|(proxied, direct)| proxied - direct).collect()
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
        let of = vec![(Subject::AgentOff, off.to_vec()), (Subject::AgentOn, on.to_vec())];
        Hops { case: "case".to_owned(), goal: GOAL, of }
    }

    #[test]
    fn a_hop_is_what_is_added_in_the_same_round() {
        assert_eq!(added(&[30.0, 31.0, 29.0], &[10.0, 12.0]), [20.0, 19.0]);
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
        assert_eq!(met.ratio(), Some((0.4, 0.4, 0.5)));
        let expected = ["case", "10.0", "4.0", "-", "0.40×", "0.40–0.50", "≤ 0.45× met"];
        assert_eq!(met.cells(), expected.map(str::to_owned));
        assert_eq!(hops(&[5.0], &[10.0]).cells()[6], "≤ 0.45× MISSED");
        assert_eq!(hops(&[], &[10.0]).cells()[6], "≤ 0.45× not measured");
        assert_eq!(hops(&[5.0], &[-1.0]).cells()[6], "≤ 0.45× not measured");
    }
}
