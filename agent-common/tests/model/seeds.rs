//! The seeds and findings of the fuzz target.

use std::{fs, path::Path};

use crate::check::check;

#[test]
fn seeds_and_findings_of_the_fuzz_target_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/connection");
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seeds: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| check(seed));
}
