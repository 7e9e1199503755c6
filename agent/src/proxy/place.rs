//! Where connections come from. Who is in a network namespace, or in a cgroup, is known from that, whatever it says of itself.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use tokio::sync::Notify;

use super::{frames::Side, socket::Peer};
use crate::netns::Namespace;

/// Where a connection comes from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) peer: Peer,
    pub(crate) side: Side,
    /// None: who calls is known from what it says.
    pub(crate) place: Option<Rc<Place>>,
}

/// What is known of where a connection comes from.
#[derive(Debug, Clone)]
pub(crate) enum Whence {
    /// Another namespace than the agent's.
    Namespace(Arc<Namespace>),
    /// The cgroup with this number.
    Cgroup(u64),
    /// Another node, whose agent is gone: an address that belongs to an application.
    Foreign(IpAddr),
    /// Somewhere that the kernel did not say.
    Unknown,
}

/// Where connections of one worker come from.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) whence: Whence,
    /// Who is there; none: nobody that is known.
    application: RefCell<Option<Arc<str>>>,
    left: Cell<bool>,
    leaving: Notify,
}

impl Place {
    pub(crate) fn in_namespace(namespace: &Arc<Namespace>) -> Rc<Self> {
        Self::new(Whence::Namespace(namespace.clone()), Some(namespace.application()))
    }

    pub(crate) fn in_cgroup(id: u64, application: Option<Arc<str>>) -> Rc<Self> {
        Self::new(Whence::Cgroup(id), application)
    }

    pub(crate) fn foreign(address: IpAddr, application: Arc<str>) -> Rc<Self> {
        Self::new(Whence::Foreign(address), Some(application))
    }

    /// Of a caller that has no name, whatever it says.
    pub(crate) fn unknown() -> Rc<Self> {
        Self::new(Whence::Unknown, Some("".into()))
    }

    fn new(whence: Whence, application: Option<Arc<str>>) -> Rc<Self> {
        Rc::new(Self { whence, application: RefCell::new(application), left: Cell::new(false), leaving: Notify::new() })
    }

    /// Who is there; none: whoever it says.
    pub(crate) fn application(&self) -> Option<Arc<str>> {
        self.application.borrow().clone()
    }

    /// Somebody else is there.
    pub(crate) fn set_application(&self, application: Option<Arc<str>>) {
        self.application.replace(application);
    }

    /// Whether it is another node, whose agent is gone.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.whence, Whence::Foreign(_))
    }

    pub(crate) fn namespace(&self) -> Option<&Arc<Namespace>> {
        if let Whence::Namespace(namespace) = &self.whence { Some(namespace) } else { None }
    }

    /// Lets nobody from there in any more.
    pub(crate) fn leave(&self) {
        self.left.set(true);
        self.leaving.notify_waiters();
    }

    pub(crate) fn has_left(&self) -> bool {
        self.left.get()
    }

    /// Resolves when nobody from there is let in any more.
    pub(crate) async fn leaving(&self) {
        let leaving = self.leaving.notified();
        if !self.left.get() {
            leaving.await;
        }
    }
}
