//! Where connections come from. Who is in a network namespace, or in a cgroup, is known from that, whatever it says of itself.

use std::{
    cell::{Cell, RefCell},
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

/// A namespace as one worker sees it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) namespace: Arc<Namespace>,
    application: RefCell<Arc<str>>,
    left: Cell<bool>,
    leaving: Notify,
}

impl Place {
    pub(crate) fn new(namespace: &Arc<Namespace>) -> Rc<Self> {
        let application = RefCell::new(namespace.application());
        Rc::new(Self { namespace: namespace.clone(), application, left: Cell::new(false), leaving: Notify::new() })
    }

    /// Who is there.
    pub(crate) fn application(&self) -> Arc<str> {
        self.application.borrow().clone()
    }

    /// Looks again who is there.
    pub(crate) fn renew(&self) {
        self.application.replace(self.namespace.application());
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
