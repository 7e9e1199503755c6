//! What one worker saw of each instance of a service.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::ewma;

/// A failed call counts as one that took at least this long: an instance that fails fast must not look like a fast one.
const FAILURE: Duration = Duration::from_secs(1);

/// What an average counts as where nothing was seen and calls are in flight already: one at a time finds out.
const UNKNOWN_NS: f32 = 3.6e12;

/// Calls in flight and latency of each instance of a service, by its position in the service's list. One worker's own: several
/// sets of the same instances share it.
#[derive(Debug)]
pub(crate) struct Loads {
    base: Instant,
    decay_per_ns: f32,
    seen: Box<[Seen]>,
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

/// An instance's average and how long ago it was true, both in nanoseconds.
pub(crate) type Saved = [u64; 2];

impl Loads {
    /// Nothing seen of `n` instances yet. After `decay` without a call a third of what was seen is left.
    pub(crate) fn new(n: usize, decay: Duration, now: Instant) -> Self {
        let decay_per_ns = 1e-9 / decay.as_secs_f32().max(1e-6);
        Self { base: now, decay_per_ns, seen: vec![Seen::default(); n].into() }
    }

    /// As many as the service has now, with what is known of those that it had before: pairs of the old position and the new one.
    pub(crate) fn with(from: &Self, n: usize, pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut seen = vec![Seen::default(); n];
        for (old, new) in pairs {
            if let (Some(old), Some(new)) = (from.get(old), seen.get_mut(new as usize)) {
                *new = old.clone();
            }
        }
        Self { base: from.base, decay_per_ns: from.decay_per_ns, seen: seen.into() }
    }

    /// A call goes to the instance.
    pub(crate) fn begin(&self, index: u32) {
        if let Some(seen) = self.get(index) {
            seen.in_flight.set(seen.in_flight.get().saturating_add(1));
        }
    }

    /// The call is over, whatever came of it.
    pub(crate) fn end(&self, index: u32) {
        if let Some(seen) = self.get(index) {
            seen.in_flight.set(seen.in_flight.get().saturating_sub(1));
        }
    }

    /// An answer came.
    pub(crate) fn observe(&self, index: u32, took: Duration, now: Instant) {
        let at = self.stamp(now);
        if let Some(seen) = self.get(index) {
            let left = ewma::left(at.saturating_sub(seen.at.get()), self.decay_per_ns);
            seen.average.set(ewma::after(seen.average.get(), took.as_secs_f32() * 1e9, left));
            seen.at.set(at.max(seen.at.get()));
        }
    }

    /// The call failed.
    pub(crate) fn fail(&self, index: u32, took: Duration, now: Instant) {
        self.observe(index, took.max(FAILURE), now);
    }

    pub(crate) fn in_flight(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |seen| seen.in_flight.get())
    }

    /// The average as it is now; zero where nothing was seen.
    pub(crate) fn ewma(&self, index: u32, now: Instant) -> Duration {
        let at = self.stamp(now);
        let ns = self.get(index).map_or(0.0, |seen| self.average(seen, at));
        Duration::try_from_secs_f32(ns * 1e-9).unwrap_or(Duration::MAX)
    }

    /// For the agent that takes over: averages only, calls in flight are begun there anew.
    pub(crate) fn export(&self, now: Instant) -> Vec<Saved> {
        let at = self.stamp(now);
        let ns = |seen: &Seen| Duration::try_from_secs_f32(seen.average.get() * 1e-9).unwrap_or(Duration::MAX);
        self.seen.iter().map(|seen| [nanos(ns(seen)), at.saturating_sub(seen.at.get())]).collect()
    }

    /// What another agent saw, with its positions and ours.
    pub(crate) fn import(&mut self, saved: &[Saved], pairs: impl IntoIterator<Item = (u32, u32)>, now: Instant) {
        let oldest = pairs.into_iter().filter_map(|(old, new)| Some((*saved.get(old as usize)?, new)));
        let mut known: Vec<_> = oldest.collect();
        // Stamps are not negative: the base goes back as far as the oldest was seen.
        let back = known.iter().map(|(saved, _)| saved[1]).max().unwrap_or(0);
        if let Some(base) = now.checked_sub(Duration::from_nanos(back)).filter(|base| *base < self.base) {
            let by = nanos(self.base - base);
            self.seen.iter().for_each(|seen| seen.at.set(seen.at.get().saturating_add(by)));
            self.base = base;
        }
        let at = self.stamp(now);
        for ([average, age], new) in known.drain(..) {
            if let Some(seen) = self.get(new) {
                seen.average.set(average as f32);
                seen.at.set(at.saturating_sub(age));
            }
        }
    }

    /// `now` as `cost` takes it.
    pub(crate) fn stamp(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.base))
    }

    /// How long a call would take there, roughly: latency times what is in flight already, which counts `scale` each, and `extra`.
    pub(crate) fn cost(&self, index: u32, stamp: u64, scale: f32, extra: f32) -> f32 {
        let Some(seen) = self.get(index) else { return 0.0 };
        let in_flight = seen.in_flight.get() as f32;
        let average = match self.average(seen, stamp) {
            ns if ns > 0.0 => ns,
            _ if in_flight > 0.0 => UNKNOWN_NS,
            _ => 0.0,
        };
        average * (1.0 + in_flight * scale + extra)
    }

    fn average(&self, seen: &Seen, stamp: u64) -> f32 {
        seen.average.get() * ewma::left(stamp.saturating_sub(seen.at.get()), self.decay_per_ns)
    }

    fn get(&self, index: u32) -> Option<&Seen> {
        self.seen.get(index as usize)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
