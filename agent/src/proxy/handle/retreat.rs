//! Draining: once and for all at the end, and, while the agent goes on, for as long as somebody wants it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Barrier, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{ANSWER_WITHIN, Proxy, WorkerHandle};
use crate::{
    api::{self, Remains},
    failover::Hooks,
    proxy::{
        away::{Away, Ways},
        board::{Board, lock},
        lanes::Lanes,
        overload::{Monitor, Pressure},
        worker::Control,
    },
};

/// How often it is looked what is left.
const STEP: Duration = Duration::from_millis(50);
/// After how many steps those are asked to go, too, that were on their way here when the others were.
const AGAIN_AFTER: u32 = 6;

/// Draining as the whole agent sees it.
pub(super) struct Retreat {
    workers: Vec<mpsc::Sender<Control>>,
    away: Arc<Away>,
    pressure: Arc<Pressure>,
    lanes: Option<Arc<Lanes>>,
    /// The process is about to end.
    is_ending: AtomicBool,
    under_way: Mutex<Option<UnderWay>>,
}

/// A drain that can be taken back.
struct UnderWay {
    since: Instant,
    to_siblings: bool,
    remains: Remains,
    task: JoinHandle<()>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a drain does not begin, or is not taken back.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Nobody takes the applications.
    #[error(
        "there is no sibling that could take the applications of this agent: configure siblings, or drain without --to-siblings"
    )]
    NoSiblings,
    /// The process is about to end.
    #[error("the agent is about to end: that can't be taken back")]
    Ending,
    /// It does not drain.
    #[error("the agent does not drain")]
    NotDraining,
}

impl Retreat {
    /// Nobody drains. Returns also the task that looks at how much there is to bear.
    pub(super) fn start(
        (hooks, pressure): (Option<Arc<dyn Hooks>>, Arc<Pressure>),
        board: &Arc<Board>,
        workers: &[WorkerHandle],
        lanes: Option<Arc<Lanes>>,
    ) -> (Arc<Self>, JoinHandle<()>) {
        let away = Arc::new(Away::new(hooks));
        // What a former agent of this name has said is over.
        away.set_draining(false);
        let watched = workers.iter().map(|worker| (worker.control.clone(), worker.counters.clone()));
        let monitor = Monitor::new((pressure.clone(), away.clone()), board.clone(), watched);
        let workers = workers.iter().map(|worker| worker.control.clone()).collect();
        let (is_ending, under_way) = (AtomicBool::new(false), Mutex::default());
        (Arc::new(Self { workers, away, pressure, lanes, is_ending, under_way }), tokio::spawn(monitor.run()))
    }

    /// Follows what is left, and lets services go when nobody calls any more.
    async fn run(self: Arc<Self>, ways: Option<Arc<Ways>>) {
        let mut steps = 0;
        loop {
            if steps == 0 || steps == AGAIN_AFTER {
                self.tell(|| Control::Retreat(ways.clone())).await;
            }
            steps = steps.saturating_add(1);
            sleep(STEP).await;
            let remains = self.remains().await;
            if let Some(under_way) = &mut *lock(&self.under_way) {
                under_way.remains = remains;
            }
            if let Some(ways) = ways.as_ref().filter(|_| steps > AGAIN_AFTER && remains.is_services_alone()) {
                self.tell(|| Control::LetServicesGo(ways.clone())).await;
            }
        }
    }

    /// Tells all workers. One that is late does it as soon as it can.
    async fn tell(&self, what: impl Fn() -> Control) {
        let deadline = Instant::now() + ANSWER_WITHIN;
        for worker in &self.workers {
            let _ = timeout_at(deadline, worker.send(what())).await;
        }
    }

