//! The routes in force: of the configuration, and of what applications offer; and who is told of new ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    frames::Told,
    handle::{ANSWER_WITHIN, ApplyError},
    health::Checks,
    routes::{Offers, Routes},
    stats::CallSums,
    worker::Control,
};
use crate::{config::Checked, netns::Namespaces, trace::Taps};

/// The routes in force, and who is told of new ones.
pub(super) struct Board {
    routes: Mutex<Arc<Routes>>,
    offers: Mutex<Offers>,
    checks: Mutex<Checks>,
    applying: tokio::sync::Mutex<()>,
    /// What was counted for services and instances that are there no more.
    gone: Mutex<CallSums>,
    workers: Vec<mpsc::Sender<Control>>,
    taps: Arc<Taps>,
}

/// Services that all connections may offer together, each connection's counted.
const OFFERS_MAX: usize = 100_000;

impl Board {
    pub(super) fn new(
        routes: Arc<Routes>,
        workers: Vec<mpsc::Sender<Control>>,
        (taps, namespaces): (Arc<Taps>, Arc<Namespaces>),
    ) -> Self {
        let mut checks = Checks::new(namespaces);
        checks.apply(&routes);
        Self {
            routes: Mutex::new(routes),
            offers: Mutex::default(),
            checks: Mutex::new(checks),
            applying: tokio::sync::Mutex::default(),
            gone: Mutex::default(),
            workers,
            taps,
        }
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        lock(&self.routes).clone()
    }

    /// What was counted for services and instances that are there no more.
    pub(super) fn gone(&self) -> CallSums {
        lock(&self.gone).clone()
    }

    /// How many services are offered, each connection's counted.
    fn offered(&self) -> usize {
        lock(&self.offers).values().map(|offered| offered.offers.len()).sum()
    }

    /// Has all workers follow a new configuration, or the one in force with what is offered now.
    pub(super) async fn apply(&self, checked: Option<Arc<Checked>>) -> Result<(), ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let former = self.routes();
        let checked = checked.unwrap_or_else(|| former.checked.clone());
        let routes = Arc::new(Routes::new(checked, &lock(&self.offers), Some(&former), &self.taps));
        lock(&self.gone).merge(&former.sums_without(&routes).ended());
        lock(&self.checks).apply(&routes);
        *lock(&self.routes) = routes.clone();
        routes.changes.tell();
        let mut pending = Vec::new();
        for worker in &self.workers {
            let (done, applied) = oneshot::channel();
            pending.push((worker.send(Control::Apply(routes.clone(), done)).await.is_ok(), applied));
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        for (worker, (sent, applied)) in pending.into_iter().enumerate() {
            if !sent || !timeout_at(deadline, applied).await.is_ok_and(|applied| applied.is_ok()) {
                return Err(ApplyError::Worker { worker });
            }
        }
        Ok(())
    }
}

/// Follows what applications offer. What comes at once is taken over at once.
pub(super) async fn register(board: Arc<Board>, mut tells: mpsc::UnboundedReceiver<Told>) {
    while let Some(first) = tells.recv().await {
        let mut waiting = Vec::new();
        let mut changed = false;
        let mut next = Some(first);
        while let Some(told) = next {
            match told {
                // Not taken up, which its connection notices.
                Told::Offered(_, offered, _) if board.offered() + offered.offers.len() > OFFERS_MAX => {}
                Told::Offered(conn, offered, done) => {
                    lock(&board.offers).insert(conn, offered);
                    waiting.push(done);
                    changed = true;
                }
                Told::Gone(conn) => changed |= lock(&board.offers).remove(&conn).is_some(),
            }
            next = tells.try_recv().ok();
        }
        if !changed {
            continue;
        }
        if let Err(error) = board.apply(None).await {
            tracing::warn!(%error, "what applications offer is not known to all workers yet");
        }
        for done in waiting {
            // The connection has ended meanwhile.
            let _ = done.send(());
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
