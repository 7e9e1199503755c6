//! The parser of commands, fed in pieces, against the reference.

use agent::wire::resp::{Args, CommandParser, Limits, Step};

use super::resp_reference::{Seen, read};

/// Bounds that small texts reach, and bounds as in practice.
pub(crate) const LIMITS: [Limits; 2] = [
    Limits { argument_bytes_max: 20, command_bytes_max: 60 },
    Limits { argument_bytes_max: 1 << 20, command_bytes_max: 4 << 20 },
];

/// Any text, whole and in pieces of sizes that derive from it.
pub(crate) fn check(text: &[u8]) {
    let size = 1 + text.iter().fold(text.len(), |sum, byte| sum.wrapping_mul(31) + usize::from(*byte)) % 40;
    for limits in &LIMITS {
        let expected = read(text, limits);
        assert_eq!(see([text], limits), expected, "whole");
        assert_eq!(see(text.chunks(size), limits), expected, "in pieces of {size}");
    }
}

/// A text cut in two everywhere, and everywhere at once.
pub(crate) fn check_cuts(text: &[u8]) {
    for limits in &LIMITS {
        let expected = read(text, limits);
        assert_eq!(see(text.chunks(1), limits), expected, "bytewise");
        for cut in 0..=text.len() {
            assert_eq!(see([&text[..cut], &text[cut..]], limits), expected, "cut at {cut}");
        }
    }
}

/// What a caller sees who feeds these pieces, and keeps to the contract.
pub(crate) fn see<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Vec<Seen> {
    let mut parser = CommandParser::default();
    let mut buf = Vec::new();
    let mut seen = Vec::new();
    let mut needed = 1;
    for piece in pieces {
        buf.extend_from_slice(piece);
        if buf.len() < needed {
            continue;
        }
        match drain(&mut parser, &mut buf, limits, &mut seen) {
            Some(need) => needed = need,
            None => return seen,
        }
    }
    seen.push(Seen::Missing(needed - buf.len()));
    seen
}

/// Parses until more is needed: how much; or none after an error.
fn drain(parser: &mut CommandParser, buf: &mut Vec<u8>, limits: &Limits, seen: &mut Vec<Seen>) -> Option<usize> {
    loop {
        let was_skipping = parser.is_skipping();
        match parser.parse(buf, limits) {
            Ok(Step::Command(command)) => {
                assert!(!was_skipping);
                assert_eq!(command.array, matches!(command.args, Args::Ranges(_)));
                let args = (0..command.args.len()).map(|index| command.arg(buf, index).unwrap().to_vec()).collect();
                seen.push(Seen::Command { args, array: command.array });
                buf.drain(..command.len);
            }
            Ok(Step::Skip { bytes }) => {
                assert!(bytes > 0);
                buf.drain(..bytes);
            }
            Ok(Step::Refused(refused)) => {
                assert!(was_skipping && !parser.is_skipping());
                seen.push(Seen::Refused { refusal: refused.refusal, name: refused.name.to_vec(), args: refused.args });
            }
            Ok(Step::Incomplete { need }) => {
                assert!(need > buf.len());
                assert!(!parser.is_skipping() || buf.len() < 16, "what is refused is not kept");
                return Some(need);
            }
            Err(error) => {
                seen.push(Seen::Error(error));
                return None;
            }
        }
    }
}
