//! What becomes of connects to the agent when it cannot take them: gates, siblings, beats.

use core::{
    iter::Sum,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Add,
};

use crate::{Listener, V4_MAPPED};

/// Siblings of one gate at most.
pub const SIBLINGS_MAX: usize = 8;

/// Siblings of all gates at most: entries of the map `PEERS`.
pub const PEERS_MAX: u32 = 256;

/// Workers that beat at most.
pub const WORKERS_MAX: usize = 1024;

/// How long nothing is sent to a sibling after a connect to it failed.
pub const FAILED_FOR_NS: u64 = 1_000_000_000;

/// Another agent that takes this one's connects.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sibling {
    /// Its address, in the form of [`Listener::address`].
    pub address: [u32; 4],
    /// Its port in host order.
    pub port: u32,
    /// Its place in `PEERS`.
    pub peer: u32,
}

const _: () = assert!(size_of::<Sibling>() == 24 && align_of::<Sibling>() == 4);

impl Sibling {
    /// The sibling at this address.
    #[must_use]
    pub fn new(address: SocketAddr, peer: u32) -> Self {
        let Listener { address, port, .. } = Listener::new(0, address);
        Self { address, port, peer }
    }

    /// Whether it has an IPv4 address.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.address;
        a == 0 && b == 0 && c == V4_MAPPED
    }
}

/// Where connects to one address go while the agent does not take them: the values of the map `GATES`, whose keys are
/// [`Listener`]s.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// In order of preference.
    pub siblings: [Sibling; SIBLINGS_MAX],
    /// How many of them there are.
    pub count: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 200 && align_of::<Gate>() == 4);

/// What is believed of one sibling: one entry of the map `PEERS`, which the agent maps into its memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address, in the form of [`Listener::address`]. Written by the agent.
    pub address: [u32; 4],
    /// Its port in host order; 0: the place is free. Written by the agent.
    pub port: u32,
    /// Always 0.
    pub reserved: u32,
    /// Until when the agent believes it down. Written by the agent, which repeats it while it holds.
    pub told_down_until_ns: u64,
    /// Until when nothing is sent to it, as a connect failed. Written by the programs.
    pub failed_until_ns: u64,
    /// Connects that were sent there. Written by the programs.
    pub diverted: u64,
    /// How many of them failed: refused, or not answered in time. Written by the programs.
    pub failed: u64,
}

const _: () = assert!(size_of::<Peer>() == 56 && align_of::<Peer>() == 8);

/// How the agent does, and what it wants: the one entry of the map `FAILOVER`, which the agent maps into its memory.
/// Times are nanoseconds of the monotonic clock.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// 0: no connect is touched.
    pub on: u32,
    /// Beats that count at most.
    pub workers: u32,
    /// The worker of a beat older than that hangs.
    pub stale_ns: u64,
    /// Until then connects go to siblings though the agent lives, as long as one of those is believed alive.
    pub away_until_ns: u64,
    /// Until then beats do not count.
    pub hold_until_ns: u64,
    /// Always 0.
    pub reserved: [u64; 4],
    /// When each worker last said that it lives. 0: it does not count, as it has not begun, or has no listeners any more.
    pub beats: [u64; WORKERS_MAX],
}

const _: () = assert!(size_of::<Failover>() == 64 + 8 * WORKERS_MAX && align_of::<Failover>() == 8);

/// A socket whose connect was diverted: its storage (map `DIVERTED`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Diverted {
    /// Where it was going, in the form of [`Listener::address`].
    pub from: [u32; 4],
    /// Where it went instead.
    pub to: [u32; 4],
    /// The port of `from` in host order.
    pub from_port: u32,
    /// The port of `to` in host order.
    pub to_port: u32,
    /// The place in `PEERS` of the sibling that it went to.
    pub peer: u32,
    /// Not 0: it is counted as failed.
    pub failed: u32,
}

const _: () = assert!(size_of::<Diverted>() == 48 && align_of::<Diverted>() == 4);

