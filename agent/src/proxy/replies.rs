//! Replies in the order of their commands, while the calls themselves run in parallel.
//!
//! Pure code. A slot is a reply that is owed; what is answered before its turn waits in its slot. INVARIANT: bytes of
//! a slot reach the output only when every slot before it has ended.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    calls::CallKey,
    out::{OutQueue, owned},
};

/// The place of a reply in the order of one connection.
pub(crate) type Seq = u64;

/// What a place itself is counted as, so that a bound on bytes is one on places too.
const SLOT_BYTES: usize = 64;

#[derive(Debug)]
enum Slot {
    /// Nothing of the answer is there yet. The call is unknown for the moment between taking the slot and sending the call.
    Waiting(Option<CallKey>),
    /// A part of the answer, and the rest to come.
    Partial(CallKey, Vec<Bytes>),
    /// The whole answer.
    Done(Vec<Bytes>),
    /// The whole answer, in one piece.
    DoneOne(Bytes),
}

/// What one application is owed.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// What is on its way to the socket.
    pub(crate) out: OutQueue,
    slots: VecDeque<Slot>,
    first: Seq,
    waiting_bytes: usize,
}

impl Replies {
    /// Begins where another connection's replies ended, with nothing owed.
    pub(crate) fn begin(&mut self, seq: Seq) {
        self.first = seq;
    }

    /// The place whose turn it is.
    pub(crate) fn first(&self) -> Seq {
        self.first
    }

    /// The place that comes next.
    pub(crate) fn next_seq(&self) -> Seq {
        self.first + self.slots.len() as u64
    }

    /// Forgets everything that is owed.
    pub(crate) fn clear(&mut self) {
        *self = Self { first: self.next_seq(), ..Self::default() };
    }

    /// Replies that are owed.
    pub(crate) fn owed(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that wait for the application, or for their turn.
    pub(crate) fn bytes(&self) -> usize {
        self.out.bytes() + self.waiting_bytes + self.slots.len() * SLOT_BYTES
    }

    /// Bytes that must leave before those of a place can: for the first one only what is on its way to the socket, as
    /// what waits behind it goes only when it has gone.
    pub(crate) fn before(&self, seq: Seq) -> usize {
        if seq == self.first { self.out.bytes() } else { self.bytes() }
    }

    /// Everything that was owed is in the socket.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.out.is_empty()
    }

