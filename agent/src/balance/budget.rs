//! How many calls of a service may be sent again.
//!
//! # Bound
//! Over any time from `a` to `b`, with `calls` deposited from 10 s before `a` until `b`:
//!
//! `retries <= percent / 100 × calls + per_s × (b - a) + max(per_s, 1)`
//!
//! where the last two are 0 if `per_s` is 0. So an outage multiplies a service's traffic by `1 + percent / 100` at most, beyond a
//! fixed number of retries each second. Of `workers` budgets that share one `per_s` ([`Budget::shared`]) all together keep the same
//! bound, with `max(per_s, workers)` as its constant.

use std::time::{Duration, Instant};

/// How long a call may pay for a retry, in slots; the last one is being filled.
const SLOTS: usize = 10;
/// What one slot holds.
const SLOT: Duration = Duration::from_secs(1);
/// Deposits are counted in hundredths of a retry.
const HUNDREDTHS: u64 = 100;
const NANOS_PER_S: u64 = 1_000_000_000;

/// The retries that a worker still has for a service: a share of the calls that were made within 10 seconds, and some each second in
/// any case.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    percent: u64,
    per_s: u64,
    /// What a retry takes from the reserve: a second's nanoseconds, as often as there are workers.
    whole: u64,
    /// What is left of each slot's deposits, in hundredths of a retry.
    slots: [u64; SLOTS],
    slot: usize,
    slot_began: Option<Instant>,
    /// When the slots were looked at last: most calls come at the same time as others.
    turned: Option<Instant>,
    /// What is there in any case; grows by `per_s` each nanosecond.
    reserve: u64,
    filled: Option<Instant>,
}

impl Budget {
    /// `percent` retries for each hundred calls, and `per_s` each second in any case.
    pub(crate) fn new(percent: u32, per_s: u32) -> Self {
        Self::shared(percent, per_s, 1)
    }

    /// The budget of one worker of several that share `per_s`.
    pub(crate) fn shared(percent: u32, per_s: u32, workers: u32) -> Self {
        let mut budget = Self {
            percent: percent.into(),
            per_s: per_s.into(),
            whole: NANOS_PER_S.saturating_mul(workers.max(1).into()),
            slots: [0; SLOTS],
            slot: 0,
            slot_began: None,
            turned: None,
            reserve: 0,
            filled: None,
        };
        budget.reserve = budget.reserve_max();
        budget
    }

    /// A call was made; sending it again is none.
    pub(crate) fn deposit(&mut self, now: Instant) {
        self.turn(now);
        self.slots[self.slot] = self.slots[self.slot].saturating_add(self.percent);
    }

