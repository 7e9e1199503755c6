//! `cargo xtask run`: the main job on this machine. An example service, the agent in front of it, and live calls.
//!
//! Whatever way it ends, nothing of it stays: processes end with this one, files are in a folder that is removed.

mod agent;
pub(crate) mod children;
mod keys;
mod live;
mod port;
pub(crate) mod signals;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tempfile::TempDir;

use self::{
    agent::{Agent, Node, Served},
    children::Process,
    keys::Keys,
    live::Live,
    signals::Signals,
};
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
    /// With 2, the service is on another node: it speaks frames and has dialled another agent, on this machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    nodes: u8,
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
    /// It was killed, by a key.
    killed: bool,
    /// The agent of the other node, which stands in for it.
    far: Option<Agent>,
    service: Process,
    /// Removed last.
    _folder: TempDir,
}

impl Example {
    fn start(place: &Place, args: &Args) -> Result<Self> {
        let folder = TempDir::with_prefix("moa-demo-")?;
        let name = Agent::usual_name(args.port);
        let node = |name, port, service, failover| Node {
            folder: folder.path(),
            name,
            port,
            service,
            kernel: !args.no_kernel,
            failover,
        };
        let (service, served, sibling, far) = if args.nodes == 1 {
            let mut service = service(place, folder.path(), "demo_service.py", None)?;
            let server = service.printed_address()?;
            (service, Served::By(server), None, None)
        } else {
            let failover = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port::free_or_any(None)?)));
            let name = Some(format!("far-{}", args.port));
            let far = node(name, port::free_or_any(None)?, Served::ByWhoDialsIn, (failover, None));
            let mut far = Agent::start(place, far)?;
            far.wait_until_it_serves()?;
            let mut service = service(place, folder.path(), "frame_service.py", Some(far.listen))?;
            service.printed_address()?;
            (service, Served::Elsewhere(far.tunnel), failover, Some(far))
        };
        let mut agent = Agent::start(place, node(name, args.port, served, (None, sibling)))?;
        agent.wait_until_it_serves()?;
        let load = Load {
            connections: CONNECTIONS,
            rate: Some(f64::from(args.requests_per_second)),
            polls: true,
            ..Load::new(agent.listen, CALLS.iter().map(|call| load::get(call)).collect())
        };
        Ok(Self { load: Some(load.start()?), agent, killed: false, far, service, _folder: folder })
    }

    /// What there is to try.
    fn explain(&self) {
        match &self.far {
            None => {
                println!(
                    "\nAn application's call goes to the agent at {}, which sends it on to /service/demo.",
                    self.agent.listen
                );
            }
            Some(far) => {
                println!("\nA Redis client's call goes to the agent at {}, by its tunnel to the agent", self.agent.listen);
                println!("of the other node at {}, and on to /service/demo, which speaks frames and has dialled it.", far.tunnel);
            }
        }
        println!("{}", self.agent.kernel_line());
        println!("Try, in another terminal:");
        println!("  redis-cli -p {} GET '{}'", self.agent.listen.port(), CALLS[0]);
        println!("  {}", self.agent.to_type("status"));
        println!("  {}", self.agent.to_type("services"));
        println!("  {}", self.agent.to_type("kernel"));
        if let Some(far) = &self.far {
            println!("  {}", far.to_type("conns"));
        }
        if self.far.is_some() {
            println!("Keys: k kills the agent at {}, r starts it again.", self.agent.listen);
        }
        println!("Ctrl-C ends it.\n");
    }

    /// Shows a line a second until it is time to stop.
    fn watch(&mut self, args: &Args, signals: &Signals) -> Result<Report> {
        let Some(mut load) = self.load.take() else { bail!("no load") };
        let end = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut live = Live::new(load.take()?);
        let keys = self.far.is_some().then(Keys::take).transpose()?;
        while end.is_none_or(|end| Instant::now() < end) && !self.obey_for_a_second(keys.as_ref(), signals, &live)? {
            if !self.killed {
                self.agent.check()?;
            }
            self.far.as_mut().map_or(Ok(()), Agent::check)?;
            if let Some(status) = self.service.ended()? {
                bail!("the example service ended with {status}:\n{}", self.service.tail());
            }
            let share = if self.killed { None } else { self.agent.kernel_share() };
            live.show(&load.take()?, share)?;
        }
        live.end(&load.stop()?)
    }

    /// Does what keys say, for a second; whether it is time to stop.
    fn obey_for_a_second(&mut self, keys: Option<&Keys>, signals: &Signals, live: &Live) -> Result<bool> {
        for _ in 0..20 {
            if signals.within(Duration::from_millis(50)) {
                return Ok(true);
            }
            match keys.and_then(Keys::next) {
                Some(b'k') if !self.killed => {
                    self.agent.kill()?;
                    self.killed = true;
                    live.say("the agent is killed: its applications go to the other node's");
                }
                Some(b'r') if self.killed => {
                    self.agent.start_again()?;
                    self.agent.wait_until_it_serves()?;
                    self.killed = false;
                    live.say("the agent is back: new connections go to it");
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Ends everything in turn: callers, agent, service.
    fn stop(mut self) -> Result<()> {
        drop(self.load.take());
        if !self.killed {
            self.agent.stop()?;
        }
        self.far.as_mut().map_or(Ok(()), Agent::stop)?;
        if self.far.is_some() {
            self.agent.uninstall();
        }
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

/// One of the example services, which dials an agent if it is told one.
fn service(place: &Place, folder: &Path, script: &str, agent: Option<SocketAddr>) -> Result<Process> {
    let script = place.root.join("xtask/example").join(script);
    let python = place::program("python3").unwrap_or_else(|| "python3".into());
    let args: Vec<_> = [script.display().to_string()].into_iter().chain(agent.map(|agent| agent.to_string())).collect();
    Process::start(&python, &args, &folder.join("service.log"), Stdio::piped())
}
