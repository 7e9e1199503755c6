//! Answers to calls that one was not given.

use agent_common::{
    frame::{Flags, Header},
    lane::KERNEL_VIA,
};

use super::bed::{BOUND, Whole, bytes, expect_nothing, in_bed, request, response};
use crate::proxy::Unrouted;

#[test]
fn only_who_was_given_a_call_answers_it_and_once() {
    in_bed(BOUND, |bed| {
        let (caller, callee, stranger) = (bed.app(1), bed.app(2), bed.app(3));
        bed.route(&[&callee]);
        request(1, Vec::new()).send(&caller.app);
        let call = Whole::read(&callee.app);
        let right = response(&call, bytes(1, 100));
        let expect = |from: &super::bed::App, header: Header, why: Unrouted| {
            let answer = Whole { header, ..right.clone() };
            let before = bed.unrouted(why);
            answer.send(&from.app);
            assert_eq!(Whole::read(&from.agent), answer, "{why:?}");
            assert_eq!(bed.unrouted(why), before + 1, "{why:?}");
        };
        expect(&stranger, right.header, Unrouted::NotOwn);
        expect(&caller, right.header, Unrouted::NotOwn);
        expect(&callee, Header { stream: 2, ..right.header }, Unrouted::NotOwn);
        expect(&callee, Header { service: 3, ..right.header }, Unrouted::NotOwn);
        for bit in [0, 17, 62] {
            expect(&callee, Header { via: right.header.via ^ 1 << bit, ..right.header }, Unrouted::Unknown);
        }
        expect(&callee, Header { via: right.header.via & !KERNEL_VIA, ..right.header }, Unrouted::ForAgent);
        expect(&callee, Header { word: 500, ..right.header }, Unrouted::Error);
        expect(&callee, Header { flags: Flags::TO_CALLER, ..right.header }, Unrouted::Flags);
        expect_nothing(&caller.app);
        assert_eq!(bed.calls().len(), 1);
        right.send(&callee.app);
        assert_eq!(Whole::read(&caller.app).body, right.body);
        expect(&callee, right.header, Unrouted::Unknown);
        expect_nothing(&caller.app);
        assert_eq!((bed.in_flight(&callee), bed.lanes.look(callee.lane).unwrap().queued), (0, 0));
    });
}

#[test]
fn nobody_gets_two_calls_by_the_same_name() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        let mut names = std::collections::HashSet::new();
        for stream in 1..=5000 {
            request(stream, Vec::new()).send(&caller.app);
            assert!(names.insert(Whole::read(&callee.app).header.via));
        }
        assert_eq!(bed.calls().len(), names.len());
    });
}
