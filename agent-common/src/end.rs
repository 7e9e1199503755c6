//! How the two ends of a connection find each other.

use crate::V4_MAPPED;

/// One end of an enrolled connection: the key of the map `SOCKS`.
///
/// The initial sequence numbers are part of it, so that a connection which uses the same addresses again never reaches a
/// socket of its predecessor; so is the network namespace, as the same addresses mean others in each. Both ends know the
/// same facts, so each can name the other ([`End::peer`]) without a word from it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct End {
    /// The cookie of the network namespace, which both ends share.
    pub netns: u64,
    /// The end's own address as four words in network order, IPv4 as `::ffff:a.b.c.d`.
    pub own: [u32; 4],
    /// The other end's.
    pub other: [u32; 4],
    /// The end's own port in host order.
    pub own_port: u32,
    /// The other end's.
    pub other_port: u32,
    /// The sequence number of the first byte that this end sends by TCP.
    pub sends: u32,
    /// And of the first that it receives.
    pub receives: u32,
}

const _: () = assert!(size_of::<End>() == 56 && align_of::<End>() == 8);

impl End {
    /// The other end of the same connection.
    #[inline(always)]
    #[must_use]
    pub const fn peer(&self) -> Self {
        Self {
            netns: self.netns,
            own: self.other,
            other: self.own,
            own_port: self.other_port,
            other_port: self.own_port,
            sends: self.receives,
            receives: self.sends,
        }
    }

    /// Whether the connection is an IPv4 one, also through IPv6 sockets.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.own;
        a == 0 && b == 0 && c == V4_MAPPED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: End = End {
        netns: 7,
        own: [0, 0, V4_MAPPED, 1],
        other: [0, 0, V4_MAPPED, 2],
        own_port: 3,
        other_port: 4,
        sends: 5,
        receives: 6,
    };

    #[test]
    fn ends_name_each_other() {
        let peer = END.peer();
        assert_eq!((peer.netns, peer.own, peer.other), (7, END.other, END.own));
        assert_eq!((peer.own_port, peer.other_port, peer.sends, peer.receives), (4, 3, 6, 5));
        assert_eq!(peer.peer(), END);
    }

    #[test]
    fn families_are_told_apart() {
        assert!(END.is_v4());
        assert!(!End { own: [0, 0, 0, 1], ..END }.is_v4());
    }
}
