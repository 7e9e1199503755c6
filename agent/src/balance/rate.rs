//! How many calls a service and each of its callers may have each second.
//!
//! Each limit is a virtual schedule (GCRA): a time until which everything is given away, moved on by each call; a call is let through
//! if that does not lead further ahead than the burst. Of a service's rate every active caller has its equal share: what keeps to the
//! share may use the whole burst of the service, what goes beyond may use so little of it that the others' shares still fit.
//!
//! # Bounds
//! With `n` active callers (called within this second or the one before), `share = service_per_s / n`, `burst` in seconds:
//! - **Service**: in any `t` seconds at most `service_per_s × t + max(service_per_s × burst, 1)` calls are let through, from however
//!   many threads, whatever callers come and go.
//! - **Caller**: in any `t` seconds at most `per_s × t + max(per_s × burst, 1) + (threads - 1)`.
//! - **Fairness**: as long as the number of callers stays the same and `n <= service_per_s × burst / 2`, a caller that asks for no more
//!   than `share × t + share × burst` in any `t` seconds is never refused for the service's limit, however greedy the others are; one
//!   that asks all the time gets at least `share × t - 1`. Calls of one caller in several threads at the same instant may count as
//!   beyond the share, one for each other thread. Who has just come has the rate of its share at once, but the burst of it only when
//!   the others' have drained, who had more of it before. With more callers than that the shares hold on average: calls by chance are
//!   hardly ever refused, but those of all callers at the same instant no longer fit in the burst.
//! - **Nothing is wasted**: from when somebody begins to ask all the time, at least `service_per_s × t - 1` calls are let through. What
//!   callers leave of their shares goes to those who ask for more, first come, first served.
//!
//! The time between two calls is rounded up to a sixteenth of a nanosecond: of 10 million a second that takes 0.07 % at most.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Time is counted in sixteenths of a nanosecond, so that rates of millions a second are exact enough; this is a second.
const SECOND: u64 = 16_000_000_000;
/// Callers that are told apart, beyond those that have a limit of their own.
const CALLERS_MAX: usize = 10_000;
/// After so many seconds without a call a caller may be forgotten, if there are too many.
const IDLE: u32 = 60;

/// What a service and its callers may have. 0 is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) service_per_s: u32,
    pub(crate) caller_per_s: u32,
    /// Of the callers named here, instead of `caller_per_s`.
    pub(crate) callers: BTreeMap<String, u32>,
    /// What may come at once after a pause: as much as the rate gives in this time.
    pub(crate) burst: Duration,
}

impl Options {
    /// Whether there is no bound at all.
    pub(crate) fn is_off(&self) -> bool {
        self.service_per_s == 0 && self.caller_per_s == 0 && self.callers.values().all(|per_s| *per_s == 0)
    }
}

/// The rate limits of one service, for all workers.
#[derive(Debug)]
pub(crate) struct Limiter {
    began: Instant,
    service_per_s: u32,
    caller_per_s: u32,
    /// Between two calls of the service.
    interval: u64,
    burst: u64,
    /// Until when everything of the service is given away.
    taken: AtomicU64,
    /// The callers of this second and those before: the second, those that called in it, those of them that did not in the second
    /// before. More than two, for a thread whose time is a little late.
    seconds: [AtomicU64; 4],
    callers: Mutex<Callers>,
    /// Of the callers that there is no room for.
    others: Arc<Share>,
}

#[derive(Debug)]
struct Callers {
    known: HashMap<Box<str>, Arc<Share>>,
    /// Those that have a limit of their own.
    named: usize,
    /// The second of the last look for forgettable ones.
    swept: u32,
}

/// What a caller has of a service.
#[derive(Debug)]
pub(crate) struct Share {
    per_s: u32,
    named: bool,
    interval: u64,
    /// Until when all that the caller may have is given away.
    taken: AtomicU64,
    /// Until when its share of the service is given away.
    share_taken: AtomicU64,
    /// The last second in which it called; 0 is never.
    second: AtomicU32,
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The caller has had all that it may have.
    #[error("the caller has had its {per_s} calls a second ({})", key(*named))]
    Caller {
        /// What it may have.
        per_s: u32,
        /// Whether it has a limit of its own.
        named: bool,
    },
    /// The service has had all that it may have, and the caller its share.
    #[error("the service has had its {per_s} calls a second (rate.service_per_s), of which the caller's share is {share}")]
    Service {
        /// What the service may have.
        per_s: u32,
        /// What the caller is sure of.
        share: u32,
    },
}

fn key(named: bool) -> &'static str {
    if named { "rate.callers" } else { "rate.caller_per_s" }
}

impl Limiter {
    /// Nobody has called yet.
    pub(crate) fn new(options: &Options, now: Instant) -> Self {
        let named = |(name, per_s): (&String, &u32)| (name.as_str().into(), Arc::new(Share::new(*per_s, true)));
        let known: HashMap<_, _> = options.callers.iter().map(named).collect();
        Self {
            began: now,
            service_per_s: options.service_per_s,
            caller_per_s: options.caller_per_s,
            interval: interval(options.service_per_s),
            burst: ticks(options.burst),
            taken: AtomicU64::new(0),
            seconds: Default::default(),
            callers: Mutex::new(Callers { named: known.len(), known, swept: 0 }),
            others: Arc::new(Share::new(options.caller_per_s, false)),
        }
    }

