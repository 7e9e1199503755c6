//! How long calls may take: their deadlines, answers that keep coming, and applications that do not take theirs.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use agent_common::frame::status;

use super::{
    calls::CallKey,
    dispatch::{Call, Place, code},
    link::{Forgotten, Link},
    pool::Pool,
    worker::Worker,
};

/// How long one application that takes nothing may hold up others who wait for the connection, or whose answers come over
/// it too.
const STALL_MAX: Duration = Duration::from_secs(1);
/// What must come of a large answer within a call's timeout for it to have as long again.
const PROGRESS_MIN: usize = 64 * 1024;

impl Call {
    /// When it ends for good if its application takes nothing more. `holds_up`: others wait for its connection.
    fn paused_until(&self, since: Instant, holds_up: bool) -> Instant {
        let last_taken = self.caller.blocked_since().unwrap_or(since).max(since);
        let until =
            if holds_up { (last_taken + STALL_MAX).min(since + self.within.timeout) } else { last_taken + self.within.timeout };
        if self.within.extends { until } else { until.min(self.deadline) }
    }
}

impl Worker {
    /// A large answer that keeps coming has as long again.
    pub(super) fn extend(&self, key: CallKey, bytes: usize) {
        let mut calls = self.calls.borrow_mut();
        let Some(call) = calls.get_mut(key) else { return };
        let received = call.received.unwrap_or(0) + bytes;
        call.received = Some(received % PROGRESS_MIN);
        if let Some(more) = &mut call.more {
            more.stop();
        }
        if call.within.extends && received >= PROGRESS_MIN {
            call.deadline = self.now() + call.within.timeout;
            let tick = self.tick_of(call.deadline);
            calls.rearm(key, tick);
        }
    }

    /// Whether the answer of a call must be left in the socket, because the application has taken too little of what it
    /// was sent before; then it wakes the connection's task when it has. An application that has held up others long
    /// enough does so no more: its calls fail, and their answers are read and dropped.
    pub(crate) fn must_pause(&self, key: CallKey, pool: &Pool, link: &Link) -> bool {
        let now = self.now();
        let holds_up = link.is_shared() || pool.is_waited_for();
        {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key).filter(|call| call.is_on(link)) else { return false };
            let pause = call.caller.pause_reader(self.output_max(), &link.task);
            match (pause, call.paused) {
                (false, None) => return false,
                (false, Some(_)) => {
                    call.paused = None;
                    // What has begun to come did not come for as long only because it was not read.
                    if call.within.extends && call.received.is_some() {
                        call.deadline = now + call.within.timeout;
                    }
                    let tick = self.tick_of(call.alarm());
                    calls.rearm(key, tick);
                    return false;
                }
                (true, _) if holds_up && call.caller.is_stalled() => {}
                (true, Some(_)) => return true,
                (true, None) => {
                    call.paused = Some(now);
                    let tick = self.tick_of(call.paused_until(now, true));
                    calls.rearm(key, tick);
                    return true;
                }
            }
        }
        self.fail(key, code::POOL_FULL, Some(&pool.instance), &self.why_paused());
        false
    }

    /// Ends the calls whose time is over.
    pub(crate) fn expire(self: &Rc<Self>) {
        self.turn_begins();
        let now = self.tick_of(self.now()) - 1;
        let expired = self.calls.borrow_mut().expired(now);
        for key in expired {
            if !self.look_after(key) && !self.goes_on(key) {
                self.expire_one(key);
            }
        }
    }

    /// A paused call whose application is slow, but does take what it is sent, or holds up nobody.
    fn goes_on(&self, key: CallKey) -> bool {
        let mut calls = self.calls.borrow_mut();
        let Some(call) = calls.get_mut(key) else { return true };
        let (Some(since), Place::Sent(pool, link)) = (call.paused, &call.place) else { return false };
        let until = call.paused_until(since, link.is_shared() || pool.is_waited_for());
        let now = self.now();
        if until <= now {
            return false;
        }
        // Somebody may come to wait for the connection meanwhile.
        let tick = self.tick_of(until.min(now + STALL_MAX));
        calls.rearm(key, tick);
        true
    }

    fn expire_one(self: &Rc<Self>, key: CallKey) {
        let (place, code, reason) = {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(key) else { return };
            let late = call.paused.is_none() || (!call.within.extends && call.deadline <= self.now());
            let (code, reason) = if late {
                (code::TIMEOUT, format!("no answer within {} ms", call.within.timeout.as_millis()))
            } else {
                call.caller.set_stalled();
                (code::POOL_FULL, self.why_paused())
            };
            (call.place.clone(), code, reason)
        };
        let forgotten = self.withdraw(key, &place, u32::from(code));
        // The time of both copies is the same, and the caller is answered once.
        self.stays_alone(key, status::TIMEOUT);
        self.fail(key, code, place.instance(), &reason);
        if let (Forgotten::Sent, Place::Sent(_, link)) = (forgotten, place) {
            self.end_overdue(key, &link, &reason);
        }
    }

    /// The late answer must not be taken for another call's. Where answers come in order it can be waited for, as long as
    /// others wait behind it.
    pub(super) fn end_overdue(&self, overdue: CallKey, link: &Link, reason: &str) {
        let calls = self.calls.borrow();
        let is_live = |key: CallKey| key != overdue && calls.get(key).is_some_and(|call| call.is_on(link));
        if link.is_shared() && link.waits_for(is_live) {
            link.retire();
        } else {
            link.stop(reason);
        }
    }

    fn why_paused(&self) -> String {
        let max = self.limits().queued_bytes_max;
        format!(
            "{max} bytes of answers wait already, for the application to read them or for an earlier one (app.queued_bytes_max)"
        )
    }
}
