//! Draining without an end: what one worker lets go of while it goes on, and what it has left.

use std::{ops::AddAssign, rc::Rc};

use super::{
    app::App,
    away::Ways,
    caller::Caller,
    frames::{FrameConn, Scope, Side},
    worker::Worker,
};
use crate::api::Remains;

impl Worker {
    /// Asks other agents for no more calls; and those applications to go whose next connects go elsewhere, if there are such.
    /// Services stay as long as there may be callers.
    pub(super) fn retreat(&self, ways: Option<&Ways>) {
        self.turn_begins();
        self.retreating.set(true);
        self.part_with_agents();
        let Some(ways) = ways else { return };
        let apps: Vec<Rc<App>> = self.apps.borrow().iter().map(|(_, app)| app.clone()).collect();
        for app in apps.iter().filter(|app| ways.lead_away(app.peer, app.place.as_deref())) {
            app.set_to_leave(true);
        }
        self.part_with_those(|conn| conn.is_caller() && leads_away(conn, ways));
    }

    /// Nobody calls any more: services are asked to go, too.
    pub(super) fn let_services_go(&self, ways: &Ways) {
        self.turn_begins();
        if self.retreating.get() {
            self.part_with_those(|conn| conn.is_service() && leads_away(conn, ways));
        }
    }

    /// Serves as before. Those that were asked to go and have not gone by then do so, and may come again.
    pub(super) fn return_to_serving(&self) {
        self.retreating.set(false);
        self.apps.borrow().iter().for_each(|(_, app)| app.set_to_leave(false));
    }

    /// Asks other agents for no more calls. Those that were sent by then are served.
    pub(super) fn part_with_agents(&self) {
        self.part_with_those(|conn| conn.side == Side::AgentIn);
    }

    fn part_with_those(&self, which: impl Fn(&FrameConn) -> bool) {
        let frames: Vec<_> = self.frames.borrow().values().cloned().collect();
        for conn in frames.iter().filter(|conn| conn.is_usable() && which(conn)) {
            self.pause_lane(conn);
            conn.ask_to_go();
            conn.leave();
        }
    }

    /// Whether other agents are turned away.
    pub(super) fn takes_no_agents(&self) -> bool {
        self.is_draining() || self.retreating.get()
    }

    /// What it has left to do.
    pub(super) fn remains(&self) -> Remains {
        // A call on its way through two workers is one.
        let is_awaited = |caller: &Caller| !matches!(caller, Caller::Nobody) && caller.scope() != Scope::Worker;
        let mut remains = Remains {
            calls: self.calls.borrow().keys(|call| is_awaited(&call.caller)).len() as u64,
            redis: self.apps.borrow().len() as u64,
            ..Remains::default()
        };
        for conn in self.frames.borrow().values().filter(|conn| conn.was_accepted() && !conn.is_lane()) {
            match conn.side {
                Side::AgentIn => remains.agents += u64::from(conn.hello().is_some()),
                _ if conn.is_service() => remains.services += 1,
                _ => remains.frames += 1,
            }
        }
        remains
    }
}

fn leads_away(conn: &FrameConn, ways: &Ways) -> bool {
    ways.lead_away(conn.peer, conn.place.as_deref())
}

impl Remains {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nobody calls any more, and services wait for calls.
    #[must_use]
    pub fn is_services_alone(&self) -> bool {
        self.services > 0 && Self { services: 0, ..*self }.is_nothing()
    }
}

impl AddAssign for Remains {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.redis += other.redis;
        self.frames += other.frames;
        self.services += other.services;
        self.agents += other.agents;
    }
}
