//! Which result goes to which call of a connection.

use std::collections::VecDeque;

use super::answer::Answer;

/// Hands results to calls: pure, and without a clock.
pub(super) enum Desk {
    /// As servers of 2016 do: a result goes to the call that waits the longest, whichever it belongs to; one that
    /// nobody waits for goes to the next call.
    Loose { waiting: VecDeque<usize>, late: VecDeque<Answer> },
    /// Each result in the place of its call.
    InOrder(VecDeque<(usize, Option<Answer>)>),
}

impl Desk {
    pub(super) fn new(in_order: bool) -> Self {
        if in_order { Self::InOrder(VecDeque::new()) } else { Self::Loose { waiting: VecDeque::new(), late: VecDeque::new() } }
    }

    /// A call has come; returns what is written at once.
    pub(super) fn arrive(&mut self, call: usize) -> Option<Answer> {
        match self {
            Self::Loose { waiting, late } => late.pop_front().or_else(|| {
                waiting.push_back(call);
                None
            }),
            Self::InOrder(places) => {
                places.push_back((call, None));
                None
            }
        }
    }

    /// A call's result is there; returns what is written now.
    pub(super) fn finish(&mut self, call: usize, answer: Answer) -> Vec<Answer> {
        match self {
            Self::Loose { waiting, late } => {
                if waiting.pop_front().is_some() {
                    return vec![answer];
                }
                late.push_back(answer);
                Vec::new()
            }
            Self::InOrder(places) => {
                if let Some(place) = places.iter_mut().find(|(number, answer)| *number == call && answer.is_none()) {
                    place.1 = Some(answer);
                }
                let ready = places.iter().take_while(|(_, answer)| answer.is_some()).count();
                places.drain(..ready).filter_map(|(_, answer)| answer).collect()
            }
        }
    }

    /// The server's own timeout of a call has fired; returns whether the call was still waiting.
    pub(super) fn time_out(&mut self, call: usize) -> bool {
        let Self::Loose { waiting, .. } = self else {
            return false;
        };
        let place = waiting.iter().position(|number| *number == call);
        place.is_some_and(|place| waiting.remove(place).is_some())
    }
}
