//! Draws by weight in constant time (Vose's alias method, in whole numbers).

use rand::Rng;

use super::dice;

/// A table of one slot for each weight.
#[derive(Debug, Default)]
pub(crate) struct Alias {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Below this word the slot itself is drawn, else `other`.
    own: u32,
    other: u32,
}

impl Alias {
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Follows the weights.
    pub(crate) fn fill(&mut self, weights: impl ExactSizeIterator<Item = u32> + Clone) {
        let n = weights.len() as u128;
        let total: u128 = weights.clone().map(u128::from).sum();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        self.slots.clear();
        // A slot's own part, in units of which it holds `total`.
        let mut rest: Vec<u128> = weights.map(|weight| u128::from(weight) * n).collect();
        for (slot, part) in (0_u32..).zip(&rest) {
            self.slots.push(Slot { own: u32::MAX, other: slot });
            if *part < total { small.push(slot) } else { large.push(slot) }
        }
        while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
            let part = rest[low as usize];
            let own = u32::try_from((part << 32) / total).unwrap_or(u32::MAX);
            self.slots[low as usize] = Slot { own, other: high };
            rest[high as usize] -= total - part;
            if rest[high as usize] < total {
                large.pop();
                small.push(high);
            }
        }
    }

    /// A position by chance, as often as its weight says.
    pub(crate) fn draw(&self, dice: &mut impl Rng) -> u32 {
        let (which, coin) = dice::two(dice);
        let n = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let slot = dice::below(which, n);
        match self.slots[slot as usize] {
            Slot { own, .. } if coin < own => slot,
            Slot { other, .. } => other,
        }
    }
}
