//! IPv6, IPv4 in IPv6, and listeners on every address.

use std::net::{SocketAddr, TcpStream};

use agent_common::failover::Decision;

use super::bed::{at, has, in_bed, listen, nobody, reaches, refused};

fn mapped(address: SocketAddr) -> SocketAddr {
    format!("[::ffff:{}]:{}", address.ip(), address.port()).parse().unwrap()
}

#[test]
fn ipv6_goes_to_the_agent_or_to_siblings_of_both_families() {
    in_bed(|bed| {
        let (agent, six, four) = (bed.agent("[::1]:0"), listen("[::1]:0"), listen("127.0.0.1:0"));
        let gate = at(&agent);
        bed.gate(gate, &[at(&six), at(&four)]);
        reaches(gate, &agent);
        drop(agent);
        assert_eq!(reaches(gate, &six).peer_addr().unwrap(), gate);
        bed.hooks.tell_down(at(&six), u64::MAX);
        assert_eq!(reaches(gate, &four).peer_addr().unwrap(), gate);
        bed.expect(&[(Decision::Local, 1), (Decision::NoListener, 2)]);
    });
}

#[test]
fn ipv4_in_ipv6_stays_ipv4() {
    in_bed(|bed| {
        let (agent, six, four) = (bed.agent("127.0.0.1:0"), listen("[::1]:0"), listen("127.0.0.2:0"));
        let gate = at(&agent);
        bed.gate(gate, &[at(&six), at(&four)]);
        reaches(mapped(gate), &agent);
        drop(agent);
        assert_eq!(reaches(mapped(gate), &four).peer_addr().unwrap(), mapped(gate));
        assert_eq!(reaches(gate, &four).peer_addr().unwrap(), gate);
        bed.hooks.tell_down(at(&four), u64::MAX);
        refused(mapped(gate));
        bed.gate(gate, &[at(&six)]);
        refused(mapped(gate));
        refused(gate);
        bed.expect(&[(Decision::Local, 1), (Decision::NoListener, 2), (Decision::NoSibling, 2), (Decision::AllDown, 1)]);
    });
}

#[test]
fn a_gate_on_every_address_is_one_on_this_machine() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("[::]:0"), listen("127.0.0.1:0"));
        let port = at(&agent).port();
        let to = |host: &str| -> SocketAddr { format!("{host}:{port}").parse().unwrap() };
        let here = ["127.0.0.1", "127.3.2.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"].map(to);
        bed.gate(at(&agent), &[at(&sibling)]);
        for address in here {
            has(&agent, &TcpStream::connect(address).unwrap());
        }
        drop(agent);
        for address in here {
            has(&sibling, &TcpStream::connect(address).unwrap());
        }
        bed.expect(&[(Decision::Local, 6), (Decision::NoListener, 6)]);
        // Whoever listens there on another machine is a stranger.
        assert!(TcpStream::connect(to("192.0.2.1")).is_err());
        bed.expect(&[(Decision::Local, 6), (Decision::NoListener, 6)]);
    });
}

#[test]
fn a_gate_on_every_ipv4_address_has_no_ipv6() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("0.0.0.0:0"), listen("127.0.0.1:0"));
        let to = |host: &str| -> SocketAddr { format!("{host}:{}", at(&agent).port()).parse().unwrap() };
        bed.gate(at(&agent), &[at(&sibling)]);
        reaches(to("127.0.0.5"), &agent);
        refused(to("[::1]"));
        bed.expect(&[(Decision::Local, 1)]);
    });
}

#[test]
fn to_no_address_is_to_the_loopback() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let (four, six) = (nobody("127.0.0.1"), nobody("[::1]"));
        bed.gate(four, &[at(&sibling)]);
        bed.gate(six, &[at(&sibling)]);
        let any = |host: &str, port: u16| -> SocketAddr { format!("{host}:{port}").parse().unwrap() };
        assert_eq!(reaches(any("0.0.0.0", four.port()), &sibling).peer_addr().unwrap(), four);
        assert_eq!(reaches(any("[::]", six.port()), &sibling).peer_addr().unwrap(), six);
    });
}
