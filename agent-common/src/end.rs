//! How the two ends of a connection find each other.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

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

    /// The end's own address, and the other's.
    #[must_use]
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (address(self.own, self.own_port), address(self.other, self.other_port))
    }

    /// Whether the connection is an IPv4 one, also through IPv6 sockets.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.own;
        a == 0 && b == 0 && c == V4_MAPPED
    }
}

fn address(words: [u32; 4], port: u32) -> SocketAddr {
    let [a, b, c, d] = words.map(|word| u128::from(u32::from_be(word)));
    let ip = Ipv6Addr::from(a << 96 | b << 64 | c << 32 | d);
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    SocketAddr::new(IpAddr::V6(ip).to_canonical(), port as u16)
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
    fn addresses_are_read_back() {
        let words = |address: &str| crate::Listener::new(7, address.parse().unwrap()).address;
        let v4 = End { own: words("127.0.0.1:1"), other: words("10.1.2.3:1"), ..END };
        assert_eq!(v4.addresses(), ("127.0.0.1:3".parse().unwrap(), "10.1.2.3:4".parse().unwrap()));
        let v6 = End { own: words("[fe80::1]:1"), other: words("[::1]:1"), ..END };
        assert_eq!(v6.addresses(), ("[fe80::1]:3".parse().unwrap(), "[::1]:4".parse().unwrap()));
    }

    #[test]
    fn families_are_told_apart() {
        assert!(END.is_v4());
        assert!(!End { own: [0, 0, 0, 1], ..END }.is_v4());
    }
}
