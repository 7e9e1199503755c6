//! Tables that are printed line by line.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use super::{
    Out,
    out::OUT,
    table::Side::{self, Left, Right},
    units::printable,
};

/// A table that is printed line by line: a column grows when something comes that is wider.
pub(super) struct Growing<const N: usize> {
    columns: [(&'static str, Side, usize); N],
}

/// How a cell is shown.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tone {
    Plain,
    Title,
    Good,
    Doubtful,
    Bad,
}

impl<const N: usize> Growing<N> {
    /// With these titles, sides and least widths.
    pub(super) fn new(columns: [(&'static str, Side, usize); N]) -> Self {
        Self { columns }
    }

    pub(super) fn title(&mut self) -> String {
        let titles = self.columns.map(|(title, ..)| (title.to_owned(), Tone::Title));
        self.line(titles)
    }

    pub(super) fn line(&mut self, cells: [(String, Tone); N]) -> String {
        let mut line = String::new();
        for ((_, side, width), (text, tone)) in self.columns.iter_mut().zip(cells) {
            let text = printable(&text);
            let wide = text.chars().count();
            *width = wide.max(*width);
            let (blanks, shown) = (" ".repeat(*width - wide), tone.paint(&text));
            line += &match side {
                Left => shown + &blanks,
                Right => blanks + &shown,
            };
            line += "  ";
        }
        format!("{}\n", line.trim_end())
    }
}

impl Tone {
    fn paint(self, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Title => OUT.bold(text),
            Self::Good => OUT.good(text),
            Self::Doubtful => OUT.doubtful(text),
            Self::Bad => OUT.bad(text),
        }
    }
}

/// What a line of what goes on is to whoever reads it.
pub(super) enum Entry {
    /// One of those that were asked for.
    Row(String),
    /// Something beside them.
    Note(String),
}

/// Shows each line that the agent sends, as it is or by its entry, until so many rows were `seen`.
pub(super) fn each_line<'a, L: DeserializeOwned>(
    out: &'a Out,
    most: u64,
    seen: &'a mut u64,
    mut entry: impl FnMut(&L) -> Entry + 'a,
) -> impl FnMut(&[u8]) -> Result<ControlFlow<()>> + 'a {
    move |text| {
        let line = serde_json::from_slice(text).context("a line that is not known here: is the agent of another version?")?;
        let shown = match entry(&line) {
            Entry::Row(row) => {
                *seen += 1;
                row
            }
            Entry::Note(note) => note,
        };
        let more = if out.json { out.more(&format!("{}\n", String::from_utf8_lossy(text))) } else { out.more(&shown) }?;
        Ok(if *seen < most { more } else { ControlFlow::Break(()) })
    }
}

/// Says that `what` was left out.
pub(super) fn left_out(what: &str) -> Entry {
    Entry::Note(OUT.doubtful(&format!("{what} left out, as they came faster than they could be shown")) + "\n")
}

/// The time of the day, in UTC.
pub(super) fn time(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
