//! A worker: one thread with its own runtime, listener, connections and calls. Nothing of it is shared on the way of a call.

mod control;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use nix::sys::timerfd::TimerFd;
use rand::rngs::SmallRng;
use slab::Slab;
use tokio::{
    runtime,
    sync::{Notify, mpsc},
    time::Instant,
};

pub(crate) use self::control::Control;
use self::control::obey;
use super::{
    accept,
    app::{App, Shared},
    app_conn::AppConn,
    calls::CallTable,
    cgroups::Cgroups,
    dispatch::Call,
    frames::{self, Bounds, FrameConn, Handoff, Side, Told, Tunnel},
    lag::Lag,
    lanes::{Lanes, Letter},
    limits::{TunnelLimits, WorkerLimits},
    listen::Listeners,
    overload::Pressure,
    path::KernelPath,
    place::{Place, Source},
    pool::Pool,
    read::ReadBuffers,
    routes::{AgentRoute, Member, Routes},
    service::{self, Service, Services},
    session::About,
    socket::Socket,
    stats::{CloseReason, WorkerCounters},
    stream::Stream,
    timer::Timer,
};
use crate::{
    diag::Diag,
    failover::{Foreign, Siblings},
    netns::Namespaces,
    parent::Pulse,
    trace::{Spans, Watch},
    wire::resp,
};

/// Deadlines are kept to this.
const TICK: Duration = Duration::from_millis(8);
/// How often a worker looks after idle connections.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Bytes of answers that may wait for one application when the worker holds as many as it may.
const CROWDED_OUTPUT: usize = 64 * 1024;
/// A command that is taken even when the worker holds as many bytes as it may.
const SHORT_COMMAND: usize = 8 * 1024;

/// What a worker begins with.
pub(crate) struct Start {
    pub(crate) id: usize,
    pub(crate) workers: usize,
    pub(crate) name: Arc<str>,
    /// The process, as no other is called.
    pub(crate) instance: Arc<str>,
    pub(crate) listeners: Listeners,
    pub(crate) routes: Arc<Routes>,
    pub(crate) counters: Arc<WorkerCounters>,
    /// Application connections of all workers.
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) connections_max: usize,
    pub(crate) control: mpsc::Receiver<Control>,
    /// Connections for this worker, and the way to every worker.
    pub(crate) handoffs: mpsc::Receiver<Handoff>,
    pub(crate) others: Arc<[mpsc::Sender<Handoff>]>,
    pub(crate) told: mpsc::UnboundedSender<Told>,
    pub(crate) kernel: Option<Arc<dyn KernelPath>>,
    pub(crate) namespaces: Arc<Namespaces>,
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) lanes: Option<Arc<Lanes>>,
    pub(crate) letters: mpsc::UnboundedReceiver<Letter>,
    pub(crate) spans: Option<Spans>,
    pub(crate) unknown: Watch,
    /// Where it says that it lives, and what wakes it for that.
    pub(crate) pulse: Option<(Arc<Pulse>, TimerFd)>,
    pub(crate) pressure: Arc<Pressure>,
}

/// Another agent, and the way to it.
type ToAgent = (Arc<AgentRoute>, Rc<Tunnel>);

