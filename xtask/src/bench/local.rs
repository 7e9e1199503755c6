//! `cargo xtask bench local`: rounds in which every subject has its turn.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    bed::{Bed, Serving},
    case::{Case, Sample},
    progress::Progress,
    rows::{Metric, Row, median, table},
    subject::{Subject, installed},
    workshop::Workshop,
};
use crate::{command, place::Place};

/// Options of `bench local`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Short samples and three rounds: done within a minute, and less sure
    #[arg(long)]
    quick: bool,
    /// One JSON array on standard output instead of tables
    #[arg(long)]
    json: bool,
    /// Undisturbed samples of each subject in each case; 5 by default, 3 with --quick, fewer for memory
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Percent of the CPU: a sample in which others used more than this says more about them than about its subject,
    /// and is dropped
    #[arg(long, default_value_t = 10.0)]
    foreign_max: f64,
    /// Only these subjects; `direct` is always among them
    #[arg(long, value_delimiter = ',')]
    subject: Vec<Subject>,
    /// Only these cases
    #[arg(long, value_delimiter = ',')]
    case: Vec<Case>,
}

/// A subject in one case, with what it has given so far.
struct Contender {
    subject: Subject,
    program: Option<PathBuf>,
    serving: Option<Serving>,
    kept: Vec<Sample>,
    dropped: Vec<Sample>,
}

/// Runs the cases, and prints what was found.
pub(super) fn run(place: &Place, args: &Args) -> Result<()> {
    let subjects = selected(&args.subject, &[Subject::Direct]);
    let programs = programs(place, &subjects)?;
    if subjects.contains(&Subject::Agent) {
        let build = ["build", "--release", "--bin", "moa"];
        command::run(command::cargo().args(build).current_dir(&place.root)).context("the agent cannot be built")?;
    }
    raise_file_limit()?;
    let workshop = Workshop::open()?;
    let (mut rows, mut disturbed) = (Vec::new(), Vec::new());
    for case in selected(&args.case, &[]) {
        let contenders = measure(case, args, &programs, &workshop).with_context(|| format!("case {}", case.name()))?;
        let found = rows_of(case, &contenders);
        let title = title(case, &contenders, args.foreign_max);
        if args.json {
            eprintln!("{title}");
        } else {
            println!("{title}\n{}", table(&found));
        }
        rows.extend(found);
        let lost = contenders.iter().filter(|one| one.kept.is_empty());
        disturbed.extend(lost.map(|one| format!("{} in {}", one.subject.name(), case.name())));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    ensure!(disturbed.is_empty(), "others used the CPUs in every sample of {}: try when it is quiet", disturbed.join(", "));
    Ok(())
}

/// All values if none was chosen; `always` are among them in any case. In the order of their declaration.
fn selected<T: ValueEnum + PartialEq>(chosen: &[T], always: &[T]) -> Vec<T> {
    let all = T::value_variants().iter().cloned();
    all.filter(|value| chosen.is_empty() || chosen.contains(value) || always.contains(value)).collect()
}

/// Each subject's program; names all that are missing at once.
fn programs(place: &Place, subjects: &[Subject]) -> Result<Vec<(Subject, Option<PathBuf>)>> {
    let tools = ["redis-server", "redis-benchmark"].map(installed);
    let mut missing: Vec<String> = tools.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
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

/// Rounds until every subject has enough undisturbed samples, or has had twice as many turns.
fn measure(case: Case, args: &Args, programs: &[(Subject, Option<PathBuf>)], workshop: &Workshop) -> Result<Vec<Contender>> {
    let rounds = case.rounds(args.rounds.map(usize::from), args.quick);
    let bed = Bed::start(case, workshop)?;
    let mut contenders: Vec<_> = programs.iter().filter(|(subject, _)| case.applies_to(*subject)).map(Contender::new).collect();
    let count = contenders.len();
    let progress = Progress::new(&case.name(), rounds * count);
    for round in 0..2 * rounds {
        // Each round begins with another, so that none always comes after the same neighbour's noise.
        for contender in (round..round + count).map(|turn| turn % count) {
            let contender = &mut contenders[contender];
            if contender.kept.len() < rounds {
                progress.show(round, &contender.subject.name(), contender.take_turn(case, &bed, args)?);
            }
        }
    }
    Ok(contenders)
}

impl Contender {
    fn new((subject, program): &(Subject, Option<PathBuf>)) -> Self {
        Self { subject: *subject, program: program.clone(), serving: None, kept: Vec::new(), dropped: Vec::new() }
    }

    /// Takes one sample; tells whether it counts.
    fn take_turn(&mut self, case: Case, bed: &Bed, args: &Args) -> Result<bool> {
        let name = self.subject.name();
        let mut serving = match self.serving.take() {
            Some(serving) => serving,
            None => bed.serve(self.subject, self.program.as_deref())?,
        };
        let sample = case.sample(&serving.target, bed, args.quick).and_then(|sample| serving.check(&bed.call).map(|()| sample));
        let sample = sample.with_context(|| format!("{name}, whose log ends:\n{}", serving.log()))?;
        if !case.wants_fresh_processes() {
            self.serving = Some(serving);
        }
        let counts = sample.foreign * 100.0 <= args.foreign_max || !case.minds_strangers();
        let samples = if counts { &mut self.kept } else { &mut self.dropped };
        samples.push(sample);
        Ok(counts)
    }

    fn values(&self, metric: Metric) -> Vec<f64> {
        let values = self.kept.iter().flat_map(|sample| &sample.values);
        values.filter(|(found, _)| *found == metric).map(|(_, value)| *value).collect()
    }
}

fn rows_of(case: Case, contenders: &[Contender]) -> Vec<Row> {
    let baseline = Subject::Direct;
    let mut rows = Vec::new();
    for metric in Metric::ALL {
        let direct = contenders.iter().find(|one| one.subject == baseline);
        let base = direct.and_then(|one| median(&one.values(metric)));
        for one in contenders {
            let (subject, values) = (one.subject.name(), one.values(metric));
            rows.extend(Row::new(&case.name(), &subject, metric, &values, (&baseline.name(), base)));
        }
    }
    rows
}

/// What the case is, and how quiet the machine was.
fn title(case: Case, contenders: &[Contender], foreign_max: f64) -> String {
    let samples = contenders.iter().flat_map(|one| one.kept.iter().chain(&one.dropped));
    let foreign: Vec<f64> = samples.map(|sample| sample.foreign * 100.0).collect();
    let dropped: usize = contenders.iter().map(|one| one.dropped.len()).sum();
    let (usual, most) = (median(&foreign).unwrap_or(0.0), foreign.iter().copied().fold(0.0, f64::max));
    let verdict = if case.minds_strangers() {
        format!("{dropped} of {} samples were above {foreign_max:.0} % and dropped", foreign.len())
    } else {
        "which memory does not mind".to_owned()
    };
    format!("{}: {}\nforeign CPU: median {usual:.1} %, at most {most:.1} %; {verdict}", case.name(), case.about())
}

/// Thousands of connections need as many files, here and in the subjects, which inherit the limit.
fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}
