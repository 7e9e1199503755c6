//! The commands of Redis clients: arrays of bulk strings, and inline commands.
//!
//! The parser never copies: it says where in the buffer the arguments lie. It keeps its place when a command is cut
//! anywhere, so that a byte is looked at once, whatever the size of the pieces. The rules are those of Redis
//! (`readQueryFromClient`), with stricter line ends.

use std::ops::Range;

use smallvec::SmallVec;

mod inline;
#[cfg(test)]
mod tests;

/// The most arguments that a command may announce: Redis's bound.
const ARGUMENTS_MAX: usize = 1_048_576;
/// The longest bulk that a command may announce: Redis's `proto-max-bulk-len`.
const BULK_BYTES_MAX: usize = 512 << 20;
/// The longest inline command, without its line end: Redis's `PROTO_INLINE_MAX_SIZE`.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// The bounds on a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one argument.
    pub argument_bytes_max: usize,
    /// Bytes of a whole command.
    pub command_bytes_max: usize,
}

/// A whole command. Its arguments are read with [`Command::arg`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// How many bytes of the buffer it took.
    pub len: usize,
    /// The arguments, the command's name first; at least one.
    pub args: Args,
    /// Whether `buf[..len]` is the array form, which can be sent on as it is.
    pub array: bool,
}

/// The arguments of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Args {
    /// The array form: where they lie in the buffer that was parsed.
    Ranges(SmallVec<[Range<usize>; 4]>),
    /// An inline command: the arguments themselves, as what is quoted lies nowhere in the buffer.
    Owned(Vec<Vec<u8>>),
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

/// A command that was refused: what is left of it to answer it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The first 16 bytes of the command's name; empty if the name itself was too large.
    pub name: SmallVec<[u8; 16]>,
    /// How many arguments it has, its name included.
    pub args: usize,
}

/// What the parser found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A whole command. The caller consumes its `len` bytes.
    Command(Command),
    /// The buffer must hold at least `need` bytes before it is worth parsing again.
    Incomplete {
        /// The length of the buffer, not of what is missing.
        need: usize,
    },
    /// The first `bytes` bytes of the buffer belong to nothing and can be dropped; the buffer then begins behind them.
    /// The parser wants to be called again, even with an empty buffer.
    Skip {
        /// How many; never 0, never more than the buffer holds.
        bytes: usize,
    },
    /// A command that was too large has ended: answer in its place. All its bytes were skipped before.
    Refused(Refused),
}

/// What is not Redis's protocol. The caller answers `-ERR` and this text, and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `*` is followed by something else than a number of arguments.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// `$` is followed by something else than a length.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An argument begins with this byte.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    Dollar(u8),
    /// An argument goes on where it should end.
    #[error("Protocol error: expected CRLF at the end of a bulk")]
    BulkEnd,
    /// An inline command has no end.
    #[error("Protocol error: too big inline request")]
    InlineLength,
    /// A quote of an inline command is not closed, or is closed within a word.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// Parses the commands of one connection.
///
/// The buffer that it is given always begins at the start of the command, or right behind what was skipped; from call to
/// call it only grows until a command or a skip takes bytes from its front. After an error the parser is of no use.
#[derive(Debug, Default)]
pub struct CommandParser {
    /// Where the buffer was not looked at yet: a header, the end of a bulk, or the rest of an inline command.
    at: usize,
    /// How many arguments of an array are still to come; 0 between commands.
    left: usize,
    /// The bytes of the bulk whose header was read last. While skipping: those that were not skipped yet.
    bulk: Option<usize>,
    args: SmallVec<[Range<usize>; 4]>,
    /// Set while a refused command is skipped.
    refused: Option<Box<Refused>>,
}

impl Command {
    /// The `index`th argument, with 0 for the command's name. `buf` is the buffer that was parsed.
    #[must_use]
    pub fn arg<'a>(&'a self, buf: &'a [u8], index: usize) -> Option<&'a [u8]> {
        match &self.args {
            Args::Ranges(ranges) => buf.get(ranges.get(index)?.clone()),
            Args::Owned(args) => args.get(index).map(Vec::as_slice),
        }
    }
}