/// What was decided about a connect to a gate: an index of [`Decisions::counts`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// To the agent.
    Local = 0,
    /// To a sibling, as nobody listens here.
    NoListener = 1,
    /// To a sibling, as a worker hangs.
    Stale = 2,
    /// To a sibling, as the agent wants it.
    Away = 3,
    /// Left alone, as the gate has no sibling that the socket could reach.
    NoSibling = 4,
    /// Left alone, as all siblings are believed down.
    AllDown = 5,
    /// Left alone, as it is turned off.
    Bypassed = 6,
    /// Left alone, as the socket is the agent's own.
    Exempt = 7,
    /// Left alone, as the socket is bound to the loopback, which cannot be left from there.
    Bound = 8,
}

/// Room for decisions: a new one changes no layout.
pub const DECISIONS_MAX: usize = 16;

impl Decision {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Local,
        Self::NoListener,
        Self::Stale,
        Self::Away,
        Self::NoSibling,
        Self::AllDown,
        Self::Bypassed,
        Self::Exempt,
        Self::Bound,
    ];

    /// Its name, as the operator sees it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::NoListener => "no-listener",
            Self::Stale => "stale",
            Self::Away => "away",
            Self::NoSibling => "no-sibling",
            Self::AllDown => "all-down",
            Self::Bypassed => "bypassed",
            Self::Exempt => "exempt",
            Self::Bound => "bound",
        }
    }

    /// Whether the connect went to a sibling.
    #[must_use]
    pub const fn is_diverted(self) -> bool {
        matches!(self, Self::NoListener | Self::Stale | Self::Away)
    }
}

/// What was decided, counted: one entry of the per-CPU map `DECISIONS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decisions {
    /// By number of [`Decision`].
    pub counts: [u64; DECISIONS_MAX],
}

const _: () = assert!(size_of::<Decisions>() == 8 * DECISIONS_MAX && Decision::ALL.len() <= DECISIONS_MAX);

impl Decisions {
    /// How often this was decided.
    #[must_use]
    pub const fn of(&self, decision: Decision) -> u64 {
        self.counts[decision as usize]
    }
}

impl Add for Decisions {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self
    }
}

impl Sum for Decisions {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// The address that [`Listener`] and [`Sibling`] have as words. None for a port that there cannot be.
#[must_use]
pub fn socket_address(address: [u32; 4], port: u32) -> Option<SocketAddr> {
    let [a, b, c, d] = address.map(u32::from_be);
    let bits = (u128::from(a) << 96) | (u128::from(b) << 64) | (u128::from(c) << 32) | u128::from(d);
    let ip = Ipv6Addr::from_bits(bits);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_were() {
        for text in ["10.1.2.3:13001", "0.0.0.0:1", "[::]:65535", "[::1]:13000", "[fe80::1:2]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            let sibling = Sibling::new(address, 9);
            assert_eq!(socket_address(sibling.address, sibling.port), Some(address));
            assert_eq!((sibling.is_v4(), sibling.peer), (address.is_ipv4(), 9));
        }
        let mapped = Sibling::new("[::ffff:10.1.2.3]:13001".parse().unwrap(), 0);
        assert_eq!(mapped, Sibling::new("10.1.2.3:13001".parse().unwrap(), 0));
        assert_eq!(socket_address([0; 4], 65_536), None);
    }

    #[test]
    fn decisions_have_their_numbers_and_names() {
        for (number, decision) in Decision::ALL.into_iter().enumerate() {
            assert_eq!(decision as usize, number);
            let same = Decision::ALL.into_iter().filter(|other| other.name() == decision.name()).count();
            assert_eq!(same, 1, "{}", decision.name());
        }
        let diverted: Vec<_> = Decision::ALL.into_iter().filter(|decision| decision.is_diverted()).collect();
        assert_eq!(diverted, [Decision::NoListener, Decision::Stale, Decision::Away]);
    }

    #[test]
    fn decisions_add_up() {
        let mut one = Decisions::default();
        one.counts[Decision::Stale as usize] = 3;
        one.counts[Decision::Local as usize] = 40;
        let sum: Decisions = [one, one, Decisions::default()].into_iter().sum();
        assert_eq!((sum.of(Decision::Local), sum.of(Decision::Stale), sum.of(Decision::Away)), (80, 6, 0));
    }
}
