//! The test bed of frames: an echo service, and what is put in front of it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use agent_common::lane::LANES_MAX;
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit};

use crate::{
    bench::{
        bed::{Serving, free_port, wait_until, workers},
        cpu::Cpus,
        rounds::{Target, TestBed},
        subject::{Setting, Subject, installed},
        workshop::{Program, Workshop},
    },
    load::frames::{Flow, FrameLoad, Peer, Setup},
    run::children::Process,
};

/// The template of an agent, as a file's name and what is in it.
type Template = (&'static str, &'static str);

const AGENT: Template = ("agent.toml", include_str!("../conf/frames-agent.toml"));
const NEAR: Template = ("near.toml", include_str!("../conf/frames-near.toml"));
const FAR: Template = ("far.toml", include_str!("../conf/frames-far.toml"));

/// A service that answers calls with their bodies.
pub(in crate::bench) struct FrameBed<'a> {
    /// Where everything runs.
    pub(in crate::bench) cpus: Cpus,
    workshop: &'a Workshop,
    workers: usize,
    /// Where instructions are counted to, if they are.
    counts: Option<PathBuf>,
    /// How frames go.
    setup: Setup,
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
        Self::start_with(Setup::USUAL, cpus, workshop)
    }

    /// The same, with frames that go otherwise.
    pub(in crate::bench) fn start_with(setup: Setup, cpus: Cpus, workshop: &'a Workshop) -> Result<Self> {
        let port = free_port()?;
        let mut service = service(&format!("service-{port}"), &["--listen", &at(port).to_string()], setup, cpus, workshop)?;
        let target = Target::new(port, Vec::new());
        wait_until(&mut service, || call(&target)).context("the service does not serve")?;
        Ok(Self { cpus, workshop, workers: workers(cpus)?, counts: None, setup, port, _service: service })
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
        let (name, setup) = (format!("service-{dials}"), Setup { lanes: subject.has_lanes(), ..self.setup });
        let dials = at(dials).to_string();
        let crowd = if subject == Subject::AgentCrowded { Some(crowd()?.to_string()) } else { None };
        let how: Vec<_> = ["--dial", &dials].into_iter().chain(crowd.iter().flat_map(|crowd| ["--crowd", crowd])).collect();
        let service = service(&name, &how, setup, self.cpus, self.workshop)?;
        let proxies = parts.iter().map(|part| part.process.id()).collect();
        // What is in front ends first, and the service before the agent that it has dialled.
        let mut processes = vec![service];
        processes.extend(parts.into_iter().map(|part| part.process));
        Ok(Serving { target: Target { lanes: subject.has_lanes(), ..Target::new(listen, proxies) }, processes })
    }

    /// Proxies in front of the listening service, each in front of the one before.
    fn proxies(&self, subject: Subject, file: &Path) -> Result<Serving> {
        let mut serving = Serving { target: Target::new(self.port, Vec::new()), processes: Vec::new() };
        for _ in 0..subject.chain().1 {
            let part = self.part(subject, file, None, serving.target.port)?;
            serving.target.port = part.listen;
            serving.target.proxies.push(part.process.id());
            serving.processes.push(part.process);
        }
        Ok(serving)
    }

    /// A service of its own, which is called by a unix socket.
    fn unix(&self) -> Result<Serving> {
        let path = self.workshop.path().join(format!("service-{}.sock", free_port()?));
        let listen = ["--listen-unix", &path.display().to_string()];
        let service = service(
            &format!("{}", path.file_name().unwrap_or_default().display()),
            &listen,
            self.setup,
            self.cpus,
            self.workshop,
        )?;
        Ok(Serving { target: Target { path: Some(path), ..Target::new(0, Vec::new()) }, processes: vec![service] })
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
        // The count is of one process, which is the agent's own if it has no parent.
        let is_agent = program.args.first().is_some_and(|verb| verb == "agent");
        args.extend(program.args);
        args.extend(is_agent.then(|| "--alone".to_owned()));
        Ok(Program { file: installed("valgrind")?, args })
    }
}

impl TestBed for FrameBed<'_> {
    fn serve(&self, subject: Subject, file: Option<&Path>) -> Result<Serving> {
        let mut serving = match file {
            None if subject == Subject::DirectUnix => self.unix()?,
            None => Serving { target: Target::new(self.port, Vec::new()), processes: Vec::new() },
            Some(file) if subject.is_agent() => self.agents(subject, file)?,
            Some(file) => self.proxies(subject, file)?,
        };
        let to = Target { path: serving.target.path.clone(), ..Target::new(serving.target.port, Vec::new()) };
        let to = Target { lanes: serving.target.lanes, ..to };
        let answers = serving.wait_until(|| call(&to));
        answers.with_context(|| format!("{} does not serve frames", subject.name()))?;
        Ok(serving)
    }

    fn check(&self, target: &Target) -> Result<()> {
        call(target)
    }
}

/// An address on this machine.
pub(in crate::bench) fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One call on a connection of its own, whose answer must have its body.
fn call(target: &Target) -> Result<()> {
    const ANSWER_WITHIN: Duration = Duration::from_secs(5);
    let setup = Setup { lanes: target.lanes, ..Setup::USUAL };
    let load =
        FrameLoad { calls: Some(1), setup, timeout: ANSWER_WITHIN, ..FrameLoad::new(to(target), Flow { body: 64, depth: 1 }) };
    let reports = load.start()?.end()?;
    let failed = reports.iter().find(|report| report.errors > 0 || report.answered() != 1);
    let why = failed.map(|report| report.last_error.clone().unwrap_or_default());
    ensure!(why.is_none(), "a call failed: {}", why.unwrap_or_default());
    Ok(())
}

/// Who is called.
pub(in crate::bench) fn to(target: &Target) -> Peer {
    target.path.clone().map_or_else(|| at(target.port).into(), Peer::Unix)
}

/// How many connections, each of which has two sockets at either end, there are files for beside those that are needed.
fn crowd() -> Result<u64> {
    const NEEDED: u64 = 2_000;
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).context("how many files there may be is not known")?;
    Ok((files.saturating_sub(NEEDED) / 2).min(u64::from(LANES_MAX) - NEEDED))
}

/// This program again, as the service.
fn service(name: &str, how: &[&str], setup: Setup, cpus: Cpus, workshop: &Workshop) -> Result<Process> {
    let file = std::env::current_exe().context("the file of this program is not known")?;
    let frame_max = setup.frame_max.to_string();
    let rest = ["--frame-max", &frame_max].into_iter().chain(setup.lanes.then_some("--lanes"));
    let args = ["frame-service"].iter().chain(how).copied().chain(rest).map(str::to_owned).collect();
    workshop.start(name, &Program { file, args }, cpus)
}
