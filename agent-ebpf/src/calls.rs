//! The table of calls in flight: the arrays `NAMES` and `CALLS`, which the agent has in its memory too.
//!
//! A place has the name 0 while it is free. Whoever changes that, by an exchange that only one can make, has the place;
//! whoever changes a call's name to 0 in the same way has taken the call out.

use agent_common::lane::{BEING_ENTERED, CALLS_MAX, Call, KERNEL_VIA, NAMES_OF_LINE, PLACE_MASK};
use aya_ebpf::helpers::bpf_get_prandom_u32;

use crate::{
    atomic,
    maps::{CALLS, NAMES},
};

const LINES: u32 = CALLS_MAX / NAMES_OF_LINE;
/// Lines that are looked at for a free place. With half of all places taken, by however many lanes, no call in a hundred
/// thousand finds none.
const LINES_TRIED: u32 = 8;

/// A place in the table.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    name: *mut u64,
    call: *mut Call,
    index: u32,
}

impl Place {
    /// A free place, which nobody else gets from now on. Lanes have a line of their own, if not alone, so that those with few
    /// calls find memory that they have just used.
    #[inline(always)]
    pub(crate) fn take(lane: u32) -> Option<Self> {
        let mut line = lane;
        for _ in 0..LINES_TRIED {
            if let Some(place) = Self::take_of(line & (LINES - 1)) {
                return Some(place);
            }
            // SAFETY: the helper takes nothing.
            line = unsafe { bpf_get_prandom_u32() };
        }
        None
    }

    #[inline(always)]
    fn take_of(line: u32) -> Option<Self> {
        let names = NAMES.get_ptr_mut(line)?.cast::<u64>();
        for at in 0..NAMES_OF_LINE {
            // The verifier goes on with one place for all of them, not once for each.
            let at = core::hint::black_box(at) & (NAMES_OF_LINE - 1);
            // SAFETY: one of the line's names.
            let name = unsafe { names.add(at as usize) };
            // SAFETY: a word of a map's value, which is never freed while the program is loaded.
            if unsafe { name.read_volatile() == 0 && atomic::exchange_if(name, 0, BEING_ENTERED) == 0 } {
                let index = line * NAMES_OF_LINE + at;
                if let Some(call) = CALLS.get_ptr_mut(index) {
                    return Some(Self { name, call, index });
                }
            }
        }
        None
    }

    /// What a call at this place is called, by a number that cannot be guessed.
    #[inline(always)]
    pub(crate) fn via(&self, secret: u64) -> u64 {
        KERNEL_VIA | (secret & !PLACE_MASK) | u64::from(self.index)
    }

    /// Enters a call into the place that was taken. Everything that was written before is seen by who sees the name, and
    /// nothing that is read after this was read before it.
    #[inline(always)]
    pub(crate) fn enter(&self, via: u64, call: Call) {
        // SAFETY: as above; nobody else has the place.
        unsafe {
            self.call.write_volatile(call);
            atomic::store(self.name, via);
        }
    }

    /// A call of this name, if it is in flight. What was read counts only if taking it out succeeds.
    #[inline(always)]
    pub(crate) fn find(via: u64) -> Option<(Self, Call)> {
        let index = (via & PLACE_MASK) as u32;
        let names = NAMES.get_ptr_mut(index / NAMES_OF_LINE)?.cast::<u64>();
        let at = core::hint::black_box(index) & (NAMES_OF_LINE - 1);
        // SAFETY: one of the line's names.
        let place = Self { name: unsafe { names.add(at as usize) }, call: CALLS.get_ptr_mut(index)?, index };
        // Nobody writes to others' lines by asking for what is not there; the addition keeps what comes after it from being
        // read before.
        // SAFETY: as above.
        unsafe {
            let is_there = place.name.read_volatile() == via && atomic::fetch_add(place.name, 0) == via;
            is_there.then(|| (place, place.call.read_volatile()))
        }
    }

    /// Takes a call out. False if somebody else has.
    #[inline(always)]
    pub(crate) fn take_out(&self, via: u64) -> bool {
        // SAFETY: as above.
        unsafe { atomic::exchange_if(self.name, via, 0) == via }
    }
}
