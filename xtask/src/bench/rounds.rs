//! Rounds in which every subject has its turn.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    bed::Serving,
    progress::Progress,
    rows::{Metric, Row, median},
    subject::Subject,
    workshop::Workshop,
};

/// What all subjects do, and what is measured of it.
pub(super) trait Study {
    /// What the subjects stand in front of.
    type Bed<'a>: TestBed;

    /// The name in reports.
    fn name(&self) -> String;
    /// What is done, in words.
    fn about(&self) -> String;
    /// Starts the server.
    fn bed<'a>(&self, workshop: &'a Workshop) -> Result<Self::Bed<'a>>;
    /// Measures once.
    fn sample(&self, subject: Subject, target: &Target, bed: &Self::Bed<'_>, quick: bool) -> Result<Sample>;

    /// What the others are compared with.
    fn baseline(&self) -> Subject {
        Subject::Direct
    }

    /// Whether others that use the CPUs change what is measured.
    fn minds_strangers(&self) -> bool {
        true
    }

    /// Whether every sample needs a process that has served nobody yet.
    fn wants_fresh_processes(&self) -> bool {
        false
    }
}

/// A server, and what can be put in front of it.
pub(super) trait TestBed {
    /// Starts a subject; `file` is its program, if it has one.
    fn serve(&self, subject: Subject, file: Option<&Path>) -> Result<Serving>;
    /// Fails if a call is not answered rightly.
    fn check(&self, target: &Target) -> Result<()>;
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Samples of each subject that count.
    pub(super) rounds: usize,
    /// Short samples.
    pub(super) quick: bool,
    /// Percent of the CPU that others may use meanwhile.
    pub(super) foreign_max: f64,
}

/// Where a sample is taken.
pub(super) struct Target {
    /// What takes the calls.
    pub(super) port: u16,
    /// What takes them instead, if it is a unix socket.
    pub(super) path: Option<PathBuf>,
    /// Whether they go by lanes.
    pub(super) lanes: bool,
    /// The processes on the way; none for a direct call.
    pub(super) proxies: Vec<u32>,
}

/// One subject's share of a round.
pub(super) struct Sample {
    /// What was found.
    pub(super) values: Vec<(Metric, f64)>,
    /// The share of CPU that went to strangers meanwhile.
    pub(super) foreign: f64,
    /// Why it says nothing about its subject, if so.
    pub(super) invalid: Option<String>,
}

/// A subject in one study, with what it has given so far.
pub(super) struct Contender {
    /// Which.
    pub(super) subject: Subject,
    program: Option<PathBuf>,
    serving: Option<Serving>,
    /// With the number of its round.
    kept: Vec<(usize, Sample)>,
    dropped: Vec<Sample>,
}

impl Target {
    /// A port of this machine, and the processes on the way.
    pub(super) fn new(port: u16, proxies: Vec<u32>) -> Self {
        Self { port, path: None, lanes: false, proxies }
    }
}

impl Sample {
    /// A sample that is valid.
    pub(super) fn new(values: Vec<(Metric, f64)>, foreign: f64) -> Self {
        Self { values, foreign, invalid: None }
    }
}

/// Rounds until every subject has enough samples that count, or has had twice as many turns.
pub(super) fn measure(
    study: &impl Study,
    effort: Effort,
    mut contenders: Vec<Contender>,
    workshop: &Workshop,
) -> Result<Vec<Contender>> {
    let (bed, count) = (study.bed(workshop)?, contenders.len());
    let progress = Progress::new(&study.name(), effort.rounds * count);
    for round in 0..2 * effort.rounds {
        // Each round begins with another, so that none always comes after the same neighbour's noise.
        for contender in (round..round + count).map(|turn| turn % count) {
            let contender = &mut contenders[contender];
            if contender.kept.len() < effort.rounds {
                progress.show(round, &contender.subject.name(), contender.take_turn(round, study, &bed, effort)?);
            }
        }
    }
    Ok(contenders)
}

