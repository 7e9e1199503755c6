//! Which places of the array `LANE` can be given away.
//!
//! A program may have decided something for a lane that is over by now, and still be about to take back what it had counted
//! there. So a place is given to another lane only after every program has ended that ran when it was left. Waiting for that
//! takes the kernel some milliseconds: it is done only when no other place is left, for all that wait at once.

use std::time::{Duration, Instant};

use super::calls::programs_have_ended;

/// On a machine that cannot say whether programs have ended, one that was left for so long has none. The kernel itself takes
/// one that runs for a third of this for broken.
const REST: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(in crate::kernel) struct Places {
    /// Places from here on have had no lane yet.
    next: u32,
    end: u32,
    free: Vec<u32>,
    /// Were left, and may still be looked at.
    resting: Vec<(u32, Instant)>,
    /// Had a lane before this process began.
    former: Vec<bool>,
}

impl Places {
    /// That many.
    pub(in crate::kernel) fn new(count: u32) -> Self {
        Self { next: 0, end: count, free: Vec::new(), resting: Vec::new(), former: Vec::new() }
    }

    /// That many, which all have a lane.
    #[cfg(test)]
    pub(in crate::kernel) fn all_taken(count: u32) -> Self {
        Self { next: count, ..Self::new(count) }
    }

    /// One that nobody has.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            if let Some(fresh) = self.fresh() {
                return Some(fresh);
            }
            self.wake();
        }
        self.free.pop()
    }

    /// One is left, or was by a former process.
    pub(super) fn was_used(&mut self, index: u32) {
        if index >= self.next {
            let at = index as usize;
            if self.former.len() <= at {
                self.former.resize(at + 1, false);
            }
            self.former[at] = true;
        }
        if index < self.end {
            self.resting.push((index, Instant::now()));
        }
    }

    fn fresh(&mut self) -> Option<u32> {
        while self.next < self.end {
            let index = self.next;
            self.next += 1;
            if !self.former.get(index as usize).copied().unwrap_or(false) {
                return Some(index);
            }
        }
        None
    }

    /// Those that nobody looks at any more are free.
    fn wake(&mut self) {
        if self.resting.is_empty() {
            return;
        }
        let all = programs_have_ended().is_ok();
        let (woken, resting): (Vec<_>, Vec<_>) = self.resting.drain(..).partition(|(_, since)| all || since.elapsed() >= REST);
        self.resting = resting;
        self.free.extend(woken.into_iter().map(|(index, _)| index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_one_lane_at_a_time() {
        let mut places = Places::new(3);
        let mut all: Vec<_> = (0..4).map(|_| places.take()).collect();
        assert_eq!(all, [Some(0), Some(1), Some(2), None]);
        places.was_used(1);
        places.was_used(2);
        all = (0..3).map(|_| places.take()).collect();
        all.sort();
        assert_eq!(all, [None, Some(1), Some(2)]);
    }

    #[test]
    fn what_a_former_process_had_is_given_away_last() {
        let mut places = Places::new(3);
        places.was_used(0);
        let all: Vec<_> = (0..4).map(|_| places.take()).collect();
        assert_eq!(all, [Some(1), Some(2), Some(0), None]);
    }
}