/// The state of one worker.
pub(crate) struct Worker {
    id: usize,
    workers: usize,
    name: Arc<str>,
    instance: Arc<str>,
    pub(crate) calls: RefCell<CallTable<Call>>,
    pub(crate) counters: Arc<WorkerCounters>,
    services: RefCell<Rc<Services>>,
    /// Pools of instances that were taken out, until their last call has ended.
    pub(super) retired: RefCell<Vec<Rc<Pool>>>,
    limits: Cell<WorkerLimits>,
    buffers: RefCell<ReadBuffers>,
    scratch: RefCell<Vec<u8>>,
    pub(super) apps: RefCell<Slab<Rc<App>>>,
    /// The namespaces that are served, by cookie.
    pub(super) places: RefCell<HashMap<u64, Rc<Place>>>,
    /// Connections that speak frames, by their number.
    pub(super) frames: RefCell<HashMap<u64, Rc<FrameConn>>>,
    next_conn: Cell<u64>,
    /// The ways to other agents, by name, and to other workers, by number.
    pub(super) tunnels: RefCell<HashMap<Arc<str>, ToAgent>>,
    pub(super) workers_tunnels: RefCell<HashMap<usize, Rc<Tunnel>>>,
    others: Arc<[mpsc::Sender<Handoff>]>,
    told: mpsc::UnboundedSender<Told>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) cgroups: Arc<Cgroups>,
    /// Whose connections come from other nodes.
    foreign: RefCell<Arc<Foreign>>,
    /// Who takes applications when this agent is gone.
    pub(super) siblings: RefCell<Arc<Siblings>>,
    /// Made when it is first needed.
    pub(super) diag: RefCell<Option<Diag>>,
    open: Arc<AtomicUsize>,
    connections_max: usize,
    shared: Rc<Shared>,
    kernel: Option<Arc<dyn KernelPath>>,
    lanes: Option<Arc<Lanes>>,
    spans: Option<Spans>,
    /// Whoever looks on at calls of services that nobody knows.
    pub(super) unknown: Watch,
    pressure: Arc<Pressure>,
    dice: RefCell<SmallRng>,
    started: Instant,
    now: Cell<Instant>,
    lag: Lag,
    timer: Notify,
    timing: Cell<bool>,
    pub(super) draining: Cell<bool>,
    /// Other agents are turned away, but the worker goes on.
    pub(super) retreating: Cell<bool>,
    pub(super) app_gone: Notify,
    pub(super) stopping: Cell<bool>,
    pub(super) stop: Notify,
}

/// Runs a worker until its control channel is closed.
pub(crate) fn run(start: Start) -> io::Result<()> {
    let runtime =
        runtime::Builder::new_current_thread().enable_io().enable_time().build_local(runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(&start));
        worker.apply(&start.routes);
        tokio::task::spawn_local(deadlines(worker.clone(), Timer::new()?));
        tokio::task::spawn_local(housekeeping(worker.clone(), Timer::new()?));
        tokio::task::spawn_local(signs_of_life(worker.clone(), Timer::new()?));
        if let Some((pulse, timer)) = start.pulse {
            tokio::task::spawn_local(beat(pulse, start.id, Timer::over(timer)?));
        }
        tokio::task::spawn_local(take_over(worker.clone(), start.handoffs));
        tokio::task::spawn_local(deliver(worker.clone(), start.letters));
        for (listener, door) in start.listeners.fasten()? {
            tokio::task::spawn_local(accept::run(worker.clone(), listener, door));
        }
        obey(&worker, start.control).await;
        Ok(())
    })
}

/// Ends calls whose time is over. Sleeps without a clock while there are no calls.
async fn deadlines(worker: Rc<Worker>, timer: Timer) {
    loop {
        worker.timer.notified().await;
        while !worker.calls.borrow().is_empty() {
            let due = Instant::now() + TICK;
            worker.lag.wants(Some(due));
            worker.counters.lag.begins();
            timer.sleep(TICK).await;
            worker.counters.lag.ended(due.elapsed());
            worker.expire();
        }
        worker.lag.wants(None);
        worker.timing.set(false);
    }
}

async fn housekeeping(worker: Rc<Worker>, timer: Timer) {
    loop {
        worker.turn_begins();
        worker.look_after_pools();
        worker.close_stalled();
        timer.sleep(HOUSEKEEPING).await;
    }
}

/// Looks after connections that speak frames.
async fn signs_of_life(worker: Rc<Worker>, timer: Timer) {
    loop {
        let limits = worker.limits();
        worker.turn_begins();
        worker.look_after_frames(limits.tunnel.keepalive, limits.stall_timeout);
        timer.sleep(limits.tunnel.keepalive.min(HOUSEKEEPING)).await;
    }
}

