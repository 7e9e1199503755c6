//! MOA's call: one JSON object, of which the mesh needs `action`, `params.m` and `props`.
//!
//! A scan is one pass over the whole body without a tree and without an allocation. It checks that the body is JSON, as
//! real servers never answer one that is not, and gives what a full parser would: the last of duplicate keys counts, and
//! keys compare unescaped. It does not check that strings are UTF-8 or that the halves of a surrogate pair go together:
//! for the strings that it gives out, [`JsonStr::decode`] does.

mod error;
mod json;
mod props;
mod reply_code;
#[cfg(test)]
mod tests;
mod text;

pub use error::{EnvelopeError, Field, Kind, Syntax};
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

/// A part that may have the wrong type: a fault that counts only if no later duplicate mends it.
type Part<T> = Result<Option<T>, EnvelopeError>;

/// The parts of a call, each as its last duplicate has it.
struct Parts<'a> {
    action: Part<JsonStr<'a>>,
    method: Part<JsonStr<'a>>,
    props: Part<Props<'a>>,
}

/// Reads what the mesh needs of a call.
///
/// # Errors
/// When the body is not JSON, or a part that the mesh reads has the wrong type.
pub fn scan_request(body: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let mut cursor = Cursor::new(body);
    match scan(&mut cursor) {
        Ok(Parts { action, method, props }) => Ok(Envelope { action: action?, method: method?, props: props? }),
        Err(what) => Err(EnvelopeError::Syntax { what, at: cursor.at() }),
    }
}

fn scan<'a>(cursor: &mut Cursor<'a>) -> Result<Parts<'a>, Syntax> {
    let mut parts = Parts { action: Ok(None), method: Ok(None), props: Ok(None) };
    let kind = cursor.kind()?;
    if kind != Kind::Object {
        parts.action = Err(EnvelopeError::Type { field: Field::Call, found: kind, at: cursor.at() });
        cursor.skip_value(0)?;
        cursor.end()?;
        return Ok(parts);
    }
    let mut more = cursor.enter_object()?;
    while more {
        let key = cursor.key()?;
        if key.is_name("action") {
            parts.action = string(cursor, 1, Field::Action)?;
        } else if key.is_name("params") {
            parts.method = params(cursor)?;
        } else if key.is_name("props") {
            parts.props = props::scan(cursor)?;
        } else {
            cursor.skip_value(1)?;
        }
        more = cursor.next_member()?;
    }
    cursor.end()?;
    Ok(parts)
}

/// Reads `params`, of which only `m` matters.
fn params<'a>(cursor: &mut Cursor<'a>) -> Result<Part<JsonStr<'a>>, Syntax> {
    if cursor.kind()? != Kind::Object {
        return absent_or_wrong(cursor, 1, Field::Params);
    }
    let mut method = Ok(None);
    let mut more = cursor.enter_object()?;
    while more {
        if cursor.key()?.is_name("m") {
            method = string(cursor, 2, Field::Method)?;
        } else {
            cursor.skip_value(2)?;
        }
        more = cursor.next_member()?;
    }
    Ok(method)
}

/// Reads a string within `depth` objects.
fn string<'a>(cursor: &mut Cursor<'a>, depth: usize, field: Field) -> Result<Part<JsonStr<'a>>, Syntax> {
    if cursor.kind()? == Kind::String {
        return Ok(Ok(Some(cursor.string()?)));
    }
    absent_or_wrong(cursor, depth, field)
}

/// Passes a value within `depth` objects that is not what was expected: null counts as absent.
#[cold]
fn absent_or_wrong<T>(cursor: &mut Cursor<'_>, depth: usize, field: Field) -> Result<Part<T>, Syntax> {
    let found = cursor.kind()?;
    let at = cursor.at();
    cursor.skip_value(depth)?;
    Ok(if found == Kind::Null { Ok(None) } else { Err(EnvelopeError::Type { field, found, at }) })
}
