//! Calls in flight: a slab with generation-checked keys and a wheel of deadlines.
//!
//! Pure code: time is a tick that the caller passes in. Inserting, finding, removing and re-arming are O(1).
//! INVARIANT: a key finds the call it was made for or nothing, never a later call in the same place.

/// Names a call for as long as it is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallKey {
    index: u32,
    generation: u32,
}

impl CallKey {
    /// The key as the `via` of frames, whose top bit is not an agent's.
    pub(crate) fn via(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key that a `via` was made of; any other number finds nothing.
    pub(crate) fn of_via(via: u64) -> Self {
        let part = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
        Self { index: part(via), generation: part(via >> 32) }
    }
}

/// Generations of a place, so that the top bit of a `via` stays free.
const GENERATIONS: u32 = 1 << 31;

/// Slots of the wheel. A deadline further away than this many ticks goes round more than once.
const SLOTS: usize = 1024;
const NONE: u32 = u32::MAX;

struct Entry<T> {
    generation: u32,
    deadline: u64,
    previous: u32,
    next: u32,
    value: Option<T>,
}

/// The calls in flight of one worker.
pub(crate) struct CallTable<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    wheel: Box<[u32; SLOTS]>,
    /// The first tick whose slot was not looked at yet.
    next_tick: u64,
    max: usize,
}

impl<T> CallTable<T> {
    /// A table that takes at most `max` calls.
    pub(crate) fn new(max: usize) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), wheel: Box::new([NONE; SLOTS]), next_tick: 0, max: max.min(NONE as usize) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes the bound; calls above it stay until they end.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max.min(NONE as usize);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    /// Takes a call with its deadline, or gives it back if the table is full.
    pub(crate) fn insert(&mut self, value: T, deadline: u64) -> Result<CallKey, T> {
        if self.is_full() {
            return Err(value);
        }
        let index = self.vacant();
        let deadline = deadline.max(self.next_tick);
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        entry.deadline = deadline;
        let generation = entry.generation;
        self.link(index);
        Ok(CallKey { index, generation })
    }

    pub(crate) fn get(&self, key: CallKey) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, key: CallKey) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    pub(crate) fn contains(&self, key: CallKey) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remove(&mut self, key: CallKey) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) % GENERATIONS;
        self.unlink(key.index);
        self.free.push(key.index);
        Some(value)
    }

    /// The calls for which something holds. It looks at all of them.
    pub(crate) fn keys(&self, holds: impl Fn(&T) -> bool) -> Vec<CallKey> {
        let key = |(index, entry): (usize, &Entry<T>)| {
            let found = entry.value.as_ref().is_some_and(&holds);
            found.then(|| CallKey { index: u32::try_from(index).unwrap_or(NONE), generation: entry.generation })
        };
        self.entries.iter().enumerate().filter_map(key).collect()
    }

    /// Moves a call's deadline; nothing if it has ended.
    pub(crate) fn rearm(&mut self, key: CallKey, deadline: u64) {
        if self.contains(key) {
            self.unlink(key.index);
            self.entries[key.index as usize].deadline = deadline.max(self.next_tick);
            self.link(key.index);
        }
    }

    /// The calls whose deadline is at or before `now`. They stay in the table: the caller removes them.
    pub(crate) fn expired(&mut self, now: u64) -> Vec<CallKey> {
        let mut found = Vec::new();
        // A clock that jumped by more than a turn needs every slot looked at once, not more.
        let first = self.next_tick.max((now + 1).saturating_sub(SLOTS as u64));
        for tick in first..=now {
            let mut index = self.wheel[slot(tick)];
            while index != NONE {
                let entry = &self.entries[index as usize];
                if entry.deadline <= now {
                    found.push(CallKey { index, generation: entry.generation });
                }
                index = entry.next;
            }
        }
        self.next_tick = self.next_tick.max(now + 1);
        found
    }

    fn vacant(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
            self.entries.push(Entry { generation: 0, deadline: 0, previous: NONE, next: NONE, value: None });
            index
        })
    }

    fn link(&mut self, index: u32) {
        let slot = slot(self.entries[index as usize].deadline);
        let head = self.wheel[slot];
        let entry = &mut self.entries[index as usize];
        entry.previous = NONE;
        entry.next = head;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        self.wheel[slot] = index;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, deadline, .. } = self.entries[index as usize];
        if previous == NONE {
            self.wheel[slot(deadline)] = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
    }
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_never_finds_a_later_call() {
        let mut table = CallTable::new(1);
        let first = table.insert('a', 5).unwrap();
        assert_eq!(table.insert('b', 5), Err('b'));
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('c', 5).unwrap();
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get_mut(second), Some(&mut 'c'));
    }

    #[test]
    fn a_deadline_beyond_one_turn_waits_for_its_turn() {
        let mut table = CallTable::new(8);
        let far = table.insert('f', 3 * SLOTS as u64 + 7).unwrap();
        assert_eq!(table.expired(7), vec![]);
        assert_eq!(table.expired(3 * SLOTS as u64 + 6), vec![]);
        assert_eq!(table.expired(3 * SLOTS as u64 + 7), vec![far]);
    }

    #[test]
    fn a_deadline_in_the_past_is_found_at_the_next_look() {
        let mut table = CallTable::new(8);
        assert!(table.expired(100).is_empty());
        let late = table.insert('l', 3).unwrap();
        assert_eq!(table.expired(101), vec![late]);
    }

    proptest! {
        /// Against a map: the same calls live, and each expires at the first look at or after its deadline.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0u8..5, 0u64..3000), 1..300)) {
            let mut table = CallTable::new(32);
            let mut model: HashMap<u64, (CallKey, u64)> = HashMap::new();
            let (mut now, mut id) = (0u64, 0u64);
            for (what, number) in steps {
                match what {
                    0 | 1 => {
                        if let Ok(key) = table.insert(id, now + number) {
                            model.insert(id, (key, now + number));
                        } else {
                            prop_assert_eq!(model.len(), 32);
                        }
                        id += 1;
                    }
                    2 => if let Some(victim) = model.keys().nth(usize::try_from(number).unwrap() % model.len().max(1)).copied() {
                        let (key, _) = model.remove(&victim).unwrap();
                        prop_assert_eq!(table.remove(key), Some(victim));
                    },
                    3 => if let Some(victim) = model.keys().nth(usize::try_from(number).unwrap() % model.len().max(1)).copied() {
                        let entry = model.get_mut(&victim).unwrap();
                        entry.1 = now + number;
                        table.rearm(entry.0, entry.1);
                    },
                    _ => {
                        now += number;
                        let mut found: Vec<u64> = table.expired(now).into_iter().map(|key| table.remove(key).unwrap()).collect();
                        let mut expected: Vec<u64> = model.iter().filter(|(_, (_, at))| *at <= now).map(|(id, _)| *id).collect();
                        model.retain(|_, (_, at)| *at > now);
                        found.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
