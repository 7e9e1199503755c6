//! What a call says of itself, and by which names rules ask for it.

use std::{borrow::Cow, fmt, sync::LazyLock};

/// Something that a call may say of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// The method.
    Method,
    /// The calling application.
    Application,
    /// The calling process.
    Instance,
    /// The group of the service that is called.
    Group,
    /// The environment.
    Environment,
    /// The caller's zone.
    Zone,
    /// The mark of a stress test.
    Stress,
    /// What consistent hashing picks the instance by.
    HashKey,
    /// The body's media type.
    ContentType,
    /// The metadata entry with this number.
    Entry(u8),
    /// The property with this name (`props`).
    Property(Box<str>),
}

/// Names that have a word of their own.
const WORDS: [(&str, Name); 9] = [
    ("method", Name::Method),
    ("application", Name::Application),
    ("instance", Name::Instance),
    ("group", Name::Group),
    ("environment", Name::Environment),
    ("zone", Name::Zone),
    ("stress", Name::Stress),
    ("hash_key", Name::HashKey),
    ("content_type", Name::ContentType),
];

/// The environment of a call that has the property [`PRE`].
const PRE_RELEASE: &[u8] = b"pre";

/// The property by which MOA's SDK asks for the pre-release environment; its value means nothing.
static PRE: LazyLock<Name> = LazyLock::new(|| Name::Property("moa.env.pre".into()));
/// The property that marks a stress test; its value means nothing.
static STRESS: LazyLock<Name> = LazyLock::new(|| Name::Property("moa.stress".into()));
/// The property that MOA's SDK hashes by.
static HASH_ID: LazyLock<Name> = LazyLock::new(|| Name::Property("hashid".into()));

/// What a call says of itself.
pub(crate) trait Says {
    /// What it says of this: just that entry or property. What follows from what is [`said`]'s matter.
    fn get(&self, what: &Name) -> Option<Cow<'_, [u8]>>;
}

/// A call that says what it is told to: of two values with the same name the later one counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Vec<(Name, Vec<u8>)>);

/// What a call says of this, by whichever of the ways there are to say it.
pub(crate) fn said<'c>(call: &'c impl Says, what: &Name) -> Option<Cow<'c, [u8]>> {
    match what {
        Name::Environment => environment(call),
        Name::Stress => call.get(what).or_else(|| call.get(&STRESS)),
        Name::HashKey => hash_key(call),
        _ => call.get(what),
    }
}

/// The environment that a call is for; never empty.
pub(crate) fn environment(call: &impl Says) -> Option<Cow<'_, [u8]>> {
    let named = call.get(&Name::Environment).filter(|name| !name.is_empty());
    named.or_else(|| call.get(&PRE).map(|_| Cow::Borrowed(PRE_RELEASE)))
}

/// Whether a call belongs to a stress test.
pub(crate) fn is_stress(call: &impl Says) -> bool {
    said(call, &Name::Stress).is_some()
}

/// What consistent hashing and sticky shares go by.
pub(crate) fn hash_key(call: &impl Says) -> Option<Cow<'_, [u8]>> {
    call.get(&Name::HashKey).or_else(|| call.get(&HASH_ID))
}

impl Name {
    /// What `text` means as a key of `when`. Anything means something: what has no meaning of its own is a property.
    pub(crate) fn parse(text: &str) -> Self {
        let word = WORDS.iter().find(|(word, _)| *word == text).map(|(_, name)| name.clone());
        let entry = || text.strip_prefix("entry.").and_then(|number| number.parse().ok()).map(Self::Entry);
        word.or_else(entry).unwrap_or_else(|| Self::Property(text.strip_prefix("props.").unwrap_or(text).into()))
    }

    /// Whether every call has one, so that what is not said is empty.
    pub(crate) fn is_in_every_call(&self) -> bool {
        matches!(self, Self::Method | Self::Application | Self::Group)
    }
}

impl fmt::Display for Name {
    /// As [`Self::parse`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((word, _)) = WORDS.iter().find(|(_, name)| name == self) {
            return f.write_str(word);
        }
        match self {
            Self::Entry(number) => write!(f, "entry.{number}"),
            Self::Property(name) if Self::parse(name) != *self => write!(f, "props.{name}"),
            Self::Property(name) => f.write_str(name),
            _ => Ok(()),
        }
    }
}

impl Says for Told {
    fn get(&self, what: &Name) -> Option<Cow<'_, [u8]>> {
        self.0.iter().rfind(|(name, _)| name == what).map(|(_, value)| Cow::Borrowed(&**value))
    }
}

impl<N: AsRef<str>, V: Into<Vec<u8>>> FromIterator<(N, V)> for Told {
    /// Names as [`Name::parse`] takes them.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (Name::parse(name.as_ref()), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pairs: &[(&str, &str)]) -> Told {
        pairs.iter().copied().collect()
    }

    #[test]
    fn any_text_is_a_name() {
        assert_eq!(Name::parse("hash_key"), Name::HashKey);
        assert_eq!(Name::parse("entry.130"), Name::Entry(130));
        assert_eq!(Name::parse("entry.256"), Name::Property("entry.256".into()));
        assert_eq!(Name::parse("moa.env.pre"), Name::Property("moa.env.pre".into()));
        assert_eq!(Name::parse("props.method"), Name::Property("method".into()));
        assert_eq!(Name::parse("props.props.x"), Name::Property("props.x".into()));
        assert_eq!(Name::parse(""), Name::Property("".into()));
    }

    #[test]
    fn a_name_is_shown_as_it_is_read() {
        let words = WORDS.iter().map(|(word, _)| *word);
        for text in words.chain(["entry.7", "user", "props.method", "props.entry.1", "props.props.x", "", "entry.+7", "Method"]) {
            let name = Name::parse(text);
            assert_eq!(Name::parse(&name.to_string()), name, "{text}");
        }
        assert_eq!(Name::Property("user".into()).to_string(), "user");
        assert_eq!(Name::Property("zone".into()).to_string(), "props.zone");
    }

    #[test]
    fn an_environment_has_two_ways() {
        assert_eq!(environment(&told(&[])), None);
        assert_eq!(environment(&told(&[("environment", "")])), None);
        assert_eq!(environment(&told(&[("environment", "grey"), ("moa.env.pre", "")])).as_deref(), Some(&b"grey"[..]));
        assert_eq!(environment(&told(&[("environment", ""), ("moa.env.pre", "")])).as_deref(), Some(&b"pre"[..]));
        assert_eq!(said(&told(&[("moa.env.pre", "false")]), &Name::Environment).as_deref(), Some(&b"pre"[..]));
    }

    #[test]
    fn so_have_the_mark_and_the_hash_key() {
        assert!(!is_stress(&told(&[])));
        assert!(is_stress(&told(&[("stress", "")])));
        assert!(is_stress(&told(&[("moa.stress", "0")])));
        assert_eq!(hash_key(&told(&[("hashid", "7")])).as_deref(), Some(&b"7"[..]));
        assert_eq!(hash_key(&told(&[("hashid", "7"), ("hash_key", "8")])).as_deref(), Some(&b"8"[..]));
    }

    #[test]
    fn the_later_of_two_counts() {
        assert_eq!(told(&[("a", "1"), ("props.a", "2")]).get(&Name::parse("a")).as_deref(), Some(&b"2"[..]));
    }
}