/// Says that the worker lives, for as long as its runtime does. A worker that is held up says nothing, as it is its own thread
/// that says it.
async fn beat(pulse: Arc<Pulse>, worker: usize, timer: Timer) {
    struct Rests(Arc<Pulse>, usize);
    impl Drop for Rests {
        fn drop(&mut self) {
            self.0.rest(self.1);
        }
    }
    let Rests(pulse, worker) = &Rests(pulse, worker);
    loop {
        pulse.beat(*worker);
        timer.sleep(pulse.interval()).await;
    }
}

/// Takes the connections that other workers give.
async fn take_over(worker: Rc<Worker>, mut handoffs: mpsc::Receiver<Handoff>) {
    while let Some(handoff) = handoffs.recv().await {
        worker.turn_begins();
        worker.take_over(handoff);
    }
}

/// Sends what other threads have to say.
async fn deliver(worker: Rc<Worker>, mut letters: mpsc::UnboundedReceiver<Letter>) {
    while let Some(letter) = letters.recv().await {
        worker.turn_begins();
        worker.deliver(letter);
    }
}

impl Worker {
    fn new(start: &Start) -> Self {
        let now = Instant::now();
        Self {
            id: start.id,
            workers: start.workers,
            name: start.name.clone(),
            instance: start.instance.clone(),
            calls: RefCell::new(CallTable::new(0)),
            counters: start.counters.clone(),
            services: RefCell::default(),
            retired: RefCell::default(),
            limits: Cell::new(WorkerLimits::of(&start.routes, start.workers)),
            buffers: RefCell::default(),
            scratch: RefCell::default(),
            apps: RefCell::default(),
            places: RefCell::default(),
            frames: RefCell::default(),
            next_conn: Cell::new(0),
            tunnels: RefCell::default(),
            workers_tunnels: RefCell::default(),
            others: start.others.clone(),
            told: start.told.clone(),
            namespaces: start.namespaces.clone(),
            cgroups: start.cgroups.clone(),
            foreign: RefCell::default(),
            siblings: RefCell::default(),
            diag: RefCell::default(),
            open: start.open.clone(),
            connections_max: start.connections_max,
            shared: Rc::default(),
            kernel: start.kernel.clone(),
            lanes: start.lanes.clone(),
            spans: start.spans.clone(),
            unknown: start.unknown.clone(),
            pressure: start.pressure.clone(),
            dice: RefCell::new(rand::make_rng()),
            started: now,
            now: Cell::new(now),
            lag: Lag::default(),
            timer: Notify::new(),
            timing: Cell::new(false),
            draining: Cell::new(false),
            retreating: Cell::new(false),
            app_gone: Notify::new(),
            stopping: Cell::new(false),
            stop: Notify::new(),
        }
    }

    fn apply(self: &Rc<Self>, routes: &Routes) {
        self.turn_begins();
        let limits = WorkerLimits::of(routes, self.workers);
        self.limits.set(limits);
        self.calls.borrow_mut().set_max(limits.calls_in_flight_max);
        self.follow_agents(&routes.agents);
        let former = self.services();
        let about = (self.now(), u32::try_from(self.workers).unwrap_or(1));
        let remote = |member: &Member, slot, counters| self.remote(member, slot, counters);
        let (services, gone) = service::build(routes, &former, about, remote);
        *self.services.borrow_mut() = Rc::new(services);
        for pool in &gone {
            pool.retire();
        }
        self.retired.borrow_mut().extend(gone);
        *self.foreign.borrow_mut() = routes.foreign.clone();
        *self.siblings.borrow_mut() = routes.siblings.clone();
        self.renew_sources();
        self.look_after_pools();
    }

