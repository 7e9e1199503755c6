//! What one worker does when a namespace is served, and when it is not any more.
//!
//! A socket keeps its namespace alive, so everything that is open there is closed: what is idle at once, the rest after a
//! moment in which it may finish.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use agent_common::frame::{Hello, status::reason};
use tokio::time::{Instant, sleep};

use super::{
    accept::{self, Door, Listener},
    app::App,
    frames::FrameConn,
    place::{Place, Whence},
    pool::Pool,
    stats::CloseReason,
    worker::Worker,
};
use crate::netns::{Namespace, absent};

/// How long connections have for finishing what they do when their namespace goes. Its processes are gone, as a rule.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const STEP: Duration = Duration::from_millis(5);

/// What becomes of the namespaces that are served.
#[derive(Debug)]
pub(crate) enum Change {
    /// Take connections of applications in one.
    Serve(Arc<Namespace>, TcpListener),
    /// Look again who is in which.
    Renew,
    /// Close everything in one.
    Leave(Arc<Namespace>),
}

impl Worker {
    pub(super) fn follow_namespaces(self: &Rc<Self>, change: Change) {
        match change {
            Change::Serve(namespace, listener) => {
                if let Err(error) = self.serve_namespace(&namespace, listener) {
                    tracing::error!(namespace = %namespace.name, %error, "a worker can't listen there");
                }
            }
            Change::Renew => self.renew_places(),
            Change::Leave(namespace) => drop(tokio::task::spawn_local(self.clone().leave_namespace(namespace))),
        }
    }

