//! What a run needs before it can begin: programs, the agent's build, files, and which subjects this machine has.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    path,
    rounds::{Contender, Effort},
    subject::{Subject, installed},
    workshop::Workshop,
};
use crate::{build, place::Place};

/// Options of every benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Short samples and three rounds: done within a minute, and less sure
    #[arg(long)]
    pub(super) quick: bool,
    /// One JSON array on standard output instead of tables
    #[arg(long)]
    pub(super) json: bool,
    /// Samples of each subject in each case that count; 5 by default, 3 with --quick, fewer for memory
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Percent of the CPU: a sample in which others used more than this says more about them than about its subject,
    /// and is dropped
    #[arg(long, default_value_t = 10.0)]
    pub(super) foreign_max: f64,
    /// Only these subjects; what the others are compared with is always among them
    #[arg(long, value_delimiter = ',')]
    subject: Vec<Subject>,
}

/// A run that can begin.
pub(super) struct Ready {
    /// The subjects with their programs.
    pub(super) programs: Vec<(Subject, Option<PathBuf>)>,
    /// Where they work.
    pub(super) workshop: Workshop,
    /// Which subjects are not among them, and why.
    pub(super) left_out: Option<String>,
}

impl Common {
    /// Prepares for these subjects, or for those of them that were chosen; `always` are among them in any case.
    pub(super) fn prepare(&self, place: &Place, all: &[Subject], always: &[Subject], tools: &[&str]) -> Result<Ready> {
        let other = self.subject.iter().find(|subject| !all.contains(subject));
        ensure!(other.is_none(), "{} is not measured here", other.map(|subject| subject.name()).unwrap_or_default());
        let subjects = selected(all, &self.subject, always);
        let mut programs = programs(place, &subjects, tools)?;
        if subjects.iter().any(|subject| subject.is_agent()) {
            build::shipped(place)?;
        }
        raise_file_limit()?;
        let workshop = Workshop::open()?;
        let mut left_out = None;
        if subjects.iter().any(|subject| subject.needs_kernel())
            && let Some(reason) = path::why_not(place, &workshop)?
        {
            let names: Vec<String> = subjects.iter().filter(|one| one.needs_kernel()).map(|one| one.name()).collect();
            programs.retain(|(subject, _)| !subject.needs_kernel());
            left_out = Some(format!("left out: {}, as the kernel path is not there: {reason}", names.join(", ")));
        }
        let ready = Ready { programs, workshop, left_out };
        ready.say_what_is_left_out();
        Ok(ready)
    }

    /// How much is done of what needs so many rounds.
    pub(super) fn effort(&self, rounds: impl FnOnce(Option<usize>, bool) -> usize) -> Effort {
        Effort { rounds: rounds(self.rounds.map(usize::from), self.quick), quick: self.quick, foreign_max: self.foreign_max }
    }
}

impl Ready {
    /// The subjects, none of which has been measured.
    pub(super) fn contenders(&self) -> impl Iterator<Item = Contender> {
        self.programs.iter().map(Contender::new)
    }

    /// Once at the beginning, and once below all tables.
    pub(super) fn say_what_is_left_out(&self) {
        if let Some(left_out) = &self.left_out {
            eprintln!("{left_out}");
        }
    }
}

/// All if none was chosen; `always` are among them in any case. In their order.
pub(super) fn selected<T: Clone + PartialEq>(all: &[T], chosen: &[T], always: &[T]) -> Vec<T> {
    let chosen = |value: &&T| chosen.is_empty() || chosen.contains(value) || always.contains(value);
    all.iter().filter(chosen).cloned().collect()
}

/// Each subject's program; names all that are missing at once.
fn programs(place: &Place, subjects: &[Subject], tools: &[&str]) -> Result<Vec<(Subject, Option<PathBuf>)>> {
    let missing_tools = tools.iter().filter_map(|tool| installed(tool).err());
    let mut missing: Vec<String> = missing_tools.map(|error| error.to_string()).collect();
    let mut programs = Vec::new();
    for subject in subjects {
        match subject.program(place) {
            Ok(program) => programs.push((*subject, program)),
            Err(error) => missing.push(format!("{}: {error:#}", subject.name())),
        }
    }
    let advice = "run `cargo xtask setup bench`, or choose others with --subject";
    ensure!(missing.is_empty(), "{}\n{advice}", missing.join("\n"));
    Ok(programs)
}

/// Thousands of connections need as many files, here and in the subjects, which inherit the limit.
fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_there_joins_what_was_chosen() {
        assert_eq!(selected(&[1, 2, 3], &[], &[1]), [1, 2, 3]);
        assert_eq!(selected(&[1, 2, 3], &[3], &[1]), [1, 3]);
    }
}
