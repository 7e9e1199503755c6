//! The text of a file: where an offset lies in it, and the lines around it.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::key::{KeyPath, Step};

/// Line and column of a byte offset, both from 1; columns count characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where a key's value is written; none if it is not.
pub(super) fn find(root: &DeTable<'_>, path: &KeyPath) -> Option<Range<usize>> {
    let (span, complete) = deepest(root, path);
    span.filter(|_| complete)
}

/// Where a key's value is written, or else the innermost table around it, or else the file's beginning.
pub(super) fn find_nearest(root: &DeTable<'_>, path: &KeyPath) -> Range<usize> {
    deepest(root, path).0.unwrap_or(0..0)
}

/// The span of the longest written part of a path, and whether that is all of it.
fn deepest(root: &DeTable<'_>, path: &KeyPath) -> (Option<Range<usize>>, bool) {
    let mut steps = path.steps().iter();
    let Some(Step::Key(first)) = steps.next() else { return (None, true) };
    let Some(mut value) = root.get(first.as_str()) else { return (None, false) };
    for step in steps {
        match below(value.get_ref(), step) {
            Some(next) => value = next,
            None => return (Some(value.span()), false),
        }
    }
    (Some(value.span()), true)
}

fn below<'a, 'i>(value: &'a DeValue<'i>, step: &Step) -> Option<&'a Spanned<DeValue<'i>>> {
    match (value, step) {
        (DeValue::Table(table), Step::Key(key)) => table.get(key.as_str()),
        (DeValue::Array(array), Step::Index(index)) => array.get(*index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let text = "a = 1\nü = 2\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find('2').expect("it is there")), (2, 5));
        assert_eq!(position(text, text.len()), (3, 1));
        assert_eq!(position(text, 1000), (3, 1));
    }

    #[test]
    fn a_key_is_found_or_the_table_around_it() {
        let text = "[a]\nb = [1, 22]\n";
        let root = DeTable::parse(text).expect("valid TOML");
        let a = KeyPath::default().key("a");
        assert_eq!(&text[find(root.get_ref(), &a.key("b").index(1)).expect("written")], "22");
        assert_eq!(find(root.get_ref(), &a.key("c")), None);
        assert_eq!(&text[find_nearest(root.get_ref(), &a.key("c"))], "[a]");
        assert_eq!(find_nearest(root.get_ref(), &KeyPath::default().key("z")), 0..0);
    }
}
