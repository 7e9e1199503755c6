//! `cargo xtask bench frames` and `bench mesh`: calls in frames through one agent, and through two.

pub(super) mod bed;
mod case;
mod instructions;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;

use self::case::{Case, FRAMES, MESH, Shape};
use super::{
    goals,
    prepare::{Common, Ready},
    report::Report,
    rounds::{Study, measure, rows_of},
    subject::Subject,
};
use crate::place::Place;

/// Options of `bench frames`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Only these cases
    #[arg(long, value_delimiter = ',', value_parser = names(&FRAMES))]
    case: Vec<String>,
    /// Only instructions of a call in userspace, by Valgrind: the same on any machine, however busy it is
    #[arg(long, conflicts_with = "case")]
    callgrind: bool,
    /// Keep callgrind's profiles in this folder, for `callgrind_annotate`
    #[arg(long, value_name = "DIR", requires = "callgrind")]
    profiles: Option<PathBuf>,
}

/// Options of `bench mesh`.
#[derive(Debug, clap::Args)]
pub(crate) struct MeshArgs {
    #[command(flatten)]
    common: Common,
    /// Only these cases
    #[arg(long, value_delimiter = ',', value_parser = names(&MESH))]
    case: Vec<String>,
}

/// Runs the cases with one agent, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let tools: &[&str] = if args.callgrind { &["valgrind"] } else { &[] };
    let ready = args.common.prepare(place, &Subject::FRAMES, &[Subject::Direct], tools)?;
    if !args.callgrind {
        return measure_all(place, &args.common, &ready, &FRAMES, &args.case);
    }
    let mut report = Report::new(args.common.json);
    let rows = instructions::measure(&ready, args.common.quick, args.profiles.as_deref())?;
    ensure!(!rows.is_empty(), "instructions are counted of agent-off and of haproxy: choose one with --subject");
    report.add("instructions of a call of 64 B, 128 in flight on 1 connection, by callgrind", rows);
    report.end(&ready)
}

/// Runs the cases with two agents, and prints what was found.
pub(super) fn run_mesh(place: &Place, args: &MeshArgs) -> Result<()> {
    let ready = args.common.prepare(place, &Subject::MESH, &[Subject::Direct], &[])?;
    measure_all(place, &args.common, &ready, &MESH, &args.case)
}

fn measure_all(place: &Place, common: &Common, ready: &Ready, shapes: &'static [Shape], chosen: &[String]) -> Result<()> {
    let (mut report, mut goals) = (Report::new(common.json), Vec::new());
    let effort = common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
    for shape in shapes.iter().filter(|shape| chosen.is_empty() || chosen.iter().any(|name| name == shape.name)) {
        let case = Case { shape, moa: place.shipped_moa() };
        let contenders = measure(&case, effort, ready.contenders().collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", case.name()))?;
        report.add_case(&case, &contenders, effort, rows_of(&case, &contenders));
        goals.extend(goals::of_case(&case, &contenders));
    }
    if !goals.is_empty() {
        report.say(&goals::table(goals));
    }
    report.end(ready)
}

fn names(shapes: &[Shape]) -> PossibleValuesParser {
    PossibleValuesParser::new(shapes.iter().map(|shape| shape.name).collect::<Vec<_>>())
}
