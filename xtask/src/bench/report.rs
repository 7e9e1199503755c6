//! Where what was found goes: tables as they are found, or one array of rows at the end.

use anyhow::{Result, ensure};

use super::{
    prepare::Ready,
    rounds::{Contender, Effort, Study, title},
    rows::{Row, table},
};

/// All that a run has found so far.
pub(super) struct Report {
    json: bool,
    rows: Vec<Row>,
    /// Subjects in cases in which no sample counts.
    nothing: Vec<String>,
}

impl Report {
    /// Nothing yet.
    pub(super) fn new(json: bool) -> Self {
        Self { json, rows: Vec::new(), nothing: Vec::new() }
    }

    /// A case was measured.
    pub(super) fn add_case(&mut self, case: &impl Study, contenders: &[Contender], effort: Effort, rows: Vec<Row>) {
        self.add(&title(case, contenders, effort.foreign_max), rows);
        let lost = contenders.iter().filter(|one| one.has_nothing());
        self.nothing.extend(lost.map(|one| format!("{} in {}", one.subject.name(), case.name())));
    }

    /// Something was found.
    pub(super) fn add(&mut self, title: &str, rows: Vec<Row>) {
        self.say(&format!("{title}\n{}", if self.json { String::new() } else { table(&rows) }));
        self.rows.extend(rows);
    }

    /// Text for people: never where the rows for machines go.
    pub(super) fn say(&self, text: &str) {
        if self.json {
            eprintln!("{}", text.trim_end());
        } else {
            println!("{text}");
        }
    }

    /// Nothing more comes. Fails if nothing was found of a subject.
    pub(super) fn end<'a>(self, ready: impl Into<Option<&'a Ready>>) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
        }
        if let Some(ready) = ready.into() {
            ready.say_what_is_left_out();
        }
        let nothing = self.nothing.join(", ");
        ensure!(nothing.is_empty(), "no sample counts of {nothing}: the reasons stand above each table; try when it is quiet");
        Ok(())
    }
}
