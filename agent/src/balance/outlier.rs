//! Taking instances out of traffic for a while, for what their calls show.
//!
//! # Bounds
//! - Of `n` instances at most `max(1, ⌊n × ejected_max_percent / 100⌋)` are out at once; of one alone none.
//! - The `k`-th time in a row an instance is out for `min(k × ejection, ejection_max)`. For each `ejection` that it then spends in
//!   traffic one time is forgotten.
//! - An instance is out for its success rate only if it had more failures than chance explains: with `e` failures expected of its
//!   calls at the average rate, more than `e + 5 × √e + 3`. Of instances that are all alike fewer than one in 100,000 has so many.

use std::{
    fmt::{self, Display},
    time::{Duration, Instant},
};

/// When an instance is taken out of traffic, and for how long. What the numbers mean is said where they are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) consecutive: u32,
    pub(crate) success_rate_deviations: u32,
    pub(crate) latency_percent: u32,
    pub(crate) calls_min: u32,
    pub(crate) instances_min: u32,
    pub(crate) ejection: Duration,
    pub(crate) ejection_max: Duration,
    pub(crate) ejected_max_percent: u8,
}

impl Policy {
    /// Whether nothing takes an instance out.
    pub(crate) fn is_off(&self) -> bool {
        self.consecutive == 0 && !self.samples()
    }

    /// Whether [`Outliers::check`] has anything to look at.
    pub(crate) fn samples(&self) -> bool {
        self.success_rate_deviations > 0 || self.latency_percent > 0
    }

    /// How many of so many instances may be out at once.
    pub(crate) fn ejected_max(&self, instances: usize) -> usize {
        if instances < 2 { 0 } else { (instances * usize::from(self.ejected_max_percent.min(100)) / 100).max(1) }
    }

    fn ejection(&self, times: u32) -> Duration {
        self.ejection.saturating_mul(times).min(self.ejection_max.max(self.ejection))
    }
}

/// What an instance's calls showed since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Calls that ended.
    pub(crate) calls: u64,
    /// Those of them that failed.
    pub(crate) failures: u64,
    /// How long all of them took.
    pub(crate) latency_sum: Duration,
}

/// What became of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is out of traffic.
    Ejected { index: u32, until: Instant, reason: String },
    /// It is in traffic again.
    Returned { index: u32 },
}

/// What is remembered of an instance.
#[derive(Debug, Clone, Default)]
struct State {
    /// How often in a row it was out.
    times: u32,
    out: Option<Out>,
    /// When it came back.
    since: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Out {
    until: Instant,
    reason: String,
}

/// Which instances of a service are out of traffic. An instance is known by its place in the service's list.
#[derive(Debug)]
pub(crate) struct Outliers {
    policy: Policy,
    states: Vec<State>,
    ejected: usize,
}

impl Outliers {
    /// All are in traffic.
    pub(crate) fn new(policy: Policy, instances: usize) -> Self {
        Self { policy, states: vec![State::default(); instances], ejected: 0 }
    }

    /// The same with another policy or other instances: `same` are those that stay, with their place before and their place now.
    ///
    /// If that are fewer, or fewer may be out, those return that would have first.
    pub(crate) fn follow(&self, policy: Policy, instances: usize, same: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut next = Self::new(policy, instances);
        for (before, now) in same {
            if let (Some(from), Some(to)) = (self.states.get(before as usize), next.states.get_mut(now as usize)) {
                *to = from.clone();
            }
        }
        next.settle();
        next
    }

    /// Until when an instance is out and why, if it is.
    pub(crate) fn out(&self, index: u32) -> Option<(Instant, &str)> {
        let out = self.states.get(index as usize)?.out.as_ref()?;
        Some((out.until, &out.reason))
    }

    /// How many are out.
    #[cfg(test)]
    pub(crate) fn ejected(&self) -> usize {
        self.ejected
    }

    /// An instance had as many failures in a row as the policy allows.
    pub(crate) fn failed_in_a_row(&mut self, now: Instant, index: u32) -> Option<Change> {
        let failures = self.policy.consecutive;
        if failures == 0 {
            return None;
        }
        self.eject(now, index, || match failures {
            1 => "a failure".to_owned(),
            _ => format!("{failures} failures in a row"),
        })
    }

    /// Looks at what the instances' calls showed in an interval, one sample for each of them.
    pub(crate) fn check(&mut self, now: Instant, samples: &[Sample]) -> Vec<Change> {
        let mut seen: Vec<Seen> = Vec::new();
        if self.policy.samples() {
            let of = |(index, sample): (u32, &Sample)| self.out(index).is_none().then(|| Seen::of(index, sample));
            let enough = |seen: &Seen| seen.calls >= f64::from(self.policy.calls_min.max(1));
            seen = (0..).zip(samples).take(self.states.len()).filter_map(of).filter(enough).collect();
        }
        if seen.is_empty() || seen.len() < self.policy.instances_min as usize {
            return Vec::new();
        }
        let mut changes = self.check_success(now, &mut seen);
        changes.extend(self.check_latency(now, &mut seen));
        changes
    }

