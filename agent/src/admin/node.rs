//! The running agent, as the admin socket and the metrics see it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    api,
    config::Checked,
    instance::Name,
    kernel::{Counts, Kernel},
    proxy::Proxy,
};

/// How long applications have for reading what was sent to them last.
const DETACH_WITHIN: Duration = Duration::from_secs(1);

/// A running agent.
pub struct Node {
    name: Name,
    started: Instant,
    /// The data plane.
    pub proxy: Proxy,
    /// The kernel programs, or why there are none.
    kernel: Result<Kernel, String>,
    draining: AtomicBool,
    loaded: Mutex<Loaded>,
    pub(super) reloads: Reloads,
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration itself.
    pub checked: Arc<Checked>,
    /// Where it came from.
    pub source: api::ConfigSource,
}

/// Reloads since the start.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    pub(super) taken: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Node {
    /// An agent that serves from now on.
    #[must_use]
    pub fn new(name: Name, proxy: Proxy, kernel: Result<Kernel, String>, checked: Arc<Checked>) -> Self {
        let loaded = Loaded::new(checked, 1);
        Self {
            name,
            started: Instant::now(),
            proxy,
            kernel,
            draining: AtomicBool::new(false),
            loaded: Mutex::new(loaded),
            reloads: Reloads::default(),
        }
    }

    /// Tells the kernel programs that the agent lives.
    pub fn beat(&self) {
        if let Ok(kernel) = &self.kernel {
            kernel.beat();
        }
    }

    /// Ends the data plane, and leaves nothing in the kernel that nobody needs.
    pub fn stop(self) {
        self.proxy.stop();
        if let Ok(kernel) = self.kernel
            && !kernel.detach(DETACH_WITHIN)
        {
            tracing::warn!("applications have not read all that was sent to them: the kernel programs stay until they have (moa kernel uninstall)");
        }
    }

    /// Says from now on that it takes no new calls.
    pub fn begin_drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Whether it takes no new calls.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// The configuration in force.
    #[must_use]
    pub fn loaded(&self) -> Loaded {
        self.lock().clone()
    }

    /// `GET /v1/status`.
    #[must_use]
    pub fn status(&self) -> api::Status {
        api::Status {
            name: self.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            state: if self.is_draining() { api::State::Draining } else { api::State::Serving },
            workers: self.proxy.workers(),
            config: self.loaded().source,
            app: self.proxy.app_status(),
            calls: self.proxy.call_stats(),
            kernel: self.kernel_status(),
        }
    }

    /// What the kernel programs counted; none if there are none.
    pub(super) fn kernel_counts(&self) -> Option<Counts> {
        self.kernel.as_ref().ok()?.established().ok()
    }

    pub(super) fn take_over(&self, checked: Arc<Checked>) -> api::ConfigSource {
        self.reloads.taken.fetch_add(1, Relaxed);
        let mut loaded = self.lock();
        *loaded = Loaded::new(checked, loaded.source.generation + 1);
        loaded.source.clone()
    }

    pub(super) fn refuse(&self, why: &str) {
        self.reloads.refused.fetch_add(1, Relaxed);
        self.lock().source.last_error = Some(why.to_owned());
    }

    fn kernel_status(&self) -> api::KernelStatus {
        let (counted, reason) = match &self.kernel {
            Ok(kernel) => match kernel.established() {
                Ok(counts) => (counts.accepted(), None),
                Err(error) => (0, Some(error.to_string())),
            },
            Err(reason) => (0, Some(reason.clone())),
        };
        api::KernelStatus { attached: self.kernel.is_ok(), reason, established: counted }
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn new(checked: Arc<Checked>, generation: u64) -> Self {
        let source = api::ConfigSource {
            path: checked.path.as_ref().map(|path| path.display().to_string()),
            generation,
            loaded_unix_ms: unix_ms(),
            last_error: None,
        };
        Self { checked, source }
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
