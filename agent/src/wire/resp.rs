//! The commands of Redis clients: arrays of bulk strings, and inline commands.
//!
//! The parser never copies: it says where in the buffer the arguments lie. It keeps its place when a command is cut
//! anywhere, so that a byte is looked at once, whatever the size of the pieces.

use std::ops::Range;

use smallvec::SmallVec;

/// The bounds on a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one argument.
    pub argument_bytes_max: usize,
    /// Bytes of a whole command.
    pub command_bytes_max: usize,
}

/// A whole command, as ranges of the buffer that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// How many bytes of the buffer it took.
    pub len: usize,
    /// The arguments, the command's name first; at least one.
    pub args: SmallVec<[Range<usize>; 4]>,
    /// Whether `buf[..len]` is the array form, which can be sent on as it is.
    pub array: bool,
}

/// Why a command was refused as a whole. The connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// An argument of `len` bytes is over [`Limits::argument_bytes_max`].
    Argument {
        /// Its length as announced.
        len: usize,
    },
    /// The command is over [`Limits::command_bytes_max`].
    Command,
}

/// What the parser found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A whole command.
    Command(Command),
    /// The buffer must hold at least `need` bytes before it is worth parsing again.
    Incomplete {
        /// The length of the buffer, not of what is missing.
        need: usize,
    },
    /// The first `bytes` bytes of the buffer belong to nothing and can be dropped; the buffer then begins behind them.
    Skip {
        /// How many; never 0, never more than the buffer holds.
        bytes: usize,
    },
    /// A command that was too large has ended: answer in its place. All its bytes were skipped before.
    Refused(Refusal),
}
