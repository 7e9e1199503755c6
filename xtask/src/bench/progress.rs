//! Where a run is: a line that changes on a terminal, one line a round elsewhere.

use std::{
    cell::Cell,
    io::{IsTerminal, stderr},
};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of one case.
pub(super) struct Progress {
    case: String,
    bar: Option<ProgressBar>,
    round: Cell<Option<usize>>,
}

impl Progress {
    /// A case begins; `samples` will be taken if none is dropped.
    pub(super) fn new(case: &str, samples: usize) -> Self {
        let bar = stderr().is_terminal().then(|| ProgressBar::new(samples as u64));
        if let Some(bar) = &bar
            && let Ok(style) = ProgressStyle::with_template("{prefix:17} {bar:30} {pos}/{len} {msg} ({elapsed})")
        {
            bar.set_style(style);
            bar.set_prefix(case.to_owned());
        }
        Self { case: case.to_owned(), bar, round: Cell::new(None) }
    }

    /// A subject has had its turn.
    pub(super) fn show(&self, round: usize, subject: &str, counts: bool) {
        match &self.bar {
            Some(bar) if counts => bar.inc(1),
            Some(_) => {}
            None if self.round.replace(Some(round)) != Some(round) => eprintln!("{}: round {}", self.case, round + 1),
            None => {}
        }
        if let Some(bar) = &self.bar {
            bar.set_message(if counts { subject.to_owned() } else { format!("{subject}: disturbed") });
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
