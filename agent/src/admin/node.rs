//! The running agent, as the admin socket and the metrics see it.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc;

use super::metrics::KernelCounts;
use crate::{
    api,
    config::Checked,
    instance::Name,
    kernel::Kernel,
    proxy::{Proxy, Telemetry, Tracer},
    trace::{Spans, Taps},
};

/// How long applications have for reading what was sent to them last.
const DETACH_WITHIN: Duration = Duration::from_secs(1);

/// A running agent.
pub struct Node {
    name: Name,
    started: Instant,
    /// The data plane.
    pub proxy: Proxy,
    /// Those who look on at calls.
    pub taps: Arc<Taps>,
    /// Spans for a collector, if there is one.
    pub(super) spans: Option<Spans>,
    /// The kernel programs, or why there are none.
    kernel: Result<Kernel, String>,
    /// Ends the latest trace when it is dropped. None once the agent ends.
    trace: Mutex<Option<mpsc::Sender<Infallible>>>,
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
    pub fn new(name: Name, proxy: Proxy, telemetry: Telemetry, kernel: Result<Kernel, String>, checked: Arc<Checked>) -> Self {
        let loaded = Loaded::new(checked, 1);
        Self {
            name,
            started: Instant::now(),
            proxy,
            taps: telemetry.taps,
            spans: telemetry.spans,
            kernel,
            trace: Mutex::new(Some(mpsc::channel(1).0)),
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
            && let Err(error) = kernel.detach(DETACH_WITHIN)
        {
            tracing::warn!("the kernel programs stay until the next start, or moa kernel uninstall: {error}");
        }
    }

    /// Ends all that look on when they have read what waits for them, as the agent ends.
    pub fn end_looking_on(&self) {
        self.taps.close();
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Shows what the kernel decides about the messages of a service.
    pub(super) fn trace(&self, service: &str) -> Result<Tracer, String> {
        if let Err(reason) = &self.kernel {
            return Err(format!("the kernel programs are not attached: {reason}"));
        }
        let (sender, ends) = mpsc::channel(1);
        let tracer = self.proxy.trace(service, ends)?;
        if let Some(trace) = &mut *self.trace.lock().unwrap_or_else(PoisonError::into_inner) {
            *trace = sender;
        }
        Ok(tracer)
    }

    /// Where connects go when this agent cannot take them, after turning that on or off if that is wanted.
    pub(super) async fn failover(&self, on: Option<bool>) -> Result<api::failover::Failover, String> {
        let Some(gates) = self.proxy.gates() else {
            let reason = self.kernel.as_ref().err().map_or("they are not there", String::as_str);
            return Err(format!("nobody is diverted without the kernel programs: {reason}"));
        };
        if let Some(on) = on {
            gates.hooks().set_on(on);
        }
        Ok(api::failover::Failover { foreign: self.proxy.foreign().await, ..gates.look() })
    }

    /// Has applications of other agents go home.
    pub(super) async fn send_home(&self) -> Result<api::failover::Failover, String> {
        self.proxy.send_home().await;
        self.failover(None).await
    }

    /// Says from now on that it takes no new calls, as it ends.
    pub fn begin_end(&self) {
        self.proxy.begin_end();
    }

    /// Whether it takes no new calls.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.proxy.drain_now().is_some()
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
            namespaces: self.proxy.namespaces_status(),
            drain: self.proxy.drain_now(),
            overload: Some(self.proxy.overload()),
        }
    }

    /// What the kernel programs counted; none if there are none.
    pub(super) fn kernel_counts(&self) -> Option<KernelCounts> {
        let kernel = self.kernel.as_ref().ok()?;
        let (counts, verdicts) = (kernel.established().ok()?, kernel.verdicts().ok()?);
        Some(KernelCounts { counts, verdicts, on: kernel.is_on(), routed: self.proxy.routed().unwrap_or_default() })
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
        let kernel = match &self.kernel {
            Ok(kernel) => kernel,
            Err(reason) => return api::KernelStatus { reason: Some(reason.clone()), ..api::KernelStatus::default() },
        };
        let counted = kernel.established().and_then(|counts| Ok((counts, kernel.verdicts()?)));
        let (counts, verdicts) = match counted {
            Ok(counted) => counted,
            Err(error) => {
                return api::KernelStatus { attached: true, reason: Some(error.to_string()), ..api::KernelStatus::default() };
            }
        };
        let redirected = verdicts.to_agent.bytes + verdicts.from_agent.bytes;
        let routed_calls = self.proxy.routed().map_or(0, |routed| routed.calls);
        api::KernelStatus {
            attached: true,
            reason: None,
            established: counts.accepted(),
            on: kernel.is_on(),
            redirected_bytes: redirected,
            share: share(redirected.saturating_sub(kernel.redirected_before()), self.proxy.bytes_total()),
            decision: kernel.objection().or_else(|| kernel.decision()),
            routed_calls,
            routed_share: share(routed_calls, self.proxy.call_stats().calls),
        }
    }

    /// `GET /v1/kernel`.
    ///
    /// # Errors
    /// There are no kernel programs, or the kernel does not let them be looked at.
    pub fn kernel(&self) -> Result<api::Kernel, String> {
        let kernel = self.kernel.as_ref().map_err(|reason| format!("the kernel programs are not attached: {reason}"))?;
        let described = kernel.describe().map_err(|error| error.to_string())?;
        Ok(api::Kernel {
            status: self.kernel_status(),
            bytes_total: self.proxy.bytes_total(),
            routing: self.proxy.routing(),
            ..described
        })
    }

    /// `POST /v1/kernel/on` and `/off`.
    ///
    /// # Errors
    /// As for [`Node::kernel`].
    pub fn switch_kernel(&self, on: bool) -> Result<api::Kernel, String> {
        if let Ok(kernel) = &self.kernel {
            if on {
                kernel.turn_on();
            } else {
                kernel.turn_off();
            }
            if on && !kernel.is_on() {
                return Err(kernel.objection().unwrap_or_default());
            }
            tracing::info!("the kernel path is turned {}", if on { "on" } else { "off" });
        }
        self.kernel()
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

/// What part of all bytes was redirected.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(redirected: u64, total: u64) -> f64 {
    // The agent counts what it reads when it has read it: for a moment there may be more redirected than read.
    if total == 0 { 0.0 } else { (redirected as f64 / total as f64).min(1.0) }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
