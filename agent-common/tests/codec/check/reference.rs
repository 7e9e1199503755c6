//! The protocol's rules in the words of its page: tables and literal offsets, nothing of the codec.

/// A whole frame, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Frame(Vec<u8>),
    /// One of a kind that is not known, from 128 on.
    Skipped(Vec<u8>),
    /// A connection error: nothing is read behind it.
    Broken,
    /// The bytes end within a frame: how many are missing to know more.
    Missing(usize),
}

/// The names of `Header`'s fields, in the header's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) kind: u64,
    pub(crate) flags: u64,
    pub(crate) meta_len: u64,
    pub(crate) body_len: u64,
    pub(crate) stream: u64,
    pub(crate) via: u64,
    pub(crate) service: u64,
    pub(crate) word: u64,
    pub(crate) receipt: u64,
}

/// What of metadata and body a kind may have.
const MAY_HAVE: [(u64, bool, bool); 9] = [
    (1, true, false),
    (2, true, true),
    (3, true, true),
    (4, false, true),
    (5, true, false),
    (6, false, false),
    (7, false, false),
    (8, false, false),
    (9, true, false),
];

/// A header, if it breaks no rule.
pub(crate) fn header(bytes: &[u8; 40]) -> Option<Fields> {
    let number = |from: usize, len: usize| bytes[from..from + len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let fields = Fields {
        kind: number(3, 1),
        flags: number(4, 2),
        meta_len: number(6, 2),
        body_len: number(8, 4),
        stream: number(12, 4),
        via: number(16, 8),
        service: number(24, 8),
        word: number(32, 4),
        receipt: number(36, 4),
    };
    let fits = 40 + fields.meta_len <= 32_768 && 40 + fields.meta_len + fields.body_len <= 65_536;
    let (one_way, to_caller) = (fields.flags & 0x0002 != 0, fields.flags & 0x0080 != 0);
    let may_be = match fields.kind {
        2 => !to_caller && fields.stream != 0,
        3 => to_caller && !one_way,
        8 => fields.word != 0,
        kind => kind >= 128 || MAY_HAVE.iter().any(|(known, ..)| *known == kind),
    };
    let is_empty = |has: fn(&(u64, bool, bool)) -> bool| MAY_HAVE.iter().any(|kind| kind.0 == fields.kind && !has(kind));
    let lengths = (fields.meta_len == 0 || !is_empty(|kind| kind.1)) && (fields.body_len == 0 || !is_empty(|kind| kind.2));
    (bytes[..3] == [0x4d, 0x4f, 1] && fits && may_be && lengths).then_some(fields)
}

/// Whole entries from the beginning, and how many bytes they have.
pub(crate) fn entries(meta: &[u8]) -> (Vec<(u8, &[u8])>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while at + 3 <= meta.len() {
        let end = at + 3 + usize::from(meta[at + 1]) * 256 + usize::from(meta[at + 2]);
        if end > meta.len() {
            break;
        }
        found.push((meta[at], &meta[at + 3..end]));
        at = end;
    }
    (found, at)
}

/// The frames of a connection's bytes.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    loop {
        let Some(head) = bytes.first_chunk() else {
            seen.push(Seen::Missing(40 - bytes.len()));
            return seen;
        };
        let Some(fields) = header(head) else {
            seen.push(Seen::Broken);
            return seen;
        };
        let len = 40 + usize::try_from(fields.meta_len + fields.body_len).unwrap();
        let Some(frame) = bytes.split_off(..len) else {
            seen.push(Seen::Missing(len - bytes.len()));
            return seen;
        };
        seen.push(if fields.kind < 128 { Seen::Frame(frame.to_vec()) } else { Seen::Skipped(frame.to_vec()) });
    }
}
