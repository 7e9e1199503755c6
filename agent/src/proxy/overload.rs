//! When the agent has too much to bear: looks at what it uses, and tells its workers, other agents and the kernel.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    away::Away,
    board::{Board, lock},
    govern::{Refused, full},
    handle::ANSWER_WITHIN,
    limits::places,
    service::Service,
    stats::{Histogram, WorkerCounters},
    worker::{Control, Worker},
};
use crate::{
    api,
    balance::overload::{Gauge, Level, Overload},
    config::{self, traffic::Priority},
    memory,
};

/// How often it is looked.
const TICK: Duration = Duration::from_millis(100);
/// Looks in a second, over which it is counted how late workers were. One that stood still once is late once: only two seconds in a row
/// count.
const LAGS: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Looks after which the limits of cgroups are read again.
const LIMITS: u32 = 50;
/// New connects go to siblings for so long after it was last said.
const AWAY_FOR: Duration = Duration::from_secs(3);

/// What is over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Calls,
    MemoryBytes,
    MemoryPercent,
    Lag,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Calls, Self::MemoryBytes, Self::MemoryPercent, Self::Lag];

    /// What it is, with the key of its limit.
    const fn text(self) -> &'static str {
        match self {
            Self::Calls => "as many calls are in flight in a worker as overload.calls_percent of agent.calls_in_flight_max",
            Self::MemoryBytes => "its memory has reached overload.memory_bytes_max",
            Self::MemoryPercent => "its memory has reached overload.memory_percent of its cgroup's limit",
            Self::Lag => "a worker is later than overload.lag_ms",
        }
    }
}

/// How much the agent has to bear, as all of its threads know it.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    /// The level at which calls are refused for memory or lag, and in the upper bits why.
    strain: AtomicU8,
    /// The level that others are told of, which calls in flight count for, too.
    level: AtomicU8,
    /// How often it rose from nothing.
    raised: AtomicU64,
    seen: Mutex<Seen>,
}

/// What was seen last, for people.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    cause: Option<Cause>,
    calls: u32,
    memory: u32,
    lag: u32,
}

/// Bits of the level.
const LEVEL_BITS: u8 = 2;

/// Whether calls of this priority are refused at a level.
pub(crate) fn sheds(level: Level, priority: Priority) -> bool {
    let from = match priority {
        Priority::Low => Level::Low,
        Priority::Normal => Level::Normal,
        Priority::High => Level::All,
    };
    level >= from
}

impl Pressure {
    pub(crate) fn level(&self) -> Level {
        Level::of_number(self.level.load(Relaxed))
    }

    fn set_strain(&self, level: Level, cause: Option<Cause>) {
        let why = cause.and_then(|cause| Cause::ALL.iter().position(|one| *one == cause)).unwrap_or_default();
        self.strain.store(level.number() | u8::try_from(why).unwrap_or_default() << LEVEL_BITS, Relaxed);
    }

    /// Why calls of this priority are refused, if they are.
    fn refuses(&self, priority: Priority) -> Option<Cause> {
        let strain = self.strain.load(Relaxed);
        if strain == 0 {
            return None;
        }
        let level = Level::of_number(strain & ((1 << LEVEL_BITS) - 1));
        sheds(level, priority).then(|| Cause::ALL.get(usize::from(strain >> LEVEL_BITS)).copied()).flatten()
    }

    /// What operators see.
    pub(super) fn status(&self, refused: u64) -> api::Overload {
        let (level, seen) = (self.level(), *lock(&self.seen));
        let cause = seen.cause.filter(|_| level > Level::Calm);
        api::Overload {
            level: level.number(),
            shedding: name(level).to_owned(),
            reason: cause.map(|cause| cause.text().to_owned()),
            calls_per_mille: seen.calls,
            memory_per_mille: seen.memory,
            lag_per_mille: seen.lag,
            raised: self.raised.load(Relaxed),
            refused,
        }
    }
}

/// What is refused at a level.
fn name(level: Level) -> &'static str {
    match level {
        Level::Calm => "nothing",
        Level::Low => "low",
        Level::Normal => "normal",
        Level::All => "all",
    }
}

