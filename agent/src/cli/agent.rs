//! `moa agent`: the agent's process, from its start to its end.

use std::{
    net::SocketAddr,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, interval},
};

use super::Global;
use crate::{
    admin::{self, Node, Reloader, Server},
    api,
    config::{self, Checked, Given, KernelMode},
    failover::Hooks,
    instance::{self, Claim, Name, RunDir},
    kernel::{self, Kernel, RemoveError},
    logging,
    parent::{self, Parent, Ports, Pulse},
    proxy::{self, Proxy, Telemetry},
    trace::{self, Exporter, Spans, Taps},
};

/// The file that is read if none is named and it is there.
pub(super) const DEFAULT_CONFIG: &str = "/etc/moa/moa.toml";

/// How often the kernel programs are told that the agent lives, of the ten seconds that they believe it.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A signal that comes twice within this time came once: many who end a service tell its parent and the agent.
const TWICE: Duration = Duration::from_millis(250);

/// Run an agent.
#[derive(Debug, Args)]
pub(super) struct Agent {
    /// The configuration [default: /etc/moa/moa.toml if it is there, else every key has its default].
    #[arg(long, value_name = "FILE", env = "MOA_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    addresses: Addresses,
    /// What to log: error, warn, info, debug, trace, or such as info,agent::proxy=debug.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "MOA_LOG")]
    log: String,
    /// The descriptor by which the agent's process reaches its parent, which gives it this.
    #[arg(long, value_name = "NUMBER", hide = true)]
    parent_fd: Option<RawFd>,
    /// Run in this very process, without a parent, for tools that look into one: then there are no other namespaces, and nobody
    /// sees workers that hang.
    #[arg(long, hide = true, conflicts_with = "parent_fd")]
    alone: bool,
}

/// What is stronger than the configuration.
#[derive(Debug, Default, Args)]
pub(super) struct Addresses {
    /// Where applications call, whatever the configuration says.
    #[arg(long, value_name = "IP:PORT")]
    app_listen: Option<SocketAddr>,
    /// Where other agents connect to, whatever the configuration says.
    #[arg(long, value_name = "IP:PORT")]
    tunnel_listen: Option<SocketAddr>,
    /// Where metrics and health are, whatever the configuration says.
    #[arg(long, value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Where applications of other agents are taken when those are gone, whatever the configuration says.
    #[arg(long, value_name = "IP:PORT", env = "MOA_FAILOVER_LISTEN")]
    failover_listen: Option<SocketAddr>,
    /// The first of this agent's thousand ports, unless the configuration says otherwise [default: derived from the name].
    #[arg(long, value_name = "PORT", env = "MOA_PORT_BASE")]
    port_base: Option<u16>,
    /// Whether connections that stay on this machine go by way of the kernel, whatever the configuration says.
    #[arg(long, value_name = "WHEN", env = "MOA_KERNEL")]
    kernel: Option<KernelMode>,
}

/// The file to read: what was named, else the usual one if it is there. Absolute, so that it says the same to everybody.
pub(super) fn config_path(named: Option<PathBuf>) -> Option<PathBuf> {
    let path = named.or_else(|| Path::new(DEFAULT_CONFIG).exists().then(|| DEFAULT_CONFIG.into()))?;
    Some(std::path::absolute(&path).unwrap_or(path))
}

/// Everything that listens, before anything is served.
struct Bound {
    admin: UnixListener,
    metrics: TcpListener,
    node: Arc<Node>,
    exporter: Option<Exporter>,
}

/// What runs beside the data plane.
struct Servers {
    reloader: Reloader,
    reloads: tokio::task::JoinHandle<()>,
    heart: tokio::task::JoinHandle<()>,
    admin: Server,
    metrics: Server,
}

