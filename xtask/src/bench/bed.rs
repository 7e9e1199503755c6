//! The test bed of one case: the server, and proxies in front of it.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    call::{Call, Connection},
    cpu::Cpus,
    rounds::{Target, TestBed},
    subject::{Setting, Subject, installed},
    workshop::{Program, Workshop},
};
use crate::run::children::Process;

const START_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A server with the answer of a study.
pub(super) struct Bed<'a> {
    /// What every client calls.
    pub(super) call: Call,
    /// Where everything runs.
    pub(super) cpus: Cpus,
    pub(super) workshop: &'a Workshop,
    workers: usize,
    server_port: u16,
    _server: Process,
}

/// A subject that serves.
pub(super) struct Serving {
    /// Where to call it.
    pub(super) target: Target,
    /// All that was started for it.
    pub(super) processes: Vec<Process>,
}

impl<'a> Bed<'a> {
    /// Starts the server.
    pub(super) fn start(call: Call, cpus: Cpus, workshop: &'a Workshop) -> Result<Self> {
        let (workers, server_port) = (workers(cpus)?, free_port()?);
        let options = format!("--bind 127.0.0.1 --port {server_port} --appendonly no --maxclients 16000 --save");
        let args = options.split(' ').chain([""]).map(str::to_owned).collect();
        let mut server = workshop.start("redis-server", &Program { file: installed("redis-server")?, args }, cpus)?;
        wait_until(&mut server, || call.store(server_port)).context("redis-server does not serve")?;
        Ok(Self { call, cpus, workshop, workers, server_port, _server: server })
    }
}

impl TestBed for Bed<'_> {
    fn serve(&self, subject: Subject, file: Option<&Path>) -> Result<Serving> {
        let Some(file) = file else {
            return Ok(Serving { target: Target::new(self.server_port, Vec::new()), processes: Vec::new() });
        };
        let (listen, name) = (free_port()?, subject.name());
        let folder = self.workshop.path().join(format!("{name}-{listen}"));
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let (extra, upstream, tunnel) = (free_port()?, self.server_port, free_port()?);
        let setting = Setting { folder: &folder, listen, extra, upstream, tunnel, workers: self.workers };
        let args = subject.configure(&setting)?;
        let mut process = self.workshop.start(&name, &Program { file: file.to_owned(), args }, self.cpus)?;
        let answers = || Connection::open(listen, &self.call)?.call();
        wait_until(&mut process, answers).with_context(|| format!("{name} does not serve"))?;
        Ok(Serving { target: Target::new(listen, vec![process.id()]), processes: vec![process] })
    }

    fn check(&self, target: &Target) -> Result<()> {
        Connection::open(target.port, &self.call)?.call()
    }
}

impl Serving {
    /// Tries until it succeeds, for as long as all processes live and a start may take.
    pub(super) fn wait_until(&mut self, attempt: impl FnMut() -> Result<()>) -> Result<()> {
        until(&mut self.processes, attempt)
    }

    /// Whether it still answers rightly.
    pub(super) fn check(&mut self, bed: &impl TestBed) -> Result<()> {
        self.processes.iter_mut().try_for_each(lives)?;
        bed.check(&self.target)
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        tails(&self.processes)
    }
}

/// Threads of a proxy that can have several: one for each CPU.
pub(super) fn workers(cpus: Cpus) -> Result<usize> {
    Ok(if cpus.one().is_some() { 1 } else { thread::available_parallelism()?.get() })
}

/// Tries until it succeeds, for as long as the process lives and a start may take.
pub(super) fn wait_until(process: &mut Process, attempt: impl FnMut() -> Result<()>) -> Result<()> {
    until(std::slice::from_mut(process), attempt)
}

fn until(processes: &mut [Process], mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + START_WITHIN;
    while let Err(error) = attempt() {
        processes.iter_mut().try_for_each(lives)?;
        if Instant::now() > deadline {
            return Err(error.context(format!("its log ends:\n{}", tails(processes))));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn tails(processes: &[Process]) -> String {
    processes.iter().map(Process::tail).collect::<Vec<_>>().join("\n")
}

fn lives(process: &mut Process) -> Result<()> {
    match process.ended()? {
        Some(status) => bail!("it ended with {status}; its log ends:\n{}", process.tail()),
        None => Ok(()),
    }
}

/// A port that nobody listens on. Below those that the kernel gives to clients, or one of these could take it first.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(24_000);
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(8_000);
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.context("no free port between 24000 and 32000")
}
