//! Serves namespaces as their files come and go: listens in them, tells the workers, and lets go of all that is gone.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{board::lock, handle::ANSWER_WITHIN, listen, path::KernelPath, places::Change, worker::Control};
use crate::{
    api,
    config::Checked,
    failover::Gates,
    netns::{self, Action, Id, Names, Namespace, Namespaces, Policy, Sources, State, Watcher, thread::cookie_of_socket},
    parent::{Failed, Parent, Tried},
};

/// What happens at once is looked at together.
const SETTLE: Duration = Duration::from_millis(2);

/// What is known of namespaces, for operators.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) served: Mutex<Vec<api::Namespace>>,
    /// Why no file can be seen, if none can.
    trouble: Mutex<Option<String>>,
    is_on: std::sync::atomic::AtomicBool,
    opened: AtomicU64,
    failed: AtomicU64,
    closed: AtomicU64,
}

impl Report {
    /// What `moa status` shows; none if no namespace is to be served.
    pub(super) fn status(&self) -> Option<api::NamespacesStatus> {
        self.is_on.load(Relaxed).then(|| {
            let all = lock(&self.served);
            let failed = all.iter().filter(|namespace| namespace.reason.is_some()).count();
            api::NamespacesStatus {
                served: (all.len() - failed) as u64,
                failed: failed as u64,
                opened_total: self.opened.load(Relaxed),
                closed_total: self.closed.load(Relaxed),
                failed_total: self.failed.load(Relaxed),
                reason: lock(&self.trouble).clone(),
            }
        })
    }
}

/// What concerns sockets in namespaces.
pub(super) struct Paths {
    pub(super) kernel: Option<Arc<dyn KernelPath>>,
    pub(super) gates: Option<Arc<Gates>>,
    /// Opens them.
    pub(super) parent: Option<Parent>,
}

/// Serves namespaces.
pub(super) struct NamespaceKeeper {
    namespaces: Arc<Namespaces>,
    workers: Vec<mpsc::Sender<Control>>,
    kernel: Option<Arc<dyn KernelPath>>,
    gates: Option<Arc<Gates>>,
    report: Arc<Report>,
    state: State,
    open: HashMap<Id, Arc<Namespace>>,
    /// Opens sockets in namespaces.
    parent: Option<Parent>,
    watcher: Option<Watcher>,
}

impl NamespaceKeeper {
    pub(super) fn new(
        (namespaces, report): (Arc<Namespaces>, Arc<Report>),
        workers: Vec<mpsc::Sender<Control>>,
        Paths { kernel, gates, parent }: Paths,
    ) -> Self {
        let state = State::new(netns::host().ok());
        Self { namespaces, workers, kernel, gates, report, state, open: HashMap::new(), parent, watcher: None }
    }

    /// Follows the files, and the configuration, until it is aborted.
    pub(super) async fn run(mut self, mut config: watch::Receiver<Arc<Checked>>) {
        loop {
            let sources = Sources::new(config.borrow_and_update().clone());
            let is_on = sources.config().is_on();
            self.report.is_on.store(is_on, Relaxed);
            if !is_on && self.open.is_empty() {
                self.state = State::new(netns::host().ok());
                lock(&self.report.served).clear();
                self.sweep_gates();
                if config.changed().await.is_err() {
                    return;
                }
                continue;
            }
            self.watch(&sources);
            self.look(sources).await;
            let again = self.state.look_again(Instant::now());
            tokio::select! {
                () = changed(self.watcher.as_ref()) => sleep(SETTLE).await,
                _ = config.changed() => {}
                () = sleep(again) => {}
            }
        }
    }

    fn watch(&mut self, sources: &Sources) {
        if self.watcher.is_none() {
            self.watcher = Watcher::new().ok();
        }
        // Before it is looked, so that nothing is missed.
        if let Some(watcher) = &mut self.watcher {
            watcher.follow(sources.config().folder.as_deref());
        }
    }

    async fn look(&mut self, sources: Sources) {
        let looking = sources.clone();
        let scan = tokio::task::spawn_blocking(move || looking.scan()).await;
        match scan.unwrap_or_else(|_| Err("the agent is about to end".to_owned())) {
            Ok(scan) => {
                *lock(&self.report.trouble) = scan.absent;
                let config = sources.config();
                let policy = Policy { max: config.max, applications: &config.applications };
                for action in self.state.look(scan.files, policy, Instant::now()) {
                    self.act(action, config.listen).await;
                }
                self.tell(config.listen);
                self.sweep_gates();
            }
            Err(trouble) => {
                // What is served stays: nothing is known of it.
                let former = lock(&self.report.trouble).replace(trouble.clone());
                if former.as_ref() != Some(&trouble) {
                    warn!("{trouble}");
                }
            }
        }
    }

    async fn act(&mut self, action: Action, listen: SocketAddr) {
        match action {
            Action::Open { id, names, application } => match self.open(id, &names, application, listen).await {
                Ok(namespace) => {
                    info!(namespace = %namespace.name, application = %namespace.application(), %listen, "serving a namespace");
                    self.report.opened.fetch_add(1, Relaxed);
                    self.state.opened(id);
                    self.open.insert(id, namespace);
                }
                Err(reason) => {
                    self.report.failed.fetch_add(1, Relaxed);
                    if let Some(text) = self.state.failed(id, reason, Instant::now()) {
                        warn!("{text}");
                    }
                }
            },
            Action::Change { id, names, application } => {
                let Some(namespace) = self.open.get(&id) else { return };
                info!(namespace = %namespace.name, %application, "a namespace is called otherwise now");
                namespace.set_application(application.clone());
                if let Some((gates, (name, _))) = self.gates.as_ref().zip(names.first_key_value()) {
                    gates.open(namespace.cookie, listen, application, name.clone());
                }
                self.namespaces.set(namespace, names.into_keys());
                for worker in &self.workers {
                    let _ = timeout(ANSWER_WITHIN, worker.send(Control::Namespaces(Change::Renew))).await;
                }
            }
            Action::Close { id } => {
                if let Some(namespace) = self.open.remove(&id) {
                    info!(namespace = %namespace.name, "a namespace is gone");
                    self.report.closed.fetch_add(1, Relaxed);
                    self.close(namespace).await;
                }
            }
            Action::Warn(text) => warn!("{text}"),
        }
    }

