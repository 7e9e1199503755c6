//! Where connects go, and why.

use std::{
    mem::offset_of,
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use agent_common::failover::{Decision, Failover};
use socket2::{Domain, Socket, Type};

use super::bed::{any_has, at, has, in_bed, listen, nobody, reaches, refused};
use crate::{
    clock::now_ns,
    netns::thread::{cookie, enter_new},
};

#[test]
fn an_agent_that_listens_has_its_connects() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        bed.gate(at(&agent), &[at(&sibling)]);
        for _ in 0..3 {
            assert_eq!(reaches(at(&agent), &agent).peer_addr().unwrap(), at(&agent));
        }
        bed.expect(&[(Decision::Local, 3)]);
        // Where there is no gate nothing is decided.
        reaches(at(&sibling), &sibling);
        refused(nobody("127.0.0.1"));
        bed.expect(&[(Decision::Local, 3)]);
    });
}

#[test]
fn without_a_listener_a_sibling_has_them() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.2:0"));
        let gate = at(&agent);
        bed.gate(gate, &[at(&sibling)]);
        reaches(gate, &agent);
        drop(agent);
        for _ in 0..5 {
            reaches(gate, &sibling);
        }
        bed.expect(&[(Decision::Local, 1), (Decision::NoListener, 5)]);
        let peer = bed.peer(at(&sibling));
        assert_eq!((peer.diverted, peer.failed, peer.failed_until_ns), (5, 0, 0));
        // As soon as it is there again, so are they.
        let agent = bed.agent(&gate.to_string());
        reaches(gate, &agent);
        bed.expect(&[(Decision::Local, 2), (Decision::NoListener, 5)]);
    });
}

#[test]
fn a_gate_without_siblings_changes_nothing() {
    in_bed(|bed| {
        let gate = nobody("127.0.0.1");
        bed.gate(gate, &[]);
        refused(gate);
        bed.expect(&[(Decision::NoSibling, 1)]);
        bed.hooks.remove_gate(bed.netns, gate);
        refused(gate);
        bed.expect(&[(Decision::NoSibling, 1)]);
    });
}

#[test]
fn a_stranger_on_the_same_port_is_not_the_agent() {
    in_bed(|bed| {
        let (stranger, sibling) = (listen("0.0.0.0:0"), listen("127.0.0.2:0"));
        let gate = format!("127.0.0.1:{}", at(&stranger).port()).parse().unwrap();
        bed.gate(gate, &[at(&sibling)]);
        reaches(gate, &sibling);
        bed.expect(&[(Decision::NoListener, 1)]);
        drop(stranger);
        let agent = bed.agent(&gate.to_string());
        reaches(gate, &agent);
    });
}

#[test]
fn one_of_several_workers_is_enough() {
    in_bed(|bed| {
        let first = bed.agent("127.0.0.1:0");
        let gate = at(&first);
        let mut workers: Vec<TcpListener> = (0..3).map(|_| bed.agent(&gate.to_string())).collect();
        workers.push(first);
        let sibling = listen("127.0.0.2:0");
        bed.gate(gate, &[at(&sibling)]);
        while !workers.is_empty() {
            for _ in 0..8 {
                any_has(&workers, &TcpStream::connect(gate).unwrap());
            }
            workers.pop();
        }
        reaches(gate, &sibling);
        bed.expect(&[(Decision::Local, 32), (Decision::NoListener, 1)]);
    });
}

#[test]
fn another_namespace_has_gates_of_its_own() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        let (gate, aside) = (at(&agent), at(&sibling));
        bed.gate(gate, &[aside]);
        thread::scope(|scope| {
            scope.spawn(|| {
                enter_new().unwrap();
                refused(gate);
                let there = listen(&aside.to_string());
                // The agent listens in the other namespace only.
                bed.hooks.set_gate(cookie().unwrap(), gate, &[at(&there)]).unwrap();
                reaches(gate, &there);
                let agent = bed.agent(&gate.to_string());
                reaches(gate, &agent);
            });
        });
        reaches(gate, &agent);
        bed.expect(&[(Decision::Local, 2), (Decision::NoListener, 1)]);
        assert_eq!(bed.hooks.gates().len(), 2);
    });
}