impl Args {
    /// How many there are, the command's name included.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Ranges(ranges) => ranges.len(),
            Self::Owned(args) => args.len(),
        }
    }

    /// Never true for a command that was parsed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl CommandParser {
    /// Whether the rest of a refused command is still to be skipped, or its refusal to be fetched.
    #[must_use]
    pub fn is_skipping(&self) -> bool {
        self.refused.is_some()
    }

    /// Looks at what is new in `buf`.
    ///
    /// # Errors
    /// When the bytes are not Redis's protocol.
    #[inline]
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Step, ProtocolError> {
        if self.refused.is_some() {
            return self.skip(buf);
        }
        if self.left == 0 {
            match buf.first() {
                None => return Ok(Step::Incomplete { need: 1 }),
                Some(b'*') => {}
                Some(_) => return self.inline(buf, limits),
            }
            match number(buf, 1) {
                Number::Whole { negative, value, next } if negative || value == 0 => return Ok(Step::Skip { bytes: next }),
                Number::Whole { value, next, .. } if value <= ARGUMENTS_MAX => (self.left, self.at) = (value, next),
                Number::Partial => return Ok(Step::Incomplete { need: buf.len() + 1 }),
                Number::Whole { .. } | Number::Bad => return Err(ProtocolError::MultibulkLength),
            }
        }
        self.array(buf, limits)
    }

    /// Goes on with the arguments of an array.
    fn array(&mut self, buf: &[u8], limits: &Limits) -> Result<Step, ProtocolError> {
        while self.left > 0 {
            let len = match self.bulk.take() {
                Some(len) => len,
                None => match bulk_length(buf, self.at)? {
                    None => return Ok(Step::Incomplete { need: buf.len() + 1 }),
                    Some((len, next)) => {
                        self.at = next;
                        if let Some(refusal) = excess(len, next + len + 2, limits) {
                            self.bulk = Some(len);
                            return Ok(self.refuse(refusal, buf, next));
                        }
                        len
                    }
                },
            };
            let end = self.at + len;
            match buf.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::BulkEnd),
                None => {
                    self.bulk = Some(len);
                    return Ok(Step::Incomplete { need: end + 2 });
                }
            }
            self.args.push(self.at..end);
            self.at = end + 2;
            self.left -= 1;
        }
        let args = Args::Ranges(std::mem::take(&mut self.args));
        let len = std::mem::take(&mut self.at);
        Ok(Step::Command(Command { len, args, array: true }))
    }

    /// Goes on with an inline command.
    fn inline(&mut self, buf: &[u8], limits: &Limits) -> Result<Step, ProtocolError> {
        let window = &buf[..buf.len().min(INLINE_BYTES_MAX + 1)];
        let Some(newline) = memchr::memchr(b'\n', &window[self.at..]) else {
            if window.len() > INLINE_BYTES_MAX {
                return Err(ProtocolError::InlineLength);
            }
            self.at = window.len();
            return Ok(Step::Incomplete { need: buf.len() + 1 });
        };
        let end = self.at + newline;
        let len = end + 1;
        self.at = 0;
        let args = inline::split(buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]))?;
        let Some(longest) = args.iter().map(Vec::len).max() else {
            return Ok(Step::Skip { bytes: len });
        };
        if let Some(refusal) = excess(longest, len, limits) {
            self.refused = Some(Box::new(Refused::new(refusal, &args[0], args.len())));
            return Ok(Step::Skip { bytes: len });
        }
        Ok(Step::Command(Command { len, args: Args::Owned(args), array: false }))
    }

    /// Begins to skip an array whose argument at `next` is too large.
    #[cold]
    fn refuse(&mut self, refusal: Refusal, buf: &[u8], next: usize) -> Step {
        let args = std::mem::take(&mut self.args);
        let name = args.first().map_or(&[][..], |range| &buf[range.clone()]);
        self.refused = Some(Box::new(Refused::new(refusal, name, args.len() + self.left)));
        self.at = 0;
        Step::Skip { bytes: next }
    }

    /// Goes on with skipping a refused command.
    #[cold]
    fn skip(&mut self, buf: &[u8]) -> Result<Step, ProtocolError> {
        let mut at = 0;
        while self.left > 0 {
            let Some(bulk) = self.bulk else {
                let Some((len, next)) = bulk_length(buf, at)? else { break };
                self.bulk = Some(len);
                at = next;
                continue;
            };
            let taken = bulk.min(buf.len() - at);
            self.bulk = Some(bulk - taken);
            at += taken;
            match buf.get(at..at + 2) {
                None => break,
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::BulkEnd),
            }
            at += 2;
            self.bulk = None;
            self.left -= 1;
        }
        match self.refused.take() {
            Some(refused) if at == 0 && self.left == 0 => Ok(Step::Refused(*refused)),
            refused => {
                self.refused = refused;
                Ok(if at > 0 { Step::Skip { bytes: at } } else { Step::Incomplete { need: buf.len() + 1 } })
            }
        }
    }
}

impl Refused {
    fn new(refusal: Refusal, name: &[u8], args: usize) -> Self {
        Self { refusal, name: SmallVec::from_slice(&name[..name.len().min(16)]), args }
    }
}

/// Whether an argument of `argument` bytes that ends the command's first `command` bytes is over a limit.
fn excess(argument: usize, command: usize, limits: &Limits) -> Option<Refusal> {
    if argument > limits.argument_bytes_max {
        Some(Refusal::Argument { len: argument })
    } else if command > limits.command_bytes_max {
        Some(Refusal::Command)
    } else {
        None
    }
}

/// Reads `$<length>\r\n`: the length, and where the bulk begins. None if it is cut.
#[inline]
fn bulk_length(buf: &[u8], at: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    match buf.get(at) {
        None => return Ok(None),
        Some(b'$') => {}
        Some(&other) => return Err(ProtocolError::Dollar(other)),
    }
    match number(buf, at + 1) {
        Number::Whole { negative: false, value, next } if value <= BULK_BYTES_MAX => Ok(Some((value, next))),
        Number::Partial => Ok(None),
        Number::Whole { .. } | Number::Bad => Err(ProtocolError::BulkLength),
    }
}

/// A number and its line end, of which some may not have come yet.
enum Number {
    Whole { negative: bool, value: usize, next: usize },
    Partial,
    Bad,
}

/// Reads `<number>\r\n` as strictly as Redis: no sign but `-`, no leading zero, nothing else in the line.
///
/// What cannot become a number within the bounds any more is bad at once, so no bound on the line's length is needed.
#[inline]
fn number(buf: &[u8], at: usize) -> Number {
    let negative = buf.get(at) == Some(&b'-');
    let first = at + usize::from(negative);
    let mut next = first;
    let mut value = 0;
    while let Some(digit @ b'0'..=b'9') = buf.get(next) {
        // The bounds have 9 digits at most.
        if next - first == 9 {
            return Number::Bad;
        }
        value = value * 10 + usize::from(digit - b'0');
        next += 1;
    }
    let leading_zero = buf.get(first) == Some(&b'0') && (next > first + 1 || negative);
    match buf.get(next..).unwrap_or_default() {
        _ if leading_zero => Number::Bad,
        [] => Number::Partial,
        [b'\r'] if next > first => Number::Partial,
        [b'\r', b'\n', ..] if next > first => Number::Whole { negative, value, next: next + 2 },
        _ => Number::Bad,
    }
}
