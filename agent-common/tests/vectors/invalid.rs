//! What breaks a rule is refused, and for that rule.

use agent_common::frame::{BadHello, Broken, Header, Hello, Kind, entries, find, id, service_hash};

use crate::file::File;

#[test]
fn what_breaks_a_rule_is_refused() {
    for vector in File::read().invalid {
        assert_eq!(refusal(&vector.hex.0).as_deref(), Some(&*vector.breaks), "{}: {}", vector.name, vector.rule);
    }
}

/// Which rule the first frame of some bytes breaks, of those that can be seen without knowing the connection.
pub(crate) fn refusal(bytes: &[u8]) -> Option<String> {
    let (header, rest) = bytes.split_first_chunk().expect("a whole header");
    let header = match Header::parse(header) {
        Ok(header) => header,
        Err(broken) => return Some(broken_rule(broken).to_owned()),
    };
    assert_eq!(header.frame_len(), bytes.len(), "only a whole frame has a fault behind its header");
    let meta = &rest[..usize::from(header.meta_len)];
    let entries: Result<Vec<_>, _> = entries(meta).collect();
    match (header.kind(), entries) {
        (None, _) => None,
        (_, Err(_)) => Some("metadata".to_owned()),
        (Some(Kind::Hello), Ok(_)) => hello_rule(meta),
        (Some(Kind::Request), Ok(entries)) => {
            let Some((id::URI, uri)) = entries.first() else { return Some("uri".to_owned()) };
            let hash = service_hash(uri, find(meta, id::GROUP).unwrap_or_default());
            (hash != header.service).then(|| "service".to_owned())
        }
        _ => None,
    }
}

fn broken_rule(broken: Broken) -> &'static str {
    match broken {
        Broken::Magic => "magic",
        Broken::Version(_) => "version",
        Broken::Kind(_) => "kind",
        Broken::TooLong { .. } => "frame_too_long",
        Broken::MetaTooLong { .. } => "metadata_too_long",
        Broken::Field { field, .. } => field,
    }
}

fn hello_rule(meta: &[u8]) -> Option<String> {
    Some(match Hello::decode(meta).err()? {
        BadHello::Meta(_) => "metadata".to_owned(),
        BadHello::Missing(entry) => format!("hello_{entry}_missing"),
        BadHello::Value(entry) => format!("hello_{entry}"),
    })
}
