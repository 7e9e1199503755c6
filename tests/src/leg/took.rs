//! What a test expects of the counters: which way its connections and their bytes took.

use agent::kernel::{Pass, REASONS, Refusal, Sent, Verdicts};

/// The counters, but for how many messages there were, as the kernel cuts them as it likes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// Sockets that were enrolled: two for a connection.
    pub enrolled: u64,
    /// Bytes that were redirected to the agent.
    pub to_agent: u64,
    /// Bytes that the agent sent and that were redirected.
    pub from_agent: u64,
    /// Bytes that went by TCP on enrolled sockets.
    pub passed: u64,
    /// Directions that went by TCP, by reason.
    pub passes: &'static [(Pass, u64)],
    /// Sockets that were not enrolled, by reason.
    pub refusals: &'static [(Refusal, u64)],
}

/// What was counted between two readings.
pub(super) fn since(before: &Verdicts, now: &Verdicts) -> Verdicts {
    let all = |now: [u64; REASONS], before: [u64; REASONS]| std::array::from_fn(|at| minus(now[at], before[at]));
    let sent =
        |now: Sent, before: Sent| Sent { messages: minus(now.messages, before.messages), bytes: minus(now.bytes, before.bytes) };
    Verdicts {
        enrolled: minus(now.enrolled, before.enrolled),
        refusals: all(now.refusals, before.refusals),
        passes: all(now.passes, before.passes),
        to_agent: sent(now.to_agent, before.to_agent),
        from_agent: sent(now.from_agent, before.from_agent),
        passed: sent(now.passed, before.passed),
    }
}

fn minus(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or_else(|| panic!("a counter went back from {before} to {now}"))
}

#[track_caller]
pub(super) fn expect(found: &Verdicts, expected: &Took) {
    let passes = Pass::ALL.map(|pass| (pass.name(), found.passes[pass as usize]));
    let refusals = Refusal::ALL.map(|refusal| (refusal.name(), found.refusals[refusal as usize]));
    let wanted_passes = Pass::ALL.map(|pass| (pass.name(), wanted(expected.passes, pass)));
    let wanted_refusals = Refusal::ALL.map(|refusal| (refusal.name(), wanted(expected.refusals, refusal)));
    let found = (found.enrolled, found.to_agent.bytes, found.from_agent.bytes, found.passed.bytes, passes, refusals);
    let Took { enrolled, to_agent, from_agent, passed, .. } = *expected;
    let expected = (enrolled, to_agent, from_agent, passed, wanted_passes, wanted_refusals);
    assert_eq!(found, expected, "enrolled, bytes to the agent, from it and by TCP, reasons of TCP, reasons of no enrolment");
}

fn wanted<T: PartialEq>(all: &[(T, u64)], what: T) -> u64 {
    all.iter().find(|(of, _)| *of == what).map_or(0, |(_, count)| *count)
}
