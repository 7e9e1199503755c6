//! `cargo xtask bench`: what a call through the agent costs, next to other proxies and none.

mod bed;
mod call;
mod case;
mod cpu;
mod latency;
mod legs;
mod local;
mod memory;
mod path;
mod prepare;
mod progress;
mod redis_benchmark;
mod rounds;
mod rows;
mod subject;
mod workshop;

use anyhow::Result;
use clap::Subcommand;

use crate::place::Place;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Everything on this machine: latency, throughput, CPU and memory, next to other proxies
    Local(local::Args),
    /// The kernel path: what the agent adds to a call with it and without, for calls of 64 B to 1 MiB
    KernelLegs(legs::Args),
}

/// Runs a benchmark.
pub(crate) fn run(place: &Place, bench: &Bench) -> Result<()> {
    match bench {
        Bench::Local(args) => local::run(place, args),
        Bench::KernelLegs(args) => legs::run(place, args),
    }
}
