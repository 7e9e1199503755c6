//! `cargo xtask test`: every test there is, and one line at the end that says how they went.

mod fuzz;
mod tally;

use std::{
    io::{BufRead, BufReader, IsTerminal, Write, stdout},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use self::tally::Tally;
use crate::{
    build,
    command::cargo,
    place::Place,
    setup::{self, Purpose},
};

/// Which tests, and how long
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The full counts, and ten minutes for each fuzz target
    #[arg(long)]
    long: bool,
    /// Only tests whose names contain one of these, and no fuzz targets
    filter: Vec<String>,
}

/// Sets up, builds, tests, sums up. `MOA_SEED` reaches the tests as it is.
pub(crate) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    setup::ensure(place, Purpose::Test)?;
    build::run(place, &build::Args::default())?;
    let mut tally = Tally::default();
    tests(place, args, &mut tally)?;
    if args.filter.is_empty() {
        fuzz::run(place, args.long, &mut tally)?;
    }
    println!("\n{tally}");
    Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tests(place: &Place, args: &Args, tally: &mut Tally) -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--release", "--no-fail-fast"]).current_dir(&place.root).env("MOA_BIN", place.moa(false));
    test.env("MOA_TEST_PYTHON", place.test_venv().join("bin/python"));
    if args.long {
        test.env("MOA_TEST_LONG", "1");
    }
    test.arg("--").args(&args.filter);
    if stdout().is_terminal() {
        test.args(["--color", "always"]);
    }
    let failed_before = tally.failed;
    let good = count(&mut test, tally, &mut stdout())?;
    if !good && tally.failed == failed_before {
        println!("a test program was not built, or ended without a result: see above");
        tally.failed += 1;
    }
    Ok(())
}

/// Runs a program, shows what it prints as it prints it, and counts; whether it ended well.
fn count(command: &mut Command, tally: &mut Tally, out: &mut impl Write) -> Result<bool> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cargo cannot be started")?;
    let output = child.stdout.take().context("no output of cargo")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        out.write_all(&[&line[..], b"\n"].concat())?;
        tally.line(&String::from_utf8_lossy(&line));
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_program_prints() {
        let mut tally = Tally::default();
        let mut shown = Vec::new();
        let line = "test result: ok. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert!(count(Command::new("echo").arg(line), &mut tally, &mut shown).unwrap());
        assert!(!count(&mut Command::new("false"), &mut tally, &mut shown).unwrap());
        assert_eq!((tally.passed, tally.failed), (3, 1));
        assert_eq!(shown, [line.as_bytes(), b"\n"].concat());
    }
}
