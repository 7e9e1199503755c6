//! A bound on calls in flight that finds out what a service can take.
//!
//! Of the latency without load and the latency now it makes a gradient: as long as calls take no more than half as long again as they
//! do without load the bound grows, if it is used at all; beyond that it falls in proportion. A service of `c` places, each of which
//! takes a call for `s`, thus has `1.5 × c + √bound` calls in flight or a little more: enough that no place is idle, and a wait of
//! `s` at most. What a call takes without load is the least that was seen; it is measured again when it is doubtful: after 30 s with
//! half as many calls, or after 2 s at the least bound.

use std::time::{Duration, Instant};

/// Latencies are looked at so often at most; where a call takes longer, once in that time.
const WINDOW: Duration = Duration::from_millis(100);
/// Calls that a look needs.
const SAMPLES: u32 = 20;
/// How much longer than without load calls may take before the bound falls.
const TOLERANCE: f64 = 1.5;
/// How much of a step is made at once.
const STEP: f64 = 0.3;
/// How much a look counts in the average of them.
const AVERAGE: f64 = 0.2;
/// How near the latency without load an average must come for it to be believed.
const NEAR: f64 = 1.1;
/// How long it is believed otherwise.
const DOUBTFUL: Duration = Duration::from_secs(30);
/// How long the bound is at its least before what is seen there counts as without load.
const AT_LEAST: Duration = Duration::from_secs(2);

/// The bound of one worker for one service.
#[derive(Debug)]
pub(crate) struct Adaptive {
    min: f64,
    max: f64,
    bound: f64,
    /// It has never fallen yet: it is doubled with each look.
    starting: bool,
    /// Latencies, in seconds.
    unloaded: Option<f64>,
    average: Option<f64>,
    window: Option<Window>,
    /// When an average was last near what calls take without load.
    believed: Option<Instant>,
    /// Since when the bound is at its least.
    least_since: Option<Instant>,
    probe: Option<Probe>,
}

/// What was seen since the last look.
#[derive(Debug)]
struct Window {
    began: Instant,
    samples: u32,
    sum: f64,
    /// The most calls in flight.
    peak: u32,
}

/// A measurement with fewer calls.
#[derive(Debug)]
struct Probe {
    bound: f64,
    /// When the calls that had waited with more of them are gone.
    clear: Option<Instant>,
}

impl Adaptive {
    /// A bound from `min` to `max`, at its least.
    pub(crate) fn new(min: u32, max: u32) -> Self {
        let min = f64::from(min.max(1));
        Self {
            min,
            max: f64::from(max).max(min),
            bound: min,
            starting: true,
            unloaded: None,
            average: None,
            window: None,
            believed: None,
            least_since: None,
            probe: None,
        }
    }

    /// Whether one more call may be made while so many are in flight.
    pub(crate) fn admits(&self, in_flight: u32) -> bool {
        in_flight < self.limit()
    }

    /// How many calls may be in flight.
    pub(crate) fn limit(&self) -> u32 {
        let bound = self.probe.as_ref().map_or(self.bound, |probe| probe.bound);
        whole(bound)
    }

    /// A call ended after `took`, while so many were in flight, itself included.
    ///
    /// A failure counts only if it took long: a quick one says nothing about what the service can take.
    pub(crate) fn observe(&mut self, took: Duration, in_flight: u32, failed: bool, now: Instant) {
        let took = took.as_secs_f64();
        if failed && self.unloaded.is_none_or(|unloaded| took < unloaded) {
            return;
        }
        if self.is_settling(in_flight, now) {
            return;
        }
        let least = WINDOW.max(Duration::from_secs_f64(self.unloaded.unwrap_or(0.0).min(10.0)));
        let window = self.window.get_or_insert_with(|| Window { began: now, samples: 0, sum: 0.0, peak: 0 });
        window.samples += 1;
        window.sum += took;
        window.peak = window.peak.max(in_flight);
        if window.samples >= SAMPLES && now.saturating_duration_since(window.began) >= least {
            let (mean, peak) = (window.sum / f64::from(window.samples), window.peak);
            self.window = None;
            self.look(mean.max(1e-9), f64::from(peak), now);
        }
    }

    /// Whether the calls of before a measurement are not yet gone.
    fn is_settling(&mut self, in_flight: u32, now: Instant) -> bool {
        let Some(probe) = &mut self.probe else { return false };
        if probe.clear.is_none() && f64::from(in_flight) <= probe.bound {
            probe.clear = Some(now + Duration::from_secs_f64(2.0 * self.average.unwrap_or(0.0).min(10.0)));
        }
        probe.clear.is_none_or(|clear| now < clear)
    }

    /// Moves the bound by what a window shows.
    fn look(&mut self, mean: f64, peak: f64, now: Instant) {
        if self.probe.take().is_some() {
            self.believe(mean, now);
            return;
        }
        let average = self.average.map_or(mean, |average| average + (mean - average) * AVERAGE);
        self.average = Some(average);
        let unloaded = self.unloaded.map_or(average, |unloaded| unloaded.min(average));
        self.unloaded = Some(unloaded);
        let used = peak * 2.0 >= self.bound;
        if average <= unloaded * NEAR {
            self.believed = Some(now);
        } else if self.is_doubtful(now) {
            if used && self.bound > self.min {
                self.probe = Some(Probe { bound: (self.bound / 2.0).max(self.min), clear: None });
            } else {
                self.believe(average, now);
            }
        }
        if used {
            self.step((TOLERANCE * unloaded / mean).clamp(0.5, 1.0), now);
        }
        if self.least_since.is_some_and(|since| now.saturating_duration_since(since) >= AT_LEAST) {
            self.believe(mean, now);
        }
    }

    fn step(&mut self, gradient: f64, now: Instant) {
        self.starting &= gradient == 1.0;
        let to = if self.starting {
            self.bound * 2.0
        } else {
            self.bound + (self.bound * gradient + self.bound.sqrt() - self.bound) * STEP
        };
        let to = to.clamp(self.min, self.max);
        if to > self.min {
            self.least_since = None;
        } else if to < self.bound || gradient < 1.0 {
            self.least_since.get_or_insert(now);
        }
        self.bound = to;
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        self.believed.is_none_or(|believed| now.saturating_duration_since(believed) >= DOUBTFUL)
    }

    /// Takes a latency for the one without load.
    fn believe(&mut self, latency: f64, now: Instant) {
        self.unloaded = Some(latency);
        self.average = Some(latency);
        self.believed = Some(now);
        self.least_since = None;
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "is a count between two that fit")]
fn whole(bound: f64) -> u32 {
    bound as u32
}

#[cfg(test)]
mod tests;