    /// What is left, over all workers that answer in time.
    async fn remains(&self) -> Remains {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut asked = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (reply, answer) = oneshot::channel();
            if timeout_at(deadline, worker.send(Control::Remains(reply))).await.is_ok_and(|sent| sent.is_ok()) {
                asked.push(answer);
            }
        }
        let mut sum = Remains { calls: self.routed(), ..Remains::default() };
        for answer in asked {
            if let Ok(Ok(remains)) = timeout_at(deadline, answer).await {
                sum += remains;
            }
        }
        sum
    }

    /// Calls in flight that the kernel routes.
    fn routed(&self) -> u64 {
        let Some(lanes) = &self.lanes else { return 0 };
        let on_lanes: u64 = lanes.all().iter().filter_map(|lane| lanes.path().look(*lane)).map(|look| look.in_flight).sum();
        on_lanes + lanes.moved() as u64
    }

    /// Ends what could be taken back: from now on it can't be.
    fn end(&self) {
        self.is_ending.store(true, Relaxed);
        drop(lock(&self.under_way).take());
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Relaxed)
    }
}

impl Proxy {
    /// Begins to drain: other agents are asked for no more calls, and, if `to_siblings`, applications are moved to siblings. It goes
    /// on until it is taken back. One that is under way is joined.
    ///
    /// # Errors
    /// There are no siblings, or the process is about to end.
    pub async fn begin_drain(&self, to_siblings: bool) -> Result<api::Drain, DrainError> {
        let retreat = &self.beside.retreat;
        if retreat.is_ending() {
            return Ok(self.drain_status().await);
        }
        let ways = to_siblings.then(|| Arc::new(retreat.away.ways()));
        if ways.as_ref().is_some_and(|ways| ways.is_empty()) {
            return Err(DrainError::NoSiblings);
        }
        {
            let mut under_way = lock(&retreat.under_way);
            let joins = under_way.as_ref().is_some_and(|known| known.to_siblings || !to_siblings);
            if !joins {
                if to_siblings {
                    // First of all: who is asked to go must not come back here.
                    retreat.away.set_draining(true);
                }
                tracing::info!(to_siblings, "draining; `moa drain --cancel` takes it back");
                let since = under_way.as_ref().map_or_else(Instant::now, |known| known.since);
                let remains = under_way.as_ref().map(|known| known.remains).unwrap_or_default();
                let task = tokio::spawn(retreat.clone().run(ways));
                *under_way = Some(UnderWay { since, to_siblings, remains, task });
            }
        }
        Ok(self.drain_status().await)
    }

    /// Takes a drain back: the agent serves as before.
    ///
    /// # Errors
    /// There is none, or the process is about to end.
    pub async fn cancel_drain(&self) -> Result<api::Drain, DrainError> {
        let retreat = &self.beside.retreat;
        if retreat.is_ending() {
            return Err(DrainError::Ending);
        }
        lock(&retreat.under_way).take().ok_or(DrainError::NotDraining)?;
        // Behind what its task has told them.
        retreat.tell(|| Control::Advance).await;
        retreat.away.set_draining(false);
        tracing::info!("the drain was taken back");
        Ok(self.drain_status().await)
    }

    /// Whether the agent drains, and what is left.
    pub async fn drain_status(&self) -> api::Drain {
        let remains = self.beside.retreat.remains().await;
        let drain =
            self.drain_now().unwrap_or_else(|| api::Drain { timeout_ms: self.drain_timeout_ms(), ..api::Drain::default() });
        api::Drain { remains, ..drain }
    }

