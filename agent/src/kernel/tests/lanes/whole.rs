//! What is not one whole frame a message.

use std::io::{Read, Write};

use agent_common::frame::{Header, Kind};

use super::bed::{BOUND, Whole, bytes, expect_nothing, in_bed, request};
use crate::proxy::Unrouted;

/// Sends these messages, and then one that would be routed if the lane still was one. The agent gets all of it.
fn becomes_a_stream(messages: Vec<Vec<u8>>) {
    in_bed(BOUND, move |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        request(1, bytes(1, 10)).send(&caller.app);
        Whole::read(&callee.app);
        let after = request(99, bytes(9, 100)).bytes();
        let all = [messages.concat(), after.clone()].concat();
        for message in messages.iter().chain([&after]) {
            assert_eq!((&caller.app).write(message).unwrap(), message.len());
        }
        let mut got = vec![0; all.len()];
        (&caller.agent).read_exact(&mut got).unwrap();
        assert!(got == all, "bytes were lost, or overtook others");
        expect_nothing(&caller.agent);
        expect_nothing(&callee.app);
        assert_eq!((bed.in_flight(&callee), bed.unrouted(Unrouted::NotWhole)), (1, 1));
    });
}

#[test]
fn a_frame_in_pieces() {
    let frame = request(2, bytes(2, 5000)).bytes();
    for at in [1, 39, 40, 41, 4000] {
        let (first, rest) = frame.split_at(at);
        becomes_a_stream(vec![first.to_vec(), rest.to_vec()]);
    }
}

#[test]
fn two_frames_at_once() {
    becomes_a_stream(vec![[request(2, bytes(2, 50)).bytes(), request(3, bytes(3, 50)).bytes()].concat()]);
}

#[test]
fn lengths_that_lie() {
    let lie = |change: fn(&mut Header)| {
        let mut one = request(2, bytes(2, 500));
        change(&mut one.header);
        one.bytes()
    };
    for message in [
        lie(|header| header.body_len = 499),
        lie(|header| header.body_len = 501),
        lie(|header| header.body_len = u32::MAX),
        lie(|header| header.meta_len = 1),
        lie(|header| header.stream = 0),
        lie(|header| header.kind = 77),
        bytes(7, 600),
        // More than a frame may have.
        Whole { header: Header { body_len: 70_000, ..request(2, vec![]).header }, body: bytes(1, 70_000) }.bytes(),
    ] {
        becomes_a_stream(vec![message]);
    }
}

#[test]
fn connections_without_a_lane_are_streams() {
    in_bed(BOUND, |bed| {
        let callee = bed.app(2);
        bed.route(&[&callee]);
        let hello = Header::new(Kind::Hello).bytes();
        let call = request(1, Vec::new()).bytes();
        for first in [&b"*1\r\n$4\r\nPING\r\n"[..], &b"M"[..], &hello[..], &call[..]] {
            let (mut app, mut agent) = bed.connect();
            for message in [first, &call, &call] {
                app.write_all(message).unwrap();
                let mut got = vec![0; message.len()];
                agent.read_exact(&mut got).unwrap();
                assert_eq!(got, message);
            }
        }
        expect_nothing(&callee.app);
        assert_eq!(bed.lanes.routed().unwrap(), crate::proxy::Routed::default());
    });
}

#[test]
fn connections_that_have_used_tcp_are_no_lanes() {
    use std::os::fd::AsFd;
    in_bed(BOUND, |bed| {
        let hello = Header::new(Kind::Hello).bytes();
        let refused = |agent: &std::net::TcpStream, read| bed.lanes.open(agent.as_fd(), read, 1, 1).unwrap_err();
        let (mut app, mut agent) = bed.connect();
        assert!(refused(&agent, 0).contains("nothing has come"));
        app.write_all(&hello).unwrap();
        agent.read_exact(&mut [0; 40]).unwrap();
        bed.kernel.path().keep_to_tcp(agent.as_fd(), crate::proxy::Fallback::Off, false).unwrap();
        assert!(refused(&agent, 40).contains("what the agent sends"));
        bed.kernel.turn_off();
        let (mut app, mut agent) = bed.connect();
        app.write_all(&hello).unwrap();
        agent.read_exact(&mut [0; 40]).unwrap();
        assert!(refused(&agent, 40).contains("not enrolled"));
        bed.kernel.turn_on();
        let (mut app, mut agent) = bed.connect();
        bed.kernel.turn_off();
        app.write_all(&hello).unwrap();
        agent.read_exact(&mut [0; 40]).unwrap();
        assert!(refused(&agent, 40).contains("TCP"));
    });
}