    fn look_after_pools(self: &Rc<Self>) {
        let services = self.services();
        for service in services.all() {
            service.governed.shows(self.now());
            service.warm_pools().for_each(|pool| pool.warm_up(self));
            for pool in service.pools() {
                pool.close_idle(self.now());
                pool.connect_for_waiting(self);
            }
        }
        self.retired.borrow_mut().retain(|pool| {
            pool.retire();
            !pool.is_over()
        });
        self.counters.queued_bytes.set(self.shared.queued.get() as u64);
    }

    /// Closes connections of applications that take nothing of their answers, or begin a command and do not go on.
    fn close_stalled(&self) {
        let crowded = self.queued() >= self.limits().worker_queued_bytes_max;
        let within = if crowded { HOUSEKEEPING } else { self.limits().stall_timeout };
        for (_, app) in self.apps.borrow().iter() {
            let since = app.blocked_since().or_else(|| app.in_command.get().then(|| app.last_read.get()));
            if since.is_some_and(|since| self.now().duration_since(since) >= within) {
                app.close(CloseReason::Stalled);
            }
        }
    }

    /// A buffer for what needs one for a moment.
    pub(crate) fn scratch<T>(&self, with: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        with(&mut self.scratch.borrow_mut())
    }

    /// What decides by chance.
    pub(super) fn dice<T>(&self, with: impl FnOnce(&mut SmallRng) -> T) -> T {
        with(&mut self.dice.borrow_mut())
    }

    /// How much the agent has to bear.
    pub(super) fn pressure(&self) -> &Pressure {
        &self.pressure
    }

    /// Where spans go, if anywhere.
    pub(super) fn spans(&self) -> Option<&Spans> {
        self.spans.as_ref()
    }

    /// Bytes of answers that may wait for one application: little when the worker holds as much as it may.
    pub(crate) fn output_max(&self) -> usize {
        let limits = self.limits.get();
        if self.queued() < limits.worker_queued_bytes_max {
            limits.queued_bytes_max
        } else {
            limits.queued_bytes_max.min(CROWDED_OUTPUT)
        }
    }

    /// The time at the beginning of a task's turn is the time for all of it.
    pub(crate) fn turn_begins(&self) {
        let now = Instant::now();
        self.lag.runs(self.now.replace(now), now);
    }