    /// A reply that is known at once.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.slots.is_empty() {
            self.out.push(bytes);
        } else {
            self.waiting_bytes += bytes.len();
            self.slots.push_back(Slot::DoneOne(bytes));
        }
    }

    /// A place for a reply that comes later.
    pub(crate) fn reserve(&mut self) -> Seq {
        let seq = self.next_seq();
        self.slots.push_back(Slot::Waiting(None));
        seq
    }

    /// Says which call a place is for.
    pub(crate) fn set_call(&mut self, seq: Seq, key: CallKey) {
        if let Some(slot @ Slot::Waiting(_)) = self.slot(seq) {
            *slot = Slot::Waiting(Some(key));
        }
    }

    /// The whole reply of a place.
    pub(crate) fn answer(&mut self, seq: Seq, bytes: Bytes) {
        if seq == self.first && !self.slots.is_empty() {
            self.out.push(bytes);
            self.next();
        } else if self.slot(seq).is_some() {
            let bytes = owned(bytes);
            self.waiting_bytes += bytes.len();
            if let Some(slot) = self.slot(seq) {
                *slot = Slot::DoneOne(bytes);
            }
        }
    }

    /// A piece of the reply of a place, with more to come.
    pub(crate) fn append(&mut self, seq: Seq, key: CallKey, bytes: Bytes) {
        if self.slot(seq).is_none() {
            return;
        }
        let kept = if seq == self.first {
            self.out.push(bytes);
            None
        } else {
            self.waiting_bytes += bytes.len();
            Some(owned(bytes))
        };
        match self.slot(seq) {
            Some(Slot::Partial(_, pieces)) => pieces.extend(kept),
            Some(slot) => *slot = Slot::Partial(key, kept.into_iter().collect()),
            None => {}
        }
    }

    /// The last piece of a place was appended.
    pub(crate) fn finish(&mut self, seq: Seq) {
        if self.slot(seq).is_none() {
            return;
        }
        if seq == self.first {
            self.next();
        } else if let Some(slot) = self.slot(seq)
            && let Slot::Partial(_, pieces) = slot
        {
            *slot = Slot::Done(std::mem::take(pieces));
        }
    }

    /// Drops what there is of an unfinished reply, so that an error can stand in its place. False if a part of it
    /// is on its way to the application: then only closing the connection is honest.
    pub(crate) fn take_back(&mut self, seq: Seq) -> bool {
        let head = seq == self.first;
        match self.slot(seq) {
            Some(Slot::Partial(..)) if head => false,
            Some(slot @ Slot::Partial(..)) => {
                let old = std::mem::replace(slot, Slot::Waiting(None));
                if let Slot::Partial(_, pieces) = old {
                    self.waiting_bytes -= pieces.iter().map(Bytes::len).sum::<usize>();
                }
                true
            }
            Some(Slot::Waiting(_)) => true,
            _ => false,
        }
    }

    /// The calls that are still in flight.
    pub(crate) fn calls(&self) -> Vec<CallKey> {
        self.slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Waiting(key) => *key,
                Slot::Partial(key, _) => Some(*key),
                Slot::Done(_) | Slot::DoneOne(_) => None,
            })
            .collect()
    }

    /// Gives back memory that a burst left behind; nothing is owed.
    pub(crate) fn shrink(&mut self) {
        if self.slots.capacity() > 8 {
            self.slots = VecDeque::new();
        }
        self.out.shrink();
    }

    fn slot(&mut self, seq: Seq) -> Option<&mut Slot> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }

    /// The first reply has ended: on to those that were ready before their turn.
    fn next(&mut self) {
        self.slots.pop_front();
        self.first += 1;
        while let Some(slot) = self.slots.front_mut() {
            match slot {
                Slot::Waiting(_) => return,
                Slot::Partial(_, pieces) => {
                    for piece in std::mem::take(pieces) {
                        self.waiting_bytes -= piece.len();
                        self.out.push(piece);
                    }
                    return;
                }
                Slot::Done(pieces) => {
                    for piece in std::mem::take(pieces) {
                        self.waiting_bytes -= piece.len();
                        self.out.push(piece);
                    }
                }
                Slot::DoneOne(bytes) => {
                    self.waiting_bytes -= bytes.len();
                    self.out.push(std::mem::take(bytes));
                }
            }
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::{calls::CallTable, out::SLICES_MAX};

    fn taken(replies: &mut Replies) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !replies.out.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); SLICES_MAX];
            let count = replies.out.fill(&mut slices);
            let front: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            replies.out.advance(front.len());
            bytes.extend(front);
        }
        bytes
    }

    fn key() -> CallKey {
        CallTable::new(1).insert((), 0).unwrap()
    }

    #[test]
    fn an_error_replaces_an_answer_that_broke_off_before_its_turn() {
        let mut replies = Replies::default();
        let (first, second) = (replies.reserve(), replies.reserve());
        replies.append(second, key(), Bytes::from_static(b"half"));
        assert!(replies.take_back(second));
        replies.answer(second, Bytes::from_static(b"error;"));
        replies.answer(first, Bytes::from_static(b"first;"));
        assert_eq!(taken(&mut replies), b"first;error;");
        assert!(replies.is_idle() && replies.bytes() == 0);
    }

    #[test]
    fn what_is_on_its_way_to_the_application_can_not_be_taken_back() {
        let mut replies = Replies::default();
        let seq = replies.reserve();
        replies.append(seq, key(), Bytes::from_static(b"half"));
        assert!(!replies.take_back(seq));
    }

    #[test]
    fn an_answer_to_a_place_that_has_ended_is_nothing() {
        let mut replies = Replies::default();
        let seq = replies.reserve();
        replies.answer(seq, Bytes::from_static(b"a"));
        replies.answer(seq, Bytes::from_static(b"b"));
        replies.append(seq, key(), Bytes::from_static(b"c"));
        replies.finish(seq);
        assert_eq!(taken(&mut replies), b"a");
    }

    proptest! {
        /// Whatever the order in which calls are answered, in one piece or several, their replies leave in the order of
        /// the commands, whole, and as soon as those before them have.
        #[test]
        fn replies_leave_in_order(steps in proptest::collection::vec((0u8..5, any::<proptest::sample::Index>()), 1..200)) {
            let mut replies = Replies::default();
            let key = key();
            // Each place: what has been answered so far, and whether that is all.
            let mut model: Vec<(Seq, String, bool)> = Vec::new();
            let mut seen = String::new();
            for (what, index) in steps {
                let number = model.len();
                let open: Vec<usize> = (0..number).filter(|at| !model[*at].2).collect();
                match what {
                    0 => {
                        replies.push(format!("[{number}]").into());
                        model.push((0, format!("[{number}]"), true));
                    }
                    1 => {
                        let seq = replies.reserve();
                        replies.set_call(seq, key);
                        model.push((seq, String::new(), false));
                    }
                    _ if open.is_empty() => {}
                    2 => {
                        let place = &mut model[*index.get(&open)];
                        if place.1.is_empty() {
                            replies.answer(place.0, format!("({})", place.0).into());
                            *place = (place.0, format!("({})", place.0), true);
                        }
                    }
                    3 => {
                        let place = &mut model[*index.get(&open)];
                        replies.append(place.0, key, "x".into());
                        place.1.push('x');
                    }
                    _ => {
                        let place = &mut model[*index.get(&open)];
                        if !place.1.is_empty() {
                            replies.finish(place.0);
                            place.2 = true;
                        }
                    }
                }
                seen.push_str(std::str::from_utf8(&taken(&mut replies)).unwrap());
                let ended = model.iter().take_while(|place| place.2).count();
                let expected: String = model.iter().take(ended + 1).map(|place| place.1.as_str()).collect();
                prop_assert_eq!(&seen, &expected);
                let waiting: usize = model.iter().skip(ended + 1).map(|place| place.1.len()).sum();
                prop_assert_eq!(replies.bytes(), waiting + (model.len() - ended) * SLOT_BYTES);
                prop_assert_eq!(replies.calls().len() <= open.len() + 1, true);
            }
        }
    }
}
