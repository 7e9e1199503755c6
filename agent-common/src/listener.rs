//! How the kernel programs know the agent's listeners from everybody else's.

use core::net::{IpAddr, SocketAddr};

/// The value of every entry of the map `LISTENERS`.
pub const WATCHED: u32 = 1;

/// One of the agent's listeners: the key of the map `LISTENERS`.
///
/// The network namespace is part of it, as the same address and port mean another socket in each.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listener {
    /// The cookie of the network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// The address as four words in network order, IPv4 as `::ffff:a.b.c.d`; 0 for a listener on every address.
    pub address: [u32; 4],
    /// The port in host order; 32 bits wide, so that the key has no padding.
    pub port: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Listener>() == 32 && align_of::<Listener>() == 8);

impl Listener {
    /// The key for a listener that is bound to `address` in the namespace with the cookie `netns`.
    #[must_use]
    pub fn new(netns: u64, address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let [a, b, c, d, e, f, g, h] = ip.segments().map(u16::to_be_bytes);
        let word = |high: [u8; 2], low: [u8; 2]| u32::from_ne_bytes([high[0], high[1], low[0], low[1]]);
        Self::at(netns, [word(a, b), word(c, d), word(e, f), word(g, h)], u32::from(address.port()))
    }

    /// The key from its parts, as the kernel programs have them.
    #[must_use]
    pub const fn at(netns: u64, address: [u32; 4], port: u32) -> Self {
        Self { netns, address, port, reserved: 0 }
    }

    /// Whether the address is an IPv4 one.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.address;
        a == 0 && b == 0 && c == V4_MAPPED
    }

    /// Whether the address is one that never leaves the machine.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.address;
        if self.is_v4() { u32::from_be(d) >> 24 == 127 } else { a == 0 && b == 0 && c == 0 && u32::from_be(d) == 1 }
    }

    /// The listener on every IPv4 address of the same namespace and port.
    #[must_use]
    pub const fn any_v4(&self) -> Self {
        Self::at(self.netns, [0, 0, V4_MAPPED, 0], self.port)
    }

    /// The listener on every address, of both families, of the same namespace and port.
    #[must_use]
    pub const fn any(&self) -> Self {
        Self::at(self.netns, [0; 4], self.port)
    }
}

/// The third word of an IPv4 address, behind two of 0.
pub const V4_MAPPED: u32 = 0xffff_u32.to_be();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_one_form() {
        let v4 = Listener::new(7, "10.1.2.3:13000".parse().unwrap());
        let mapped = Listener::new(7, "[::ffff:10.1.2.3]:13000".parse().unwrap());
        assert_eq!(v4, mapped);
        assert!(v4.is_v4());
        assert!(!Listener::new(7, "[fe80::1]:13000".parse().unwrap()).is_v4());
    }

    #[test]
    fn wildcards_are_what_binding_to_them_gives() {
        let one = Listener::new(7, "10.1.2.3:13000".parse().unwrap());
        assert_eq!(one.any_v4(), Listener::new(7, "0.0.0.0:13000".parse().unwrap()));
        assert_eq!(one.any(), Listener::new(7, "[::]:13000".parse().unwrap()));
        assert!(one.any_v4().is_v4());
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        let loopback = |address: &str| Listener::new(7, address.parse().unwrap()).is_loopback();
        assert!(loopback("127.0.0.1:1") && loopback("127.9.8.7:1") && loopback("[::1]:1"));
        assert!(!loopback("126.0.0.1:1") && !loopback("0.0.0.0:1") && !loopback("[::]:1") && !loopback("[fe80::1]:1"));
    }

    #[test]
    fn namespace_and_port_tell_listeners_apart() {
        let one = Listener::new(7, "10.1.2.3:13000".parse().unwrap());
        assert_ne!(one, Listener::new(8, "10.1.2.3:13000".parse().unwrap()));
        assert_ne!(one, Listener::new(7, "10.1.2.3:13001".parse().unwrap()));
    }
}
