//! The example's agent.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{children::Process, port};
use crate::{command, place::Place};

/// How long it may take to serve.
const START_WITHIN: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The usual port of applications.
const USUAL_PORT: u16 = 13000;
/// Where other agents and metrics usually are, beside it.
const USUAL_PORTS: [u16; 2] = [13100, 13900];

/// A running agent.
pub(super) struct Agent {
    process: Process,
    moa: PathBuf,
    name: Option<String>,
    /// What it was started with, and its log.
    args: Vec<String>,
    log: PathBuf,
    /// Where applications call it.
    pub(super) listen: SocketAddr,
    /// Where other agents connect to.
    pub(super) tunnel: SocketAddr,
}

/// What an agent is started with.
pub(super) struct Node<'a> {
    pub(super) folder: &'a Path,
    /// None: the usual one, which need not be typed.
    pub(super) name: Option<String>,
    pub(super) port: u16,
    /// Where the service is, if it is configured.
    pub(super) service: Served,
    pub(super) kernel: bool,
    /// Where it takes applications of an agent that is gone, and where another one takes its own.
    pub(super) failover: (Option<SocketAddr>, Option<SocketAddr>),
}

/// Where the service is.
pub(super) enum Served {
    /// A server that speaks Redis.
    By(SocketAddr),
    /// Another agent has it.
    Elsewhere(SocketAddr),
    /// It dials in.
    ByWhoDialsIn,
}

impl Agent {
    /// Starts it with a configuration that has one service at most.
    pub(super) fn start(place: &Place, node: Node<'_>) -> Result<Self> {
        let Node { folder, name, port, service, kernel, failover } = node;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let usual = port == USUAL_PORT;
        let [tunnel, metrics] = USUAL_PORTS.map(|port| port::free_or_any(usual.then_some(port)));
        let (listen, tunnel) = (local(port), local(tunnel?));
        let label = name.as_deref().unwrap_or("default");
        let config = folder.join(format!("{label}.toml"));
        fs::write(&config, configuration([listen, tunnel, local(metrics?)], &service, failover))
            .context("no configuration for the example")?;
        let moa = place.moa(false);
        let kernel = if kernel { "auto" } else { "off" };
        let mut args = vec!["agent".to_owned(), "--config".to_owned(), config.display().to_string()];
        args.extend(["--kernel".to_owned(), kernel.to_owned()]);
        args.extend(name_args(name.as_ref()));
        let log = folder.join(format!("{label}.log"));
        let process = Process::start(&moa, &args, &log, Stdio::null())?;
        Ok(Self { process, moa, name, args, log, listen, tunnel })
    }

    /// What it is called when it has this port: with the usual port it has the usual name.
    pub(super) fn usual_name(port: u16) -> Option<String> {
        (port != USUAL_PORT).then(|| format!("demo-{port}"))
    }

    /// Returns when it answers a call of the service.
    pub(super) fn wait_until_it_serves(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        while !answers(self.listen) {
            self.check()?;
            if Instant::now() > deadline {
                bail!("the agent does not serve after {START_WITHIN:?}; its log ends:\n{}", self.process.tail());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Kills it without notice.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it once more after its end.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.process = Process::start(&self.moa, &self.args, &self.log, Stdio::null())?;
        Ok(())
    }

    /// Removes what it leaves in the kernel for whoever connects while it is away.
    pub(super) fn uninstall(&self) {
        let words = ["kernel".to_owned(), "uninstall".to_owned(), "--force".to_owned()];
        // Without the rights for it, there is nothing.
        let _ = command::printed(Command::new(&self.moa).args(words).args(name_args(self.name.as_ref())));
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("the agent ended with {status}; its log ends:\n{}", self.process.tail()),
            None => Ok(()),
        }
    }

    /// Whether the kernel programs are there, and if not why not.
    pub(super) fn kernel_line(&self) -> String {
        let kernel = self.kernel();
        match (&kernel["attached"], &kernel["on"], &kernel["reason"]) {
            (Value::Bool(true), Value::Bool(true), _) => {
                "Between application, agent and service the bytes go through the kernel path.".to_owned()
            }
            (Value::Bool(true), ..) => {
                format!("The kernel programs are attached, but not used: {}.", kernel["decision"].as_str().unwrap_or_default())
            }
            (.., Value::String(reason)) => format!("Userspace only: {reason}."),
            _ => "It does not say whether the kernel programs are attached.".to_owned(),
        }
    }

    /// The share of bytes that went through the kernel so far; none if there is no kernel path.
    pub(super) fn kernel_share(&self) -> Option<f64> {
        let kernel = self.kernel();
        kernel["share"].as_f64().filter(|_| kernel["attached"] == Value::Bool(true))
    }

    /// What `moa status` says of the kernel path.
    fn kernel(&self) -> Value {
        let ask = ["status".to_owned(), "--json".to_owned()];
        let status = command::printed(Command::new(&self.moa).args(ask).args(name_args(self.name.as_ref())));
        let status: Value = status.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        status["kernel"].clone()
    }

    /// What to type for a verb of its command line.
    pub(super) fn to_type(&self, verb: &str) -> String {
        [self.moa.display().to_string(), verb.to_owned()]
            .into_iter()
            .chain(name_args(self.name.as_ref()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Tells it to finish and end.
    pub(super) fn stop(&mut self) -> Result<()> {
        if !self.process.stop()? {
            bail!("the agent did not end by itself and was killed; its log ends:\n{}", self.process.tail());
        }
        Ok(())
    }
}

fn name_args(name: Option<&String>) -> Vec<String> {
    name.map_or_else(Vec::new, |name| vec!["--name".to_owned(), name.clone()])
}

fn configuration(
    [listen, tunnel, metrics]: [SocketAddr; 3],
    service: &Served,
    (own, sibling): (Option<SocketAddr>, Option<SocketAddr>),
) -> String {
    let sibling = sibling.map_or_else(String::new, |address| format!("failover = \"{address}\"\n"));
    let failover = own.map_or_else(String::new, |address| {
        format!("[failover]\nlisten = \"{address}\"\n\n[failover.applications.demo]\naddresses = [\"127.0.0.0/8\"]\n\n")
    });
    let service = match service {
        Served::By(server) => format!("[services.\"/service/demo\"]\ninstances = [\"{server}\"]\n"),
        Served::Elsewhere(agent) => {
            format!("[peers.far]\naddress = \"{agent}\"\n{sibling}\n[services.\"/service/demo\"]\nagents = [\"far\"]\n")
        }
        Served::ByWhoDialsIn => String::new(),
    };
    format!(
        "[app]\nlisten = \"{listen}\"\n\n[tunnel]\nlisten = \"{tunnel}\"\n\n[metrics]\nlisten = \"{metrics}\"\n\n{failover}{service}"
    )
}

/// Whether somebody at the address answers a PING.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"*1\r\n$4\r\nPING\r\n")?;
        let mut answer = [0; 7];
        socket.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    ask().unwrap_or(false)
}
