//! Why a body is not a call.

use std::fmt;

/// Why a body is not a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not JSON.
    #[error("the body is not JSON: {what} at byte {at}")]
    Syntax {
        /// What is wrong there.
        what: Syntax,
        /// Where, from 0.
        at: usize,
    },
    /// A part of it has the wrong type.
    #[error("{field}, but is {found}, at byte {at}")]
    Type {
        /// Which part.
        field: Field,
        /// What it is.
        found: Kind,
        /// Where it begins, from 0.
        at: usize,
    },
}

/// What is wrong with a text that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Syntax {
    #[error("a value is missing")]
    Value,
    #[error("a key in quotes is missing")]
    Key,
    #[error("a key in quotes or '}}' is missing")]
    KeyOrEnd,
    #[error("':' is missing")]
    Colon,
    #[error("',' or '}}' is missing")]
    MemberEnd,
    #[error("',' or ']' is missing")]
    ItemEnd,
    #[error("a string does not end")]
    StringEnd,
    #[error("a control character in a string")]
    Control,
    #[error("an escape that JSON does not know")]
    Escape,
    #[error("a number with a leading zero before this")]
    LeadingZero,
    #[error("a digit is missing")]
    Digit,
    #[error("a word that JSON does not know")]
    Word,
    #[error("more than 127 objects and arrays within each other")]
    Depth,
    #[error("more than one value")]
    Trailing,
}

/// The parts of a call whose types matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Field {
    Call,
    Action,
    Params,
    Method,
    Props,
    Prop,
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

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Call => "a call must be an object",
            Self::Action => "`action` must be a string",
            Self::Params => "`params` must be an object",
            Self::Method => "`m` of `params` must be a string",
            Self::Props => "`props` must be an object of strings",
            Self::Prop => "a value of `props` must be a string",
        })
    }
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
