//! What became of connections and of what was sent on them.

/// Why a direction goes by TCP: an index of [`Verdicts::passes`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The other end was not enrolled when the first byte was sent.
    NoPeer = 0,
    /// Bytes had gone by TCP before the program saw the first.
    NotFirst = 1,
    /// As much waits at the agent's end as may.
    Bound = 2,
    /// As much waits at the other end as may: the agent decided.
    AgentBound = 3,
    /// The path was turned off.
    Off = 4,
    /// A protocol was put on top of the socket (`TCP_ULP`).
    Ulp = 5,
    /// The sender waits for the completions of `MSG_ZEROCOPY`.
    ZeroCopy = 6,
    /// The kernel did not show its structures.
    Unproven = 7,
    /// The sender's socket blocks, and only those that do not are wanted.
    Blocking = 8,
}

/// Room for reasons: a new one changes no layout.
pub const REASONS: usize = 16;

impl Pass {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::NoPeer,
        Self::NotFirst,
        Self::Bound,
        Self::AgentBound,
        Self::Off,
        Self::Ulp,
        Self::ZeroCopy,
        Self::Unproven,
        Self::Blocking,
    ];

    /// Its name, as the operator sees it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPeer => "peer-not-enrolled",
            Self::NotFirst => "bytes-before-enrolment",
            Self::Bound => "bound-at-agent",
            Self::AgentBound => "bound-at-other-end",
            Self::Off => "turned-off",
            Self::Ulp => "ulp",
            Self::ZeroCopy => "zerocopy",
            Self::Unproven => "unproven",
            Self::Blocking => "blocking-socket",
        }
    }
}

/// Why a connection was not enrolled: an index of [`Verdicts::refusals`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The other end is on another machine, or in another namespace.
    Remote = 0,
    /// Its namespace is excluded.
    Excluded = 1,
    /// The path is turned off.
    Off = 2,
    /// The agent has not said for long that it lives.
    Stale = 3,
    /// A protocol is on top of the socket, as with MPTCP; or it waits for completions of `MSG_ZEROCOPY`; or it is bound to a
    /// device.
    Special = 4,
    /// The map of sockets is full.
    Full = 5,
    /// Somebody else has the socket in a map of theirs.
    Busy = 6,
    /// The kernel refused otherwise.
    Kernel = 7,
    /// The application's socket blocks, and only those that do not are wanted.
    Blocking = 8,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Remote,
        Self::Excluded,
        Self::Off,
        Self::Stale,
        Self::Special,
        Self::Full,
        Self::Busy,
        Self::Kernel,
        Self::Blocking,
    ];

    /// Its name, as the operator sees it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Excluded => "namespace-excluded",
            Self::Off => "turned-off",
            Self::Stale => "agent-silent",
            Self::Special => "special-socket",
            Self::Full => "map-full",
            Self::Busy => "other-sockmap",
            Self::Kernel => "kernel",
            Self::Blocking => "blocking-socket",
        }
    }
}

/// Messages and their bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Calls of `send` and its like, each cut to what the kernel takes at once.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the programs counted: one entry of the per-CPU map `VERDICTS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Sockets that were enrolled.
    pub enrolled: u64,
    /// Connections that were not, by [`Refusal`].
    pub refusals: [u64; REASONS],
    /// Directions that go by TCP, by [`Pass`].
    pub passes: [u64; REASONS],
    /// Sent towards the agent and redirected.
    pub to_agent: Sent,
    /// Sent by the agent and redirected.
    pub from_agent: Sent,
    /// Sent on enrolled sockets and left to TCP.
    pub passed: Sent,
}

const _: () = assert!(size_of::<Verdicts>() == 312 && align_of::<Verdicts>() == 8);

impl core::ops::Add for Verdicts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let all = |a: [u64; REASONS], b: [u64; REASONS]| core::array::from_fn(|at| a[at] + b[at]);
        let sent = |a: Sent, b: Sent| Sent { messages: a.messages + b.messages, bytes: a.bytes + b.bytes };
        Self {
            enrolled: self.enrolled + other.enrolled,
            refusals: all(self.refusals, other.refusals),
            passes: all(self.passes, other.passes),
            to_agent: sent(self.to_agent, other.to_agent),
            from_agent: sent(self.from_agent, other.from_agent),
            passed: sent(self.passed, other.passed),
        }
    }
}

impl core::iter::Sum for Verdicts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), core::ops::Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indexes() {
        assert!(Pass::ALL.iter().enumerate().all(|(at, pass)| *pass as usize == at));
        assert!(Refusal::ALL.iter().enumerate().all(|(at, refusal)| *refusal as usize == at));
    }

    #[test]
    fn adds_field_by_field() {
        let sent = Sent { messages: 1, bytes: 10 };
        let one = Verdicts {
            enrolled: 2,
            refusals: [3; REASONS],
            passes: [4; REASONS],
            to_agent: sent,
            from_agent: sent,
            passed: sent,
        };
        let sum: Verdicts = [one, one].into_iter().sum();
        let twice = Sent { messages: 2, bytes: 20 };
        let expected = Verdicts {
            enrolled: 4,
            refusals: [6; REASONS],
            passes: [8; REASONS],
            to_agent: twice,
            from_agent: twice,
            passed: twice,
        };
        assert_eq!(sum, expected);
    }
}
