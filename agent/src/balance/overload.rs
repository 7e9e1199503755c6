//! When an agent has too much to bear, and which calls it refuses then: those that matter least first.
//!
//! Pure code: what is used, and the time, are arguments.

use std::time::{Duration, Instant};

/// Pressure at which something is at its limit, and at which it is at its hard bound.
const AT_LIMIT: u32 = 1_000;
const AT_BOUND: u32 = 2_000;

/// For each level but the first: the pressure at which it begins, the one below which it may end, and for how long that must have
/// been so. The higher ones end earlier, so that calls come back step by step.
const STEPS: [(u32, u32, Duration); 3] = [
    (AT_LIMIT, 950, Duration::from_secs(3)),
    (AT_LIMIT + (AT_BOUND - AT_LIMIT) / 2, 1_400, Duration::from_secs(2)),
    (AT_BOUND, 1_900, Duration::from_secs(1)),
];

/// How much an agent sheds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    Calm,
    /// Calls of low priority.
    Low,
    /// Those of normal priority, too.
    Normal,
    /// All.
    All,
}

impl Level {
    /// Its number, from 0.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Calm => 0,
            Self::Low => 1,
            Self::Normal => 2,
            Self::All => 3,
        }
    }

    /// The level with this number; what is beyond is the highest.
    pub(crate) const fn of_number(number: u8) -> Self {
        match number {
            0 => Self::Calm,
            1 => Self::Low,
            2 => Self::Normal,
            _ => Self::All,
        }
    }
}

/// How much of something is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) used: u64,
    /// From here on the least is refused.
    pub(crate) limit: u64,
    /// From here on everything is. None: never, for this.
    pub(crate) bound: Option<u64>,
    /// How far above the limit half of the way to the bound is, where there is none.
    pub(crate) half: u64,
}

impl Gauge {
    /// Something that has a limit and a bound.
    pub(crate) const fn bounded(used: u64, limit: u64, bound: u64) -> Self {
        Self { used, limit, bound: Some(bound), half: 0 }
    }

    /// Something for which the most important calls are never refused.
    pub(crate) const fn unbounded(used: u64, limit: u64, half: u64) -> Self {
        Self { used, limit, bound: None, half }
    }

    /// In thousandths of the limit, and from there on of the way to the bound.
    pub(crate) fn pressure(&self) -> u32 {
        let of = |part: u64, whole: u64| u128::from(part) * u128::from(AT_LIMIT) / u128::from(whole.max(1));
        let over = self.used.saturating_sub(self.limit);
        let pressure = match self.bound {
            _ if self.used < self.limit => of(self.used, self.limit),
            Some(bound) => u128::from(AT_LIMIT) + of(over, bound.saturating_sub(self.limit)),
            None => (u128::from(AT_LIMIT) + of(over, self.half.saturating_mul(2))).min(u128::from(AT_BOUND - 1)),
        };
        u32::try_from(pressure.min(u128::from(AT_BOUND))).unwrap_or(AT_BOUND)
    }
}

/// Decides about the level. It rises at once, and falls step by step when the pressure has been clearly below for a while.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overload {
    latches: [Latch; STEPS.len()],
}

#[derive(Debug, Clone, Copy, Default)]
struct Latch {
    is_on: bool,
    /// Since when the pressure has been so low that it may end.
    low_since: Option<Instant>,
}

impl Latch {
    fn look(&mut self, now: Instant, pressure: u32, (up, down, hold): (u32, u32, Duration)) {
        self.low_since = (pressure < down).then(|| self.low_since.unwrap_or(now));
        self.is_on = match self.low_since {
            Some(since) => self.is_on && now.saturating_duration_since(since) < hold,
            None => self.is_on || pressure >= up,
        };
    }
}

impl Overload {
    /// The level now, at this pressure.
    pub(crate) fn look(&mut self, now: Instant, pressure: u32) -> Level {
        for (latch, step) in self.latches.iter_mut().zip(STEPS) {
            latch.look(now, pressure, step);
        }
        let highest = self.latches.iter().rposition(|latch| latch.is_on);
        highest.map_or(Level::Calm, |at| Level::of_number(u8::try_from(at + 1).unwrap_or(u8::MAX)))
    }
}

/// Of so many calls at most, with how many in flight a call of a priority is refused: the last places are kept for those that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    /// Low priority.
    pub(crate) low: usize,
    /// Normal priority.
    pub(crate) normal: usize,
}