    /// Takes a retry, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.turn(now);
        self.fill(now);
        if self.reserve >= self.whole {
            self.reserve -= self.whole;
            return true;
        }
        if self.slots.iter().fold(0, |sum: u64, slot| sum.saturating_add(*slot)) < HUNDREDTHS {
            return false;
        }
        // The oldest first: it is the next to be forgotten.
        let mut owed = HUNDREDTHS;
        for i in 1..=SLOTS {
            let slot = &mut self.slots[(self.slot + i) % SLOTS];
            let paid = owed.min(*slot);
            *slot -= paid;
            owed -= paid;
        }
        true
    }

    /// How many retries there are now.
    pub(crate) fn left(&self, now: Instant) -> u32 {
        let mut then = self.clone();
        then.turn(now);
        then.fill(now);
        let deposited = then.slots.iter().fold(0, |sum: u64, slot| sum.saturating_add(*slot)) / HUNDREDTHS;
        u32::try_from(deposited.saturating_add(then.reserve / then.whole)).unwrap_or(u32::MAX)
    }

    /// Forgets the slots whose time is over.
    fn turn(&mut self, now: Instant) {
        if self.turned == Some(now) {
            return;
        }
        self.turned = Some(now);
        let mut began = *self.slot_began.get_or_insert(now);
        let mut turned = 0;
        while now.saturating_duration_since(began) >= SLOT {
            if turned == SLOTS {
                began = now;
                break;
            }
            began += SLOT;
            self.slot = (self.slot + 1) % SLOTS;
            self.slots[self.slot] = 0;
            turned += 1;
        }
        self.slot_began = Some(began);
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(*self.filled.get_or_insert(now));
        if !passed.is_zero() {
            let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
            self.reserve = self.reserve.saturating_add(self.per_s.saturating_mul(nanos)).min(self.reserve_max());
            self.filled = Some(now);
        }
    }

    /// A second's worth, but at least one retry.
    fn reserve_max(&self) -> u64 {
        if self.per_s == 0 { 0 } else { self.whole.max(self.per_s * NANOS_PER_S) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What may be taken at once.
    fn drain(budget: &mut Budget, now: Instant) -> u32 {
        let left = budget.left(now);
        let taken = (0..).take_while(|_| budget.take(now)).count();
        assert_eq!(left as usize, taken);
        left
    }

    #[test]
    fn a_service_without_calls_has_its_retries_each_second() {
        let (mut budget, start) = (Budget::new(20, 10), Instant::now());
        assert_eq!(drain(&mut budget, start), 10);
        assert_eq!(drain(&mut budget, start + ms(99)), 0);
        assert_eq!(drain(&mut budget, start + ms(100)), 1);
        assert_eq!(drain(&mut budget, start + ms(60_000)), 10, "no more than a second's worth is saved");
    }

    #[test]
    fn a_share_of_the_calls_for_ten_seconds() {
        let (mut budget, start) = (Budget::new(20, 0), Instant::now());
        assert!(!budget.take(start));
        (0..1000).for_each(|_| budget.deposit(start));
        assert_eq!(budget.left(start + ms(9_999)), 200);
        assert_eq!(budget.left(start + ms(10_000)), 0);
        assert_eq!(budget.left(start + ms(3_600_000)), 0);
        assert_eq!(drain(&mut budget, start + ms(5_000)), 200);
        assert_eq!(drain(&mut budget, start + ms(5_000)), 0);
    }

    #[test]
    fn workers_share_what_is_there_in_any_case() {
        let start = Instant::now();
        let mut workers: Vec<_> = (0..4).map(|_| Budget::shared(0, 10, 4)).collect();
        assert_eq!(workers.iter_mut().map(|worker| drain(worker, start)).sum::<u32>(), 8);
        let seconds = 100;
        let more: u32 =
            (1..=seconds * 10).map(|i| workers.iter_mut().map(|worker| drain(worker, start + ms(i * 100))).sum::<u32>()).sum();
        assert_eq!(more, 1000, "10 a second, and the halves that were left");
    }

    #[test]
    fn nothing_at_all_and_extremes() {
        let start = Instant::now();
        let mut none = Budget::new(0, 0);
        none.deposit(start);
        assert!(!none.take(start) && none.left(start) == 0);
        let mut most = Budget::shared(u32::MAX, u32::MAX, u32::MAX);
        (0..100).for_each(|_| most.deposit(start));
        assert!(most.take(start) && most.left(start + Duration::from_secs(1 << 40)) == 1);
    }

    proptest! {
        #[test]
        fn never_above_the_bound(
            percent in 0_u32..=300,
            per_s in prop_oneof![Just(0_u32), 1_u32..50],
            // After how long, whether it is a call, how often.
            events in proptest::collection::vec((0_u64..4_000, any::<bool>(), 1_u32..40), 1..60),
        ) {
            let start = Instant::now();
            let mut budget = Budget::new(percent, per_s);
            let (mut now, mut calls, mut retries) = (0, Vec::new(), Vec::new());
            for (after, call, times) in events {
                now += after;
                for _ in 0..times {
                    if call {
                        budget.deposit(start + ms(now));
                        calls.push(now);
                    } else if budget.take(start + ms(now)) {
                        retries.push(now);
                    }
                }
            }
            for (i, first) in retries.iter().enumerate() {
                for (j, last) in retries.iter().enumerate().skip(i) {
                    let deposited = calls.iter().filter(|at| **at + 10_000 > *first && *at <= last).count() as f64;
                    let constant = if per_s == 0 { 0.0 } else { f64::from(per_s.max(1)) };
                    let most = f64::from(percent) / 100.0 * deposited
                        + f64::from(per_s) * ((last - first) as f64 / 1000.0)
                        + constant;
                    let taken = (j - i + 1) as f64;
                    prop_assert!(taken <= most + 1e-9, "{taken} from {first} to {last} ms, at most {most}");
                }
            }
        }
    }
}
