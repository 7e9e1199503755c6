//! `cargo xtask bench kernel-legs`: what the kernel path takes off the hop that the agent adds.

mod case;
mod hop;
pub(super) mod programs;

use anyhow::{Context, Result};
use clap::ValueEnum;

use self::{
    case::{Case, Size},
    hop::Hops,
};
use super::{
    cpu::Placement,
    prepare::{Common, Ready, selected},
    report::Report,
    rounds::{Study, measure, rows_of},
    subject::Subject,
};
use crate::place::Place;

/// Options of `bench kernel-legs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Only calls of these sizes
    #[arg(long, value_delimiter = ',')]
    size: Vec<Size>,
    /// Only there
    #[arg(long, value_delimiter = ',')]
    placement: Vec<Placement>,
}

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let common = &args.common;
    let ready = common.prepare(place, &Subject::LEGS, &[Subject::Direct], &["redis-server"])?;
    let effort = common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
    let mut report = Report::new(common.json);
    let mut hops = Vec::new();
    for case in cases(place, args) {
        let contenders = measure(&case, effort, ready.contenders().collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", case.name()))?;
        let of_case = Hops::new(&case, &contenders);
        let mut rows = rows_of(&case, &contenders);
        rows.extend(of_case.rows());
        report.add_case(&case, &contenders, effort, rows);
        hops.push(of_case);
    }
    if ready.programs.iter().any(|(subject, _)| *subject == Subject::AgentOn) {
        time_programs(place, args, &ready, &mut report)?;
    }
    report.say(&format!("the hop that the agent adds to a direct call, p50\n{}", hop::table(&hops)));
    report.end(&ready)
}

fn cases(place: &Place, args: &Args) -> Vec<Case> {
    let sizes = selected(Size::value_variants(), &args.size, &[]);
    let placements = selected(Placement::value_variants(), &args.placement, &[]);
    let case = |placement| sizes.iter().map(move |size| Case { size: *size, placement, moa: place.shipped_moa() });
    placements.into_iter().flat_map(case).collect()
}

fn time_programs(place: &Place, args: &Args, ready: &Ready, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    for size in selected(Size::value_variants(), &args.size, &[]) {
        let found = programs::measure(size, &place.shipped_moa(), &ready.workshop);
        rows.extend(found.with_context(|| format!("timing the programs with calls of {}", size.name()))?);
    }
    report.add("the kernel programs, in a round of their own, on one CPU", rows);
    Ok(())
}
