//! A bound on calls in flight that finds out what a service can take.
//!
//! Of the latency without load and the latency now it makes a gradient, as Netflix's and Envoy's limits do: as long as calls take no
//! more than half as long again as they do without load the bound grows, if it is used at all (at least half of it); beyond that it
//! falls in proportion, and is halved where they take three times as long. What a call takes without load is the least average that
//! was seen; it is measured again when it is doubtful: every 20 s (or 100 times what a call takes) with a third of the calls for a
//! moment, unless the average came near it meanwhile, and after 2 s at the least bound.
//!
//! # Bounds
//! - The bound never leaves `min..=max`.
//! - A service of `c` places, each of which takes a call for `s`, and more load than it can take: the bound settles near the `b` with
//!   `b = 1.5 × c + √b` if that is above `min`, so no place is idle and a call takes `b / c × s` on average (`c` of 100: 163 calls,
//!   `1.63 × s`). Measured with times and arrivals by chance (M/M/c): within `c..=2.5 × c`, at least 95 % of what the service can do
//!   (90 % where a call takes a second), at most `2.5 × s`.
//! - A service that takes its load is left alone: no call is refused once the bound has grown to twice what is in flight.
//! - After a slow phase, or timeouts, the bound is back within 5 s; where calls last longer, within 50 of them.

use std::time::{Duration, Instant};

/// Latencies are looked at so often at most.
const WINDOW: Duration = Duration::from_millis(100);
/// A look takes as long as so many calls: while fewer have ended, the quick ones are too many.
const CALLS: f64 = 4.0;
/// The longest latency that is waited for.
const LONG: f64 = 10.0;
/// Calls that a look needs.
const SAMPLES: u32 = 40;
/// How much longer than without load calls may take before the bound falls.
const TOLERANCE: f64 = 1.5;
/// How much of a step is made at once.
const STEP: f64 = 0.3;
/// How much a look counts in the average of them.
const AVERAGE: f64 = 0.2;
/// How near the latency without load an average must come for it to be believed.
const NEAR: f64 = 1.1;
/// How much less a measurement must show than what was believed, for the next one to be made at once.
const CLEARLY: f64 = 1.25;
/// How long it is believed otherwise.
const DOUBTFUL: Duration = Duration::from_secs(20);
/// It is believed for so many calls one after the other at least: measuring takes longer where they do.
const DOUBTFUL_CALLS: f64 = 100.0;
/// How long the bound is at its least before what is seen there counts as without load.
const AT_LEAST: Duration = Duration::from_secs(2);

/// The bound of one worker for one service.
#[derive(Debug)]
pub(crate) struct Adaptive {
    min: f64,
    max: f64,
    bound: f64,
    /// A look was taken.
    warm: bool,
    /// It has not fallen since it was at its least: it is doubled with each look.
    starting: bool,
    /// It goes on after it fell for nothing.
    restarted: bool,
    /// Latencies, in seconds.
    unloaded: Option<f64>,
    average: Option<f64>,
    /// What was last measured.
    measured: Option<f64>,
    window: Option<Window>,
    /// When an average was last near what calls take without load.
    believed: Option<Instant>,
    /// Since when the bound is at its least, and what calls take there.
    least: Option<(Instant, f64)>,
    probe: Option<Probe>,
}

/// What was seen since the last look.
#[derive(Debug)]
struct Window {
    began: Instant,
    samples: u32,
    failures: u32,
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
    /// Whether it is about what stopped the start.
    of_start: bool,
}

