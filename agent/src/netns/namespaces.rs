//! The namespaces that are served, for those who make sockets in them.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::parent::Parent;

/// The namespaces that are served, by the names of their files.
#[derive(Debug)]
pub(crate) struct Namespaces {
    by_name: watch::Sender<HashMap<Arc<str>, Arc<Namespace>>>,
}

/// A namespace that is served.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Its cookie, which no other one ever has.
    pub(crate) cookie: u64,
    /// What it is called in lists and errors.
    pub(crate) name: Arc<str>,
    application: Mutex<Arc<str>>,
    parent: Parent,
    /// Its file, until it goes.
    file: Mutex<Option<Arc<OwnedFd>>>,
    gone: watch::Sender<bool>,
}

impl Namespaces {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { by_name: watch::Sender::default() })
    }

    /// The namespace of this name, if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Namespace>> {
        self.by_name.borrow().get(name).cloned()
    }

    /// The namespace of this name, once it is there.
    pub(crate) async fn wait_for(&self, name: &str) -> Option<Arc<Namespace>> {
        let mut changes = self.by_name.subscribe();
        changes.wait_for(|names| names.contains_key(name)).await.ok()?.get(name).cloned()
    }

    /// From now on a namespace has these names and no others.
    pub(crate) fn set(&self, namespace: &Arc<Namespace>, names: impl Iterator<Item = Arc<str>>) {
        self.by_name.send_modify(|by_name| {
            by_name.retain(|_, other| !Arc::ptr_eq(other, namespace));
            by_name.extend(names.map(|name| (name, namespace.clone())));
        });
    }

    /// A namespace is not served any more.
    pub(crate) fn remove(&self, namespace: &Arc<Namespace>) {
        self.set(namespace, std::iter::empty());
    }
}

impl Namespace {
    pub(crate) fn new((cookie, name, application): (u64, Arc<str>, Arc<str>), file: Arc<OwnedFd>, parent: Parent) -> Arc<Self> {
        let (application, file) = (Mutex::new(application), Mutex::new(Some(file)));
        Arc::new(Self { cookie, name, application, parent, file, gone: watch::Sender::new(false) })
    }

    /// Who is in it.
    pub(crate) fn application(&self) -> Arc<str> {
        lock(&self.application).clone()
    }

    pub(crate) fn set_application(&self, application: Arc<str>) {
        *lock(&self.application) = application;
    }

    /// A socket in it for a connection by TCP.
    ///
    /// # Errors
    /// It is gone, can't be entered, or there are too many sockets.
    pub(crate) async fn socket(&self, v6: bool) -> io::Result<OwnedFd> {
        let file = lock(&self.file).clone().ok_or_else(|| self.why_gone())?;
        Ok(self.parent.socket(file, v6).await?)
    }

    /// Lets it go: nobody makes sockets in it any more, and whoever has some is told to close them.
    pub(crate) fn leave(&self) {
        lock(&self.file).take();
        self.gone.send_replace(true);
    }

    pub(crate) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Resolves when it is gone.
    pub(crate) async fn gone(&self) {
        // The sender is here: there is always a value.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    fn why_gone(&self) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, absent(&self.name))
    }
}

/// Why nothing can be called in a namespace that is not there.
pub(crate) fn absent(name: &str) -> String {
    format!("namespace {name} isn't there")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
