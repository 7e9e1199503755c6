//! `cargo xtask bench frames` and `bench mesh`: calls in frames through one agent, and through two.

mod bed;
mod case;
mod goals;
mod instructions;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;

use self::case::{Case, FRAMES, MESH, Shape};
use super::{
    prepare::{Common, Ready},
    rounds::{Study, measure, rows_of, title},
    rows::{Row, table},
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
    let rows = instructions::measure(&ready, args.common.quick)?;
    ensure!(!rows.is_empty(), "instructions are counted of agent-off and of haproxy: choose one with --subject");
    report(&args.common, &rows, "instructions of a call of 64 B, 128 in flight on 1 connection, by callgrind")
}

/// Runs the cases with two agents, and prints what was found.
pub(super) fn run_mesh(place: &Place, args: &MeshArgs) -> Result<()> {
    let ready = args.common.prepare(place, &Subject::MESH, &[Subject::Direct], &[])?;
    measure_all(place, &args.common, &ready, &MESH, &args.case)
}

fn measure_all(place: &Place, common: &Common, ready: &Ready, shapes: &'static [Shape], chosen: &[String]) -> Result<()> {
    let (mut rows, mut goals, mut disturbed) = (Vec::new(), Vec::new(), Vec::new());
    for shape in shapes.iter().filter(|shape| chosen.is_empty() || chosen.iter().any(|name| name == shape.name)) {
        let case = Case { shape, moa: place.shipped_moa() };
        let effort = common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
        let contenders = measure(&case, effort, ready.contenders().collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", case.name()))?;
        let found = rows_of(&case, &contenders);
        let title = title(&case, &contenders, effort.foreign_max);
        if common.json {
            eprintln!("{title}");
        } else {
            println!("{title}\n{}", table(&found));
        }
        rows.extend(found);
        goals.extend(goals::of_case(&case, &contenders));
        let lost = contenders.iter().filter(|one| one.has_nothing());
        disturbed.extend(lost.map(|one| format!("{} in {}", one.subject.name(), case.name())));
    }
    let goals = goals::table(goals);
    if common.json {
        eprint!("{goals}");
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{goals}");
    }
    ready.say_what_is_left_out();
    ensure!(disturbed.is_empty(), "others used the CPUs in every sample of {}: try when it is quiet", disturbed.join(", "));
    Ok(())
}

fn report(common: &Common, rows: &[Row], title: &str) -> Result<()> {
    if common.json {
        println!("{}", serde_json::to_string_pretty(rows)?);
    } else {
        println!("{title}\n{}", table(rows));
    }
    Ok(())
}

fn names(shapes: &[Shape]) -> PossibleValuesParser {
    PossibleValuesParser::new(shapes.iter().map(|shape| shape.name).collect::<Vec<_>>())
}
