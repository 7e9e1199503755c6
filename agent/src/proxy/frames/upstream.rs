//! A service's instance that is reached in frames: an application that has dialled in, or another agent.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc};

use super::{conn::FrameConn, tunnel::Tunnel};
use crate::proxy::{
    calls::CallKey,
    pool::Refused,
    request::Request,
    routes::{Endpoint, Instance},
    stats::CallCounters,
};

/// One instance of one service.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) instance: Arc<Instance>,
    pub(crate) counters: Arc<CallCounters>,
    /// Where the instance stands among those of its service.
    pub(crate) slot: u32,
    /// Tells another worker which instance is meant, in the field `receipt` of a REQUEST's header; else 0.
    pub(crate) pin: u32,
    pub(crate) target: Target,
}

/// How it is reached.
#[derive(Debug)]
pub(crate) enum Target {
    /// By connections that it has opened to this worker.
    Here(Vec<Rc<FrameConn>>),
    /// By way of another agent, or of the worker that has the connection.
    By(Rc<Tunnel>),
}

/// Calls that wait for a tunnel which is being opened.
pub(crate) type Waiting = RefCell<VecDeque<(CallKey, Rc<Remote>, Request)>>;

/// A way for a call.
pub(crate) enum Way {
    /// On this connection, now.
    Conn(Rc<FrameConn>),
    /// When this tunnel is open.
    Wait(Rc<Tunnel>),
}

/// What stands for a connection that an instance offers services by, on the way to its worker; never 0.
pub(crate) fn pin_of(conn: u64) -> u32 {
    u32::try_from(conn % u64::from(u32::MAX)).map_or(1, |number| number + 1)
}

impl Remote {
    /// Whether the instance has the connection that this stands for.
    pub(crate) fn is_pinned(&self, pin: u32) -> bool {
        matches!(&self.target, Target::Here(conns) if conns.iter().any(|conn| pin_of(conn.id) == pin))
    }

    /// Whether it is reached by this connection.
    pub(crate) fn has(&self, conn: u64) -> bool {
        matches!(&self.target, Target::Here(conns) if conns.iter().any(|one| one.id == conn))
    }

    /// Where the next call can go.
    pub(crate) fn way(&self) -> Result<Way, fn(Request) -> Refused> {
        let (conns, tunnel) = match &self.target {
            Target::Here(conns) => (least_loaded(conns.iter()), None),
            Target::By(tunnel) => (tunnel.least_loaded(), Some(tunnel)),
        };
        match (conns, tunnel) {
            (Some(conn), _) if conn.has_room() => Ok(Way::Conn(conn)),
            (Some(_), _) => Err(Refused::Full),
            (None, Some(tunnel)) if tunnel.is_opening() => Ok(Way::Wait(tunnel.clone())),
            (None, _) => Err(Refused::BackingOff),
        }
    }

    /// Whether it is there, but takes no more calls for now.
    pub(crate) fn is_full(&self) -> bool {
        let conn = match &self.target {
            Target::Here(conns) => least_loaded(conns.iter()),
            Target::By(tunnel) => tunnel.least_loaded(),
        };
        conn.is_some_and(|conn| !conn.has_room())
    }

    /// Whether a call can be tried.
    pub(crate) fn is_there(&self) -> bool {
        match &self.target {
            Target::Here(conns) => conns.iter().any(|conn| conn.is_usable()),
            Target::By(tunnel) => tunnel.is_opening() || tunnel.least_loaded().is_some(),
        }
    }

    /// Whether a call need not wait for a connection.
    pub(crate) fn is_open(&self) -> bool {
        match &self.target {
            Target::Here(_) => true,
            Target::By(tunnel) => tunnel.least_loaded().is_some(),
        }
    }

    /// Whether it is another agent.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.instance.endpoint, Endpoint::Agent(_))
    }

    /// Whether it has a connection to this worker.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.target, Target::Here(_))
    }

    /// Why it can't be called.
    pub(crate) fn why_not(&self) -> String {
        match &self.target {
            Target::Here(_) => "has closed its connection".to_owned(),
            Target::By(tunnel) => tunnel.last_failure(),
        }
    }
}

/// The usable connection with the fewest calls.
pub(super) fn least_loaded<'a>(conns: impl Iterator<Item = &'a Rc<FrameConn>>) -> Option<Rc<FrameConn>> {
    conns.filter(|conn| conn.is_usable()).min_by_key(|conn| conn.outgoing()).cloned()
}