    /// How long ago what is seen now may have come, as the worker did not get to run.
    pub(super) fn late(&self) -> Duration {
        self.lag.at(self.now())
    }

    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// The first tick at which a deadline is over.
    pub(crate) fn tick_of(&self, deadline: Instant) -> u64 {
        let since = deadline.duration_since(self.started).as_millis() / TICK.as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1) + 1
    }

    /// Makes sure that deadlines are looked at.
    pub(crate) fn ensure_timer(&self) {
        if !self.timing.replace(true) {
            self.timer.notify_one();
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn limits(&self) -> WorkerLimits {
        self.limits.get()
    }

    /// The bounds on a command: without room left in the worker, only short ones.
    pub(crate) fn command_limits(&self) -> resp::Limits {
        let limits = self.limits.get();
        if self.shared.queued.get() < limits.worker_queued_bytes_max {
            return limits.command;
        }
        let short = |max: usize| max.min(SHORT_COMMAND);
        resp::Limits {
            argument_bytes_max: short(limits.command.argument_bytes_max),
            command_bytes_max: short(limits.command.command_bytes_max),
        }
    }

    /// The service with this key, which for the default group is its URI.
    pub(crate) fn service(&self, key: &str) -> Option<Rc<Service>> {
        self.services.borrow().by_key(key).cloned()
    }

    pub(crate) fn services(&self) -> Rc<Services> {
        self.services.borrow().clone()
    }

    pub(crate) fn id(&self) -> usize {
        self.id
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The way to give connections to every worker.
    pub(super) fn others(&self) -> &[mpsc::Sender<Handoff>] {
        &self.others
    }

    /// Tells the rest of the process something. It is gone only when this worker is about to end.
    pub(super) fn tell(&self, told: Told) {
        let _ = self.told.send(told);
    }

    pub(super) fn shared(&self) -> Rc<Shared> {
        self.shared.clone()
    }

    pub(super) fn next_conn_id(&self) -> u64 {
        let next = self.next_conn.get();
        self.next_conn.set(next + 1);
        next * self.workers as u64 + self.id as u64
    }

    pub(super) fn bounds_of(&self, side: Side) -> Bounds {
        let limits = self.limits.get();
        if side == Side::App { limits.app } else { limits.tunnel.bounds }
    }

    pub(super) fn tunnel_limits(&self) -> TunnelLimits {
        self.limits.get().tunnel
    }

    pub(crate) fn queued(&self) -> usize {
        self.shared.queued.get()
    }

    pub(crate) fn queued_add(&self, bytes: usize) {
        self.shared.queued.set(self.shared.queued.get() + bytes);
    }

    pub(crate) fn queued_sub(&self, bytes: usize) {
        self.shared.queued.set(self.shared.queued.get() - bytes);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(crate) fn poll_read(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        self.buffers.borrow_mut().poll_read(stream, cx)
    }

    /// Takes a connection, or says no if there are too many.
    pub(crate) fn accepted(self: &Rc<Self>, socket: Socket, from: Source) {
        if self.open.fetch_add(1, Relaxed) >= self.connections_max {
            self.open.fetch_sub(1, Relaxed);
            self.counters.refused.add(1);
            accept::refuse(&socket);
            return;
        }
        self.counters.accepted.add(1);
        let app = {
            let mut apps = self.apps.borrow_mut();
            let entry = apps.vacant_entry();
            let id = self.next_conn_id();
            let app = Rc::new(App::new(entry.key(), id, from, self.now(), self.shared.clone()));
            entry.insert(app.clone());
            app
        };
        let stream = Stream::new(socket, self.counters.clone(), self.kernel());
        tokio::task::spawn_local(AppConn::new(self.clone(), app, stream));
    }

    /// The application that an address of another node belongs to.
    pub(super) fn foreign_at(&self, address: IpAddr) -> Option<Arc<str>> {
        self.foreign.borrow().application(address)
    }

    /// Whether another agent is at an address.
    pub(super) fn is_agent(&self, address: IpAddr) -> bool {
        self.foreign.borrow().is_agent(address)
    }

    /// What was taken for a Redis client speaks frames.
    pub(crate) fn becomes_frames(self: &Rc<Self>, app: &App, stream: Stream, first: BytesMut) {
        self.apps.borrow_mut().remove(app.key);
        frames::start_in(self, stream, app.source(), first);
    }

    /// The kernel path, if there is one.
    pub(crate) fn kernel(&self) -> Option<Arc<dyn KernelPath>> {
        self.kernel.clone()
    }

    /// The lanes, if the kernel routes calls.
    pub(crate) fn lanes(&self) -> Option<&Arc<Lanes>> {
        self.lanes.as_ref()
    }

    pub(crate) fn app_ended(&self, app: &App, reason: CloseReason) {
        self.apps.borrow_mut().remove(app.key);
        self.connection_gone(reason);
    }

    /// A connection that was accepted has ended.
    pub(super) fn connection_gone(&self, reason: CloseReason) {
        self.open.fetch_sub(1, Relaxed);
        self.counters.closed[reason as usize].add(1);
        self.app_gone.notify_waiters();
    }

    /// What commands like INFO and CLIENT LIST tell of a connection.
    pub(crate) fn about<'a>(&'a self, app: &'a App) -> About<'a> {
        About {
            id: app.id,
            peer: app.peer,
            agent: &self.name,
            connections: self.open.load(Relaxed),
            uptime: self.started.elapsed(),
            age: app.since.elapsed(),
        }
    }
}
