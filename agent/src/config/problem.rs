//! What is wrong with a file, as text for an operator and as data for machines.

use std::{fmt, io, ops::Range, path::PathBuf};

use serde::Serialize;

use super::{key::KeyPath, source::position};

/// One problem of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// The key; empty if the file is no TOML there.
    pub key: String,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: String,
    /// What to do; empty if that is clear.
    pub advice: String,
    #[serde(skip)]
    span: Range<usize>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: {source}; name another file by --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a valid configuration.
    #[error(transparent)]
    Invalid(#[from] Report),
}

/// Every problem of one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Report {
    /// The file's name, as it was given.
    pub file: String,
    /// Its problems, at least one, from top to bottom.
    pub problems: Vec<Problem>,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "\n" })?;
            write!(f, "{}:{}:{}: {problem}", self.file, problem.line, problem.column)?;
        }
        Ok(())
    }
}

impl Report {
    /// The line of a problem, and a second one with carets under what is wrong.
    #[must_use]
    pub fn excerpt(&self, problem: &Problem) -> (&str, String) {
        let line = self.text.lines().nth(problem.line - 1).unwrap_or_default();
        let wrong = self.text.get(problem.span.clone()).unwrap_or_default();
        let first_line = wrong.lines().next().unwrap_or_default();
        // Tabs stay tabs, so that the carets stand below what they mean.
        let indent: String = line.chars().take(problem.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        (line, indent + &"^".repeat(first_line.chars().count().max(1)))
    }
}

/// Collects the problems of one text.
pub(super) struct Problems<'a> {
    text: &'a str,
    found: Vec<(KeyPath, Problem)>,
}

/// What was found, what was expected, and what to do.
pub(super) struct Finding {
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) advice: String,
}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, found: Vec::new() }
    }

    pub(super) fn push(&mut self, span: Range<usize>, key: &KeyPath, finding: Finding) {
        let (line, column) = position(self.text, span.start);
        let Finding { found, expected, advice } = finding;
        self.found.push((key.clone(), Problem { line, column, key: key.to_string(), found, expected, advice, span }));
    }

    /// Whether a key or any below it has a problem.
    pub(super) fn concern(&self, key: &KeyPath) -> bool {
        self.found.iter().any(|(at, _)| at.is_within(key))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All problems, from top to bottom.
    pub(super) fn into_report(self, file: String) -> Report {
        let mut problems: Vec<_> = self.found.into_iter().map(|(_, problem)| problem).collect();
        problems.sort_by_key(|problem| problem.span.start);
        Report { file, problems, text: self.text.to_owned() }
    }
}
