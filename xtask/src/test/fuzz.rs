//! The fuzz targets of `tests/fuzz`, each for a while. One that finds nothing counts as a test that passed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::tally::Tally;
use crate::{
    command::{self, cargo, show, tail},
    place::Place,
};

/// How long a target runs in CI: so many inputs, and not longer than this however slow the machine is.
const BRIEFLY: [&str; 2] = ["-runs=200000", "-max_total_time=60"];
/// How long it runs with `--long`.
const LONG: [&str; 1] = ["-max_total_time=600"];

/// Builds all targets and runs one after the other.
pub(super) fn run(place: &Place, long: bool, tally: &mut Tally) -> Result<()> {
    let folder = place.root.join("tests/fuzz");
    let targets = targets(&folder)?;
    let how_long: &[&str] = if long { &LONG } else { &BRIEFLY };
    println!("\nfuzzing {}, each with {}", targets.join(", "), how_long.join(" "));
    if let Err(error) = command::run(in_folder(&folder).args(["build", "--release", "--quiet"])) {
        println!("the fuzz targets cannot be built: {error:#}");
        tally.failed += 1;
        return Ok(());
    }
    for target in targets {
        let log = place.target.join(format!("fuzz-{target}.log"));
        if fuzz(&folder, &target, how_long, &log)? {
            println!("fuzz {target} ... ok");
            tally.passed += 1;
        } else {
            println!("fuzz {target} ... FAILED, see {}; its end:\n{}", log.display(), tail(&log));
            tally.failed += 1;
        }
    }
    Ok(())
}

/// A target is a file of `targets/`.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join("targets");
    let files = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let paths: Vec<PathBuf> = files.map(|file| file.map(|file| file.path())).collect::<std::io::Result<_>>()?;
    let sources = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<String> = sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Runs a target on its seeds, the recorded peers and what earlier runs have found, as its README says; whether it found
/// no fault.
fn fuzz(folder: &Path, target: &str, how_long: &[&str], log: &Path) -> Result<bool> {
    for made in ["corpus", "artifacts"] {
        fs::create_dir_all(folder.join(made).join(target))?;
    }
    let mut run = in_folder(folder);
    run.args(["run", "--release", "--quiet", "--bin", target, "--", "-max_len=4096", "-timeout=10"]).args(how_long);
    run.arg(format!("-artifact_prefix=artifacts/{target}/")).arg(format!("-dict={target}.dict"));
    run.arg(format!("corpus/{target}")).arg(format!("seeds/{target}")).arg("../vectors/moa");
    let output = fs::File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
    let status = run.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).status();
    Ok(status.with_context(|| format!("{} cannot be started", show(&run)))?.success())
}

/// Cargo in the folder, whose own flags count.
fn in_folder(folder: &Path) -> Command {
    let mut cargo = cargo();
    cargo.current_dir(folder).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_sources() {
        let folder = tempfile::tempdir().unwrap();
        assert!(targets(folder.path()).is_err());
        fs::create_dir_all(folder.path().join("targets/more")).unwrap();
        for file in ["resp.rs", "envelope.rs", "README.md"] {
            fs::write(folder.path().join("targets").join(file), "").unwrap();
        }
        assert_eq!(targets(folder.path()).unwrap(), ["envelope", "resp"]);
    }
}
