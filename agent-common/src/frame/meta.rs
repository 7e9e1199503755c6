use bytes::{BufMut, Bytes, BytesMut};

/// What entries of a call's metadata are. Those from 128 on are the applications' own. Unknown ones are carried along.
pub mod id {
    /// The service's URI, in UTF-8. In every REQUEST, and the first entry of it.
    pub const URI: u8 = 1;
    /// The method, in UTF-8.
    pub const METHOD: u8 = 2;
    /// The group, in UTF-8; absent for the default one.
    pub const GROUP: u8 = 3;
    /// The calling application's name.
    pub const SOURCE_APPLICATION: u8 = 4;
    /// The calling process.
    pub const SOURCE_INSTANCE: u8 = 5;
    /// W3C trace context.
    pub const TRACEPARENT: u8 = 6;
    /// W3C trace context.
    pub const TRACESTATE: u8 = 7;
    /// W3C baggage.
    pub const BAGGAGE: u8 = 8;
    /// What consistent hashing picks the instance by.
    pub const HASH_KEY: u8 = 9;
    /// The environment (canary, pre-release).
    pub const ENVIRONMENT: u8 = 10;
    /// The caller's zone.
    pub const ZONE: u8 = 11;
    /// The mark of a stress test, carried along.
    pub const STRESS: u8 = 12;
    /// The body's media type.
    pub const CONTENT_TYPE: u8 = 13;
    /// What went wrong, in UTF-8, for people.
    pub const ERROR_TEXT: u8 = 14;
    /// How often the call was sent before: one byte.
    pub const RETRY_COUNT: u8 = 15;
    /// Credentials of the caller.
    pub const AUTH: u8 = 16;
    /// Bytes of the whole body, eight bytes: in the first frame of a message whose length is known and that has DATA.
    pub const BODY_LEN: u8 = 17;
    /// A property by name: one byte with the length of the name, the name, the value. May occur more than once.
    pub const PROPERTY: u8 = 18;
}

/// Metadata that does not consist of whole entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadMeta {
    /// Where the entry begins that is not whole.
    pub at: usize,
}

/// The entries of metadata: id, then value. Ends with an error where an entry is not whole.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    all: &'a [u8],
    at: usize,
}

/// Reads metadata.
#[must_use]
pub fn entries(meta: &[u8]) -> Entries<'_> {
    Entries { all: meta, at: 0 }
}

/// The first entry with this id; none also if the metadata is broken before it.
#[must_use]
pub fn find(meta: &[u8], id: u8) -> Option<&[u8]> {
    entries(meta).map_while(Result::ok).find(|(found, _)| *found == id).map(|(_, value)| value)
}

/// The value of the property with this name.
#[must_use]
pub fn property<'a>(meta: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entries(meta).map_while(Result::ok).filter(|(id, _)| *id == id::PROPERTY).find_map(|(_, value)| {
        let (len, rest) = value.split_first()?;
        rest.strip_prefix(name).filter(|_| usize::from(*len) == name.len())
    })
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(u8, &'a [u8]), BadMeta>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.all[self.at..];
        if rest.is_empty() {
            return None;
        }
        let whole = rest.split_first_chunk::<3>().and_then(|([id, high, low], rest)| {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            Some((*id, rest.get(..len)?))
        });
        let Some((id, value)) = whole else {
            let at = self.at;
            self.at = self.all.len();
            return Some(Err(BadMeta { at }));
        };
        self.at += 3 + value.len();
        Some(Ok((id, value)))
    }
}

/// Writes metadata.
#[derive(Debug, Default, Clone)]
pub struct MetaBuilder(BytesMut);

impl MetaBuilder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more entry. A value that is longer than an entry may be is cut.
    pub fn put(&mut self, id: u8, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.reserve(3 + usize::from(len));
        self.0.put_u8(id);
        self.0.put_u16(len);
        self.0.put_slice(&value[..usize::from(len)]);
        self
    }

    /// One more property. A name that is longer than 255 bytes is cut.
    pub fn put_property(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let mut entry = Vec::with_capacity(1 + name.len() + value.len());
        entry.push(name_len);
        entry.extend_from_slice(&name.as_bytes()[..usize::from(name_len)]);
        entry.extend_from_slice(value);
        self.put(id::PROPERTY, &entry)
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

impl From<BytesMut> for MetaBuilder {
    /// Goes on behind entries that are there.
    fn from(entries: BytesMut) -> Self {
        Self(entries)
    }
}

impl AsRef<[u8]> for MetaBuilder {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl core::fmt::Display for BadMeta {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the entry at byte {} of the metadata is longer than what is left", self.at)
    }
}

impl core::error::Error for BadMeta {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found() {
        let mut meta = MetaBuilder::new();
        meta.put(id::URI, b"/service/user").put(200, b"").put_property("color", b"blue").put(id::METHOD, b"get");
        let bytes = meta.finish();
        assert_eq!(find(&bytes, id::METHOD), Some(&b"get"[..]));
        assert_eq!(find(&bytes, 200), Some(&b""[..]));
        assert_eq!(find(&bytes, 201), None);
        assert_eq!(property(&bytes, b"color"), Some(&b"blue"[..]));
        assert_eq!(property(&bytes, b"col"), None);
    }

    #[test]
    fn an_entry_that_is_cut_is_an_error_and_the_end() {
        let mut meta = MetaBuilder::new();
        meta.put(1, b"abc").put(2, b"de");
        let bytes = meta.finish();
        for cut in 7..bytes.len() {
            let found: Vec<_> = entries(&bytes[..cut]).collect();
            assert_eq!(found, [Ok((1, &b"abc"[..])), Err(BadMeta { at: 6 })]);
        }
    }
}
