//! The seeds and findings of the fuzz target, and the bytes of the test vectors.

use std::{fs, path::Path};

use crate::check::frame;

#[test]
fn seeds_and_findings_of_the_fuzz_target_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/frame");
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seeds: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| frame::check(seed));
}

#[test]
fn vectors_pass_whole_and_cut_anywhere() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/frames.json");
    let file: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for list in ["frames", "headers", "invalid"] {
        let vectors = file[list].as_array().unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            frame::check_cuts(&bytes(vector["hex"].as_str().unwrap()));
        }
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let (pairs, _) = hex.as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
