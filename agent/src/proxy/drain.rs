//! How a worker ends: it takes nothing new, and finishes what is under way.

use std::time::Duration;

use tokio::{sync::Barrier, time::sleep};

use super::{frames::Side, worker::Worker};

/// What the connections that are open may still send after the listener was closed.
const LAST_CALLS: Duration = Duration::from_millis(20);

impl Worker {
    /// Resolves when no more connections are to be taken.
    pub(crate) async fn stopping(&self) {
        let notified = self.stop.notified();
        if !self.stopping.get() {
            notified.await;
        }
    }

    /// Takes no more connections and calls, and resolves when all that were under way have ended. Services are let go when no worker
    /// has callers any more, which is where the barrier is.
    pub(super) async fn drain(&self, no_callers: &Barrier) {
        // They have others to call, and stop at once.
        self.retreating.set(true);
        self.part_with_agents();
        self.stopping.set(true);
        self.stop.notify_waiters();
        sleep(LAST_CALLS).await;
        self.draining.set(true);
        let apps: Vec<_> = self.apps.borrow().iter().map(|(_, app)| app.clone()).collect();
        for app in apps {
            app.task.wake();
        }
        let frames: Vec<_> = self.frames.borrow().values().cloned().collect();
        // The ways to others are still needed by the calls that are under way.
        for conn in frames.iter().filter(|conn| conn.is_usable() && conn.was_accepted()) {
            self.pause_lane(conn);
            conn.ask_to_go();
            // Services stay as long as there are callers.
            if !conn.is_service() {
                conn.leave();
            }
        }
        self.until(|| self.apps.borrow().is_empty() && !self.frames.borrow().values().any(|conn| conn.is_caller())).await;
        no_callers.wait().await;
        // Lanes end with the connections that they belong to.
        for conn in self.frames.borrow().values().filter(|conn| conn.side != Side::Worker && !conn.is_lane()) {
            conn.leave();
        }
        self.until(|| !self.frames.borrow().values().any(|conn| conn.was_accepted())).await;
    }

    /// Resolves when something holds that changes only when a connection ends.
    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let gone = self.app_gone.notified();
            if holds() {
                return;
            }
            gone.await;
        }
    }
}