    /// Listens in a namespace, for each worker.
    async fn open(&mut self, id: Id, names: &Names, application: Arc<str>, listen: SocketAddr) -> Result<Arc<Namespace>, String> {
        let (name, path) = names.first_key_value().ok_or("it has no file")?;
        let file = Arc::new(netns::open(path, id).map_err(|error| format!("its file can't be opened: {error}"))?);
        let parent = self.parent.clone().ok_or("the agent has no parent that could enter it")?;
        let (cookie, listeners) = self.listen(&parent, &file, listen).await?;
        let namespace = Namespace::new((cookie, name.clone(), application.clone()), file, parent);
        if let Some(gates) = &self.gates {
            gates.open(cookie, listen, application, name.clone());
        }
        self.namespaces.set(&namespace, names.keys().cloned());
        for (worker, listener) in self.workers.iter().zip(listeners) {
            let serve = Control::Namespaces(Change::Serve(namespace.clone(), listener));
            if timeout(ANSWER_WITHIN, worker.send(serve)).await.is_err() {
                warn!(namespace = %name, "a worker is late: the others take its connections");
            }
        }
        Ok(namespace)
    }

    /// What a former process served and this one does not.
    fn sweep_gates(&self) {
        if let Some(gates) = &self.gates {
            gates.sweep();
        }
    }

    /// Listeners in a namespace, and its cookie.
    async fn listen(&self, parent: &Parent, file: &Arc<OwnedFd>, listen: SocketAddr) -> Result<Bound, String> {
        let sockets = parent.listen(file, listen, self.workers.len()).await.map_err(|failed| why_not(&failed, listen))?;
        let cookie = sockets.first().ok_or(io::ErrorKind::InvalidData.into()).and_then(|socket| cookie_of_socket(socket.as_fd()));
        let cookie = cookie.map_err(|error| format!("its cookie can't be read: {error}"))?;
        let mut kernel = self.kernel.as_deref();
        if let Some(path) = kernel {
            let entered = match parent.diag(file.clone()).await {
                Ok(diag) => path.enter(cookie, diag),
                Err(failed) => Err(failed.into()),
            };
            // Without it, its connections go by TCP.
            kernel = entered.inspect_err(|error| warn!(%error, "not by way of the kernel")).ok().map(|()| path);
        }
        match listen::listen(sockets.into_iter().map(Socket::from).collect(), listen, kernel) {
            Ok(listeners) => Ok((cookie, listeners)),
            Err(error) => {
                if let Some(kernel) = kernel {
                    kernel.leave(cookie);
                }
                Err(why_not_bound(&error, listen))
            }
        }
    }

    /// Has everything in a namespace closed.
    async fn close(&self, namespace: Arc<Namespace>) {
        self.namespaces.remove(&namespace);
        namespace.leave();
        if let Some(gates) = &self.gates {
            gates.close(namespace.cookie);
        }
        if let Some(kernel) = &self.kernel {
            kernel.leave(namespace.cookie);
        }
        for worker in &self.workers {
            let (worker, leave) = (worker.clone(), Control::Namespaces(Change::Leave(namespace.clone())));
            // One that is late does so as soon as it can; nobody else waits for it.
            tokio::spawn(async move { drop(worker.send(leave).await) });
        }
    }

    /// Publishes what is served, and what is not.
    fn tell(&self, listen: SocketAddr) {
        let served = self.state.served().map(|(_, names, application)| {
            let path = names.values().next().map(|path| path.display().to_string());
            api::Namespace {
                name: names.keys().map(|name| &**name).collect::<Vec<_>>().join(", "),
                path: path.unwrap_or_default(),
                application: Some(application.to_string()),
                listen: Some(listen.to_string()),
                reason: None,
            }
        });
        let failures = self.state.failures();
        let failed = failures.iter().map(|failure| api::Namespace {
            name: failure.name.to_string(),
            path: failure.path.display().to_string(),
            application: None,
            listen: None,
            reason: Some(failure.reason.clone()),
        });
        *lock(&self.report.served) = served.chain(failed).collect();
    }
}

async fn changed(watcher: Option<&Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

type Bound = (u64, Vec<std::net::TcpListener>);

fn why_not(Failed { tried, source }: &Failed, listen: SocketAddr) -> String {
    match tried {
        Tried::Enter => why_not_entered(source),
        Tried::Bind => why_not_bound(source, listen),
        _ => format!("{}: {source}", tried.what()),
    }
}

fn why_not_bound(error: &io::Error, listen: SocketAddr) -> String {
    format!("can't listen on {listen} there: {error}; end who listens there (see `ss -ltnp`), or use another namespaces.listen")
}

fn why_not_entered(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "the agent may not enter it ({error}): run it as root, or grant CAP_SYS_ADMIN (AmbientCapabilities= in a unit)"
            )
        }
        io::ErrorKind::InvalidInput => "it is the file of a namespace of another kind".to_owned(),
        _ => format!("it can't be entered: {error}"),
    }
}