impl Places {
    /// With `percent` of `max` in flight the least is refused. `keeps`: there are calls of high priority to keep places for.
    pub(crate) fn new(max: usize, percent: u8, keeps: bool) -> Self {
        let low = (max.saturating_mul(usize::from(percent.min(100))) / 100).max(1).min(max);
        // Rounded up: with few places, those who are usual have them.
        let normal = if keeps { low + (max - low).div_ceil(2) } else { max };
        Self { low, normal }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn pressure_is_a_thousand_at_the_limit_and_two_at_the_bound() {
        let at = |used| Gauge::bounded(used, 900, 1_000).pressure();
        assert_eq!([0, 450, 899, 900, 950, 1_000, u64::MAX].map(at), [0, 500, 998, 1_000, 1_500, 2_000, 2_000]);
        let late = |used| Gauge::unbounded(used, 100, 150).pressure();
        assert_eq!([0, 50, 100, 250, 400, u64::MAX].map(late), [0, 500, 1_000, 1_500, 1_999, 1_999]);
        // A bound at the limit, or below, or no limit at all, is no division by zero.
        assert_eq!(
            [Gauge::bounded(5, 5, 5), Gauge::bounded(6, 5, 3), Gauge::bounded(0, 0, 0)].map(|g| g.pressure()),
            [1_000, 2_000, 1_000]
        );
    }

    #[test]
    fn the_level_rises_at_once_and_falls_step_by_step() {
        let (mut overload, start) = (Overload::default(), Instant::now());
        let mut at = |after, pressure| overload.look(start + ms(after), pressure);
        assert_eq!(
            [at(0, 999), at(1, 1_000), at(2, 1_499), at(3, 1_500), at(4, 2_000)],
            [Level::Calm, Level::Low, Level::Low, Level::Normal, Level::All]
        );
        assert_eq!([at(100, 10), at(1_099, 10), at(1_100, 10)], [Level::All, Level::All, Level::Normal]);
        assert_eq!(
            [at(2_099, 10), at(2_100, 10), at(3_099, 10), at(3_100, 10)],
            [Level::Normal, Level::Low, Level::Low, Level::Calm]
        );
    }

    #[test]
    fn it_does_not_flap_at_the_edge() {
        let (mut overload, start) = (Overload::default(), Instant::now());
        let (mut changes, mut level) = (0, Level::Calm);
        // A minute around the limit, ten times a second.
        for step in 0..600 {
            let next = overload.look(start + ms(step * 100), if step % 2 == 0 { 1_010 } else { 940 });
            changes += u32::from(next != level);
            level = next;
        }
        assert_eq!((changes, level), (1, Level::Low));
        // And a little below it is not enough to end it, however long.
        assert_eq!(overload.look(start + ms(10_000_000), 950), Level::Low);
        assert_eq!(overload.look(start + ms(20_000_000), 949), Level::Low);
        assert_eq!(overload.look(start + ms(20_003_000), 949), Level::Calm);
    }

    #[test]
    fn places_are_kept_for_those_that_matter() {
        let places = |max, percent, keeps| {
            let Places { low, normal } = Places::new(max, percent, keeps);
            (low, normal)
        };
        assert_eq!(places(1_000, 90, true), (900, 950));
        assert_eq!(places(1_000, 90, false), (900, 1_000));
        assert_eq!(places(1_000, 100, true), (1_000, 1_000));
        assert_eq!((places(10, 90, true), places(1, 50, true), places(3, 1, true)), ((9, 10), (1, 1), (1, 2)));
    }

    /// Pressures over time, each for a while.
    fn pressures() -> impl Strategy<Value = Vec<(u32, u64)>> {
        proptest::collection::vec((0..=AT_BOUND, 0..2_000_u64), 1..200)
    }

    proptest! {
        /// Under more pressure at every moment the level is never lower.
        #[test]
        fn is_monotone_in_pressure(run in pressures(), more in proptest::collection::vec(0..600_u32, 200)) {
            let (mut one, mut other, start) = (Overload::default(), Overload::default(), Instant::now());
            let mut after = 0;
            for ((pressure, pause), more) in run.into_iter().zip(more) {
                after += pause;
                let now = start + ms(after);
                let (low, high) = (one.look(now, pressure), other.look(now, (pressure + more).min(AT_BOUND)));
                prop_assert!(low <= high, "{low:?} at {pressure}, {high:?} at {more} more");
            }
        }

        /// Whatever was before: at rest it is calm after three seconds, and at the bound everything is shed at once.
        #[test]
        fn recovers_from_everything(run in pressures(), rest in 0..950_u32) {
            let (mut overload, mut now) = (Overload::default(), Instant::now());
            for (pressure, pause) in run {
                now += ms(pause);
                overload.look(now, pressure);
            }
            prop_assert_eq!(overload.look(now, AT_BOUND), Level::All);
            overload.look(now, rest);
            prop_assert_eq!(overload.look(now + ms(3_000), rest), Level::Calm);
        }

        /// No level lasts for less than its time, so that nothing is told of more often than once a second.
        #[test]
        fn no_level_ends_early(run in pressures()) {
            let (mut overload, start) = (Overload::default(), Instant::now());
            let (mut after, mut raised, mut level) = (0, 0, Level::Calm);
            for (pressure, pause) in run {
                after += pause;
                let next = overload.look(start + ms(after), pressure);
                if next > level {
                    raised = after;
                }
                prop_assert!(next >= level || after - raised >= 1_000, "{level:?} for {} ms", after - raised);
                level = next;
            }
        }
    }
}
