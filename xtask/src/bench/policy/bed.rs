//! The test bed of tail latency: ten instances of a service, and what spreads calls over them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    bench::{
        bed::{Serving, free_port, wait_until, workers},
        call::{Call, Connection},
        cpu::Cpus,
        rounds::{Target, TestBed},
        subject::{Setting, Subject},
        workshop::{Program, Workshop},
    },
    load::slow::ANSWER,
    run::children::Process,
};

const INSTANCES: usize = 10;
/// What a call takes on average.
const MEAN: Duration = Duration::from_millis(1);

/// Instances that take a while for each call.
pub(super) struct Instances<'a> {
    workshop: &'a Workshop,
    /// The first one is the slow one, if there is one.
    ports: Vec<u16>,
    _services: Process,
}

impl<'a> Instances<'a> {
    /// Starts them; the first takes so much longer for each call.
    pub(super) fn start(first: Duration, workshop: &'a Workshop) -> Result<Self> {
        let ports = (0..INSTANCES).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let name = format!("services-{}", ports[0]);
        let file = std::env::current_exe().context("the file of this program is not known")?;
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (mean_us, first_us) = (MEAN.as_micros(), first.as_micros());
        let options = format!("slow-services --ports {list} --mean-us {mean_us} --first-us {first_us}");
        let args = options.split(' ').map(str::to_owned).collect();
        let mut services = workshop.start(&name, &Program { file, args }, Cpus::All)?;
        let all_serve = || ports.iter().try_for_each(|port| call(*port));
        wait_until(&mut services, all_serve).context("the instances do not serve")?;
        Ok(Self { workshop, ports, _services: services })
    }

    /// The configuration of a subject, as a file's name and what is in it.
    fn template(&self, subject: Subject) -> Result<(&'static str, String)> {
        let agent = ("agent.toml", include_str!("../conf/policy-agent.toml"));
        let envoy = ("envoy.yaml", include_str!("../conf/policy-envoy.yaml"));
        let ((name, template), policy) = match subject {
            Subject::AgentPeakEwma => (agent, "peak-ewma"),
            Subject::AgentLeastRequest => (agent, "least-request"),
            Subject::AgentRoundRobin => (agent, "round-robin"),
            Subject::EnvoyLeastRequest => (envoy, "LEAST_REQUEST"),
            Subject::EnvoyRoundRobin => (envoy, "ROUND_ROBIN"),
            _ => bail!("{} does not spread calls", subject.name()),
        };
        let instance = |port: &u16| {
            if subject.is_agent() {
                format!("\"127.0.0.1:{port}\"")
            } else {
                format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")
            }
        };
        let instances = self.ports.iter().map(instance).collect::<Vec<_>>().join(", ");
        Ok((name, template.replace("@POLICY@", policy).replace("@INSTANCES@", &instances)))
    }
}

impl TestBed for Instances<'_> {
    /// Without a program it is the last instance alone, which is never the slow one.
    fn serve(&self, subject: Subject, file: Option<&Path>) -> Result<Serving> {
        let last = self.ports[INSTANCES - 1];
        let Some(file) = file else {
            return Ok(Serving { target: Target::new(last, Vec::new()), processes: Vec::new() });
        };
        let (listen, extra, tunnel) = (free_port()?, free_port()?, free_port()?);
        let name = format!("{}-{listen}", subject.name());
        let folder = self.workshop.path().join(&name);
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let setting = Setting { folder: &folder, listen, extra, upstream: last, tunnel, workers: workers(Cpus::All)? };
        let (template, text) = self.template(subject)?;
        let args = subject.configure_with((template, &text), &setting)?;
        let process = self.workshop.start(&name, &Program { file: file.to_owned(), args }, Cpus::All)?;
        let target = Target::new(listen, vec![process.id()]);
        let mut serving = Serving { target, processes: vec![process] };
        serving.wait_until(|| call(listen)).with_context(|| format!("{name} does not serve"))?;
        Ok(serving)
    }

    fn check(&self, target: &Target) -> Result<()> {
        call(target.port)
    }
}

/// What every caller sends.
pub(super) fn request() -> Vec<u8> {
    Call::new(64).request()
}

fn call(port: u16) -> Result<()> {
    Connection::with(port, request(), ANSWER.to_vec())?.call()
}
