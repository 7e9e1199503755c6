//! Tables without lines, whose columns line up.

use tabled::{
    builder::Builder,
    settings::{Alignment, Modify, Padding, Style, object::Columns},
};

use super::out::OUT;

/// A table that is printed when it has all its rows.
pub(super) struct Table {
    columns: &'static [(&'static str, Side)],
    rows: Builder,
    /// What stands below each row.
    notes: Vec<Vec<String>>,
}

/// The side of its column at which a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    /// Numbers.
    Right,
}

impl Table {
    pub(super) fn new(columns: &'static [(&'static str, Side)]) -> Self {
        let mut rows = Builder::default();
        rows.push_record(columns.iter().map(|(title, _)| OUT.bold(title)));
        Self { columns, rows, notes: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push_record(cells);
        self.notes.push(Vec::new());
    }

    /// A line below the latest row, which no column gets wider for.
    pub(super) fn note(&mut self, text: &str) {
        if let Some(notes) = self.notes.last_mut() {
            notes.push(format!("    {text}\n"));
        }
    }

    /// The lines, without blanks at their ends.
    pub(super) fn render(self) -> String {
        let mut table = self.rows.build();
        table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
        for (n, _) in self.columns.iter().enumerate().filter(|(_, (_, side))| *side == Side::Right) {
            table.with(Modify::new(Columns::one(n)).with(Alignment::right()));
        }
        // The titles have none.
        let notes = std::iter::once(Vec::new()).chain(self.notes);
        let text = table.to_string();
        text.lines().zip(notes).map(|(line, notes)| format!("{}\n{}", line.trim_end(), notes.concat())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_blanks_at_the_ends() {
        let mut table = Table::new(&[("NAME", Side::Left), ("CALLS", Side::Right), ("REASON", Side::Left)]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["longer".into(), "12,345,678".into(), "µs are one wide".into()]);
        let expected = "\
NAME         CALLS  REASON
a                1
longer  12,345,678  µs are one wide
";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn notes_stand_below_their_row() {
        let mut table = Table::new(&[("NAME", Side::Left), ("CALLS", Side::Right)]);
        table.note("of nothing");
        table.row(["a".into(), "1".into()]);
        table.note("wider than any column");
        table.row(["b".into(), "2".into()]);
        assert_eq!(table.render(), "NAME  CALLS\na         1\n    wider than any column\nb         2\n");
    }
}
