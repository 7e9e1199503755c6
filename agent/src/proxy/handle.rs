//! The data plane's handle: starts it, changes its configuration, asks it, stops it.

mod bind;
mod retreat;
mod siblings;

use std::{
    collections::HashMap,
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use agent_common::frame::service_hash;
use nix::sys::{
    resource::{Resource, getrlimit},
    timerfd::TimerFd,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use self::{bind::bind, retreat::Retreat};
use super::{
    board::{Board, lock, register},
    cgroups::Cgroups,
    describe,
    explain::{Explained, View},
    lanes::{Event, Keeper, LanePath, Lanes, Routed, Tracer, Unrouted, Verdicts},
    namespaces::{NamespaceKeeper, Paths, Report},
    outliers,
    overload::Pressure,
    path::KernelPath,
    report::Telemetry,
    routes::{Offers, Routes, ServiceRoute},
    stats::{CloseReason, Histogram, Snapshot, WorkerCounters},
    timer,
    worker::{self, Control, Start},
};
use crate::{
    api,
    config::Checked,
    failover::{Gates, Hooks},
    netns::Namespaces,
    parent::{Parent, Pulse},
    rules,
};

pub use self::{bind::StartError, retreat::DrainError};

/// Descriptors that are kept for everything that is not an application's connection, unless the limit is lower than four times that.
const DESCRIPTORS_KEPT: u64 = 1024;
/// How long a worker may take to answer a question.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What the data plane is told at its start and that no reload changes.
#[derive(Clone)]
pub struct Options {
    /// What the agent is called in errors that reach applications: its name and its node.
    pub name: String,
    /// The kernel path, if there is one.
    pub kernel: Option<Arc<dyn KernelPath>>,
    /// The part of it that routes calls, if there is one.
    pub lanes: Option<Arc<dyn LanePath>>,
    /// What is told of single calls.
    pub telemetry: Telemetry,
    /// Where cgroup2 is mounted, if it is.
    pub cgroup2: Option<PathBuf>,
    /// What is asked of the kernel about connects to this agent, if it is asked.
    pub hooks: Option<Arc<dyn Hooks>>,
    /// What opens sockets in other network namespaces; without it there are none.
    pub(crate) parent: Option<Parent>,
    /// Where workers say that they live, if anybody wants to know.
    pub(crate) pulse: Option<Arc<Pulse>>,
}

/// Why a new configuration is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It changes what only a restart can change.
    #[error("{key} can't be changed while the agent runs: restart it, or keep the former value")]
    NeedsRestart {
        /// The key.
        key: &'static str,
    },
    /// A worker has ended or hangs. It takes the configuration over as soon as it can; the others have.
    #[error("worker {worker} has not taken the configuration over within {} s; it does so as soon as it can", ANSWER_WITHIN.as_secs())]
    Worker {
        /// Which.
        worker: usize,
    },
}

/// The running data plane.
pub struct Proxy {
    listen: SocketAddr,
    unix: Option<PathBuf>,
    workers: Vec<WorkerHandle>,
    board: Arc<Board>,
    lanes: Option<RoutedLanes>,
    /// What the keeper of the namespaces follows.
    configured: watch::Sender<Arc<Checked>>,
    cgroups: Arc<Cgroups>,
    beside: Beside,
    open: Arc<AtomicUsize>,
    connections_max: usize,
    /// The number of a timer in each worker's epoll, if workers say that they live.
    timers: Vec<RawFd>,
}

/// The lanes, and what is known of routing by them.
type RoutedLanes = (Arc<Lanes>, Arc<Verdicts>);

/// What runs beside the workers.
struct Beside {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    retreat: Arc<Retreat>,
    gates: Option<Arc<Gates>>,
    namespaces: Arc<Report>,
}

struct WorkerHandle {
    control: mpsc::Sender<Control>,
    counters: Arc<WorkerCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Connections on their way to one worker.
const HANDOFFS_MAX: usize = 1024;

impl Beside {
    fn start(
        options: &Options,
        (board, workers): (&Arc<Board>, &[WorkerHandle]),
        (lanes, events): (Option<&RoutedLanes>, Option<mpsc::UnboundedReceiver<Event>>),
        (pressure, namespaces): (Arc<Pressure>, Arc<Namespaces>),
        configured: &watch::Sender<Arc<Checked>>,
    ) -> Self {
        let routed = lanes.map(|(lanes, _)| lanes.clone());
        let (retreat, monitor) = Retreat::start((options.hooks.clone(), pressure.clone()), board, workers, routed);
        let mut tasks = vec![tokio::spawn(outliers::watch(board.clone())), monitor];
        if let (Some((lanes, verdicts)), Some(events)) = (lanes, events) {
            tasks.push(tokio::spawn(Keeper::new(lanes.clone(), board.clone(), (verdicts.clone(), pressure)).run(events)));
        }
        let report = Arc::<Report>::default();
        let gates = siblings::gates(options, &configured.borrow());
        let paths = Paths { kernel: options.kernel.clone(), gates: gates.clone(), parent: options.parent.clone() };
        let keeper = NamespaceKeeper::new((namespaces, report.clone()), controls(workers), paths);
        tasks.push(tokio::spawn(keeper.run(configured.subscribe())));
        Self { tasks, retreat, gates, namespaces: report }
    }
}

fn controls(workers: &[WorkerHandle]) -> Vec<mpsc::Sender<Control>> {
    workers.iter().map(|worker| worker.control.clone()).collect()
}

impl Proxy {
    /// Binds every listener, then starts the workers. Health checks run on the runtime that this is called in.
    pub fn start(checked: Arc<Checked>, options: &Options) -> Result<Self, StartError> {
        let listen = checked.config.app.listen;
        let unix = checked.config.app.unix.clone();
        let count = worker_count(&checked);
        let listeners = bind(&checked, count, options.kernel.as_deref())?;
        let connections_max = connections_max(&checked);
        let configured = watch::Sender::new(checked.clone());
        let routes = Arc::new(Routes::new(checked, &Offers::default(), None, &options.telemetry.taps));
        let namespaces = Namespaces::new();
        let cgroups = Cgroups::new(options.cgroup2.clone(), &routes.checked.config.cgroups.applications);
        let open = Arc::new(AtomicUsize::new(0));
        let (others, handoffs): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(HANDOFFS_MAX)).unzip();
        let others: Arc<[_]> = others.into();
        let (told, tells) = mpsc::unbounded_channel();
        let (posts, letters): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let (lanes, events) = options.lanes.clone().map(|path| Lanes::new(path, posts)).unzip();
        let pressure = Arc::<Pressure>::default();
        let instance: Arc<str> = instance_text(&options.name).into();
        // Before any of them beats, as that begins anew.
        options.hooks.iter().for_each(|hooks| hooks.set_workers(count));
        let (timers, pulses) = pulses(options.pulse.as_ref(), count)?;
        let workers: Vec<_> = listeners
            .into_iter()
            .zip(handoffs)
            .zip(letters)
            .zip(pulses)
            .enumerate()
            .map(|(id, (((listeners, handoffs), letters), pulse))| {
                let (control, receiver) = mpsc::channel(16);
                let counters = Arc::new(WorkerCounters::default());
                let start = Start {
                    id,
                    workers: count,
                    name: options.name.as_str().into(),
                    instance: instance.clone(),
                    listeners,
                    routes: routes.clone(),
                    counters: counters.clone(),
                    open: open.clone(),
                    connections_max,
                    control: receiver,
                    handoffs,
                    others: others.clone(),
                    told: told.clone(),
                    kernel: options.kernel.clone(),
                    namespaces: namespaces.clone(),
                    cgroups: cgroups.clone(),
                    lanes: lanes.clone(),
                    letters,
                    spans: options.telemetry.spans.clone(),
                    unknown: options.telemetry.taps.watch(""),
                    pulse,
                    pressure: pressure.clone(),
                };
                let thread = spawn(start).map_err(|source| StartError::Thread { worker: id, source })?;
                Ok(WorkerHandle { control, counters, thread: Mutex::new(Some(thread)) })
            })
            .collect::<Result<_, StartError>>()?;
        let board = Arc::new(Board::new(routes, controls(&workers), (options.telemetry.taps.clone(), namespaces.clone())));
        let lanes = lanes.map(|lanes| (lanes, Arc::<Verdicts>::default()));
        let mut beside =
            Beside::start(options, (&board, &workers), (lanes.as_ref(), events), (pressure, namespaces), &configured);
        beside.tasks.push(tokio::spawn(register(board.clone(), tells)));
        Ok(Self { listen, unix, workers, board, lanes, configured, cgroups, beside, open, connections_max, timers })
    }

    /// Takes over a new configuration without dropping a call, or refuses it as a whole.
    ///
    /// # Errors
    /// When it changes what only a restart can change; or, with the configuration in force, when a worker is late.
    pub async fn apply(&self, checked: Arc<Checked>) -> Result<(), ApplyError> {
        check_fixed(&self.routes().checked, &checked)?;
        self.cgroups.configure(&checked.config.cgroups.applications);
        if let Some(gates) = &self.beside.gates {
            gates.configure(&checked);
        }
        let applied = self.board.apply(Some(checked.clone())).await;
        // It is in force even if a worker is late.
        self.configured.send_replace(checked);
        applied
    }

    /// How many workers it has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The number of a timer in each worker's epoll, by which that is found; none if nobody watches them.
    pub(crate) fn timers(&self) -> &[RawFd] {
        &self.timers
    }

    /// The side of the applications.
    #[must_use]
    pub fn app_status(&self) -> api::AppStatus {
        let sum = |of: fn(&WorkerCounters) -> u64| self.workers.iter().map(|worker| of(&worker.counters)).sum();
        api::AppStatus {
            listen: self.listen.to_string(),
            connections: self.open.load(Relaxed) as u64,
            connections_max: self.connections_max as u64,
            accepted: sum(|counters| counters.accepted.get()),
            refused: sum(|counters| counters.refused.get()),
            queued_bytes: sum(|counters| counters.queued_bytes.get()),
        }
    }

    /// The network namespaces that are served, and those that are not.
    #[must_use]
    pub fn namespaces(&self) -> Vec<api::Namespace> {
        lock(&self.beside.namespaces.served).clone()
    }

    /// The same in numbers; none if none is to be served.
    #[must_use]
    pub fn namespaces_status(&self) -> Option<api::NamespacesStatus> {
        self.beside.namespaces.status()
    }

    /// Bytes read and written on all connections.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.workers.iter().map(|worker| worker.counters.bytes.get()).sum()
    }

    /// Calls over all services, those without one included.
    #[must_use]
    pub fn call_stats(&self) -> api::CallStats {
        let mut sums = self.board.gone();
        for service in &self.routes().services {
            sums.merge(&service.unsent.sums());
            service.members.iter().for_each(|member| sums.merge(&member.instance.counters.sums()));
        }
        let mut stats = describe::call_stats(&sums);
        let unrouted: u64 = self.unrouted().iter().map(|(_, count)| count).sum();
        stats.calls += unrouted;
        stats.mesh_errors += unrouted;
        stats
    }

    /// Every service with its instances; or those of one name or URI, with the share of each instance.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn services(&self, name: Option<&str>, methods: bool) -> Result<Vec<api::Service>, String> {
        let routes = self.routes();
        let Some(name) = name else {
            return Ok(routes.services.iter().map(|service| describe::service(service, methods)).collect());
        };
        let mut found = Vec::new();
        for route in routes.named(name) {
            let mut service = describe::service(route, methods);
            let views = self.ask(|reply| Control::Views(route.key.clone(), reply)).await.unwrap_or_default();
            let shares: HashMap<&str, api::InstanceShare> = views.iter().flat_map(View::shares).collect();
            for instance in &mut service.instances {
                instance.share = shares.get(&*instance.address).copied();
            }
            found.push(service);
        }
        if found.is_empty() { Err(routes.unknown(name)) } else { Ok(found) }
    }

    /// What the policy of every service says, or of those of one name or URI.
    ///
    /// # Errors
    /// There is no such service.
    pub fn policies(&self, name: Option<&str>) -> Result<Vec<api::routes::Policy>, String> {
        let routes = self.routes();
        let policies = |services: &mut dyn Iterator<Item = &Arc<ServiceRoute>>| -> Vec<_> {
            services.map(|service| describe::policy(service)).collect()
        };
        match name {
            None => Ok(policies(&mut routes.services.iter())),
            Some(name) => {
                Some(policies(&mut routes.named(name))).filter(|found| !found.is_empty()).ok_or_else(|| routes.unknown(name))
            }
        }
    }

    /// What becomes of a call that says this of itself, as the first worker sees it.
    ///
    /// # Errors
    /// There is no such service, or the worker does not answer.
    pub async fn explain(
        &self,
        (uri, group): (&str, &str),
        says: Vec<(String, String)>,
    ) -> Result<api::routes::Explanation, String> {
        let routes = self.routes();
        let key = routes.service(uri, group)?.key.clone();
        let call: rules::Told = says.into_iter().collect();
        let explained = self.ask(|reply| Control::Explain(key, call, reply)).await;
        let explained = explained.ok_or_else(|| format!("worker 0 has not answered within {} s", ANSWER_WITHIN.as_secs()))?;
        explained.map(Explained::describe).ok_or_else(|| format!("worker 0 does not know {uri} yet: ask again"))
    }

    /// Asks the first worker; none if it does not answer in time.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Control) -> Option<T> {
        ask(self.workers.first()?, question).await
    }

    /// Calls that named no known service, by code.
    fn unrouted(&self) -> Vec<(u16, u64)> {
        let mut unrouted = Vec::new();
        self.workers.iter().for_each(|worker| worker.counters.unrouted.add_to(&mut unrouted));
        unrouted
    }

    /// Everything that is counted.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let closed = |reason: CloseReason| {
            let count = self.workers.iter().map(|worker| worker.counters.closed[reason as usize].get()).sum();
            (reason.name(), count)
        };
        Snapshot {
            services: self.routes().services.iter().map(|service| describe::snapshot(service)).collect(),
            unrouted: self.unrouted(),
            closed: CloseReason::ALL.into_iter().map(closed).collect(),
            frames_dropped: self.workers.iter().map(|worker| worker.counters.frames_dropped.get()).sum(),
        }
    }

    /// What became of messages on lanes; none if the kernel routes no calls.
    #[must_use]
    pub fn routed(&self) -> Option<Routed> {
        self.lanes.as_ref()?.0.path().routed().ok()
    }

    /// Calls that the kernel routes; none if it routes none.
    #[must_use]
    pub fn routing(&self) -> Option<api::Routing> {
        let (lanes, verdicts) = self.lanes.as_ref()?;
        let routed = lanes.path().routed().ok()?;
        let all = lanes.all();
        let on_lanes: u64 = all.iter().filter_map(|lane| lanes.path().look(*lane)).map(|look| look.in_flight).sum();
        let known = lock(verdicts);
        let mut services: Vec<_> = known
            .why_not
            .iter()
            .map(|(key, why)| describe::routed_service(key, *why, known.answered.get(key).unwrap_or(&Histogram::default())))
            .collect();
        drop(known);
        services.sort_unstable_by(|one, other| one.service.cmp(&other.service));
        Some(api::Routing {
            lanes: all.len() as u64,
            in_flight: on_lanes + lanes.moved() as u64,
            calls: routed.calls,
            answers: routed.answers,
            bytes: routed.bytes,
            unrouted: Unrouted::ALL.into_iter().zip(routed.unrouted).map(|(why, n)| (why.name().to_owned(), n)).collect(),
            services,
        })
    }

    /// Shows what the kernel decides about the messages of a service, by its URI and group, until the sender is dropped that
    /// belongs to the receiver.
    ///
    /// # Errors
    /// There is no such service, or it can't be traced now.
    pub fn trace(&self, service: &str, ends: mpsc::Receiver<Infallible>) -> Result<Tracer, String> {
        let (lanes, _) = self.lanes.as_ref().ok_or("the kernel routes no calls here")?;
        let (uri, group) = service.split_once('#').unwrap_or((service, ""));
        let routes = self.routes();
        let route = routes.service(uri, group)?;
        Tracer::open(lanes.clone(), service_hash(route.uri.as_bytes(), route.group.as_bytes()), ends)
    }

    /// Application connections, at most `max` of each worker. A worker that does not answer in time is left out.
    pub async fn conns(&self, max: usize) -> Vec<api::Conn> {
        let mut conns = Vec::new();
        for worker in &self.workers {
            let (reply, listed) = oneshot::channel();
            let answer = async {
                worker.control.send(Control::Conns(max, reply)).await.ok()?;
                listed.await.ok()
            };
            conns.extend(timeout(ANSWER_WITHIN, answer).await.ok().flatten().unwrap_or_default());
        }
        conns.truncate(max);
        conns
    }

    /// Whether every worker answers.
    pub async fn alive(&self) -> bool {
        let deadline = Instant::now() + ANSWER_WITHIN;
        for worker in &self.workers {
            let (reply, answered) = oneshot::channel();
            let answer = async { worker.control.send(Control::Ping(reply)).await.is_ok() && answered.await.is_ok() };
            if !timeout_at(deadline, answer).await.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Ends the workers and waits for them.
    pub fn stop(self) {
        self.beside.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        for worker in self.workers {
            while let Err(mpsc::error::TrySendError::Full(_)) = worker.control.try_send(Control::Stop) {
                thread::sleep(Duration::from_millis(1));
            }
            let thread = lock(&worker.thread).take();
            // A worker that panicked has said so itself.
            let _ = thread.map(JoinHandle::join);
        }
        if let Some(path) = self.unix {
            // Whoever comes next would find it stale.
            let _ = fs::remove_file(path);
        }
    }

    fn routes(&self) -> Arc<Routes> {
        self.board.routes()
    }
}

/// Asks a worker; none if it does not answer in time.
async fn ask<T>(worker: &WorkerHandle, question: impl FnOnce(oneshot::Sender<T>) -> Control) -> Option<T> {
    let (reply, answered) = oneshot::channel();
    let answer = async {
        worker.control.send(question(reply)).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER_WITHIN, answer).await.ok().flatten()
}

type WorkerPulse = Option<(Arc<Pulse>, TimerFd)>;

/// What each worker says by that it lives, with the numbers of their timers.
fn pulses(pulse: Option<&Arc<Pulse>>, workers: usize) -> Result<(Vec<RawFd>, Vec<WorkerPulse>), StartError> {
    let Some(pulse) = pulse else { return Ok((Vec::new(), (0..workers).map(|_| None).collect())) };
    let timer = |worker| timer::descriptor().map_err(|source| StartError::Thread { worker, source });
    let timers: Vec<TimerFd> = (0..workers).map(timer).collect::<Result<_, _>>()?;
    let numbers = timers.iter().map(|timer| timer.as_fd().as_raw_fd()).collect();
    Ok((numbers, timers.into_iter().map(|timer| Some((pulse.clone(), timer))).collect()))
}

/// A text that no other process has.
fn instance_text(name: &str) -> String {
    format!("{name}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}

fn check_fixed(former: &Checked, checked: &Checked) -> Result<(), ApplyError> {
    let (was, is) = (&former.config, &checked.config);
    let fixed = [
        ("app.listen", was.app.listen == is.app.listen),
        ("app.unix", was.app.unix == is.app.unix),
        ("tunnel.listen", was.tunnel.listen == is.tunnel.listen),
        ("failover.listen", was.failover.listen == is.failover.listen),
        ("agent.workers", was.agent.workers == is.agent.workers),
        ("app.connections_max", was.app.connections_max == is.app.connections_max),
        ("tracing.endpoint", was.tracing.endpoint == is.tracing.endpoint),
        ("tracing.queue_max", was.tracing.queue_max == is.tracing.queue_max),
        ("tracing.interval_ms", was.tracing.interval_ms == is.tracing.interval_ms),
        ("namespaces.listen", was.namespaces.listen == is.namespaces.listen),
        ("kernel.mode", was.kernel.mode == is.kernel.mode),
        ("kernel.leg_bytes_max", was.kernel.leg_bytes_max == is.kernel.leg_bytes_max),
        ("kernel.exclude_namespaces", was.kernel.exclude_namespaces == is.kernel.exclude_namespaces),
    ];
    match fixed.into_iter().find(|(_, same)| !same) {
        Some((key, _)) => Err(ApplyError::NeedsRestart { key }),
        None => Ok(()),
    }
}

fn spawn(start: Start) -> io::Result<JoinHandle<()>> {
    let id = start.id;
    thread::Builder::new().name(format!("moa-worker-{id}")).spawn(move || {
        if let Err(error) = worker::run(start) {
            tracing::error!(worker = id, %error, "worker ended");
        }
    })
}

/// How many workers there are with a configuration.
pub(crate) fn worker_count(checked: &Checked) -> usize {
    match checked.config.agent.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// The bound on application connections: what is configured, or what the file limit leaves.
fn connections_max(checked: &Checked) -> usize {
    match checked.config.app.connections_max {
        0 => {
            let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((DESCRIPTORS_KEPT, DESCRIPTORS_KEPT));
            usize::try_from(soft - DESCRIPTORS_KEPT.min(soft / 4)).unwrap_or(usize::MAX)
        }
        max => max,
    }
}