impl Contender {
    /// A subject with its program, if it has one.
    pub(super) fn new((subject, program): &(Subject, Option<PathBuf>)) -> Self {
        Self { subject: *subject, program: program.clone(), serving: None, kept: Vec::new(), dropped: Vec::new() }
    }

    /// Whether nothing of it counts.
    pub(super) fn has_nothing(&self) -> bool {
        self.kept.is_empty()
    }

    /// One value a round that counts.
    pub(super) fn values(&self, metric: Metric) -> Vec<f64> {
        self.by_round(metric).into_iter().map(|(_, value)| value).collect()
    }

    /// The same, with the round's number.
    pub(super) fn by_round(&self, metric: Metric) -> Vec<(usize, f64)> {
        let values = self.kept.iter().flat_map(|(round, sample)| sample.values.iter().map(|value| (*round, *value)));
        values.filter(|(_, (found, _))| *found == metric).map(|(round, (_, value))| (round, value)).collect()
    }

    /// Takes one sample; tells whether it counts.
    fn take_turn<S: Study>(&mut self, round: usize, study: &S, bed: &S::Bed<'_>, effort: Effort) -> Result<bool> {
        let name = self.subject.name();
        let mut serving = match self.serving.take() {
            Some(serving) => serving,
            None => bed.serve(self.subject, self.program.as_deref())?,
        };
        let sample = study.sample(self.subject, &serving.target, bed, effort.quick);
        let sample = sample.and_then(|sample| serving.check(bed).map(|()| sample));
        let sample = sample.with_context(|| format!("{name}, whose log ends:\n{}", serving.log()))?;
        if !study.wants_fresh_processes() {
            self.serving = Some(serving);
        }
        let quiet = sample.foreign * 100.0 <= effort.foreign_max || !study.minds_strangers();
        let counts = quiet && sample.invalid.is_none();
        if counts {
            self.kept.push((round, sample));
        } else {
            self.dropped.push(sample);
        }
        Ok(counts)
    }
}

/// All metrics of all subjects, next to those of the one that they are compared with.
pub(super) fn rows_of(study: &impl Study, contenders: &[Contender]) -> Vec<Row> {
    let baseline = study.baseline();
    let mut rows = Vec::new();
    for metric in Metric::ALL {
        let compared = contenders.iter().find(|one| one.subject == baseline);
        let base = compared.and_then(|one| median(&one.values(metric)));
        for one in contenders {
            let (subject, values) = (one.subject.name(), one.values(metric));
            rows.extend(Row::new(&study.name(), &subject, metric, &values, (&baseline.name(), base)));
        }
    }
    rows
}

/// What the study is, how quiet the machine was, and what was invalid.
pub(super) fn title(study: &impl Study, contenders: &[Contender], foreign_max: f64) -> String {
    let samples = contenders.iter().flat_map(|one| one.kept.iter().map(|(_, sample)| sample).chain(&one.dropped));
    let foreign: Vec<f64> = samples.map(|sample| sample.foreign * 100.0).collect();
    let loud = contenders.iter().flat_map(|one| &one.dropped).filter(|sample| sample.foreign * 100.0 > foreign_max).count();
    let (usual, most) = (median(&foreign).unwrap_or(0.0), foreign.iter().copied().fold(0.0, f64::max));
    let verdict = if study.minds_strangers() {
        format!("{loud} of {} samples were above {foreign_max:.0} % and dropped", foreign.len())
    } else {
        "which memory does not mind".to_owned()
    };
    let invalid: String = contenders.iter().filter_map(invalid).collect();
    format!("{}: {}\nforeign CPU: median {usual:.1} %, at most {most:.1} %; {verdict}{invalid}", study.name(), study.about())
}

fn invalid(contender: &Contender) -> Option<String> {
    let reasons: Vec<&String> = contender.dropped.iter().filter_map(|sample| sample.invalid.as_ref()).collect();
    let last = reasons.last()?;
    Some(format!("\n{}: {} invalid samples, the last of them as {last}", contender.subject.name(), reasons.len()))
}
