//! `cargo xtask bench`: what a call through the agent costs, next to other proxies and none.

mod bed;
mod call;
mod case;
mod cpu;
mod frames;
mod goals;
mod kernel;
mod latency;
mod legs;
mod local;
mod memory;
mod path;
mod policy;
mod prepare;
mod progress;
mod redis_benchmark;
mod report;
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
    /// Calls that the kernel routes: latency and CPU, next to direct TCP, a unix socket, the agent and HAProxy
    Kernel(kernel::Args),
    /// Calls in frames through one agent: latency, throughput, CPU, and small calls beside large ones
    Frames(frames::Args),
    /// Calls in frames through two agents: latency and CPU, next to one proxy and two
    Mesh(frames::MeshArgs),
    /// The traffic policy: what a pick, rules and rate limits cost, and tail latency beside a slow instance, next to Envoy's
    Policy(policy::Args),
}

/// Runs a benchmark.
pub(crate) fn run(place: &Place, bench: &Bench) -> Result<()> {
    match bench {
        Bench::Local(args) => local::run(place, args),
        Bench::KernelLegs(args) => legs::run(place, args),
        Bench::Kernel(args) => kernel::run(place, args),
        Bench::Frames(args) => frames::run(place, args),
        Bench::Mesh(args) => frames::run_mesh(place, args),
        Bench::Policy(args) => policy::run(place, args),
    }
}