/// What a priority is called in the configuration.
fn called(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

impl Worker {
    /// Whether the agent can bear one more call of a service; before anything else is decided about it.
    pub(super) fn can_bear(&self, service: &Service) -> Result<(), Refused> {
        let priority = service.route.policy.priority;
        let limits = self.limits();
        let bound = match priority {
            Priority::Low => limits.places.low,
            Priority::Normal => limits.places.normal,
            Priority::High => limits.calls_in_flight_max,
        };
        let (cause, has_room) = (self.pressure().refuses(priority), bound >= limits.calls_in_flight_max);
        if cause.is_none() && (has_room || self.calls.borrow().len() < bound) {
            return Ok(());
        }
        self.counters.shed.add(1);
        service.governed.counters.overload.add(1);
        let (why, priority) = (cause.unwrap_or(Cause::Calls).text(), called(priority));
        Err(full(format!("the agent has too much to bear: {why}; calls of priority {priority} are refused meanwhile")))
    }
}

/// Looks at what the agent uses.
pub(super) struct Monitor {
    pressure: Arc<Pressure>,
    board: Arc<Board>,
    away: Arc<Away>,
    workers: Vec<Watched>,
    /// For memory and lag.
    strain: Overload,
    /// For calls in flight.
    crowd: Overload,
    cgroup_limit: Option<u64>,
}

/// How often a worker wanted to run, and how often it did by how late it was.
type Lags = (u64, Vec<u64>);

/// One worker.
struct Watched {
    control: mpsc::Sender<Control>,
    counters: Arc<WorkerCounters>,
    /// What was counted at the latest looks, the oldest first.
    lags: VecDeque<Lags>,
}

impl Watched {
    /// How late it was at nine of ten times in each of the last two seconds; a whole second if it did not run at all in them, though
    /// it wanted to.
    fn lag(&mut self) -> Duration {
        let now = self.counters.lag.look();
        let at = |age: usize| self.lags.len().checked_sub(age).and_then(|at| self.lags.get(at)).or(self.lags.front());
        let (second, before) = (at(LAGS).unwrap_or(&now), at(2 * LAGS).unwrap_or(&now));
        let (latest, earlier) = (since(&now, second), since(second, before));
        let wanted = before.0 > before.1.iter().sum::<u64>();
        let stood_still = wanted && self.lags.len() == 2 * LAGS && latest.count() + earlier.count() == 0;
        let lag = if stood_still { SECOND } else { latest.quantile(0.9).min(earlier.quantile(0.9)) };
        self.lags.push_back(now);
        if self.lags.len() > 2 * LAGS {
            self.lags.pop_front();
        }
        lag
    }
}

/// What was counted between two looks.
fn since(now: &Lags, before: &Lags) -> Histogram {
    let counts = now.1.iter().zip(&before.1).map(|(now, before)| now.saturating_sub(*before));
    Histogram { counts: counts.collect(), sum: Duration::ZERO }
}

impl Monitor {
    pub(super) fn new(
        (pressure, away): (Arc<Pressure>, Arc<Away>),
        board: Arc<Board>,
        workers: impl Iterator<Item = (mpsc::Sender<Control>, Arc<WorkerCounters>)>,
    ) -> Self {
        let watched = |(control, counters)| Watched { control, counters, lags: VecDeque::new() };
        let workers = workers.map(watched).collect();
        Self { pressure, board, away, workers, strain: Overload::default(), crowd: Overload::default(), cgroup_limit: None }
    }

    /// Looks until it is aborted.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            let now = ticks.tick().await;
            if count.is_multiple_of(LIMITS) {
                self.cgroup_limit = memory::cgroup_limit(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
            }
            count = count.wrapping_add(1);
            self.look(now);
        }
    }

    fn look(&mut self, now: Instant) {
        let checked = self.board.routes().checked.clone();
        let overload = &checked.config.overload;
        let crowd = self.crowd(&checked);
        let lag = self.lag(overload);
        let (memory, of_memory) = self.memory(overload);
        let (strain, of_strain) = if lag > memory { (lag, Cause::Lag) } else { (memory, of_memory) };
        let strained = self.strain.look(now.into_std(), strain);
        let crowded = self.crowd.look(now.into_std(), crowd);
        let cause = {
            let mut seen = lock(&self.pressure.seen);
            // What has raised it stays the cause until it is over.
            let former = seen.cause.filter(|_| strain.max(crowd) < 1_000);
            let cause = former.unwrap_or(if crowd > strain { Cause::Calls } else { of_strain });
            *seen = Seen { cause: Some(cause), calls: crowd, memory, lag };
            cause
        };
        self.pressure.set_strain(strained, Some(if cause == Cause::Calls { of_strain } else { cause }));
        self.follow(strained.max(crowded), cause);
    }

    /// Tells everybody whom the level concerns.
    fn follow(&self, level: Level, cause: Cause) {
        let before = Level::of_number(self.pressure.level.swap(level.number(), Relaxed));
        if level > Level::Calm {
            self.away.set_overloaded(Some(AWAY_FOR));
        }
        if level == before {
            return;
        }
        if before == Level::Calm {
            self.pressure.raised.fetch_add(1, Relaxed);
        }
        if level > before {
            tracing::warn!(shedding = name(level), "the agent has too much to bear: {}", cause.text());
        } else {
            tracing::info!(shedding = name(level), "the agent has less to bear");
        }
        if level == Level::Calm {
            self.away.set_overloaded(None);
        }
        // What may be routed in the kernel has changed.
        self.board.routes().changes.tell();
        for worker in &self.workers {
            let control = worker.control.clone();
            // A worker that is late holds up nobody.
            tokio::spawn(async move { drop(timeout(ANSWER_WITHIN, control.send(Control::Pressed)).await) });
        }
    }

    /// Calls in flight, in the worker that has most.
    fn crowd(&self, checked: &config::Checked) -> u32 {
        let (max, places) = places(checked, self.workers.len());
        let most = self.workers.iter().map(|worker| worker.counters.in_flight.get()).max().unwrap_or_default();
        Gauge::bounded(most, places.low as u64, max as u64).pressure()
    }

    fn lag(&mut self, overload: &config::Overload) -> u32 {
        let latest = self.workers.iter_mut().map(Watched::lag).max().unwrap_or_default();
        let late_ms = u64::try_from(latest.as_millis()).unwrap_or(u64::MAX);
        match overload.lag_ms {
            0 => 0,
            limit => Gauge::unbounded(late_ms, limit, limit).pressure(),
        }
    }

    fn memory(&self, overload: &config::Overload) -> (u32, Cause) {
        let used = memory::resident();
        let bytes = match overload.memory_bytes_max {
            0 => 0,
            limit => Gauge::bounded(used, limit, limit + limit / 10).pressure(),
        };
        let percent = match (self.cgroup_limit, u64::from(overload.memory_percent)) {
            (None, _) | (_, 0) => 0,
            (Some(limit), percent) => Gauge::bounded(used, limit / 100 * percent, limit / 100 * 99).pressure(),
        };
        if bytes >= percent { (bytes, Cause::MemoryBytes) } else { (percent, Cause::MemoryPercent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_refused_first() {
        let all = [Priority::Low, Priority::Normal, Priority::High];
        let shed = |level| all.map(|priority| sheds(level, priority));
        assert_eq!(shed(Level::Calm), [false, false, false]);
        assert_eq!(shed(Level::Low), [true, false, false]);
        assert_eq!(shed(Level::Normal), [true, true, false]);
        assert_eq!(shed(Level::All), [true, true, true]);
    }

    #[test]
    fn workers_read_the_level_and_its_cause_at_once() {
        let pressure = Pressure::default();
        assert_eq!(pressure.refuses(Priority::Low), None);
        for cause in [Cause::MemoryBytes, Cause::MemoryPercent, Cause::Lag] {
            pressure.set_strain(Level::Normal, Some(cause));
            assert_eq!(pressure.refuses(Priority::Low), Some(cause));
            assert_eq!(pressure.refuses(Priority::Normal), Some(cause));
            assert_eq!(pressure.refuses(Priority::High), None);
        }
        pressure.set_strain(Level::Calm, Some(Cause::Lag));
        assert_eq!(pressure.refuses(Priority::Low), None);
    }

    #[test]
    fn a_worker_is_late_if_it_was_in_two_seconds_in_a_row() {
        let counters = Arc::new(WorkerCounters::default());
        let mut watched = Watched { control: mpsc::channel(1).0, counters: counters.clone(), lags: VecDeque::new() };
        let runs = |late_ms: &[u64]| {
            for late in late_ms {
                counters.lag.begins();
                counters.lag.ended(Duration::from_millis(*late));
            }
        };
        // A second in which it runs so each time that it is looked; what was seen at the end of it.
        let mut second = |late_ms: &[u64]| {
            let looks = (0..LAGS).map(|_| {
                runs(late_ms);
                watched.lag()
            });
            looks.last().expect("some").as_millis()
        };
        runs(&[3_000]);
        assert_eq!(second(&[]), 0, "what was before the first look is not of this time");
        assert_eq!((second(&[1; 9]), second(&[1; 9])), (0, 1));
        // One that stands still now and then is late now and then.
        assert_eq!((second(&[40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), second(&[1; 9]), second(&[40, 1, 1, 1])), (1, 1, 1));
        assert!(second(&[40]) >= 40, "two seconds in a row");
        assert_eq!(second(&[]), 0, "it has nothing to do");
        // Whoever begins to wait now is not late yet.
        counters.lag.begins();
        assert_eq!((second(&[]), second(&[]), second(&[])), (0, 0, 1_000), "it does not run");
    }
}
