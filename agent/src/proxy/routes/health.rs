//! What is known of an instance's health; of another agent's also whether it is still to be tried, and how much it has to bear.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
};

use super::Changes;
use crate::balance::overload::Level;

/// What is known of an instance's health. Its checker writes, workers read. All that is behind another agent shares its agent's.
#[derive(Debug)]
pub(crate) struct Health {
    healthy: AtomicBool,
    /// How often it became healthy again.
    recoveries: AtomicU32,
    reason: Mutex<String>,
    changes: Changes,
    /// Of an agent that has come back.
    trial: AtomicU8,
    /// The level that an agent has said that it sheds at.
    load: AtomicU8,
}

/// Of a trial: there is none; nobody tries; one call does.
const PROVEN: u8 = 0;
const ON_TRIAL: u8 = 1;
const TRIED: u8 = 2;

impl Health {
    pub(super) fn healthy(reason: &str, changes: &Changes) -> Self {
        Self {
            healthy: AtomicBool::new(true),
            recoveries: AtomicU32::new(0),
            reason: Mutex::new(reason.to_owned()),
            changes: changes.clone(),
            trial: AtomicU8::new(PROVEN),
            load: AtomicU8::new(Level::Calm.number()),
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    pub(crate) fn set(&self, healthy: bool, reason: impl Into<String>) {
        self.note(reason);
        if self.healthy.swap(healthy, Relaxed) != healthy {
            self.recoveries.fetch_add(u32::from(healthy), Relaxed);
            self.changes.note();
        }
    }

    fn note(&self, reason: impl Into<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.into();
    }

    /// How often it became healthy again.
    pub(crate) fn recoveries(&self) -> u32 {
        self.recoveries.load(Relaxed)
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // An agent that has come back gets one call at a time until it has answered one, or a PING.

    /// It is back: whether it is well is still to be seen.
    pub(crate) fn is_back(&self, reason: &str) {
        if !self.is_healthy() {
            self.trial.store(ON_TRIAL, Relaxed);
        }
        self.set(true, reason);
        // What it says of its load may have come with its HELLO.
        self.note_load(self.load());
    }

    /// Whether one call tries it at the moment.
    pub(crate) fn is_tried(&self) -> bool {
        self.trial.load(Relaxed) == TRIED
    }

    /// A call goes there. If it is on trial, no other one should until this has ended.
    pub(crate) fn tries(&self) {
        if self.trial.load(Relaxed) == ON_TRIAL {
            // Another worker may have been quicker, which is no matter.
            let _ = self.trial.compare_exchange(ON_TRIAL, TRIED, Relaxed, Relaxed);
        }
    }

    /// A call there is over, however it ended.
    pub(crate) fn tried(&self) {
        if self.trial.load(Relaxed) == TRIED {
            let _ = self.trial.compare_exchange(TRIED, ON_TRIAL, Relaxed, Relaxed);
        }
    }

    /// It has answered.
    pub(crate) fn proves(&self) {
        if self.trial.load(Relaxed) != PROVEN {
            self.trial.store(PROVEN, Relaxed);
        }
    }

    // What an agent says of how much it has to bear.

    /// What it sheds.
    pub(crate) fn load(&self) -> Level {
        Level::of_number(self.load.load(Relaxed))
    }

    /// It sheds so much, as it says.
    pub(crate) fn set_load(&self, level: Level) {
        let before = self.load.swap(level.number(), Relaxed);
        if before != level.number() && self.is_healthy() {
            self.note("connected");
            self.note_load(level);
        }
    }

    fn note_load(&self, level: Level) {
        if level > Level::Calm {
            self.note(match level {
                Level::Calm | Level::Low => "connected; it has much to bear, and calls of priority low go elsewhere",
                Level::Normal => "connected; it has much to bear, and calls of priority low and normal go elsewhere",
                Level::All => "connected; it has too much to bear, and calls go elsewhere",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_back_is_tried_by_one_call_at_a_time() {
        let health = Health::healthy("not connected yet", &Changes::default());
        health.is_back("connected");
        health.tries();
        assert!(!health.is_tried(), "it was not away");
        health.set(false, "it died");
        health.is_back("connected");
        assert!(!health.is_tried());
        health.tries();
        assert!(health.is_tried());
        health.tried();
        assert!(!health.is_tried(), "the next one may try it");
        health.tries();
        // Its call that has been answered is over after that.
        health.proves();
        health.tried();
        health.tries();
        assert!(!health.is_tried());
    }

    #[test]
    fn what_an_agent_says_of_its_load_is_its_reason_while_it_is_there() {
        let health = Health::healthy("connected", &Changes::default());
        health.set_load(Level::Low);
        assert!(health.reason().contains("priority low") && health.load() == Level::Low);
        health.set(false, "it died");
        health.set_load(Level::Calm);
        assert_eq!(health.reason(), "it died");
        // It may say so before it counts as there.
        health.set_load(Level::All);
        health.is_back("connected");
        assert!(health.reason().contains("too much"));
        health.set_load(Level::Calm);
        assert_eq!(health.reason(), "connected");
    }
}
