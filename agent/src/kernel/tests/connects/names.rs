//! What applications are told of where they are connected to, also on sockets that they use again.

use std::net::TcpStream;

use agent_common::failover::Decision;
use rustix::net::connect_unspec;
use socket2::{Domain, Socket, Type};

use super::bed::{at, has, in_bed, listen, nobody};

fn socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
}

fn again(socket: &Socket) -> TcpStream {
    socket.try_clone().unwrap().into()
}

#[test]
fn the_name_is_that_of_the_last_connect() {
    in_bed(|bed| {
        let (sibling, other) = (listen("127.0.0.1:0"), listen("127.0.0.1:0"));
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let socket = socket();
        socket.connect(&gate.into()).unwrap();
        drop(has(&sibling, &again(&socket)));
        assert_eq!(again(&socket).peer_addr().unwrap(), gate);
        // Elsewhere, where there is no gate.
        connect_unspec(&socket).unwrap();
        socket.connect(&at(&other).into()).unwrap();
        drop(has(&other, &again(&socket)));
        assert_eq!(again(&socket).peer_addr().unwrap(), at(&other));
        // To the gate again, and then to the agent behind it.
        connect_unspec(&socket).unwrap();
        socket.connect(&gate.into()).unwrap();
        drop(has(&sibling, &again(&socket)));
        assert_eq!(again(&socket).peer_addr().unwrap(), gate);
        let agent = bed.agent(&gate.to_string());
        connect_unspec(&socket).unwrap();
        socket.connect(&gate.into()).unwrap();
        drop(has(&agent, &again(&socket)));
        assert_eq!(again(&socket).peer_addr().unwrap(), gate);
        bed.expect(&[(Decision::Local, 1), (Decision::NoListener, 2)]);
    });
}

#[test]
fn whoever_connects_to_a_sibling_himself_is_told_so() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let client = TcpStream::connect(at(&sibling)).unwrap();
        has(&sibling, &client);
        assert_eq!(client.peer_addr().unwrap(), at(&sibling));
        bed.expect(&[]);
    });
}

#[test]
fn a_refused_socket_can_try_again() {
    in_bed(|bed| {
        let (dead, sibling) = (nobody("127.0.0.3"), listen("127.0.0.1:0"));
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[dead, at(&sibling)]);
        let socket = socket();
        assert!(socket.connect(&gate.into()).is_err());
        socket.connect(&gate.into()).unwrap();
        drop(has(&sibling, &again(&socket)));
        assert_eq!(again(&socket).peer_addr().unwrap(), gate);
    });
}
