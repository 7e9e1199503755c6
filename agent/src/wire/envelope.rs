//! MOA's call: one JSON object, of which the mesh needs `action`, `params.m` and `props`.
//!
//! A scan is one pass over the whole body without a tree and without an allocation. It checks that the body is JSON, as
//! real servers never answer one that is not, and gives what a full parser would: the last of duplicate keys counts, and
//! keys compare unescaped. It does not check that strings are UTF-8 or that the halves of a surrogate pair go together:
//! for the strings that it gives out, [`JsonStr::decode`] does.

use std::fmt;

mod json;
mod props;
mod reply_code;
#[cfg(test)]
mod tests;
mod text;

use json::Cursor;
pub use props::{Props, PropsIter};
pub use reply_code::scan_reply_code;
pub use text::{DecodeError, JsonStr};

/// How deep objects and arrays may lie in each other: as `serde_json` has it.
pub const DEPTH_MAX: usize = 127;

/// What the mesh reads of a call. Each part is none if it is absent or null.
#[derive(Debug, Clone, Copy, Default)]
pub struct Envelope<'a> {
    /// The service's URI: `action`.
    pub action: Option<JsonStr<'a>>,
    /// The method: `m` of `params`.
    pub method: Option<JsonStr<'a>>,
    /// What the caller says about routing: `props`.
    pub props: Option<Props<'a>>,
}

/// Why a body is not a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not JSON.
    #[error("the body is not JSON: {what} at byte {at}")]
    Syntax {
        /// What is wrong there.
        what: &'static str,
        /// Where, from 0.
        at: usize,
    },
    /// A part of it has the wrong type.
    #[error("{part} must be {expected}, but is {found}, at byte {at}")]
    Type {
        /// Which part.
        part: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: Kind,
        /// Where it begins, from 0.
        at: usize,
    },
}

/// The types of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are JSON's own")]
pub enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

/// A part that may have the wrong type: a fault that counts only if no later duplicate mends it.
type Part<T> = Result<Option<T>, EnvelopeError>;

/// Reads what the mesh needs of a call.
///
/// # Errors
/// When the body is not JSON, or a part that the mesh reads has the wrong type.
pub fn scan_request(body: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let mut cursor = Cursor::new(body);
    let (mut action, mut method, mut props) = (Ok(None), Ok(None), Ok(None));
    if cursor.kind()? != Kind::Object {
        return Err(cursor.wrong_type("a call", "an object")?);
    }
    let mut more = cursor.enter_object()?;
    while more {
        let key = cursor.key()?;
        if key.is("action") {
            action = string(&mut cursor, 1, "`action`")?;
        } else if key.is("params") {
            method = params(&mut cursor)?;
        } else if key.is("props") {
            props = props::scan(&mut cursor)?;
        } else {
            cursor.skip_value(1)?;
        }
        more = cursor.next_member()?;
    }
    cursor.end()?;
    Ok(Envelope { action: action?, method: method?, props: props? })
}

/// Reads `params`, of which only `m` matters.
fn params<'a>(cursor: &mut Cursor<'a>) -> Result<Part<JsonStr<'a>>, EnvelopeError> {
    if cursor.kind()? != Kind::Object {
        return absent_or_wrong(cursor, 1, "`params`", "an object");
    }
    let mut method = Ok(None);
    let mut more = cursor.enter_object()?;
    while more {
        if cursor.key()?.is("m") {
            method = string(cursor, 2, "`m` of `params`")?;
        } else {
            cursor.skip_value(2)?;
        }
        more = cursor.next_member()?;
    }
    Ok(method)
}

/// Reads a string within `depth` objects.
fn string<'a>(cursor: &mut Cursor<'a>, depth: usize, part: &'static str) -> Result<Part<JsonStr<'a>>, EnvelopeError> {
    if cursor.kind()? == Kind::String {
        return Ok(Ok(Some(cursor.string()?)));
    }
    absent_or_wrong(cursor, depth, part, "a string")
}

/// Passes a value within `depth` objects that is not what was expected: null counts as absent.
fn absent_or_wrong<T>(
    cursor: &mut Cursor<'_>,
    depth: usize,
    part: &'static str,
    expected: &'static str,
) -> Result<Part<T>, EnvelopeError> {
    let fault = cursor.wrong_type(part, expected)?;
    let kind = cursor.kind()?;
    cursor.skip_value(depth)?;
    Ok(if kind == Kind::Null { Ok(None) } else { Err(fault) })
}
