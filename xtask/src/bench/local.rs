//! `cargo xtask bench local`: the agent next to other proxies.

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{
    case::Case,
    prepare::{Common, selected},
    report::Report,
    rounds::{Study, measure, rows_of},
    subject::Subject,
};
use crate::place::Place;

/// Options of `bench local`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Only these cases
    #[arg(long, value_delimiter = ',')]
    case: Vec<Case>,
}

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let common = &args.common;
    let ready = common.prepare(place, &Subject::LOCAL, &[Subject::Direct], &["redis-server", "redis-benchmark"])?;
    let mut report = Report::new(common.json);
    for case in selected(Case::value_variants(), &args.case, &[]) {
        let effort = common.effort(|wanted, quick| case.rounds(wanted, quick));
        let contenders = ready.contenders().filter(|one| case.applies_to(one.subject)).collect();
        let contenders = measure(&case, effort, contenders, &ready.workshop).with_context(|| format!("case {}", case.name()))?;
        report.add_case(&case, &contenders, effort, rows_of(&case, &contenders));
    }
    report.end(&ready)
}
