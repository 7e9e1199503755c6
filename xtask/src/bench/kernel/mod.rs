//! `cargo xtask bench kernel`: calls that the kernel programs route from lane to lane, next to those without any mesh.

mod case;
mod programs;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use self::case::{Case, Size, WHOLE};
use super::{
    cpu::{Cpus, Placement},
    frames::bed::FrameBed,
    goals,
    prepare::{Common, Ready, selected},
    report::Report,
    rounds::{Study, TestBed, measure, rows_of},
    subject::Subject,
};
use crate::place::Place;

/// Options of `bench kernel`.
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

/// Connections with a call in flight on each, where throughput is measured.
const MANY: usize = 50;

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let common = &args.common;
    let mut ready = common.prepare(place, &Subject::KERNEL, &[Subject::Direct], &[])?;
    let no_lanes = why_no_lanes(&mut ready);
    let effort = common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
    let (mut report, mut goals) = (Report::new(common.json), Vec::new());
    for case in cases(place, args) {
        let contenders = ready.contenders().filter(|one| one.subject != Subject::AgentCrowded || case.shows_crowds());
        let contenders = measure(&case, effort, contenders.collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", case.name()))?;
        report.add_case(&case, &contenders, effort, rows_of(&case, &contenders));
        goals.extend(goals::of_case(&case, &contenders));
    }
    if ready.programs.iter().any(|(subject, _)| subject.has_lanes()) {
        time_programs(place, args, &ready, &mut report)?;
    }
    if !goals.is_empty() {
        report.say(&goals::table(goals));
    }
    report.end(&ready)?;
    ensure!(no_lanes.is_none(), "{} was not measured: {}", Subject::AgentRouted.name(), no_lanes.unwrap_or_default());
    Ok(())
}

/// Tries whether the agent routes calls. If it does not, that subject is left out, so that the others are measured, and the run
/// fails at its end.
fn why_no_lanes(ready: &mut Ready) -> Option<String> {
    let (_, file) = ready.programs.iter().find(|(subject, _)| subject.has_lanes())?;
    let tried = FrameBed::start_with(WHOLE, Cpus::All, &ready.workshop)
        .and_then(|bed| bed.serve(Subject::AgentRouted, file.as_deref()).map(drop));
    let why = format!("{:#}", tried.err()?);
    // What the agent logs beside it says nothing of lanes.
    let line = why.lines().find(|line| line.contains("the agent gives no lanes")).map(str::trim);
    let why = line.unwrap_or(&why).to_owned();
    eprintln!("left out: {}: {why}", Subject::AgentRouted.name());
    ready.programs.retain(|(subject, _)| !subject.has_lanes());
    Some(why)
}

fn cases(place: &Place, args: &Args) -> Vec<Case> {
    let sizes = selected(Size::value_variants(), &args.size, &[]);
    let placements = selected(Placement::value_variants(), &args.placement, &[]);
    let mut cases = Vec::new();
    for placement in placements {
        let case = |size, connections| Case { size, connections, placement, moa: place.shipped_moa() };
        cases.extend(sizes.iter().map(|size| case(*size, 1)));
        cases.extend(sizes.contains(&Size::B64).then(|| case(Size::B64, MANY)));
    }
    cases
}

fn time_programs(place: &Place, args: &Args, ready: &Ready, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    for size in selected(Size::value_variants(), &args.size, &[]).into_iter().filter(|size| size.fits_lanes()) {
        let found = programs::measure(size, &place.shipped_moa(), &ready.workshop);
        rows.extend(found.with_context(|| format!("timing the programs with calls of {}", size.name()))?);
    }
    report.add("the kernel programs, in a round of their own, on one CPU", rows);
    Ok(())
}
