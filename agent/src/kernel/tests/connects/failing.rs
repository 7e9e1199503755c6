//! Siblings that do not take what was sent to them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use agent_common::failover::{Decision, FAILED_FOR_NS, PEERS_MAX};
use socket2::{Domain, Socket, Type};

use super::bed::{at, deaf, has, in_bed, listen, nobody, reaches, refused, until};
use crate::clock::now_ns;

#[test]
fn one_that_refuses_is_left_alone_for_a_while() {
    in_bed(|bed| {
        let (dead, sibling) = (nobody("127.0.0.3"), listen("127.0.0.1:0"));
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[dead, at(&sibling)]);
        let before = now_ns();
        refused(gate);
        let peer = bed.peer(dead);
        assert_eq!((peer.diverted, peer.failed), (1, 1));
        assert!((before + FAILED_FOR_NS..=now_ns() + FAILED_FOR_NS).contains(&peer.failed_until_ns));
        reaches(gate, &sibling);
        assert_eq!((bed.peer(dead).diverted, bed.peer(at(&sibling)).diverted), (1, 1));
        // And then it is tried again.
        until("the time is over", || now_ns() > peer.failed_until_ns);
        let back = listen(&dead.to_string());
        reaches(gate, &back);
        assert_eq!((bed.peer(dead).failed, bed.peer(dead).failed_until_ns), (1, 0));
        bed.expect(&[(Decision::NoListener, 3)]);
    });
}

#[test]
fn all_that_refuse_are_all_there_is() {
    in_bed(|bed| {
        let dead = [nobody("127.0.0.3"), nobody("127.0.0.4")];
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &dead);
        for _ in 0..3 {
            refused(gate);
        }
        bed.expect(&[(Decision::NoListener, 2), (Decision::AllDown, 1)]);
    });
}

#[test]
fn one_that_does_not_answer_is_left_alone_as_soon_as_the_kernel_asks_again() {
    in_bed(|bed| {
        let ((silent, _fillers), sibling) = (deaf(), listen("127.0.0.1:0"));
        let silent = silent.local_addr().unwrap().as_socket().unwrap();
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[silent, at(&sibling)]);
        let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        waiting.set_nonblocking(true).unwrap();
        assert!(waiting.connect(&gate.into()).is_err());
        until("it counts as failed", || bed.peer(silent).failed == 1);
        assert!(bed.peer(silent).failed_until_ns > now_ns());
        reaches(gate, &sibling);
        // It has failed once, however long it waits, and however it ends.
        drop(waiting);
        assert_eq!((bed.peer(silent).diverted, bed.peer(silent).failed), (1, 1));
    });
}

#[test]
fn an_application_that_gives_up_says_nothing_about_the_sibling() {
    in_bed(|bed| {
        let (silent, _fillers) = deaf();
        let silent = silent.local_addr().unwrap().as_socket().unwrap();
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[silent]);
        let giving_up = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        giving_up.set_nonblocking(true).unwrap();
        assert!(giving_up.connect(&gate.into()).is_err());
        drop(giving_up);
        let timed = TcpStream::connect_timeout(&gate, Duration::from_millis(1));
        assert!(timed.is_err());
        let peer = bed.peer(silent);
        assert_eq!((peer.diverted, peer.failed, peer.failed_until_ns), (2, 0, 0));
    });
}

#[test]
fn a_connection_that_ends_later_says_nothing_either() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let mut client = TcpStream::connect(gate).unwrap();
        let mut server = has(&sibling, &client);
        client.write_all(b"there").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"back").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        // A reset.
        client.write_all(b"unread").unwrap();
        server.peek(&mut [0; 6]).unwrap();
        drop(server);
        assert!(client.read(&mut [0]).is_err());
        assert_eq!((bed.peer(at(&sibling)).diverted, bed.peer(at(&sibling)).failed), (1, 0));
    });
}

#[test]
fn places_of_siblings_are_given_anew_when_there_are_no_others() {
    in_bed(|bed| {
        let gate = nobody("127.0.0.2");
        let sibling = |number: u32| -> SocketAddr { format!("10.9.{}.{}:13001", number / 250, number % 250).parse().unwrap() };
        bed.gate(gate, &[sibling(1000), sibling(1001)]);
        bed.hooks.tell_down(sibling(1000), 7);
        let other = nobody("127.0.0.4");
        for number in 0..PEERS_MAX + 50 {
            bed.gate(other, &[sibling(number)]);
        }
        assert_eq!(bed.hooks.peers().len(), PEERS_MAX as usize);
        assert_eq!(bed.peer(sibling(1000)).told_down_until_ns, 7);
        assert_eq!(bed.peer(sibling(PEERS_MAX + 49)).diverted, 0);
        // With all of them named there is no room, and the gate is as it was.
        for number in 0..PEERS_MAX / 8 {
            let address = format!("127.0.1.{number}:13000").parse().unwrap();
            let eight: Vec<_> = (0..8).map(|at| sibling(2000 + number * 8 + at)).collect();
            if let Err(error) = bed.hooks.set_gate(bed.netns, address, &eight) {
                assert!(error.to_string().contains("no room for the sibling"), "{error}");
                assert_eq!(bed.hooks.gates().len(), 2 + number as usize);
                return;
            }
        }
        panic!("there was room for all");
    });
}

#[test]
fn gates_are_given_back_as_they_were_made() {
    in_bed(|bed| {
        let addresses: Vec<SocketAddr> =
            ["127.0.0.1:13000", "0.0.0.0:13000", "[::]:13000", "[::1]:13000"].map(|text| text.parse().unwrap()).into();
        for address in &addresses {
            bed.gate(*address, &["10.0.0.1:13001".parse().unwrap(), "[fd00::1]:13001".parse().unwrap()]);
        }
        let mut gates = bed.hooks.gates();
        gates.sort_by_key(|gate| addresses.iter().position(|address| *address == gate.address));
        for (gate, address) in gates.iter().zip(&addresses) {
            assert_eq!((gate.netns, gate.address), (bed.netns, *address));
            assert_eq!(gate.siblings, ["10.0.0.1:13001", "[fd00::1]:13001"].map(|text| text.parse().unwrap()));
        }
        assert_eq!((gates.len(), bed.hooks.peers().len()), (4, 2));
    });
}
