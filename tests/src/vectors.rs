//! Bytes recorded from real MOA peers.

use std::{fs, path::PathBuf};

/// What one peer was sent in one case, and what came back.
#[derive(Clone)]
pub struct Vector {
    /// `PEER.CASE`.
    pub name: String,
    /// What was sent.
    pub request: Vec<u8>,
    /// What came back; empty if no reply ever came.
    pub response: Vec<u8>,
}

/// All of them, by name.
pub fn all() -> Vec<Vector> {
    let dir = directory();
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".req.bin").map(str::to_owned)).collect();
    names.sort();
    assert!(!names.is_empty(), "{} holds no *.req.bin", dir.display());
    names.iter().map(|name| load(name)).collect()
}

/// One of them.
pub fn load(name: &str) -> Vector {
    let read = |kind: &str| {
        let path = directory().join(format!("{name}.{kind}.bin"));
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    Vector { name: name.to_owned(), request: read("req"), response: read("resp") }
}

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/moa"))
}
