//! `cargo xtask bench local`: the agent next to other proxies.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::{
    case::Case,
    prepare::{Common, selected},
    rounds::{Study, measure, rows_of, title},
    rows::table,
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
    let (mut rows, mut disturbed) = (Vec::new(), Vec::new());
    for case in selected(Case::value_variants(), &args.case, &[]) {
        let effort = common.effort(|wanted, quick| case.rounds(wanted, quick));
        let contenders = ready.contenders().filter(|one| case.applies_to(one.subject)).collect();
        let contenders = measure(&case, effort, contenders, &ready.workshop).with_context(|| format!("case {}", case.name()))?;
        let found = rows_of(&case, &contenders);
        let title = title(&case, &contenders, effort.foreign_max);
        if common.json {
            eprintln!("{title}");
        } else {
            println!("{title}\n{}", table(&found));
        }
        rows.extend(found);
        let lost = contenders.iter().filter(|one| one.has_nothing());
        disturbed.extend(lost.map(|one| format!("{} in {}", one.subject.name(), case.name())));
    }
    if common.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    ready.say_what_is_left_out();
    ensure!(disturbed.is_empty(), "others used the CPUs in every sample of {}: try when it is quiet", disturbed.join(", "));
    Ok(())
}
