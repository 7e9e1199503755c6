//! Weighted round robin: earliest deadline first. Whoever has weight w is due w times in a cycle, evenly spread.

use rand::Rng;

/// A cycle of deadlines: every weight is due exactly as often as it says in each one.
const CYCLE: u64 = 1 << 20;

/// Children of a node of the heap: four lie in one cache line.
const CHILDREN: usize = 4;

/// Whose turn it is, by weight.
#[derive(Debug, Default)]
pub(crate) struct Edf {
    /// A heap: the first is due next.
    turns: Vec<Turn>,
    now: u64,
}

/// When one is due. 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) place: u32,
    weight: u16,
    /// What the division of the cycle by the weight left over so far, so that no error adds up.
    rest: u16,
    /// Counted modulo 2^64.
    deadline: u64,
}

impl Turn {
    fn before(&self, other: &Self) -> bool {
        // All deadlines lie within a few cycles of each other, so that the difference has a sign.
        let later = self.deadline.wrapping_sub(other.deadline);
        later > u64::MAX / 2 || (later == 0 && self.place < other.place)
    }

    /// The next deadline; `permille` of its weight counts.
    fn advance(&mut self, permille: u32) {
        let weight = u64::from(self.weight);
        if permille >= 1000 {
            let left = u64::from(self.rest) + CYCLE % weight;
            self.deadline = self.deadline.wrapping_add(CYCLE / weight + left / weight);
            self.rest = ((left % weight) & 0xffff) as u16;
        } else {
            self.deadline = self.deadline.wrapping_add(CYCLE * 1000 / (weight * u64::from(permille.max(1))));
        }
    }
}

impl Edf {
    /// Takes all out, to be put back with `push`: who stays keeps its turn.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Turn> {
        self.turns.drain(..)
    }

    /// Adds one that had a turn before, or a new one, which waits for a part of its period (`word`, by chance).
    /// `build` must follow.
    pub(crate) fn push(&mut self, place: u32, weight: u32, before: Option<Turn>, word: u32) {
        let weight = u16::try_from(weight.max(1)).unwrap_or(u16::MAX);
        let period = CYCLE / u64::from(weight);
        let wait = (period * u64::from(word)) >> 32;
        let kept = before.filter(|turn| turn.weight == weight && turn.deadline.wrapping_sub(self.now) <= u64::MAX / 2);
        let fresh = Turn { place, weight, rest: 0, deadline: self.now.wrapping_add(wait) };
        self.turns.push(kept.map_or(fresh, |turn| Turn { place, ..turn }));
    }

    /// Makes it a heap.
    pub(crate) fn build(&mut self) {
        for node in (0..self.turns.len().div_ceil(CHILDREN)).rev() {
            self.sink(node);
        }
    }

    /// Lets everyone begin anywhere in its period, so that workers and agents don't all begin with the same instance.
    pub(crate) fn scatter(&mut self, dice: &mut impl Rng) {
        for turn in &mut self.turns {
            let period = CYCLE / u64::from(turn.weight);
            turn.rest = 0;
            turn.deadline = self.now.wrapping_add((period * u64::from(dice.next_u32())) >> 32);
        }
        self.build();
    }

    /// Whose turn it is. It is due again after its share of a cycle.
    pub(crate) fn next(&mut self, permille: impl FnOnce(u32) -> u32) -> Option<u32> {
        let first = self.turns.first_mut()?;
        let place = first.place;
        self.now = first.deadline;
        first.advance(permille(place));
        self.sink(0);
        Some(place)
    }

    fn sink(&mut self, mut node: usize) {
        loop {
            let first = node * CHILDREN + 1;
            let children = first..(first + CHILDREN).min(self.turns.len());
            let Some(least) = children.reduce(|a, b| if self.turns[b].before(&self.turns[a]) { b } else { a }) else { return };
            if self.turns[node].before(&self.turns[least]) {
                return;
            }
            self.turns.swap(node, least);
            node = least;
        }
    }
}
