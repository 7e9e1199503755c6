//! What is counted about connections to the agent.

/// Connections to the agent's listeners that were established: one entry of the per-CPU map `COUNTS`.
///
/// A connection between two sockets of this machine has two ends and is counted at each of them: `passive` where the
/// agent accepts it, `active` where an application connects.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted, IPv4 (also by a listener of both families).
    pub passive_v4: u64,
    /// Accepted, IPv6.
    pub passive_v6: u64,
    /// Connected from this machine, IPv4.
    pub active_v4: u64,
    /// Connected from this machine, IPv6.
    pub active_v6: u64,
}

const _: () = assert!(size_of::<Counts>() == 32 && align_of::<Counts>() == 8);

impl Counts {
    /// Connections that the agent accepted, of both families.
    #[must_use]
    pub const fn accepted(&self) -> u64 {
        self.passive_v4 + self.passive_v6
    }
}

impl core::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passive_v4: self.passive_v4 + other.passive_v4,
            passive_v6: self.passive_v6 + other.passive_v6,
            active_v4: self.active_v4 + other.active_v4,
            active_v6: self.active_v6 + other.active_v6,
        }
    }
}

impl core::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), core::ops::Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_field_by_field() {
        let a = Counts { passive_v4: 1, passive_v6: 20, active_v4: 300, active_v6: 4000 };
        let sum: Counts = [a, a, a].into_iter().sum();
        assert_eq!(sum, Counts { passive_v4: 3, passive_v6: 60, active_v4: 900, active_v6: 12_000 });
        assert_eq!(sum.accepted(), 63);
    }
}
