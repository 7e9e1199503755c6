//! Spans on their way to the collector: a queue that workers fill and never wait for, and a task that empties it.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{common::v1::InstrumentationScope, resource::v1::Resource};
use prost::Message;
use rand::{Rng, RngExt};
use tokio::{
    sync::{
        Notify,
        mpsc::{Receiver, Sender, channel},
        oneshot,
    },
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    BadEndpoint, Span,
    collector::{Collector, Endpoint, Outcome},
    otlp,
};

/// Spans of one request: some 300 KiB.
const BATCH_MAX: usize = 512;
/// The first wait for a collector that is away, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long an end waits for the collector.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Where spans go, and who sends them.
#[derive(Debug, Clone)]
pub struct Options {
    /// The collector's base URL, such as `http://127.0.0.1:4318`.
    pub endpoint: String,
    /// Spans that may wait; of those that are being sent, there may be as many as fit into a request besides.
    pub queue_max: usize,
    /// How long spans are gathered, unless half of the queue is full before.
    pub interval: Duration,
    /// The agent's name.
    pub name: String,
    /// The agent's name among those of all nodes.
    pub instance: String,
    /// The version of the binary.
    pub version: String,
    /// Where the node is; empty if it does not matter.
    pub zone: String,
    /// Where the node is; empty if it does not matter.
    pub data_centre: String,
}

/// Takes spans, from any thread.
#[derive(Debug, Clone)]
pub struct Spans {
    queue: Sender<Span>,
    shared: Arc<Shared>,
}

/// What sends spans to the collector.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// There is reason not to wait for the interval's end.
    hurry: Notify,
}

/// The task.
struct Sending {
    queue: Receiver<Span>,
    shared: Arc<Shared>,
    collector: Collector,
    resource: Resource,
    scope: InstrumentationScope,
    interval: Duration,
    flush_within: Duration,
    batch: Vec<Span>,
    /// Times in a row that the collector was away.
    away: u32,
}

impl Exporter {
    /// Starts to send, on the runtime that this is called on.
    ///
    /// # Errors
    /// The endpoint is no URL of HTTP.
    pub fn start(options: &Options) -> Result<(Spans, Self), BadEndpoint> {
        Self::start_with(options, FLUSH_WITHIN)
    }

    pub(super) fn start_with(options: &Options, flush_within: Duration) -> Result<(Spans, Self), BadEndpoint> {
        let endpoint: Endpoint = options.endpoint.parse()?;
        let (sender, queue) = channel(options.queue_max.max(1));
        let shared = Arc::new(Shared::default());
        let sending = Sending {
            queue,
            shared: shared.clone(),
            collector: Collector::new(endpoint),
            resource: otlp::resource(options),
            scope: otlp::scope(options),
            interval: options.interval,
            flush_within,
            batch: Vec::new(),
            away: 0,
        };
        let (stop, stopped) = oneshot::channel();
        Ok((Spans { queue: sender, shared }, Self { stop, task: tokio::spawn(sending.run(stopped)) }))
    }

    /// Takes no more spans, and waits for at most a second for the collector to take those that wait.
    pub async fn stop(self) {
        // It ends by itself only by a panic, which is the end of the process.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

impl Spans {
    /// Gives a span away, of a trace that is sampled. Never waits: if the queue is full, the span is dropped, and counted.
    pub fn offer(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.shared.dropped.fetch_add(1, Relaxed);
        }
        if self.queue.capacity() <= self.queue.max_capacity() / 2 {
            self.shared.hurry.notify_one();
        }
    }

    /// Spans that the collector has taken.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Relaxed)
    }

    /// Spans that there was no room for in the queue.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Spans that the collector has refused, or that were still waiting at the end.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }
}

impl Sending {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let round = async {
                self.pause().await;
                self.round().await;
            };
            tokio::select! {
                () = round => {}
                // Whether it was told to stop, or whoever could tell it is gone. What is being sent is sent again: the collector
                // may see some spans twice, which it knows by their numbers.
                _ = &mut stopped => break,
            }
        }
        self.queue.close();
        // Else it has been said how many were lost.
        let _ = timeout(self.flush_within, self.flush()).await;
        self.count_lost();
    }

    /// Waits until it is time to send.
    async fn pause(&mut self) {
        if self.queue.capacity() <= self.queue.max_capacity() / 2 {
            return;
        }
        tokio::select! {
            () = sleep(self.interval) => {}
            () = self.shared.hurry.notified() => {}
        }
    }

    /// Sends what waits.
    async fn round(&mut self) {
        while self.fill() {
            let Some(after) = self.send().await else { continue };
            sleep(after.unwrap_or_else(|| backoff(self.away, &mut rand::rng()))).await;
        }
    }

    /// Sends what waits, once.
    async fn flush(&mut self) {
        while self.fill() && self.send().await.is_none() {}
    }

    /// Whether there is anything to send.
    fn fill(&mut self) -> bool {
        while self.batch.len() < BATCH_MAX
            && let Ok(span) = self.queue.try_recv()
        {
            self.batch.push(span);
        }
        !self.batch.is_empty()
    }

    /// Sends the batch; if it is not taken now, says after what time it may be, if that is known.
    async fn send(&mut self) -> Option<Option<Duration>> {
        let body = otlp::request(&self.resource, &self.scope, &self.batch).encode_to_vec();
        let outcome = self.collector.send(body.into()).await;
        let count = count(self.batch.len());
        match outcome {
            Outcome::Taken { refused, why } => {
                let refused = refused.min(count);
                if refused > 0 {
                    tracing::warn!("the collector of spans refuses {refused} of {count}: {why}");
                }
                self.shared.sent.fetch_add(count - refused, Relaxed);
                self.shared.failed.fetch_add(refused, Relaxed);
            }
            Outcome::Refused { why } => {
                tracing::warn!("the collector of spans refuses {count}: {why}");
                self.shared.failed.fetch_add(count, Relaxed);
            }
            Outcome::Later { why, after } => {
                if self.away == 0 {
                    tracing::warn!("spans wait, as their collector is away: {why}");
                }
                self.away = self.away.saturating_add(1);
                return Some(after.map(|after| after.clamp(BACKOFF.0, BACKOFF.1)));
            }
        }
        if mem::take(&mut self.away) > 0 {
            tracing::info!("the collector of spans is back");
        }
        self.batch.clear();
        None
    }

    fn count_lost(&mut self) {
        let mut lost = 0;
        while self.fill() {
            lost += count(mem::take(&mut self.batch).len());
        }
        if lost > 0 {
            tracing::warn!("{lost} spans are lost, as their collector did not take them");
            self.shared.failed.fetch_add(lost, Relaxed);
        }
    }
}

/// How long to wait for a collector that was away so often in a row: doubled each time, and half of it by chance.
fn backoff(away: u32, dice: &mut impl Rng) -> Duration {
    let (least, most) = BACKOFF;
    let full = least.saturating_mul(1 << away.saturating_sub(1).min(16)).min(most);
    full.mul_f64(dice.random_range(0.5..=1.0))
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut dice = StdRng::seed_from_u64(1);
        for (away, full) in [(0, 100), (1, 100), (2, 200), (5, 1_600), (9, 25_600), (10, 30_000), (u32::MAX, 30_000)] {
            let wait = backoff(away, &mut dice);
            assert!(wait >= Duration::from_millis(full / 2) && wait <= Duration::from_millis(full), "{away}: {wait:?}");
        }
    }
}