#[test]
fn one_worker_that_hangs_shuts_the_gate() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        let gate = at(&agent);
        bed.gate(gate, &[at(&sibling)]);
        bed.hooks.set_workers(2);
        bed.hooks.set_stale(Duration::from_secs(60));
        reaches(gate, &agent);
        bed.pulse.beat(0);
        bed.pulse.beat(1);
        // Nobody has the third, and so it does not count.
        bed.pulse.beat(2);
        reaches(gate, &agent);
        let page = bed.page();
        let beat = |worker: usize| page.u64(offset_of!(Failover, beats) + 8 * worker);
        assert!(beat(1).load(Relaxed) > 0 && beat(2).load(Relaxed) > 0 && beat(3).load(Relaxed) == 0);
        let old = now_ns().saturating_sub(61_000_000_000).max(1);
        beat(2).store(old, Relaxed);
        reaches(gate, &agent);
        beat(1).store(old, Relaxed);
        reaches(gate, &sibling);
        // Until it beats again, or has no listeners any more.
        bed.pulse.beat(1);
        reaches(gate, &agent);
        beat(1).store(old, Relaxed);
        reaches(gate, &sibling);
        beat(1).store(0, Relaxed);
        reaches(gate, &agent);
        // From now on everything is old.
        bed.hooks.set_stale(Duration::ZERO);
        reaches(gate, &sibling);
        bed.hooks.set_hold_until(u64::MAX);
        reaches(gate, &agent);
        bed.hooks.set_hold_until(now_ns());
        reaches(gate, &sibling);
        bed.hooks.set_workers(1);
        reaches(gate, &agent);
        bed.expect(&[(Decision::Local, 7), (Decision::Stale, 4)]);
    });
}

#[test]
fn the_last_of_many_workers_counts() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        bed.gate(at(&agent), &[at(&sibling)]);
        bed.hooks.set_workers(usize::MAX);
        bed.hooks.set_stale(Duration::from_secs(60));
        for worker in 0..1030 {
            bed.pulse.beat(worker);
        }
        reaches(at(&agent), &agent);
        bed.page().u64(offset_of!(Failover, beats) + 8 * 1023).store(1, Relaxed);
        reaches(at(&agent), &sibling);
    });
}

#[test]
fn an_agent_that_is_away_keeps_what_nobody_else_takes() {
    in_bed(|bed| {
        let (agent, sibling) = (bed.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        let gate = at(&agent);
        bed.gate(gate, &[at(&sibling)]);
        bed.hooks.set_away_until(u64::MAX);
        reaches(gate, &sibling);
        bed.hooks.tell_down(at(&sibling), u64::MAX);
        reaches(gate, &agent);
        bed.hooks.tell_down(at(&sibling), 0);
        reaches(gate, &sibling);
        bed.hooks.set_away_until(now_ns());
        reaches(gate, &agent);
        bed.expect(&[(Decision::Local, 1), (Decision::Away, 2), (Decision::AllDown, 1)]);
    });
}

#[test]
fn siblings_are_taken_in_order() {
    in_bed(|bed| {
        let siblings = [(); 8].map(|()| listen("127.0.0.1:0"));
        let gate = nobody("127.0.0.3");
        // One more than count.
        let mut addresses: Vec<_> = siblings.iter().map(at).collect();
        addresses.push(nobody("127.0.0.1"));
        bed.gate(gate, &addresses);
        for sibling in &siblings {
            reaches(gate, sibling);
            bed.hooks.tell_down(at(sibling), u64::MAX);
        }
        refused(gate);
        bed.hooks.tell_down(at(&siblings[7]), 1);
        reaches(gate, &siblings[7]);
        bed.expect(&[(Decision::NoListener, 9), (Decision::AllDown, 1)]);
    });
}

#[test]
fn turned_off_nothing_is_touched() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        assert!(bed.hooks.is_on());
        bed.hooks.set_on(false);
        assert!(!bed.hooks.is_on());
        refused(gate);
        bed.hooks.set_on(true);
        reaches(gate, &sibling);
        bed.expect(&[(Decision::NoListener, 1), (Decision::Bypassed, 1)]);
    });
}

#[test]
fn the_agents_own_sockets_go_where_they_want() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let own = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bed.kernel.path().dialling(own.as_fd()).unwrap();
        assert!(own.connect(&gate.into()).is_err());
        bed.expect(&[(Decision::Exempt, 1)]);
    });
}

#[test]
fn what_is_bound_to_the_loopback_stays() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let bound = |address: &str| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&address.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            socket
        };
        assert!(bound("127.0.0.1:0").connect(&gate.into()).is_err());
        let device = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        device.bind_device(Some(b"lo")).unwrap();
        assert!(device.connect(&gate.into()).is_err());
        bed.expect(&[(Decision::Bound, 2)]);
        let free: Socket = bound("0.0.0.0:0");
        free.connect(&gate.into()).unwrap();
        has(&sibling, &free.into());
    });
}

#[test]
fn udp_is_left_alone() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(gate).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), gate);
        bed.expect(&[]);
    });
}

#[test]
fn connects_that_do_not_wait_are_diverted_too() {
    in_bed(|bed| {
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&gate.into()).unwrap_err();
        assert_eq!(begun.raw_os_error(), Some(nix::libc::EINPROGRESS));
        let client: TcpStream = socket.into();
        super::bed::until("it is connected", || client.peer_addr().is_ok());
        has(&sibling, &client);
        assert_eq!(client.peer_addr().unwrap(), gate);
        assert!(client.take_error().unwrap().is_none());
    });
}
