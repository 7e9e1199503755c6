//! `cargo xtask bench kernel-legs`: what the kernel path takes off the hop that the agent adds.

mod case;
mod hop;
mod programs;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use self::{
    case::{Case, Placement, Size},
    hop::Hops,
};
use super::{
    prepare::{Common, Ready, selected},
    rounds::{Study, measure, rows_of, title},
    rows::{Row, table},
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

/// Where reports go: tables as they are found, or one array at the end.
struct Report {
    json: bool,
    rows: Vec<Row>,
}

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let common = &args.common;
    let ready = common.prepare(place, &Subject::LEGS, &[Subject::Direct], &["redis-server"])?;
    let effort = common.effort(|wanted, quick| wanted.unwrap_or(if quick { 3 } else { 5 }));
    let mut report = Report { json: common.json, rows: Vec::new() };
    let (mut hops, mut nothing) = (Vec::new(), Vec::new());
    for case in cases(place, args) {
        let contenders = measure(&case, effort, ready.contenders().collect(), &ready.workshop);
        let contenders = contenders.with_context(|| format!("case {}", case.name()))?;
        let of_case = Hops::new(&case, &contenders);
        let mut rows = rows_of(&case, &contenders);
        rows.extend(of_case.rows());
        report.add(&title(&case, &contenders, effort.foreign_max), rows);
        hops.push(of_case);
        let lost = contenders.iter().filter(|one| one.has_nothing());
        nothing.extend(lost.map(|one| format!("{} in {}", one.subject.name(), case.name())));
    }
    if ready.programs.iter().any(|(subject, _)| *subject == Subject::AgentOn) {
        time_programs(place, args, &ready, &mut report)?;
    }
    report.end(&hops)?;
    ready.say_what_is_left_out();
    ensure!(nothing.is_empty(), "no sample counts of {}: the reasons stand above each table", nothing.join(", "));
    Ok(())
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

impl Report {
    fn add(&mut self, title: &str, rows: Vec<Row>) {
        self.say(&format!("{title}\n{}", if self.json { String::new() } else { table(&rows) }));
        self.rows.extend(rows);
    }

    fn end(&self, hops: &[Hops]) -> Result<()> {
        self.say(&format!("the hop that the agent adds to a direct call, p50\n{}", hop::table(hops)));
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        if self.json {
            eprintln!("{}", text.trim_end());
        } else {
            println!("{text}");
        }
    }
}
