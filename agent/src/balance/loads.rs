//! What one worker saw of each instance of a service.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use super::ewma;

/// A failed call counts as one that took so much longer than the average, between these bounds: an instance that fails fast must
/// not look like a fast one, and one that fails once must not be out for long.
const FAILURE: f32 = 8.0;
const FAILURE_NS: (f32, f32) = (1e7, 1e9);

/// What an average counts as where nothing was seen and calls are in flight already: one at a time finds out.
const UNKNOWN_NS: f32 = 3.6e12;

/// Calls in flight and latency of each instance of a service, by its slot: an instance keeps its slot for as long as it is there.
/// One worker's own: several sets of the same instances share it, and so do a service's former configurations, of which calls may
/// still be in flight.
#[derive(Debug)]
pub(crate) struct Loads {
    base: Instant,
    /// The time that was asked for last, as `stamp` has it: most calls come at the same time as others.
    stamped: Cell<(Instant, u64)>,
    decay_per_ns: Cell<f32>,
    seen: RefCell<Vec<Seen>>,
}

/// One instance: 16 bytes, so that a look costs one cache line.
#[derive(Debug, Clone, Default)]
#[repr(align(16))]
struct Seen {
    /// Nanoseconds; 0 where nothing was seen, or long ago.
    average: Cell<f32>,
    in_flight: Cell<u32>,
    /// When the average was true, in nanoseconds since `base`.
    at: Cell<u64>,
}

impl Loads {
    /// Whether calls in flight count in this slot.
    pub(crate) fn is_busy(&self, index: u32) -> bool {
        self.in_flight(index) > 0
    }

    /// Nothing seen of `n` instances yet. After `decay` without a call a third of what was seen is left.
    pub(crate) fn new(n: usize, decay: Duration, now: Instant) -> Self {
        let loads = Self {
            base: now,
            stamped: Cell::new((now, 0)),
            decay_per_ns: Cell::default(),
            seen: RefCell::new(vec![Seen::default(); n]),
        };
        loads.set_decay(decay);
        loads
    }

    pub(crate) fn set_decay(&self, decay: Duration) {
        self.decay_per_ns.set(1e-9 / decay.as_secs_f32().max(1e-6));
    }

    /// An instance that was not there before gets this slot.
    pub(crate) fn begin_anew(&self, index: u32) {
        let mut seen = self.seen.borrow_mut();
        let len = seen.len().max(index as usize + 1);
        seen.resize(len, Seen::default());
        seen[index as usize] = Seen::default();
    }

    /// What was seen of the instance's latency says nothing any more.
    pub(crate) fn forget(&self, index: u32) {
        self.see(index, |seen| seen.average.set(0.0));
    }

    /// A call goes to the instance.
    pub(crate) fn begin(&self, index: u32) {
        self.see(index, |seen| seen.in_flight.set(seen.in_flight.get().saturating_add(1)));
    }

    /// The call is over, whatever came of it.
    pub(crate) fn end(&self, index: u32) {
        self.see(index, |seen| seen.in_flight.set(seen.in_flight.get().saturating_sub(1)));
    }

    /// An answer came. Returns the average with it, in nanoseconds.
    pub(crate) fn observe(&self, index: u32, took: Duration, now: Instant) -> f32 {
        self.observe_late(index, took, Duration::ZERO, now)
    }

    /// An answer came, and may have been there for as long as `late` before it was seen: only what is certain of its latency
    /// counts, or a worker that stalls would take all instances for as slow as itself.
    pub(crate) fn observe_late(&self, index: u32, took: Duration, late: Duration, now: Instant) -> f32 {
        let at = self.stamp(now);
        let ns = |time: Duration| time.as_secs_f32() * 1e9;
        let (least, most) = (ns(took.saturating_sub(late)), ns(took));
        let average = self.see(index, |seen| {
            let left = ewma::left(at.saturating_sub(seen.at.get()), self.decay_per_ns.get());
            let average = seen.average.get();
            seen.average.set(ewma::after(average, average.clamp(least, most), left));
            seen.at.set(at.max(seen.at.get()));
            seen.average.get()
        });
        average.unwrap_or(0.0)
    }

    /// The call failed.
    pub(crate) fn fail(&self, index: u32, took: Duration, now: Instant) -> f32 {
        let average = self.see(index, |seen| seen.average.get()).unwrap_or(0.0);
        let penalty = (average * FAILURE).clamp(FAILURE_NS.0, FAILURE_NS.1);
        self.observe(index, took.max(Duration::from_secs_f32(penalty * 1e-9)), now)
    }

    pub(crate) fn in_flight(&self, index: u32) -> u32 {
        self.see(index, |seen| seen.in_flight.get()).unwrap_or(0)
    }

    /// The average as it is now; zero where nothing was seen.
    #[cfg(test)]
    pub(crate) fn ewma(&self, index: u32, now: Instant) -> Duration {
        let at = self.stamp(now);
        let ns = self.see(index, |seen| self.average(seen, at)).unwrap_or(0.0);
        Duration::try_from_secs_f32(ns * 1e-9).unwrap_or(Duration::MAX)
    }

    /// `now` as `cost` takes it.
    pub(crate) fn stamp(&self, now: Instant) -> u64 {
        let (then, stamp) = self.stamped.get();
        if then == now {
            return stamp;
        }
        let stamp = nanos(now.saturating_duration_since(self.base));
        self.stamped.set((now, stamp));
        stamp
    }

    /// How long a call would take there, roughly: latency times what is in flight already, which counts `scale` each, and `extra`.
    pub(crate) fn cost(&self, index: u32, stamp: u64, scale: f32, extra: f32) -> f32 {
        let all = self.seen.borrow();
        let Some(seen) = all.get(index as usize) else { return 0.0 };
        let in_flight = seen.in_flight.get() as f32;
        let average = match self.average(seen, stamp) {
            ns if ns > 0.0 => ns,
            _ if in_flight > 0.0 => UNKNOWN_NS,
            _ => 0.0,
        };
        average * (1.0 + in_flight * scale + extra)
    }

    fn average(&self, seen: &Seen, stamp: u64) -> f32 {
        seen.average.get() * ewma::left(stamp.saturating_sub(seen.at.get()), self.decay_per_ns.get())
    }

    fn see<T>(&self, index: u32, with: impl FnOnce(&Seen) -> T) -> Option<T> {
        self.seen.borrow().get(index as usize).map(with)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
