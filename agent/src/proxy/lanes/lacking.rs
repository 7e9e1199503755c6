//! Since when instances have lacked a lane.
//!
//! An instance that joins has its stream connection before its lane, and one that dies may lose its lane first. For as long as
//! that takes, calls are routed to the others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long an instance without a lane is only left out. One that lacks it for longer never gets a call of those that are routed,
/// so that the agent picks for all of them.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The instances that lacked a lane when it was looked last.
#[derive(Debug)]
pub(super) struct Lacking<K> {
    since: HashMap<K, Instant>,
    /// Those that lack one now.
    seen: HashMap<K, Instant>,
    now: Instant,
}

impl<K: std::hash::Hash + Eq> Lacking<K> {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: HashMap::new(), seen: HashMap::new(), now }
    }

    /// It is looked at all instances from here on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.now = now;
        self.seen.clear();
    }

    /// An instance has no lane. Whether that is so for longer than it may be.
    pub(super) fn lacks(&mut self, instance: K) -> bool {
        let since = self.since.get(&instance).copied().unwrap_or(self.now);
        self.seen.insert(instance, since);
        self.now.saturating_duration_since(since) >= GRACE
    }

    /// It was looked at all: who was not seen to lack a lane has one, or is gone.
    pub(super) fn end(&mut self) {
        std::mem::swap(&mut self.since, &mut self.seen);
    }

    /// When the next one lacks a lane for too long, if one does not yet.
    pub(super) fn next(&self) -> Option<Instant> {
        self.since.values().map(|since| *since + GRACE).filter(|due| *due > self.now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Looks, and gives which of these lack a lane for too long.
    fn look(lacking: &mut Lacking<u8>, now: Instant, without: &[u8]) -> Vec<u8> {
        lacking.begin(now);
        let late = without.iter().copied().filter(|one| lacking.lacks(*one)).collect();
        lacking.end();
        late
    }

    #[test]
    fn whoever_lacks_a_lane_has_a_grace_of_its_own() {
        let start = Instant::now();
        let mut lacking = Lacking::new(start);
        assert_eq!(lacking.next(), None);
        assert_eq!(look(&mut lacking, start, &[1]), [0; 0]);
        assert_eq!(lacking.next(), Some(start + GRACE));
        assert_eq!(look(&mut lacking, start + 400 * MS, &[1, 2]), [0; 0]);
        assert_eq!(look(&mut lacking, start + GRACE - MS, &[1, 2]), [0; 0]);
        assert_eq!(look(&mut lacking, start + GRACE, &[1, 2]), [1]);
        assert_eq!(lacking.next(), Some(start + GRACE + 400 * MS));
        assert_eq!(look(&mut lacking, start + GRACE + 400 * MS, &[1, 2]), [1, 2]);
        assert_eq!(lacking.next(), None);
    }

    #[test]
    fn a_lane_or_an_absence_begins_it_anew() {
        let start = Instant::now();
        let mut lacking = Lacking::new(start);
        look(&mut lacking, start, &[1]);
        assert_eq!(look(&mut lacking, start + 2 * GRACE, &[1]), [1]);
        assert_eq!(look(&mut lacking, start + 2 * GRACE + MS, &[]), [0; 0]);
        assert_eq!(look(&mut lacking, start + 2 * GRACE + 2 * MS, &[1]), [0; 0]);
        assert_eq!(lacking.next(), Some(start + 3 * GRACE + 2 * MS));
    }

    #[test]
    fn one_of_several_services_is_one_all_the_same() {
        let start = Instant::now();
        let mut lacking = Lacking::new(start);
        assert_eq!(look(&mut lacking, start, &[1, 1]), [0; 0]);
        assert_eq!(look(&mut lacking, start + GRACE, &[1, 1]), [1, 1]);
    }
}