    /// Takes the connections of applications in a namespace.
    fn serve_namespace(self: &Rc<Self>, namespace: &Arc<Namespace>, listener: TcpListener) -> io::Result<()> {
        if let Some(place) = self.place_of(namespace) {
            let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener)?);
            tokio::task::spawn_local(accept::run(self.clone(), listener, Door::Place(place)));
        }
        Ok(())
    }

    /// A namespace as this worker sees it; none if it is gone.
    pub(super) fn place_of(&self, namespace: &Arc<Namespace>) -> Option<Rc<Place>> {
        if namespace.is_gone() {
            return None;
        }
        let mut places = self.places.borrow_mut();
        Some(places.entry(namespace.cookie).or_insert_with(|| Place::in_namespace(namespace)).clone())
    }

    /// Looks again who is in which namespace.
    fn renew_places(&self) {
        for place in self.places.borrow().values() {
            place.set_application(place.namespace().map(|namespace| namespace.application()));
        }
        self.renew_lanes();
    }

    /// Looks again who is in which cgroup, and who comes from other nodes.
    pub(super) fn renew_sources(&self) {
        let (apps, frames) = (self.apps.borrow(), self.frames.borrow());
        let places = apps.iter().filter_map(|(_, app)| app.place.as_ref());
        for place in places.chain(frames.values().filter_map(|conn| conn.place.as_ref())) {
            match place.whence {
                Whence::Cgroup(id) => place.set_application(self.cgroups.known(id).flatten()),
                // Who belongs nowhere any more has no name.
                Whence::Foreign(address) => place.set_application(Some(self.foreign_at(address).unwrap_or_default())),
                _ => {}
            }
        }
        drop((apps, frames));
        self.renew_lanes();
    }

    /// Where a connection comes from that another worker gives; none if nobody is let in from there any more.
    pub(super) fn place_of_whence(&self, whence: Whence) -> Option<Rc<Place>> {
        match whence {
            Whence::Namespace(namespace) => self.place_of(&namespace),
            Whence::Cgroup(id) => Some(Place::in_cgroup(id, self.cgroups.known(id).flatten())),
            Whence::Foreign(address) => Some(Place::foreign(address, self.foreign_at(address).unwrap_or_default())),
            Whence::Unknown => Some(Place::unknown()),
        }
    }

    /// Closes everything that is open in a namespace.
    async fn leave_namespace(self: Rc<Self>, namespace: Arc<Namespace>) {
        let place = self.places.borrow_mut().remove(&namespace.cookie);
        if let Some(place) = &place {
            place.leave();
        }
        self.apps_in(&namespace).iter().for_each(|app| app.task.wake());
        // Lanes end with the connections that they belong to, and are told nothing.
        for conn in self.frames_in(&namespace).iter().filter(|conn| !conn.is_lane()) {
            self.pause_lane(conn);
            conn.say_goodbye();
            conn.leave();
        }
        self.pools().iter().for_each(|pool| pool.leave(&namespace));
        let deadline = Instant::now() + GRACE;
        while self.is_in(&namespace) && Instant::now() < deadline {
            sleep(STEP).await;
        }
        self.turn_begins();
        let why = absent(&namespace.name);
        self.apps_in(&namespace).iter().for_each(|app| app.close(CloseReason::Namespace));
        for conn in self.frames_in(&namespace) {
            conn.close(CloseReason::Namespace, reason::DRAIN, &why);
            conn.kill();
        }
        for link in self.pools().iter().flat_map(|pool| pool.links_in(&namespace)) {
            link.stop(why.clone());
        }
    }

    /// Who takes an application when this agent is gone; none for one that is another agent's.
    pub(super) fn siblings_of(&self, conn: &FrameConn, hello: &Hello) -> Vec<SocketAddr> {
        let place = conn.place.as_deref();
        if place.is_some_and(Place::is_foreign) {
            return Vec::new();
        }
        let whence = place.and_then(Place::namespace).map(|namespace| namespace.name.clone()).unwrap_or_default();
        let siblings = self.siblings.borrow();
        siblings.of(self.name(), &conn.application(hello), &whence).into_iter().map(|(_, address)| address).collect()
    }

    /// How many connections come from other nodes, by application.
    pub(super) fn foreign_conns(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        let (apps, frames) = (self.apps.borrow(), self.frames.borrow());
        let places = apps.iter().filter_map(|(_, app)| app.place.as_deref());
        for place in places.chain(frames.values().filter_map(|conn| conn.place.as_deref())).filter(|place| place.is_foreign()) {
            *counts.entry(place.application().unwrap_or_default().to_string()).or_default() += 1;
        }
        counts
    }

    /// Has all connections from other nodes closed, each between two calls: they find their own agent, if it is back.
    pub(super) fn send_home(&self) {
        let is_foreign = |place: &&Rc<Place>| place.is_foreign();
        for (_, app) in self.apps.borrow().iter() {
            if let Some(place) = app.place.as_ref().filter(is_foreign) {
                place.leave();
                app.task.wake();
            }
        }
        for conn in self.frames.borrow().values().filter(|conn| conn.place.as_ref().filter(is_foreign).is_some()) {
            conn.say_goodbye();
            conn.leave();
        }
    }

    fn is_in(&self, namespace: &Arc<Namespace>) -> bool {
        let is_called = || self.pools().iter().any(|pool| !pool.links_in(namespace).is_empty());
        !self.apps_in(namespace).is_empty() || !self.frames_in(namespace).is_empty() || is_called()
    }

    /// The pools of all instances, of those that were taken out, too.
    fn pools(&self) -> Vec<Rc<Pool>> {
        let services = self.services();
        let pools = services.all().flat_map(|service| service.pools()).cloned();
        pools.chain(self.retired.borrow().iter().cloned()).collect()
    }

    fn apps_in(&self, namespace: &Arc<Namespace>) -> Vec<Rc<App>> {
        let apps = self.apps.borrow();
        let there = apps.iter().filter(|(_, app)| is_there(app.place.as_ref(), namespace));
        there.map(|(_, app)| app.clone()).collect()
    }

    fn frames_in(&self, namespace: &Arc<Namespace>) -> Vec<Rc<FrameConn>> {
        let frames = self.frames.borrow();
        frames.values().filter(|conn| is_there(conn.place.as_ref(), namespace)).cloned().collect()
    }
}

fn is_there(place: Option<&Rc<Place>>, namespace: &Arc<Namespace>) -> bool {
    place.and_then(|place| place.namespace()).is_some_and(|own| Arc::ptr_eq(own, namespace))
}
