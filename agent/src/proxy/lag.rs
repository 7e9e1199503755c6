//! How late a worker is: on a busy machine it may not get to run for a while, and what it sees then came earlier.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// A worker that wakes so much later than it wanted to has stalled.
const LATE: Duration = Duration::from_millis(4);
/// What had come by the end of a stall is seen by then.
const CLEARED: Duration = Duration::from_millis(8);

/// When one worker did not get to run.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// When it wanted to run again.
    due: Cell<Option<Instant>>,
    /// The latest stall: when the worker had run before, and when it ran again.
    stall: Cell<Option<(Instant, Instant)>>,
}

impl Lag {
    /// The worker wants to run at this time, or does not care.
    pub(super) fn wants(&self, at: Option<Instant>) {
        self.due.set(at);
    }

    /// The worker runs, and ran before at `before`.
    pub(super) fn runs(&self, before: Instant, now: Instant) {
        if self.due.get().is_some_and(|due| now > due + LATE) {
            self.due.set(None);
            self.stall.set(Some((before, now)));
        }
    }

    /// How long what is seen now may have been there at most.
    pub(super) fn at(&self, now: Instant) -> Duration {
        let recent = self.stall.get().filter(|(_, until)| now.saturating_duration_since(*until) < CLEARED);
        recent.map_or(Duration::ZERO, |(from, _)| now.saturating_duration_since(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_stall_has_held_up_is_late() {
        let (lag, start) = (Lag::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let late = |ms| lag.at(at(ms)).as_millis();
        lag.runs(at(0), at(50));
        assert_eq!(late(50), 0, "it wanted nothing");
        lag.wants(Some(at(58)));
        lag.runs(at(50), at(60));
        assert_eq!(late(60), 0, "in time");
        lag.runs(at(60), at(90));
        assert_eq!(late(90), 30);
        // More of what lay there.
        lag.runs(at(90), at(91));
        assert_eq!(late(91), 31);
        lag.wants(Some(at(99)));
        lag.runs(at(91), at(98));
        assert_eq!(late(98), 0, "all that has been seen");
    }
}
