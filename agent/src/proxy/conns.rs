//! What lists show of connections.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{
    app::App,
    frames::{FrameConn, Side},
    place::Place,
    socket::Peer,
    worker::Worker,
};
use crate::api;

impl Worker {
    /// Its connections of applications and agents, so many at most.
    pub(super) fn conns(&self, max: usize) -> Vec<api::Conn> {
        let now = Instant::now();
        let (apps, frames) = (self.apps.borrow(), self.frames.borrow());
        let mut conns: Vec<_> = apps.iter().take(max).map(|(_, app)| redis(app, self.id(), now)).collect();
        conns.extend(frames.values().take(max - conns.len()).map(|conn| framed(conn, self.id(), now)));
        conns
    }
}

fn redis(app: &App, worker: usize, now: Instant) -> api::Conn {
    let is_resp3 = app.session.borrow().as_ref().is_some_and(|session| session.is_resp3());
    api::Conn {
        id: app.id,
        worker,
        peer: app.peer.to_string(),
        name: app.name(),
        namespace: namespace(app.place.as_ref()),
        protocol: if is_resp3 { "resp3" } else { "resp2" }.to_owned(),
        age_ms: ms(now.saturating_duration_since(app.since)),
        idle_ms: ms(now.saturating_duration_since(app.last_read.get())),
        calls: app.calls.get(),
        in_flight: app.owed() as u64,
        queued_bytes: app.queued_bytes() as u64,
    }
}

fn framed(conn: &FrameConn, worker: usize, now: Instant) -> api::Conn {
    let protocol = match conn.side {
        Side::App if conn.is_lane() => "lane",
        Side::App => "frames",
        Side::AgentIn | Side::Out if conn.peer == Peer::Unix => "worker",
        Side::AgentIn | Side::Out => "tunnel",
        Side::Worker => "worker",
    };
    api::Conn {
        id: conn.id,
        worker,
        peer: conn.peer.to_string(),
        name: conn.hello().map(|hello| conn.application(&hello).to_string()).filter(|name| !name.is_empty()),
        namespace: namespace(conn.place.as_ref()),
        protocol: protocol.to_owned(),
        age_ms: ms(now.saturating_duration_since(conn.since)),
        idle_ms: ms(now.saturating_duration_since(conn.last_read.get())),
        calls: conn.calls.get(),
        in_flight: (conn.incoming_len() + conn.outgoing()) as u64,
        queued_bytes: conn.queued_bytes() as u64,
    }
}

fn namespace(place: Option<&Rc<Place>>) -> Option<String> {
    place.and_then(|place| place.namespace()).map(|namespace| namespace.name.to_string())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
