//! Patterns: `*` stands for any bytes, also for none; everything else stands for itself.

use std::fmt;

use memchr::memmem::Finder;

/// A pattern, taken apart at its stars.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: Box<str>,
    parts: Parts,
}

#[derive(Debug, Clone)]
enum Parts {
    /// Nothing but stars.
    Any,
    /// No star.
    Exact,
    /// What stands before the first star and behind the last one, by length, and between them.
    Stars { first: usize, last: usize, between: Box<[Finder<'static>]> },
}

impl Pattern {
    /// Takes `text` apart.
    pub(crate) fn new(text: &str) -> Self {
        let parts = match (text.split_once('*'), text.rsplit_once('*')) {
            (Some(("", rest)), _) if rest.bytes().all(|byte| byte == b'*') => Parts::Any,
            (Some((first, rest)), Some((_, last))) => {
                let between = rest[..rest.len() - last.len()].split('*').filter(|part| !part.is_empty());
                let between = between.map(|part| Finder::new(part).into_owned()).collect();
                Parts::Stars { first: first.len(), last: last.len(), between }
            }
            _ => Parts::Exact,
        };
        Self { text: text.into(), parts }
    }

    /// Whether it fits nothing but what is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether it fits all of `value`. Linear in its length: each part is taken where it comes first, as what is left for the
    /// parts behind it is the most then.
    pub(crate) fn fits(&self, value: &[u8]) -> bool {
        let text = self.text.as_bytes();
        match &self.parts {
            Parts::Any => true,
            Parts::Exact => text == value,
            Parts::Stars { first, last, between } => {
                let rest = value.strip_prefix(&text[..*first]);
                let Some(mut rest) = rest.and_then(|rest| rest.strip_suffix(&text[text.len() - last..])) else { return false };
                between.iter().all(|part| {
                    let found = part.find(rest);
                    rest = found.and_then(|at| rest.get(at + part.needle().len()..)).unwrap_or_default();
                    found.is_some()
                })
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// The meaning of a pattern, byte by byte.
    fn fits_slowly(pattern: &[u8], value: &[u8]) -> bool {
        match (pattern.split_first(), value.split_first()) {
            (None, None) => true,
            (Some((b'*', behind)), None) => fits_slowly(behind, value),
            (Some((b'*', behind)), Some((_, rest))) => fits_slowly(behind, value) || fits_slowly(pattern, rest),
            (Some((expected, behind)), Some((found, rest))) => expected == found && fits_slowly(behind, rest),
            _ => false,
        }
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, fitting, others) in [
            ("", &[""][..], &["a"][..]),
            ("*", &["", "a", "a*b"], &[]),
            ("**", &["", "a"], &[]),
            ("get", &["get"], &["", "ge", "gets", "Get"]),
            ("get*", &["get", "getUser"], &["ge", "forget"]),
            ("*get", &["get", "forget"], &["getUser"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a*b*c", &["abc", "aXbXc", "abbcc", "abcbc"], &["ac", "acb", "abcd"]),
            ("a*bb*bb", &["abbbb", "abbXbb"], &["abb", "abbb"]),
            ("*b*b*", &["bb", "abab"], &["b", "aba"]),
            ("[a-c]?", &["[a-c]?"], &["ab"]),
            ("ä*", &["äö"], &["a"]),
        ] {
            let compiled = Pattern::new(pattern);
            assert_eq!(compiled.to_string(), pattern);
            fitting.iter().for_each(|value| assert!(compiled.fits(value.as_bytes()), "{pattern:?} {value:?}"));
            others.iter().for_each(|value| assert!(!compiled.fits(value.as_bytes()), "{pattern:?} {value:?}"));
        }
    }

    #[test]
    fn values_need_not_be_text() {
        assert!(Pattern::new("a*").fits(b"a\xff\x00"));
        assert!(!Pattern::new("a").fits(b"\xff"));
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = Pattern::new(&"a*".repeat(500));
        let value = [b"a".repeat(100_000), b"b".to_vec()].concat();
        let began = Instant::now();
        assert!(pattern.fits(&value));
        assert!(!Pattern::new(&format!("{}c", "*ab".repeat(500))).fits(&value));
        assert!(!Pattern::new(&"*aaaaaaaab".repeat(500)).fits(&value));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn as_the_reference_has_it(pattern in "[ab*]{0,10}", value in "[ab]{0,14}") {
            prop_assert_eq!(Pattern::new(&pattern).fits(value.as_bytes()), fits_slowly(pattern.as_bytes(), value.as_bytes()));
        }

        #[test]
        fn never_panics(pattern in ".*", value in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = Pattern::new(&pattern).fits(&value);
        }

        #[test]
        fn fits_what_it_was_made_of(parts in prop::collection::vec("[a-c]{0,4}", 1..6), between in "[a-c]{0,4}") {
            prop_assert!(Pattern::new(&parts.join("*")).fits(parts.join(&between).as_bytes()));
        }
    }
}