impl Adaptive {
    /// A bound from `min` to `max`, at its least.
    pub(crate) fn new(min: u32, max: u32) -> Self {
        let min = f64::from(min.max(1));
        Self {
            min,
            max: f64::from(max).max(min),
            bound: min,
            warm: false,
            starting: true,
            restarted: false,
            unloaded: None,
            average: None,
            measured: None,
            window: None,
            believed: None,
            least: None,
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
        if (failed && self.unloaded.is_none_or(|unloaded| took < unloaded)) || self.is_settling(in_flight, now) {
            return;
        }
        let window = self.window.get_or_insert(Window { began: now, samples: 0, failures: 0, sum: 0.0, peak: 0 });
        window.samples += 1;
        window.failures += u32::from(failed);
        window.sum += took;
        window.peak = window.peak.max(in_flight);
        let mean = window.sum / f64::from(window.samples);
        let least = Duration::from_secs_f64(CALLS * mean.min(LONG)).max(WINDOW);
        if window.samples >= SAMPLES && now.saturating_duration_since(window.began) >= least {
            let (peak, failed) = (f64::from(window.peak), window.failures * 2 > window.samples);
            self.window = None;
            self.look(mean.max(1e-9), peak, failed, now);
        }
    }

    /// Whether the calls of before a measurement are not yet gone.
    fn is_settling(&mut self, in_flight: u32, now: Instant) -> bool {
        let Some(probe) = &mut self.probe else { return false };
        if probe.clear.is_none() && f64::from(in_flight) <= probe.bound {
            probe.clear = Some(now + Duration::from_secs_f64(2.0 * self.average.unwrap_or(0.0).min(LONG)));
        }
        probe.clear.is_none_or(|clear| now < clear)
    }

    /// Moves the bound by what a window shows.
    fn look(&mut self, mean: f64, peak: f64, failed: bool, now: Instant) {
        let probe = self.probe.take();
        if failed {
            // It was long, and nothing is to be learned of what an answer takes.
            self.step(mean, 0.5, now);
            self.least = None;
            return;
        }
        if !std::mem::replace(&mut self.warm, true) {
            // The first one has too many quick calls.
            return;
        }
        let higher = self.unloaded.is_some_and(|unloaded| mean > unloaded * NEAR);
        let lower = self.unloaded.is_some_and(|unloaded| mean * CLEARLY < unloaded);
        match probe {
            // Even with fewer calls it may still have been loaded: once more.
            Some(_) if lower => {
                self.bound = (self.bound * mean / self.unloaded.unwrap_or(mean)).max(self.min);
                self.unloaded = Some(mean);
            }
            Some(probe) => {
                self.believe(mean, now);
                // What stopped the start was a wrong measurement; if that happens again it was not.
                self.starting = probe.of_start && higher && !self.restarted;
                self.restarted = self.starting;
            }
            None => {
                let average = self.average.map_or(mean, |average| average + (mean - average) * AVERAGE);
                self.compare(mean, average, peak, now);
            }
        }
    }

    fn compare(&mut self, mean: f64, average: f64, peak: f64, now: Instant) {
        self.average = Some(average);
        let unloaded = self.unloaded.map_or(average, |unloaded| unloaded.min(average));
        self.unloaded = Some(unloaded);
        let used = peak * 2.0 >= self.bound;
        let faster = self.measured.is_some_and(|measured| average * 2.0 < measured);
        if average <= unloaded * NEAR && !faster {
            self.believed = Some(now);
        } else if faster || self.is_doubtful(now) {
            if used && self.bound > self.min {
                self.probe(3.0, false);
            } else {
                self.believe(average, now);
            }
        }
        if used {
            self.step(mean, (TOLERANCE * unloaded / mean).clamp(0.5, 1.2), now);
        }
        if let Some((since, seen)) = &mut self.least {
            *seen += (mean - *seen) / 2.0;
            if now.saturating_duration_since(*since) >= AT_LEAST {
                let seen = *seen;
                self.believe(seen, now);
            }
        }
    }

    /// Measures with so much fewer calls.
    fn probe(&mut self, part: f64, of_start: bool) {
        self.probe = Some(Probe { bound: (self.bound / part).max(self.min), clear: None, of_start });
    }

    fn step(&mut self, mean: f64, gradient: f64, now: Instant) {
        if self.starting && gradient < 1.0 && self.bound > self.min {
            // Half as many were all right: with a quarter nothing waits.
            self.starting = false;
            self.probe(4.0, true);
            self.bound = (self.bound / 2.0).max(self.min);
            return;
        }
        self.starting &= gradient >= 1.0;
        let next = self.bound * gradient.min(1.0) + self.bound.sqrt();
        let to = match gradient {
            _ if self.starting => self.bound * 2.0,
            ..=0.5 => self.bound / 2.0,
            // Far from where it would fall.
            1.2.. => next,
            _ => self.bound + (next - self.bound) * STEP,
        };
        self.bound = to.clamp(self.min, self.max);
        if self.bound > self.min {
            self.least = None;
        } else {
            self.starting = true;
            self.least.get_or_insert((now, mean));
        }
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        let long = DOUBTFUL.max(Duration::from_secs_f64(DOUBTFUL_CALLS * self.unloaded.unwrap_or(0.0).min(LONG)));
        self.believed.is_none_or(|believed| now.saturating_duration_since(believed) >= long)
    }

    /// Takes a latency for the one without load.
    fn believe(&mut self, latency: f64, now: Instant) {
        self.unloaded = Some(latency);
        self.average = Some(latency);
        self.measured = Some(latency);
        self.believed = Some(now);
        self.least = None;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "is a count between two that fit")]
fn whole(bound: f64) -> u32 {
    bound as u32
}

#[cfg(test)]
mod tests;
