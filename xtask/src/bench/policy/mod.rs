//! `cargo xtask bench policy`: what the traffic policy costs, and what it does for tail latency.

mod bed;
mod cost;
mod tail;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::tail::Tail;
use super::{
    goals,
    prepare::{Common, selected},
    report::Report,
    rounds::{Effort, Study, measure, rows_of},
    subject::Subject,
};
use crate::place::Place;

/// A case, under the name that reports have for it, or that those of its parts begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Picking one of 10, 1,000 and 20,000 instances, and of 10 in each of 2,000 services
    Pick,
    /// What happens when an instance comes or goes, with 10, 1,000 and 20,000
    Refresh,
    /// Asking the rules about a call
    Rules,
    /// Asking the rate limits about a call
    Rate,
    /// 10 instances of which one takes 20 ms longer, 2,000 calls a second
    #[value(name = "tail_1_slow")]
    OneSlow,
    /// 10 instances that are equally fast, 2,000 calls a second
    #[value(name = "tail_all_equal")]
    AllEqual,
}

/// Options of `bench policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Only these cases
    #[arg(long, value_delimiter = ',')]
    case: Vec<Case>,
}

impl Case {
    /// The tests of the agent that measure it.
    fn tests(self) -> &'static [&'static str] {
        match self {
            Self::Pick => &["balance::benchmark::pick", "balance::benchmark::pick_in_many_services"],
            Self::Refresh => &["balance::benchmark::refresh"],
            Self::Rules => &["rules::benchmark::ask_rules"],
            Self::Rate => &["balance::benchmark::admit"],
            Self::OneSlow | Self::AllEqual => &[],
        }
    }

    fn tail(self) -> Option<Tail> {
        let slower = match self {
            Self::OneSlow => Duration::from_millis(20),
            Self::AllEqual => Duration::ZERO,
            _ => return None,
        };
        let value = self.to_possible_value()?;
        let about = value.get_help().map(ToString::to_string).unwrap_or_default();
        Some(Tail { name: value.get_name().to_owned(), about, slower })
    }
}

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let cases = selected(Case::value_variants(), &args.case, &[]);
    let effort = args.common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
    let (mut report, mut goals) = (Report::new(args.common.json), Vec::new());
    let tests: Vec<&str> = cases.iter().flat_map(|case| case.tests()).copied().collect();
    if !tests.is_empty() {
        goals.extend(costs(place, &tests, effort, &mut report)?);
    }
    let tails: Vec<Tail> = cases.into_iter().filter_map(Case::tail).collect();
    // Without any, what it would prepare is not needed.
    let always: &[Subject] = &[Subject::EnvoyLeastRequest];
    let ready = if tails.is_empty() { None } else { Some(args.common.prepare(place, &Subject::POLICY, always, &[])?) };
    for (tail, ready) in tails.iter().zip(ready.iter().cycle()) {
        let contenders = measure(tail, effort, ready.contenders().collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", tail.name()))?;
        report.add_case(tail, &contenders, effort, rows_of(tail, &contenders));
        goals.extend(goals::of_case(tail, &contenders));
    }
    if !goals.is_empty() {
        report.say(&goals::table(goals));
    }
    report.end(ready.as_ref())
}

fn costs(place: &Place, tests: &[&str], effort: Effort, report: &mut Report) -> Result<Vec<goals::Line>> {
    let found = cost::measure(place, tests, effort).context("what the policy's code costs")?;
    for case in cost::cases(&found) {
        report.add(&format!("{case}: CPU time of one thread"), cost::rows(&found, case));
    }
    Ok(cost::goals(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_is_measured_in_one_way() {
        for case in Case::value_variants() {
            assert_ne!(case.tests().is_empty(), case.tail().is_none(), "{case:?}");
        }
    }
}