    /// The share of the caller with this name, to be kept as long as calls of it come. When there are too many callers, new ones have
    /// one share together.
    pub(crate) fn caller(&self, name: &str, now: Instant) -> Arc<Share> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = callers.known.get(name) {
            return share.clone();
        }
        if !callers.has_room(second(ticks(now.saturating_duration_since(self.began)))) {
            return self.others.clone();
        }
        let share = Arc::new(Share::new(self.caller_per_s, false));
        callers.known.insert(name.into(), share.clone());
        share
    }

    /// Lets a call through, or says why not. Takes no lock and allocates nothing.
    pub(crate) fn admit(&self, share: &Share, now: Instant) -> Result<(), Refused> {
        let now = ticks(now.saturating_duration_since(self.began));
        let most = self.burst.max(share.interval);
        if share.interval > 0 && share.taken.load(Relaxed).max(now) + share.interval > now + most {
            return Err(Refused::Caller { per_s: share.per_s, named: share.named });
        }
        if self.interval > 0 {
            self.admit_to_service(share, now)?;
        }
        if share.interval > 0 {
            // Whatever other threads have taken meanwhile: so the limit is exceeded by one call for each of them at most, and what
            // the service refuses does not count.
            take(&share.taken, now, share.interval, u64::MAX);
        }
        Ok(())
    }

    /// How many callers are active, of those that a service's rate is shared by.
    #[cfg(test)]
    pub(crate) fn active(&self, now: Instant) -> u32 {
        let second = second(ticks(now.saturating_duration_since(self.began)));
        self.active_in(second)
    }

    /// How many callers are told apart.
    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).known.len()
    }

    fn admit_to_service(&self, share: &Share, now: u64) -> Result<(), Refused> {
        let active = self.touch(share, second(now));
        let burst = self.burst.max(self.interval);
        let share_interval = self.interval.saturating_mul(active.into());
        let admitted = if take(&share.share_taken, now, share_interval, burst.max(share_interval)) {
            let admitted = take(&self.taken, now, self.interval, burst);
            if !admitted {
                share.share_taken.fetch_sub(share_interval, Relaxed);
            }
            admitted
        } else {
            // INVARIANT: what is left of the burst is enough for the shares of all others, and for what is left of this one's.
            let beyond = (burst / u64::from(active)).saturating_sub(self.interval).max(self.interval);
            take(&self.taken, now, self.interval, beyond)
        };
        if admitted {
            return Ok(());
        }
        Err(Refused::Service { per_s: self.service_per_s, share: (self.service_per_s / active).max(1) })
    }

    /// Notes that a caller is active; how many are, this one included.
    fn touch(&self, share: &Share, second: u32) -> u32 {
        let last = share.second.load(Relaxed);
        if last < second && share.second.compare_exchange(last, second, Relaxed, Relaxed).is_ok() {
            let new = u16::from(last + 1 < second);
            let count = |packed| match Count::from(packed) {
                count if count.second > second => None,
                count if count.second < second => Some(Count { second, all: 1, new }.into()),
                Count { all, new: others, .. } => {
                    Some(Count { second, all: all.saturating_add(1), new: others.saturating_add(new) }.into())
                }
            };
            // One that is already about a later second is left as it is.
            let _ = self.seconds[second as usize % self.seconds.len()].fetch_update(Relaxed, Relaxed, count);
        }
        self.active_in(second)
    }

    fn active_in(&self, second: u32) -> u32 {
        let count = |second: u32| {
            let count = Count::from(self.seconds[second as usize % self.seconds.len()].load(Relaxed));
            if count.second == second { count } else { Count::default() }
        };
        (u32::from(count(second).new) + u32::from(count(second - 1).all)).max(1)
    }
}

impl Share {
    fn new(per_s: u32, named: bool) -> Self {
        Self { per_s, named, interval: interval(per_s), taken: 0.into(), share_taken: 0.into(), second: 0.into() }
    }
}

impl Callers {
    /// Whether one more can be told apart; forgets those that nobody holds and that have not called for long, once a second at most.
    fn has_room(&mut self, second: u32) -> bool {
        let full = |callers: &Self| callers.known.len() - callers.named >= CALLERS_MAX;
        if full(self) && self.swept != second {
            self.swept = second;
            let idle =
                |share: &Arc<Share>| share.second.load(Relaxed).saturating_add(IDLE) < second && Arc::strong_count(share) == 1;
            self.known.retain(|_, share| share.named || !idle(share));
        }
        !full(self)
    }
}

/// The callers of a second, in one word.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    second: u32,
    all: u16,
    new: u16,
}

impl From<u64> for Count {
    fn from(packed: u64) -> Self {
        let [a, b, c, d, all @ .., e, f] = packed.to_be_bytes();
        Self { second: u32::from_be_bytes([a, b, c, d]), all: u16::from_be_bytes(all), new: u16::from_be_bytes([e, f]) }
    }
}

impl From<Count> for u64 {
    fn from(count: Count) -> Self {
        Self::from(count.second) << 32 | Self::from(count.all) << 16 | Self::from(count.new)
    }
}

/// Gives a call away, if that leads no further ahead than `most`.
fn take(taken: &AtomicU64, now: u64, interval: u64, most: u64) -> bool {
    let next = |until: u64| Some(until.max(now).saturating_add(interval)).filter(|next| *next <= now.saturating_add(most));
    taken.fetch_update(Relaxed, Relaxed, next).is_ok()
}

/// The time between two calls, rounded up so that a rate is never exceeded; 0 if there is no bound.
fn interval(per_s: u32) -> u64 {
    if per_s == 0 { 0 } else { SECOND.div_ceil(per_s.into()) }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * 16).unwrap_or(u64::MAX)
}

/// Seconds are counted from 2: 0 is never, and the first one is not the one after.
fn second(ticks: u64) -> u32 {
    u32::try_from(ticks / SECOND + 2).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