impl Agent {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        logging::init(&self.log)?;
        let parent = match self.parent_fd {
            None if !self.alone => return Ok(parent::run()?),
            None => None,
            Some(number) => Some(parent::adopt(number).context("can't reach the agent's parent")?),
        };
        let given = self.addresses.given(&global.name)?;
        let path = config_path(self.config.clone());
        let checked = match &path {
            Some(path) => config::load(path, &given)?,
            None => config::parse("", "the defaults", &given)?,
        };
        raise_file_limit();
        let claim = Claim::take(&RunDir::choose(global.run_dir.clone()), &global.name)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("can't make a runtime")?;
        let code = runtime.block_on(self.serve(global.name.clone(), Arc::new(checked), (&claim, parent), path, given));
        drop(claim);
        code
    }

    async fn serve(
        &self,
        name: Name,
        checked: Arc<Checked>,
        (claim, parent): (&Claim, Option<Parent>),
        path: Option<PathBuf>,
        given: Given,
    ) -> Result<ExitCode> {
        let mut signals = Signals::new()?;
        let Bound { admin, metrics, node, exporter } = self.bind(name, checked, claim, parent).await?;
        let (reloader, reloads) = admin::reloader(node.clone(), path, given);
        let servers = Servers {
            reloads: tokio::spawn(reloads),
            heart: tokio::spawn(beat(node.clone())),
            admin: admin::serve_admin(admin, node.clone(), reloader.clone()),
            metrics: admin::serve(metrics, {
                let routes = admin::machine_routes(node.clone());
                move |_| routes.clone()
            }),
            reloader,
        };
        announce(&node, &claim.socket);
        let first = signals.until_end(&servers.reloader).await;
        let finished = drain(&node, &mut signals, first).await;
        // They have seen the last call, and would hold up the admin socket's end.
        node.end_looking_on();
        servers.stop().await;
        if let Some(node) = Arc::into_inner(node) {
            node.stop();
        }
        if let Some(exporter) = exporter {
            exporter.stop().await;
        }
        Ok(if finished { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Binds every listener; the data plane, which binds its own, last.
    async fn bind(&self, name: Name, checked: Arc<Checked>, claim: &Claim, parent: Option<Parent>) -> Result<Bound> {
        let admin = admin::bind(&claim.socket)?;
        let address = checked.config.metrics.listen;
        let metrics = TcpListener::bind(address).await;
        let metrics = metrics
            .with_context(|| format!("can't listen on {address} for metrics; use another --port-base or metrics.listen"))?;
        let mut kernel = attach(&name, &checked.config.kernel);
        let path = kernel.as_ref().ok().map(Kernel::path);
        let lanes = kernel.as_ref().ok().map(Kernel::lanes);
        let log = kernel.as_mut().ok().and_then(Kernel::take_log);
        log.map(|log| tokio::spawn(kernel::log(log)));
        let taps = Arc::new(Taps::default());
        let (spans, exporter) = export(&name, &checked.config)?.unzip();
        let telemetry = Telemetry { taps, spans };
        let hooks = kernel.as_ref().ok().map(Kernel::hooks);
        let options = proxy::Options {
            name: format!("{name}@{}", host_name()),
            kernel: path,
            lanes,
            telemetry: telemetry.clone(),
            cgroup2: kernel::cgroup2(),
            pulse: parent.as_ref().and_then(|_| pulse(&checked, hooks.as_deref())),
            hooks,
            parent,
        };
        let proxy = match Proxy::start(checked.clone(), &options) {
            Ok(proxy) => proxy,
            Err(error) => {
                // Nobody can have been enrolled by way of listeners that are not there.
                let _ = kernel.map(|kernel| kernel.detach(Duration::ZERO));
                return Err(error.into());
            }
        };
        watch(&options, &proxy, &checked.config).await;
        let node = Arc::new(Node::new(name, proxy, telemetry, kernel, checked));
        Ok(Bound { admin, metrics, node, exporter })
    }
}

/// Where workers say that they live: to the kernel too, if it asks.
fn pulse(checked: &Checked, hooks: Option<&dyn Hooks>) -> Option<Arc<Pulse>> {
    let pulse = match hooks {
        Some(hooks) => hooks.page().and_then(Pulse::over),
        None => Pulse::new(proxy::worker_count(checked), checked.config.failover.stale()),
    };
    pulse.inspect_err(|error| tracing::warn!("nobody sees workers that hang: {error}")).ok().map(Arc::new)
}

/// Has the parent see workers that hang.
async fn watch(options: &proxy::Options, proxy: &Proxy, config: &config::Config) {
    let (Some(parent), Some(pulse)) = (&options.parent, &options.pulse) else { return };
    let ports = Ports {
        here: [config.app.listen, config.tunnel.listen].iter().chain(&config.failover.listen).map(SocketAddr::port).collect(),
        elsewhere: vec![config.namespaces.listen.port()],
    };
    if let Err(failed) = parent.watch(pulse, proxy.timers().to_vec(), ports).await {
        tracing::warn!("nobody sees workers that hang: {failed}");
    }
}

/// Sends spans to the collector, if there is one.
fn export(name: &Name, config: &config::Config) -> Result<Option<(Spans, Exporter)>> {
    let Some(endpoint) = config.tracing.endpoint.clone() else { return Ok(None) };
    let options = trace::Options {
        endpoint,
        queue_max: config.tracing.queue_max,
        interval: Duration::from_millis(config.tracing.interval_ms),
        name: name.to_string(),
        instance: format!("{name}@{}", host_name()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        zone: config.agent.zone.clone(),
        data_centre: config.agent.data_centre.clone(),
    };
    Ok(Some(Exporter::start(&options).context("tracing.endpoint")?))
}

/// Attaches the kernel programs, or says why not. Then those that a former process has left at connects must go, which do not
/// know this one's listeners.
fn attach(name: &Name, config: &config::Kernel) -> Result<Kernel, String> {
    let attached = try_attach(name, config);
    if attached.is_err() {
        match kernel::unhook(&name.to_string()) {
            Ok(false) | Err(RemoveError::InUse) => {}
            Ok(true) => tracing::info!("connects do not go to siblings any more, as the kernel programs are not used"),
            Err(error) => tracing::warn!("connects may go to siblings though this agent lives: {error}"),
        }
    }
    attached
}

fn try_attach(name: &Name, config: &config::Kernel) -> Result<Kernel, String> {
    if config.mode == KernelMode::Off {
        return Err("kernel.mode is off".into());
    }
    let options = kernel::Options {
        cgroup: None,
        name: Some(name.to_string()),
        bound: config.leg_bytes_max,
        exclude_namespaces: config.exclude_namespaces.clone(),
        sockets_max: None,
    };
    let attached = Kernel::begin(&options, config.mode == KernelMode::Auto).map_err(|error| {
        tracing::warn!("userspace only: {error}");
        error.to_string()
    });
    if let Ok(kernel) = &attached
        && let Some(objection) = kernel.objection()
    {
        tracing::warn!("{objection}");
    }
    attached
}

impl Servers {
    async fn stop(self) {
        self.reloads.abort();
        self.admin.stop().await;
        self.metrics.stop().await;
        // Gone once it has dropped the agent's state.
        let _ = self.reloads.await;
        self.heart.abort();
        let _ = self.heart.await;
    }
}

impl Addresses {
    /// What they, or else the name, say about the configuration.
    pub(super) fn given(&self, name: &Name) -> Result<Given> {
        let base = self.port_base.unwrap_or_else(|| name.port_base());
        let ports = instance::listeners(base).map_err(|error| anyhow!(error))?;
        Ok(Given {
            app_default: ports.app,
            tunnel_default: ports.tunnel,
            metrics_default: ports.metrics,
            app_listen: self.app_listen,
            tunnel_listen: self.tunnel_listen,
            metrics_listen: self.metrics_listen,
            failover_listen: self.failover_listen,
            kernel_mode: self.kernel,
        })
    }
}

/// The signals that an agent knows.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the signal to end, and reloads at every SIGHUP. Gives what it was, and when it came.
    async fn until_end(&mut self, reloader: &Reloader) -> (SignalKind, Instant) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    let reloader = reloader.clone();
                    // The reload itself says how it went.
                    tokio::spawn(async move { drop(reloader.reload().await) });
                }
                _ = self.terminate.recv() => return (SignalKind::terminate(), Instant::now()),
                _ = self.interrupt.recv() => return (SignalKind::interrupt(), Instant::now()),
            }
        }
    }

    /// Waits for another one than the first.
    async fn end(&mut self, (first, at): (SignalKind, Instant)) {
        loop {
            let kind = tokio::select! {
                _ = self.terminate.recv() => SignalKind::terminate(),
                _ = self.interrupt.recv() => SignalKind::interrupt(),
            };
            if kind != first || at.elapsed() > TWICE {
                return;
            }
        }
    }
}

