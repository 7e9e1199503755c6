//! Sees that workers hang: they have not said for a while that they live.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::{
    protocol::Ports,
    pulse::Pulse,
    reset::{Holder, Reset},
};
use crate::clock::now_ns;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Whoever looks so much later did not get to run itself, as nobody else perhaps: what it sees then says nothing.
const LATE: Duration = Duration::from_millis(150);
/// A worker hangs when it was seen so often in a row that it did not move.
const LOOKS: u32 = 3;

/// Watches the workers of the agent.
pub(super) struct Watchdog {
    pulse: Pulse,
    holder: Holder,
    /// By worker.
    timers: Vec<RawFd>,
    suspicion: Suspicion,
    due: Instant,
}

impl Watchdog {
    pub(super) fn new(agent: Pid, page: OwnedFd, timers: Vec<RawFd>, ports: Ports) -> io::Result<Self> {
        let (pulse, holder) = (Pulse::over(page)?, Holder::new(agent, ports)?);
        Ok(Self { pulse, holder, timers, suspicion: Suspicion::default(), due: Instant::now() + LOOK })
    }

    /// How long until it is time to look.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        // A bit later rather than a bit earlier, as who waits counts in milliseconds.
        let wait = self.due.saturating_duration_since(now);
        if wait.is_zero() { wait } else { wait + Duration::from_millis(1) }
    }

    /// Looks, if it is time, and resets what those hold that hang.
    pub(super) fn look_if_due(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        self.due = now + LOOK;
        let beats = self.pulse.beats();
        let sight =
            Sight { now_ns: now_ns(), stale_ns: self.pulse.stale_ns(), hold_until_ns: self.pulse.hold_until_ns(), beats: &beats };
        let hung = self.suspicion.look(&sight);
        if !hung.is_empty() {
            let is_out = |(at, beat): (usize, &u64)| *beat == 0 || hung.iter().any(|(worker, _)| *worker == at);
            let all = beats.iter().enumerate().all(is_out);
            self.reset(&hung, all, sight.now_ns);
        }
    }

    fn reset(&self, hung: &[(usize, u64)], all: bool, now_ns: u64) {
        let timers: Vec<RawFd> = hung.iter().map(|(worker, _)| self.timers.get(*worker).copied().unwrap_or(-1)).collect();
        let resets = match self.holder.reset(&timers, all) {
            Ok(resets) => resets,
            Err(error) => {
                let workers: Vec<usize> = hung.iter().map(|(worker, _)| *worker).collect();
                tracing::warn!(
                    ?workers,
                    %error,
                    "workers of the agent hang, and what they hold can't be reset (that takes Linux 5.6 and CAP_SYS_PTRACE)"
                );
                return;
            }
        };
        for ((worker, beat), Reset { listeners, connections, failed }) in hung.iter().zip(resets) {
            let silent_ms = now_ns.saturating_sub(*beat) / 1_000_000;
            tracing::warn!(
                worker,
                silent_ms,
                listeners,
                connections,
                failed,
                "a worker of the agent hangs: what it listens on and what it has accepted is reset"
            );
            // What it could not be rid of still counts against it.
            if failed == 0 {
                self.pulse.rest_if(*worker, *beat);
            }
        }
    }
}

/// What one look shows.
struct Sight<'a> {
    now_ns: u64,
    stale_ns: u64,
    hold_until_ns: u64,
    beats: &'a [u64],
}

/// Who did not move at the last looks.
#[derive(Default)]
struct Suspicion {
    looked_ns: u64,
    of: Vec<Suspect>,
}

#[derive(Clone, Copy, Default)]
struct Suspect {
    beat: u64,
    looks: u32,
}

impl Suspicion {
    /// The workers that hang, each with its last beat: each is told once.
    fn look(&mut self, sight: &Sight<'_>) -> Vec<(usize, u64)> {
        let since = Duration::from_nanos(sight.now_ns.saturating_sub(self.looked_ns));
        self.looked_ns = sight.now_ns;
        let says_nothing = sight.stale_ns == 0 || sight.now_ns < sight.hold_until_ns || since > LATE;
        self.of.resize(sight.beats.len(), Suspect::default());
        let mut hung = Vec::new();
        for (worker, (suspect, beat)) in self.of.iter_mut().zip(sight.beats).enumerate() {
            let fresh = *beat == 0 || sight.now_ns.saturating_sub(*beat) <= sight.stale_ns;
            if fresh || (says_nothing && suspect.looks < LOOKS) || suspect.beat != *beat {
                *suspect = Suspect { beat: *beat, looks: 0 };
            }
            if !fresh && !says_nothing && suspect.looks < LOOKS {
                suspect.looks += 1;
                if suspect.looks == LOOKS {
                    hung.push((worker, *beat));
                }
            }
        }
        hung
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Looks at these times, in milliseconds, with a beat at 1000 and one that is always fresh; when the first was found to hang.
    fn found(times: &[u64], hold_until: u64) -> Vec<u64> {
        let mut suspicion = Suspicion::default();
        let look = |now: &u64| {
            let beats = [1000 * MS, now * MS, 0];
            let sight = Sight { now_ns: now * MS, stale_ns: 500 * MS, hold_until_ns: hold_until * MS, beats: &beats };
            let hung = suspicion.look(&sight);
            assert!(hung.iter().all(|hung| *hung == (0, 1000 * MS)), "{hung:?}");
            (!hung.is_empty()).then_some(*now)
        };
        times.iter().filter_map(look).collect()
    }

    #[test]
    fn a_worker_hangs_when_three_looks_found_it_silent() {
        let times: Vec<u64> = (1000..3000).step_by(50).collect();
        assert_eq!(found(&times, 0), [1650], "and it is told once");
    }

    #[test]
    fn who_looks_late_has_seen_nothing() {
        let times: Vec<u64> = (1000..10_000).step_by(200).collect();
        assert_eq!(found(&times, 0), [0; 0]);
        assert_eq!(found(&[1500, 1550, 1600, 5000, 5050, 5100, 5150], 0), [5150]);
    }

    #[test]
    fn nobody_hangs_while_beats_are_held() {
        let times: Vec<u64> = (1000..3000).step_by(50).collect();
        assert_eq!(found(&times, 2000), [2100]);
        assert_eq!(found(&times, u64::MAX / MS), [0; 0]);
    }

    #[test]
    fn who_hangs_again_is_told_again() {
        let mut suspicion = Suspicion::default();
        let mut look = |now: u64, beat: u64| {
            suspicion.look(&Sight { now_ns: now * MS, stale_ns: 500 * MS, hold_until_ns: 0, beats: &[beat * MS] }).len()
        };
        let told: usize = (1000..2000).step_by(50).map(|now| look(now, 1)).sum();
        let again: usize = (2000..4000).step_by(50).map(|now| look(now, 1900)).sum();
        assert_eq!((told, again), (1, 1));
    }
}
