//! MOA Mesh's tasks: `cargo xtask <verb>`.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod check;
mod clean;
mod command;
mod kernel;
mod load;
mod place;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::place::Place;

/// Sets up, builds, runs, tests and measures MOA Mesh
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Installs what the other verbs need; they do it by themselves, each as much as it needs
    Setup(setup::Args),
    /// Builds the kernel programs and the binary
    Build(build::Args),
    /// Shows the main job: an example service, the agent, and live calls through it
    Run(run::Args),
    /// Runs every test
    Test(test::Args),
    /// Measures the agent next to other proxies
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Checks formatting, lints and documentation
    Check,
    /// Removes what was built and what the tasks installed in the target folder
    Clean,
    /// The service of `bench frames` and `bench mesh`, a process of its own
    #[command(hide = true)]
    FrameService(load::frames::service::Args),
    /// The services of `bench policy`, a process of their own
    #[command(hide = true)]
    SlowServices(load::slow::Args),
}

fn main() -> ExitCode {
    match dispatch(&Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: &Verb) -> Result<ExitCode> {
    let place = Place::new();
    match verb {
        Verb::Setup(args) => setup::run(&place, args)?,
        Verb::Build(args) => build::run(&place, args)?,
        Verb::Run(args) => run::run(&place, args)?,
        Verb::Test(args) => return test::run(&place, args),
        Verb::Bench(bench) => bench::run(&place, bench)?,
        Verb::Check => check::run(&place)?,
        Verb::Clean => clean::run(&place)?,
        Verb::FrameService(args) => load::frames::service::serve(args)?,
        Verb::SlowServices(args) => load::slow::serve(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