/// Tells the kernel programs that the agent lives.
async fn beat(node: Arc<Node>) {
    let mut every = interval(HEARTBEAT);
    loop {
        every.tick().await;
        node.beat();
    }
}

/// Finishes what is in flight; false if some of it was cut.
async fn drain(node: &Node, signals: &mut Signals, first: (SignalKind, Instant)) -> bool {
    let within = Duration::from_millis(node.loaded().checked.config.agent.drain_timeout_ms);
    tracing::info!("finishing calls in flight for at most {within:?}; another signal ends at once");
    node.begin_end();
    let finished = tokio::select! {
        finished = node.proxy.drain(within) => finished,
        () = signals.end(first) => false,
    };
    if finished {
        tracing::info!("all calls are finished");
    } else {
        let api::Remains { calls, redis, frames, services, agents } = node.proxy.drain_status().await.remains;
        tracing::warn!(calls, redis, frames, services, agents, "calls in flight are cut; so much remained");
    }
    finished
}

fn announce(node: &Node, socket: &Path) {
    let loaded = node.loaded();
    let app = node.proxy.app_status();
    tracing::info!(
        listen = app.listen,
        tunnel = %loaded.checked.config.tunnel.listen,
        metrics = %loaded.checked.config.metrics.listen,
        admin = %socket.display(),
        config = loaded.source.path.as_deref().unwrap_or("defaults"),
        services = loaded.checked.services.len(),
        workers = node.proxy.workers(),
        connections_max = app.connections_max,
        "serving"
    );
}

/// Takes as many files as the hard limit allows: each connection is one.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the file limit stays as it is: {error}");
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
