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
    /// Where applications call it.
    pub(super) listen: SocketAddr,
}

impl Agent {
    /// Starts it with a configuration that has one service.
    pub(super) fn start(place: &Place, folder: &Path, port: u16, backend: SocketAddr, kernel: bool) -> Result<Self> {
        // With the usual port it has the usual name, which need not be typed.
        let name = (port != USUAL_PORT).then(|| format!("demo-{port}"));
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let [tunnel, metrics] = USUAL_PORTS.map(|usual| port::free_or_any((port == USUAL_PORT).then_some(usual)));
        let config = folder.join("moa.toml");
        fs::write(&config, configuration(listen, [tunnel?, metrics?], backend)).context("no configuration for the example")?;
        let moa = place.moa(false);
        let kernel = if kernel { "auto" } else { "off" };
        let mut args = vec!["agent".to_owned(), "--config".to_owned(), config.display().to_string()];
        args.extend(["--kernel".to_owned(), kernel.to_owned()]);
        args.extend(name_args(name.as_ref()));
        let process = Process::start(&moa, &args, &folder.join("agent.log"), Stdio::null())?;
        Ok(Self { process, moa, name, listen })
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

fn configuration(listen: SocketAddr, [tunnel, metrics]: [u16; 2], backend: SocketAddr) -> String {
    format!(
        "[app]\nlisten = \"{listen}\"\n\n[tunnel]\nlisten = \"127.0.0.1:{tunnel}\"\n\n\
         [metrics]\nlisten = \"127.0.0.1:{metrics}\"\n\n\
         [services.\"/service/demo\"]\ninstances = [\"{backend}\"]\n"
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