    /// The same as it was seen last, without asking the workers; none if it does not drain.
    #[must_use]
    pub fn drain_now(&self) -> Option<api::Drain> {
        let (is_ending, timeout_ms) = (self.beside.retreat.is_ending(), self.drain_timeout_ms());
        let under_way = lock(&self.beside.retreat.under_way);
        let Some(under_way) = &*under_way else {
            return is_ending.then(|| api::Drain { draining: true, ending: true, timeout_ms, ..api::Drain::default() });
        };
        Some(api::Drain {
            draining: true,
            ending: is_ending,
            to_siblings: under_way.to_siblings,
            since_ms: u64::try_from(under_way.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            timeout_ms,
            remains: under_way.remains,
        })
    }

    /// How much the agent has to bear, and what it refuses for that.
    #[must_use]
    pub fn overload(&self) -> api::Overload {
        self.beside.retreat.pressure.status(self.workers.iter().map(|worker| worker.counters.shed.get()).sum())
    }

    fn drain_timeout_ms(&self) -> u64 {
        self.routes().checked.config.agent.drain_timeout_ms
    }

    /// Says that the process is about to end: from now on connects go to siblings, if there are some.
    pub fn begin_end(&self) {
        self.beside.retreat.away.set_draining(true);
        self.beside.retreat.end();
    }

    /// Takes no new connections and finishes what is in flight. False if some of it was not finished in time.
    pub async fn drain(&self, within: Duration) -> bool {
        self.begin_end();
        let deadline = Instant::now() + within;
        let mut pending = Vec::new();
        let no_callers = Arc::new(Barrier::new(self.workers.len()));
        for worker in &self.workers {
            let (done, drained) = oneshot::channel();
            if timeout_at(deadline, worker.control.send(Control::Drain(no_callers.clone(), done)))
                .await
                .is_ok_and(|sent| sent.is_ok())
            {
                pending.push(drained);
            }
        }
        let mut finished = pending.len() == self.workers.len();
        for drained in pending {
            finished &= timeout_at(deadline, drained).await.is_ok_and(|done| done.is_ok());
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        os::{fd::OwnedFd, unix::net::UnixStream},
        sync::atomic::AtomicU64,
    };

    use super::*;
    use crate::{
        config::{self, Given},
        failover::{GateLook, Hooks, PeerLook, hooks::Decisions},
        netns::thread::cookie,
        proxy::{Options, Telemetry},
        trace::Taps,
    };

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Hooks that only remember until when the agent is away.
    #[derive(Default)]
    struct Remembers {
        away_until: AtomicU64,
        gates: Mutex<Vec<GateLook>>,
    }

    impl Hooks for Remembers {
        fn set_on(&self, _: bool) {}
        fn is_on(&self) -> bool {
            true
        }
        fn set_workers(&self, _: usize) {}
        fn set_stale(&self, _: Duration) {}
        fn set_away_until(&self, until_ns: u64) {
            self.away_until.store(until_ns, Relaxed);
        }
        fn set_hold_until(&self, _: u64) {}
        fn set_gate(&self, netns: u64, address: SocketAddr, siblings: &[SocketAddr]) -> io::Result<()> {
            lock(&self.gates).push(GateLook { netns, address, siblings: siblings.to_vec() });
            Ok(())
        }
        fn remove_gate(&self, _: u64, _: SocketAddr) {}
        fn gates(&self) -> Vec<GateLook> {
            lock(&self.gates).clone()
        }
        fn tell_down(&self, _: SocketAddr, _: u64) {}
        fn peers(&self) -> Vec<PeerLook> {
            Vec::new()
        }
        fn decisions(&self) -> io::Result<Decisions> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn page(&self) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
    }

    fn pings(client: &mut (impl Read + Write)) {
        client.write_all(b"PING\r\n").expect("the agent listens");
        let mut pong = [0; 7];
        client.read_exact(&mut pong).expect("an answer");
        assert_eq!(&pong, b"+PONG\r\n");
    }

    async fn await_remains(proxy: &Proxy, what: &str, is_so: impl Fn(&Remains) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let drain = proxy.drain_status().await;
            if is_so(&drain.remains) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {drain:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn applications_go_to_siblings_if_their_connects_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let unix = folder.path().join("app.sock");
        let [app, tunnel, metrics] = [free(), free(), free()].map(Some);
        let given = Given { app_listen: app, tunnel_listen: tunnel, metrics_listen: metrics, ..Given::default() };
        let text = format!("[agent]\nworkers = 2\n[app]\nunix = {:?}\n", unix.display().to_string());
        let checked = Arc::new(config::parse(&text, "a test", &given).unwrap_or_else(|report| panic!("{report}")));
        let hooks = Arc::new(Remembers::default());
        hooks.set_away_until(7);
        let proxy = Proxy::start(
            checked,
            &Options {
                name: "test".into(),
                kernel: None,
                lanes: None,
                telemetry: Telemetry { taps: Arc::new(Taps::default()), spans: None },
                cgroup2: None,
                parent: None,
                pulse: None,
                hooks: Some(hooks.clone()),
            },
        )
        .expect("it starts");
        let away_until = || hooks.away_until.load(Relaxed);
        assert_eq!(away_until(), 0, "what was said before its start is over");
        let address = app.expect("an address");
        let connect = || {
            let stream = TcpStream::connect(address).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream
        };
        let (mut tcp, mut local) = (connect(), UnixStream::connect(&unix).expect("it listens"));
        pings(&mut tcp);
        pings(&mut local);
        assert!(matches!(proxy.begin_drain(true).await, Err(DrainError::NoSiblings)));
        assert_eq!(away_until(), 0);
        // A gate that leads nowhere is none.
        hooks.set_gate(cookie().expect("a cookie"), address, &[]).expect("remembered");
        assert!(matches!(proxy.begin_drain(true).await, Err(DrainError::NoSiblings)));
        hooks.set_gate(cookie().expect("a cookie"), address, &[free()]).expect("remembered");
        // Without asking for it nobody is moved; a drain that is under way is taken further.
        assert!(proxy.begin_drain(false).await.is_ok_and(|drain| drain.draining && !drain.to_siblings));
        pings(&mut tcp);
        assert_eq!(away_until(), 0);
        assert!(proxy.begin_drain(true).await.is_ok_and(|drain| drain.to_siblings));
        assert_eq!(away_until(), u64::MAX);
        await_remains(&proxy, "the one by TCP to be gone", |remains| remains.redis == 1).await;
        assert_eq!(tcp.read(&mut [0; 8]).expect("an end in good order"), 0);
        // It is joined, not begun anew.
        assert!(proxy.begin_drain(false).await.is_ok_and(|drain| drain.to_siblings));
        sleep(STEP * (AGAIN_AFTER + 4)).await;
        // Whoever still comes has nowhere else to go.
        let mut late = connect();
        for client in 0..20 {
            pings(&mut late);
            pings(&mut local);
            assert_eq!(proxy.drain_status().await.remains.redis, 2, "{client}");
        }
        assert!(proxy.cancel_drain().await.is_ok_and(|drain| !drain.draining));
        assert_eq!(away_until(), 0);
        assert!(matches!(proxy.cancel_drain().await, Err(DrainError::NotDraining)));
        pings(&mut connect());
        // At the end all go, whatever was before.
        assert!(proxy.drain(PATIENCE).await);
        assert_eq!(away_until(), u64::MAX);
        assert!(matches!(proxy.cancel_drain().await, Err(DrainError::Ending)));
        assert_eq!(late.read(&mut [0; 8]).expect("an end in good order"), 0);
        proxy.stop();
    }

    #[test]
    fn draining_outlasts_what_is_too_much() {
        let hooks = Arc::new(Remembers::default());
        let away = Away::new(Some(hooks.clone()));
        away.set_overloaded(Some(Duration::from_secs(3)));
        let until = hooks.away_until.load(Relaxed);
        assert!(until > 0 && until < u64::MAX);
        away.set_draining(true);
        away.set_overloaded(None);
        assert_eq!(hooks.away_until.load(Relaxed), u64::MAX);
        away.set_draining(false);
        assert_eq!(hooks.away_until.load(Relaxed), 0);
        Away::new(None).set_draining(true);
        assert!(Away::new(None).ways().is_empty());
    }
}