    /// Lets an instance return before its time, as something else shows that it is well.
    pub(crate) fn pardon(&mut self, now: Instant, index: u32) -> Option<Change> {
        let state = self.states.get_mut(index as usize)?;
        state.out.take()?;
        state.since = Some(now);
        self.ejected -= 1;
        Some(Change::Returned { index })
    }

    /// Lets those return whose time is over.
    pub(crate) fn release(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (index, state) in (0..).zip(&mut self.states) {
            if state.out.take_if(|out| out.until <= now).is_some() {
                state.since = Some(now);
                self.ejected -= 1;
                changes.push(Change::Returned { index });
            }
        }
        changes
    }

    fn check_success(&mut self, now: Instant, seen: &mut [Seen]) -> Vec<Change> {
        if self.policy.success_rate_deviations == 0 {
            return Vec::new();
        }
        let count = seen.iter().map(|_| 1.0).sum::<f64>();
        let mean = seen.iter().map(|one| one.failed).sum::<f64>() / count;
        let variance = seen.iter().map(|one| (one.failed - mean).powi(2)).sum::<f64>() / count;
        let most = mean + f64::from(self.policy.success_rate_deviations) / 100.0 * variance.sqrt();
        // The worst first: there may not be room for all.
        seen.sort_by(|one, other| other.failed.total_cmp(&one.failed));
        let worse =
            seen.iter().take_while(|one| one.failed > most).filter(|one| one.failed * one.calls > by_chance(mean * one.calls));
        worse
            .filter_map(|one| {
                self.eject(now, one.index, || {
                    format!("success rate {} against {} on average", Percent(1.0 - one.failed), Percent(1.0 - mean))
                })
            })
            .collect()
    }

    fn check_latency(&mut self, now: Instant, seen: &mut [Seen]) -> Vec<Change> {
        if self.policy.latency_percent == 0 {
            return Vec::new();
        }
        seen.sort_by_key(|one| std::cmp::Reverse(one.latency));
        let median = seen[seen.len() / 2].latency;
        let most = median.mul_f64(f64::from(self.policy.latency_percent) / 100.0);
        let slower = seen.iter().take_while(|one| one.latency > most && one.latency > median);
        slower
            .filter_map(|one| {
                self.eject(now, one.index, || format!("mean latency {} against a median of {}", Time(one.latency), Time(median)))
            })
            .collect()
    }

    /// Takes an instance out, if there may be one more.
    fn eject(&mut self, now: Instant, index: u32, reason: impl FnOnce() -> String) -> Option<Change> {
        let room = self.ejected < self.policy.ejected_max(self.states.len());
        let state = self.states.get_mut(index as usize).filter(|state| room && state.out.is_none())?;
        let behaved = state.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgotten = behaved.as_nanos().checked_div(self.policy.ejection.as_nanos()).unwrap_or(u128::MAX);
        state.times = state.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)).saturating_add(1);
        let (until, reason) = (now + self.policy.ejection(state.times), reason());
        state.out = Some(Out { until, reason: reason.clone() });
        self.ejected += 1;
        Some(Change::Ejected { index, until, reason })
    }

    /// Counts those that are out, and lets those back that are too many.
    fn settle(&mut self) {
        let most = if self.policy.is_off() { 0 } else { self.policy.ejected_max(self.states.len()) };
        let mut out: Vec<_> = self.states.iter_mut().filter(|state| state.out.is_some()).collect();
        out.sort_by_key(|state| state.out.as_ref().map(|out| out.until));
        let many = out.len().saturating_sub(most);
        out.iter_mut().take(many).for_each(|state| state.out = None);
        self.ejected = out.len() - many;
    }
}

/// An instance that had enough calls.
struct Seen {
    index: u32,
    calls: f64,
    /// The share of its calls that failed.
    failed: f64,
    latency: Duration,
}

impl Seen {
    fn of(index: u32, sample: &Sample) -> Self {
        let calls = sample.calls.max(1) as f64;
        Self {
            index,
            calls: sample.calls as f64,
            failed: sample.failures as f64 / calls,
            latency: sample.latency_sum.div_f64(calls),
        }
    }
}

/// How many failures chance explains where so many are expected.
fn by_chance(expected: f64) -> f64 {
    expected + 5.0 * expected.sqrt() + 3.0
}

/// A share of one, for people.
struct Percent(f64);

impl Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

/// A time of three digits at most, for people.
struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_secs_f64() * 1000.0;
        match ms {
            10_000.0.. => write!(f, "{:.1} s", ms / 1000.0),
            10.0.. => write!(f, "{ms:.0} ms"),
            1.0.. => write!(f, "{ms:.1} ms"),
            _ => write!(f, "{:.0} µs", ms * 1000.0),
        }
    }
}

#[cfg(test)]
mod tests;
