//! `vectors/frames.json` and the codec say the same: what one of them changes, the other must notice.
//!
//! A frame can be added to the file with its fields alone: the test prints the bytes that the codec makes of them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod conversations;
mod file;
mod frames;
mod invalid;

use agent_common::frame::{is_after, next_stream, service_hash};

use self::file::File;

#[test]
fn services_have_their_hashes() {
    for vector in File::read().services {
        let hash = service_hash(vector.uri.as_bytes(), vector.group.as_bytes());
        assert_eq!(hash, vector.hash.0, "{} {}", vector.uri, vector.group);
    }
}

#[test]
fn numbers_of_calls_are_in_order() {
    let file = File::read();
    for vector in file.stream_order {
        assert_eq!(is_after(vector.stream, vector.other), vector.after, "{} after {}", vector.stream, vector.other);
    }
    for vector in file.stream_next {
        assert_eq!(next_stream(vector.stream), vector.next);
    }
}
