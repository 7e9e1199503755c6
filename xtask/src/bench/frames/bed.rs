//! The test bed of frames: an echo service, and what is put in front of it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    bench::{
        bed::{Serving, free_port, wait_until, workers},
        cpu::Cpus,
        rounds::{Target, TestBed},
        subject::{Setting, Subject, installed},
        workshop::{Program, Workshop},
    },
    load::frames::{Flow, FrameLoad},
    run::children::Process,
};

/// The template of an agent, as a file's name and what is in it.
type Template = (&'static str, &'static str);

const AGENT: Template = ("agent.toml", include_str!("../conf/frames-agent.toml"));
const NEAR: Template = ("near.toml", include_str!("../conf/frames-near.toml"));
const FAR: Template = ("far.toml", include_str!("../conf/frames-far.toml"));

/// A service that answers calls with their bodies.
pub(super) struct FrameBed<'a> {
    /// Where everything runs.
    pub(super) cpus: Cpus,
    workshop: &'a Workshop,
    workers: usize,
    /// Where instructions are counted to, if they are.
    counts: Option<PathBuf>,
    /// Where the service is called without an agent.
    port: u16,
    _service: Process,
}

/// A part of a subject that runs.
struct Part {
    process: Process,
    listen: u16,
    tunnel: u16,
}

impl<'a> FrameBed<'a> {
    /// Starts the service.
    pub(super) fn start(cpus: Cpus, workshop: &'a Workshop) -> Result<Self> {
        let port = free_port()?;
        let mut service = service(&format!("service-{port}"), "--listen", port, cpus, workshop)?;
        wait_until(&mut service, || call(port)).context("the service does not serve")?;
        Ok(Self { cpus, workshop, workers: workers(cpus)?, counts: None, port, _service: service })
    }

    /// Has subjects with one worker count their instructions into this file. They count until they end.
    pub(super) fn counting(self, into: &Path) -> Self {
        Self { workers: 1, counts: Some(into.to_owned()), ..self }
    }

    /// One agent, or two with a tunnel between them, and a service that dials the last.
    fn agents(&self, subject: Subject, file: &Path) -> Result<Serving> {
        let mut parts = Vec::new();
        if subject.chain().1 == 1 {
            parts.push(self.part(subject, file, Some(AGENT), 0)?);
        } else {
            let far = self.part(subject, file, Some(FAR), 0)?;
            parts.push(self.part(subject, file, Some(NEAR), far.tunnel)?);
            parts.push(far);
        }
        let (listen, dials) = (parts[0].listen, parts[parts.len() - 1].listen);
        let service = service(&format!("service-{dials}"), "--dial", dials, self.cpus, self.workshop)?;
        let proxies = parts.iter().map(|part| part.process.id()).collect();
        // What is in front ends first, and the service before the agent that it has dialled.
        let mut processes = vec![service];
        processes.extend(parts.into_iter().map(|part| part.process));
        Ok(Serving { target: Target { port: listen, proxies }, processes })
    }

    /// Proxies in front of the listening service, each in front of the one before.
    fn proxies(&self, subject: Subject, file: &Path) -> Result<Serving> {
        let mut serving = Serving { target: Target { port: self.port, proxies: Vec::new() }, processes: Vec::new() };
        for _ in 0..subject.chain().1 {
            let part = self.part(subject, file, None, serving.target.port)?;
            serving.target.port = part.listen;
            serving.target.proxies.push(part.process.id());
            serving.processes.push(part.process);
        }
        Ok(serving)
    }

    fn part(&self, subject: Subject, file: &Path, template: Option<Template>, upstream: u16) -> Result<Part> {
        let (listen, extra, tunnel) = (free_port()?, free_port()?, free_port()?);
        let name = format!("{}-{listen}", subject.name());
        let folder = self.workshop.path().join(&name);
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let setting = Setting { folder: &folder, listen, extra, upstream, tunnel, workers: self.workers };
        let one = subject.chain().0;
        let args = template.map_or_else(|| one.configure(&setting), |template| one.configure_with(template, &setting))?;
        let program = self.counted(Program { file: file.to_owned(), args })?;
        Ok(Part { process: self.workshop.start(&name, &program, self.cpus)?, listen, tunnel })
    }

    fn counted(&self, program: Program) -> Result<Program> {
        let Some(counts) = &self.counts else { return Ok(program) };
        let mut args = vec!["--tool=callgrind".to_owned(), format!("--callgrind-out-file={}", counts.display())];
        args.push(program.file.display().to_string());
        args.extend(program.args);
        Ok(Program { file: installed("valgrind")?, args })
    }
}

impl TestBed for FrameBed<'_> {
    fn serve(&self, subject: Subject, file: Option<&Path>) -> Result<Serving> {
        let mut serving = match file {
            None => Serving { target: Target { port: self.port, proxies: Vec::new() }, processes: Vec::new() },
            Some(file) if subject.is_agent() => self.agents(subject, file)?,
            Some(file) => self.proxies(subject, file)?,
        };
        let port = serving.target.port;
        let answers = serving.wait_until(|| call(port));
        answers.with_context(|| format!("{} does not serve frames", subject.name()))?;
        Ok(serving)
    }

    fn check(&self, target: &Target) -> Result<()> {
        call(target.port)
    }
}

/// An address on this machine.
pub(super) fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One call on a connection of its own, whose answer must have its body.
fn call(port: u16) -> Result<()> {
    const ANSWER_WITHIN: Duration = Duration::from_secs(5);
    let load = FrameLoad { calls: Some(1), timeout: ANSWER_WITHIN, ..FrameLoad::new(at(port), Flow { body: 64, depth: 1 }) };
    let reports = load.start()?.end()?;
    let failed = reports.iter().find(|report| report.errors > 0 || report.answered() != 1);
    let why = failed.map(|report| report.last_error.clone().unwrap_or_default());
    ensure!(why.is_none(), "a call failed: {}", why.unwrap_or_default());
    Ok(())
}

/// This program again, as the service.
fn service(name: &str, how: &str, port: u16, cpus: Cpus, workshop: &Workshop) -> Result<Process> {
    let file = std::env::current_exe().context("the file of this program is not known")?;
    let args = ["frame-service", how, &at(port).to_string()].map(str::to_owned).to_vec();
    workshop.start(name, &Program { file, args }, cpus)
}
