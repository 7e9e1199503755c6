//! `cargo xtask run`: the main job on this machine. An example service, the agent in front of it, and live calls.
//!
//! Whatever way it ends, nothing of it stays: processes end with this one, files are in a folder that is removed.

mod agent;
pub(crate) mod children;
mod live;
mod port;
pub(crate) mod signals;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tempfile::TempDir;

use self::{agent::Agent, children::Process, live::Live, signals::Signals};
use crate::{
    build,
    load::{self, Load, Report, Running},
    place::{self, Place},
    setup::{self, Purpose},
};

/// The calls that are made: each of the service's quick methods.
const CALLS: [&str; 3] = [
    r#"{"action":"/service/demo","params":{"m":"echo","args":["hi"]}}"#,
    r#"{"action":"/service/demo","params":{"m":"add","args":[20,22]}}"#,
    r#"{"action":"/service/demo","params":{"m":"getUser","args":[1]}}"#,
];
const CONNECTIONS: usize = 4;

/// How the example runs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Calls a second that are made
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_second: u32,
    /// The port that applications call, on 127.0.0.1
    #[arg(long, default_value_t = 13000)]
    port: u16,
    /// Ends by itself after so many seconds, with an error if a call failed
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Leaves the kernel programs out
    #[arg(long)]
    no_kernel: bool,
}

/// Sets up, builds, and runs until it is told to stop.
pub(crate) fn run(place: &Place, args: &Args) -> Result<()> {
    port::ensure_free(args.port, "pass another with --port")?;
    setup::ensure(place, Purpose::Run)?;
    build::run(place, &build::Args::default())?;
    // From here on a signal ends what was started, too.
    let signals = Signals::take()?;
    let mut example = Example::start(place, args)?;
    example.explain();
    let report = example.watch(args, &signals);
    example.stop()?;
    println!("stopped: nothing is left behind");
    judge(&report?, args)
}

/// All that runs. Dropping it ends it, the callers first.
struct Example {
    load: Option<Running>,
    agent: Agent,
    service: Process,
    /// Removed last.
    _folder: TempDir,
}

impl Example {
    fn start(place: &Place, args: &Args) -> Result<Self> {
        let folder = TempDir::with_prefix("moa-demo-")?;
        let mut service = service(place, folder.path())?;
        let backend = service.printed_address()?;
        let mut agent = Agent::start(place, folder.path(), args.port, backend, !args.no_kernel)?;
        agent.wait_until_it_serves()?;
        let load = Load {
            connections: CONNECTIONS,
            rate: Some(f64::from(args.requests_per_second)),
            polls: true,
            ..Load::new(agent.listen, CALLS.iter().map(|call| load::get(call)).collect())
        };
        Ok(Self { load: Some(load.start()?), agent, service, _folder: folder })
    }

    /// What there is to try.
    fn explain(&self) {
        println!("\nAn application's call goes to the agent at {}, which sends it on to /service/demo.", self.agent.listen);
        println!("{}", self.agent.kernel_line());
        println!("Try, in another terminal:");
        println!("  redis-cli -p {} GET '{}'", self.agent.listen.port(), CALLS[0]);
        println!("  {}", self.agent.to_type("status"));
        println!("  {}", self.agent.to_type("services"));
        println!("  {}", self.agent.to_type("kernel"));
        println!("Ctrl-C ends it.\n");
    }

    /// Shows a line a second until it is time to stop.
    fn watch(&mut self, args: &Args, signals: &Signals) -> Result<Report> {
        let Some(mut load) = self.load.take() else { bail!("no load") };
        let end = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut live = Live::new(load.take()?);
        while end.is_none_or(|end| Instant::now() < end) && !signals.within(Duration::from_secs(1)) {
            self.agent.check()?;
            if let Some(status) = self.service.ended()? {
                bail!("the example service ended with {status}:\n{}", self.service.tail());
            }
            live.show(&load.take()?, self.agent.kernel_share())?;
        }
        live.end(&load.stop()?)
    }

    /// Ends everything in turn: callers, agent, service.
    fn stop(mut self) -> Result<()> {
        drop(self.load.take());
        self.agent.stop()?;
        self.service.stop()?;
        Ok(())
    }
}

/// A run that ends by itself is a test: it must have made calls, all of them good.
fn judge(report: &Report, args: &Args) -> Result<()> {
    if args.seconds.is_some() && (report.answered() == 0 || report.errors > 0) {
        let last = report.last_error.as_deref().unwrap_or("none");
        bail!("{} calls were answered, {} failed; the last error: {last}", report.answered(), report.errors);
    }
    Ok(())
}

fn service(place: &Place, folder: &Path) -> Result<Process> {
    let script = place.root.join("xtask/example/demo_service.py");
    let python = place::program("python3").unwrap_or_else(|| "python3".into());
    Process::start(&python, &[script.display().to_string()], &folder.join("service.log"), Stdio::piped())
}
