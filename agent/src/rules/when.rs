//! What a call must say for a rule to be about it.

use std::borrow::Cow;

use super::{
    name::{Name, Says, said},
    pattern::Pattern,
};
use crate::{api::routes::Misfit, config::traffic};

/// Which calls a rule is about: those that fit all of it.
#[derive(Debug, Clone)]
pub(super) struct When(Box<[Asked]>);

/// One thing that a call must say, in one of these ways.
#[derive(Debug, Clone)]
struct Asked {
    name: Name,
    patterns: Box<[Pattern]>,
}

impl When {
    pub(super) fn new(when: &traffic::When) -> Self {
        let asked = when.iter().map(|(name, patterns)| Asked {
            name: Name::parse(name),
            patterns: patterns.0.iter().map(|pattern| Pattern::new(pattern)).collect(),
        });
        Self(asked.collect())
    }

    pub(super) fn fits(&self, call: &impl Says) -> bool {
        self.0.iter().all(|asked| asked.fits(said(call, &asked.name)))
    }

    /// What does not fit.
    pub(super) fn misfits(&self, call: &impl Says) -> Vec<Misfit> {
        let misfits = self.0.iter().filter(|asked| !asked.fits(said(call, &asked.name)));
        let misfit = |asked: &Asked| Misfit {
            name: asked.name.to_string(),
            expected: asked.patterns.iter().map(ToString::to_string).collect(),
            found: said(call, &asked.name).map(|value| String::from_utf8_lossy(&value).into_owned()),
        };
        misfits.map(misfit).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|asked| &asked.name)
    }

    /// For people; empty if it is every call.
    pub(super) fn text(&self) -> String {
        let asked = self.0.iter().map(|asked| {
            let patterns: Vec<_> = asked.patterns.iter().map(|pattern| format!("{:?}", pattern.to_string())).collect();
            format!("{} = {}", asked.name, if patterns.is_empty() { "nothing".into() } else { patterns.join(" or ") })
        });
        asked.collect::<Vec<_>>().join(", ")
    }
}

impl Asked {
    /// What is not said is empty if every call has it; otherwise only the empty pattern fits it.
    fn fits(&self, value: Option<Cow<'_, [u8]>>) -> bool {
        match value {
            Some(value) => self.patterns.iter().any(|pattern| pattern.fits(&value)),
            None if self.name.is_in_every_call() => self.patterns.iter().any(|pattern| pattern.fits(b"")),
            None => self.patterns.iter().any(Pattern::is_empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::name::Told, *};

    fn when(entries: &[(&str, &[&str])]) -> When {
        let patterns = |patterns: &[&str]| traffic::Patterns(patterns.iter().map(ToString::to_string).collect());
        When::new(&entries.iter().map(|(name, some)| (name.to_string(), patterns(some))).collect())
    }

    fn told(pairs: &[(&str, &str)]) -> Told {
        pairs.iter().copied().collect()
    }

    #[test]
    fn all_of_it_must_fit_and_one_pattern_each() {
        let when = when(&[("method", &["get*", "list"]), ("user", &["7*"])]);
        assert!(when.fits(&told(&[("method", "list"), ("user", "71")])));
        assert!(!when.fits(&told(&[("method", "list"), ("user", "17")])));
        assert!(!when.fits(&told(&[("method", "set"), ("user", "7")])));
        assert_eq!(when.text(), r#"method = "get*" or "list", user = "7*""#);
    }

    #[test]
    fn what_is_not_said_fits_the_empty_pattern_alone() {
        assert!(!when(&[("user", &["*"])]).fits(&told(&[])));
        assert!(when(&[("user", &["*"])]).fits(&told(&[("user", "")])));
        assert!(when(&[("user", &[""])]).fits(&told(&[])));
        assert!(!when(&[("user", &[""])]).fits(&told(&[("user", "7")])));
        assert!(when(&[("environment", &[""])]).fits(&told(&[])));
        assert!(!when(&[("environment", &[""])]).fits(&told(&[("moa.env.pre", "")])));
    }

    #[test]
    fn every_call_has_an_application_a_group_and_a_method() {
        for name in ["application", "group", "method"] {
            assert!(when(&[(name, &["*"])]).fits(&told(&[])));
            assert!(when(&[(name, &[""])]).fits(&told(&[])));
            assert!(!when(&[(name, &["a*"])]).fits(&told(&[])));
        }
    }

    #[test]
    fn no_patterns_fit_nothing_and_nothing_asked_fits_all() {
        assert!(!when(&[("method", &[])]).fits(&told(&[("method", "get")])));
        assert!(when(&[]).fits(&told(&[])));
        assert_eq!(when(&[("method", &[])]).text(), "method = nothing");
    }

    #[test]
    fn misfits_say_what_was_found() {
        let when = when(&[("method", &["get*", "list"]), ("user", &["7"]), ("zone", &["a"])]);
        let misfits = when.misfits(&told(&[("method", "set"), ("zone", "a")]));
        let expected = [("method", vec!["get*", "list"], Some("set")), ("user", vec!["7"], None)];
        assert_eq!(misfits.len(), expected.len());
        for (misfit, (name, patterns, found)) in misfits.iter().zip(expected) {
            assert_eq!((&*misfit.name, misfit.found.as_deref()), (name, found));
            assert_eq!(misfit.expected, patterns);
        }
    }
}
