//! The array `LANE` in the agent's memory.

use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
        fence,
    },
};

use agent_common::{
    End,
    lane::{LANES_MAX, Lane, calls_and_bytes, lane_state, work_of},
};

use crate::{
    kernel::mapped::Mapped,
    proxy::{LaneId, LaneLook},
};

/// All lanes, free ones too.
pub(in crate::kernel) struct Table(Mapped);

/// Words of an [`End`].
const END_WORDS: usize = size_of::<End>() / size_of::<u64>();

impl Table {
    pub(in crate::kernel) fn map(map: impl AsFd) -> io::Result<Self> {
        Mapped::map(map, LANES_MAX as usize * size_of::<Lane>()).map(Self)
    }

    pub(super) fn indexes(&self) -> std::ops::Range<u32> {
        0..LANES_MAX
    }

    /// Whether there is such a place.
    pub(super) fn has(&self, index: u32) -> bool {
        index < LANES_MAX
    }

    /// Whether this lane is there and not over.
    pub(super) fn is_open(&self, lane: LaneId) -> bool {
        self.has(lane.index)
            && self.generation(lane.index) == lane.generation
            && matches!(self.state(lane.index), lane_state::OPEN | lane_state::PAUSED)
    }

    pub(in crate::kernel) fn state(&self, index: u32) -> u32 {
        self.u32(index, offset_of!(Lane, state)).load(SeqCst)
    }

    pub(super) fn set_state(&self, index: u32, state: u32) {
        self.u32(index, offset_of!(Lane, state)).store(state, SeqCst);
    }

    /// Programs that run at this moment may go by the former one.
    pub(super) fn set_label(&self, index: u32, label: u32) {
        self.u32(index, offset_of!(Lane, label)).store(label, SeqCst);
    }

    pub(in crate::kernel) fn generation(&self, index: u32) -> u32 {
        self.u32(index, offset_of!(Lane, generation)).load(SeqCst)
    }

    /// Fills a place that no program looks at any more, its state last. Its generation is the one that it has.
    pub(super) fn open(&self, index: u32, lane: &Lane) -> u32 {
        for (at, word) in words(&lane.end).into_iter().enumerate() {
            self.u64(index, offset_of!(Lane, end) + at * size_of::<u64>()).store(word, Relaxed);
        }
        self.u32(index, offset_of!(Lane, label)).store(lane.label, Relaxed);
        self.u32(index, offset_of!(Lane, calls_max)).store(lane.calls_max, Relaxed);
        self.u64(index, offset_of!(Lane, bound)).store(lane.bound, Relaxed);
        for at in (offset_of!(Lane, work)..offset_of!(Lane, spare)).step_by(size_of::<u64>()) {
            self.u64(index, at).store(0, Relaxed);
        }
        self.set_state(index, lane_state::OPEN);
        self.generation(index)
    }

    /// It is over. Whoever looks at all calls after this sees each that was entered without this being seen.
    pub(super) fn close(&self, index: u32) {
        self.set_state(index, lane_state::CLOSED);
        self.u32(index, offset_of!(Lane, generation)).fetch_add(1, SeqCst);
        fence(SeqCst);
    }

    pub(super) fn free(&self, index: u32) {
        self.set_state(index, lane_state::FREE);
    }

    /// Whose the place is, or was.
    pub(super) fn end(&self, index: u32) -> End {
        let word = |at| self.u64(index, offset_of!(Lane, end) + at * size_of::<u64>()).load(Relaxed);
        end(std::array::from_fn(word))
    }

    /// A call is no longer in flight.
    pub(super) fn release(&self, index: u32, bytes: u64) {
        self.u64(index, offset_of!(Lane, work)).fetch_sub(work_of(bytes), SeqCst);
    }

    pub(super) fn look(&self, index: u32) -> LaneLook {
        let word = |offset| self.u64(index, offset).load(Relaxed);
        let acked = word(offset_of!(Lane, acked));
        let (in_flight, queued) = calls_and_bytes(word(offset_of!(Lane, work)));
        LaneLook {
            in_flight,
            queued,
            unread: word(offset_of!(Lane, delivered)).saturating_sub(acked),
            latency_ns: word(offset_of!(Lane, latency_ns)),
            made: word(offset_of!(Lane, made)),
        }
    }

    fn u32(&self, index: u32, offset: usize) -> &AtomicU32 {
        self.0.u32(index as usize * size_of::<Lane>() + offset)
    }

    fn u64(&self, index: u32, offset: usize) -> &AtomicU64 {
        self.0.u64(index as usize * size_of::<Lane>() + offset)
    }
}

/// An end as the words that lie in memory.
fn words(end: &End) -> [u64; END_WORDS] {
    let word = |first: u32, second: u32| {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    let [a, b, c, d] = end.own;
    let [e, f, g, h] = end.other;
    let ports = word(end.own_port, end.other_port);
    [end.netns, word(a, b), word(c, d), word(e, f), word(g, h), ports, word(end.sends, end.receives)]
}

fn end([netns, a, b, c, d, ports, sequence]: [u64; END_WORDS]) -> End {
    let halves = |word: u64| {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
    };
    let address = |first, second| {
        let ((a, b), (c, d)) = (halves(first), halves(second));
        [a, b, c, d]
    };
    let ((own_port, other_port), (sends, receives)) = (halves(ports), halves(sequence));
    End { netns, own: address(a, b), other: address(c, d), own_port, other_port, sends, receives }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_they_were_written() {
        let one = End { netns: 1, own: [2, 3, 4, 5], other: [6, 7, 8, 9], own_port: 10, other_port: 11, sends: 12, receives: 13 };
        assert_eq!(end(words(&one)), one);
        assert_eq!(words(&one)[0], 1);
    }
}
