//! `props`: what a caller says about the routing of its call.

use super::json::Cursor;
use super::{EnvelopeError, Field, JsonStr, Kind, Part, Syntax, absent_or_wrong};

/// An object of strings within a call. Read from the text each time, so it costs nothing to keep.
#[derive(Debug, Clone, Copy)]
pub struct Props<'a> {
    /// From the opening brace.
    cursor: Cursor<'a>,
}

/// The pairs of [`Props`], in the text's order, duplicates included.
#[derive(Debug, Clone)]
pub struct PropsIter<'a> {
    cursor: Cursor<'a>,
    more: bool,
}

impl<'a> Props<'a> {
    /// The value of `key`: the last one if there are several.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<JsonStr<'a>> {
        self.iter().filter(|(name, _)| name.is(key)).last().map(|(_, value)| value)
    }

    /// All pairs. Of two with the same key the later one counts.
    #[must_use]
    pub fn iter(&self) -> PropsIter<'a> {
        let mut cursor = self.cursor;
        let more = cursor.enter_object().unwrap_or(false);
        PropsIter { cursor, more }
    }
}

impl<'a> IntoIterator for &Props<'a> {
    type Item = (JsonStr<'a>, JsonStr<'a>);
    type IntoIter = PropsIter<'a>;

    fn into_iter(self) -> PropsIter<'a> {
        self.iter()
    }
}

impl<'a> Iterator for PropsIter<'a> {
    type Item = (JsonStr<'a>, JsonStr<'a>);

    /// The text was checked by the scan, so an error can only be the end.
    fn next(&mut self) -> Option<Self::Item> {
        if !self.more {
            return None;
        }
        let key = self.cursor.key().ok()?;
        self.cursor.kind().ok()?;
        let value = self.cursor.string().ok()?;
        self.more = self.cursor.next_member().unwrap_or(false);
        Some((key, value))
    }
}

/// Reads the value of `props`.
///
/// An empty array passes for an empty object: it is what PHP writes for an empty map. A value that is not a string is an
/// error even if a later duplicate replaces it: to find that out would take memory.
pub(super) fn scan<'a>(cursor: &mut Cursor<'a>) -> Result<Part<Props<'a>>, Syntax> {
    if cursor.kind()? != Kind::Object {
        let before = *cursor;
        let part = absent_or_wrong(cursor, 1, Field::Props)?;
        return Ok(if is_empty_array(before.until(cursor)) { Ok(None) } else { part });
    }
    let props = Props { cursor: *cursor };
    let mut fault = None;
    let mut more = cursor.enter_object()?;
    while more {
        cursor.key()?;
        let found = cursor.kind()?;
        if found == Kind::String {
            cursor.string()?;
        } else {
            fault = fault.or(Some(EnvelopeError::Type { field: Field::Prop, found, at: cursor.at() }));
            cursor.skip_value(2)?;
        }
        more = cursor.next_member()?;
    }
    Ok(fault.map_or(Ok(Some(props)), Err))
}

fn is_empty_array(text: &[u8]) -> bool {
    matches!(text, [b'[', between @ .., b']'] if between.iter().all(u8::is_ascii_whitespace))
}
