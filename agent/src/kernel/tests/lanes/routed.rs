//! Calls that are routed, and those that are not.

use std::{collections::HashSet, thread};

use agent_common::{
    frame::{Flags, Header, Kind},
    lane::{BY_SHARE, KERNEL_VIA},
};

use super::bed::{App, BOUND, Bed, SERVICE, Whole, bytes, echo, expect_nothing, in_bed, request, response, route};
use crate::proxy::{LaneRoute, Pick, Unrouted};

#[test]
fn calls_and_answers_go_from_one_to_the_other() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        let sizes = [0, 1, 64, 1024, 16 * 1024, 32 * 1024];
        for (stream, size) in (1..).zip(sizes) {
            let call = request(stream, bytes(1, size));
            call.send(&caller.app);
            let got = Whole::read(&callee.app);
            assert_eq!(got.header.via & KERNEL_VIA, KERNEL_VIA);
            let expected = Header { via: got.header.via, flags: Flags::END_STREAM, ..call.header };
            assert_eq!((got.header, &got.body), (expected, &call.body), "{size}");
            let answer = response(&got, bytes(2, size));
            answer.send(&callee.app);
            let got = Whole::read(&caller.app);
            let expected = Header { via: call.header.via, receipt: got.header.receipt, ..answer.header };
            assert_eq!((got.header, &got.body), (expected, &answer.body), "{size}");
        }
        for end in [&caller.agent, &callee.agent, &caller.app, &callee.app] {
            expect_nothing(end);
        }
        let (routed, look) = (bed.lanes.routed().unwrap(), bed.lanes.look(callee.lane).unwrap());
        let all: usize = sizes.iter().map(|size| 2 * (40 + size)).sum();
        assert_eq!((routed.calls, routed.answers, routed.bytes), (6, 6, all as u64));
        assert_eq!(routed.unrouted.iter().sum::<u64>(), 0);
        assert_eq!((look.in_flight, look.queued, bed.lanes.look(caller.lane).unwrap().made), (0, 0, 6));
        let member = bed.lanes.member(0).unwrap();
        assert_eq!((member.answered(), member.bytes, member.took.iter().sum::<u64>()), (6, all as u64, 6));
        assert!(member.sum_ns > 0 && look.latency_ns > 0 && bed.calls().is_empty());
    });
}

/// Also what concurrent additions give: each caller's turn is a number that nobody else has, or the instances would not have
/// the same number of calls.
#[test]
fn many_calls_at_once_are_each_answered_once() {
    const CALLERS: u32 = 4;
    const EACH: u32 = 25_000;
    in_bed(BOUND, |bed| {
        let callees = [bed.app(9), bed.app(9)];
        bed.route(&[&callees[0], &callees[1]]);
        let echoes = callees.each_ref().map(|callee| echo(&callee.app));
        let callers: Vec<App> = (0..CALLERS).map(|label| bed.app(label)).collect();
        thread::scope(|scope| {
            for caller in &callers {
                scope.spawn(|| windowed(caller, EACH, 16));
            }
        });
        let total = u64::from(CALLERS * EACH);
        let routed = bed.lanes.routed().unwrap();
        assert_eq!((routed.calls, routed.answers, routed.unrouted.iter().sum::<u64>()), (total, total, 0));
        for (member, callee) in (0..).zip(&callees) {
            assert_eq!(bed.lanes.member(member).unwrap().answered(), total / 2);
            assert_eq!((bed.in_flight(callee), bed.lanes.look(callee.lane).unwrap().queued), (0, 0));
        }
        drop(callees.map(|callee| callee.app.shutdown(std::net::Shutdown::Both)));
        assert_eq!(echoes.map(|echo| echo.join().unwrap()).iter().sum::<u64>(), total);
    });
}

/// Keeps a window of calls in flight, and checks each answer.
fn windowed(caller: &App, calls: u32, window: u32) {
    let body = |stream: u32| bytes(u64::from(stream), (stream as usize * 37) % 700);
    let mut waiting = HashSet::new();
    let (mut receipt, mut next) = (0, 1);
    while next <= calls || !waiting.is_empty() {
        while next <= calls && waiting.len() < window as usize {
            let mut call = request(next, body(next));
            call.header.receipt = receipt;
            waiting.insert(next);
            call.send(&caller.app);
            next += 1;
        }
        let answer = Whole::read(&caller.app);
        let stream = answer.header.stream;
        assert!(waiting.remove(&stream), "answered twice, or never asked: {stream}");
        assert_eq!((answer.header.via, &answer.body), (u64::from(stream), &body(stream)));
        receipt = if answer.header.receipt == 0 { receipt } else { answer.header.receipt };
    }
}

fn weighted(instances: &[(&App, u32)], pick: Pick) -> LaneRoute {
    let instances = instances.iter().zip(0..).map(|((app, weight), member)| (app.lane, *weight, member)).collect();
    LaneRoute { instances, pick, ..route(SERVICE, &[]) }
}

/// Sends calls that nobody answers, and says how many each instance has.
fn spread(bed: &Bed, caller: &App, calls: u32, instances: &[&App]) -> Vec<u64> {
    for stream in 1..=calls {
        request(stream, Vec::new()).send(&caller.app);
    }
    instances.iter().map(|app| bed.in_flight(app)).collect()
}

#[test]
fn instances_have_their_turns_by_weight() {
    in_bed(BOUND, |bed| {
        let caller = bed.app(1);
        let (a, b, c) = (bed.app(2), bed.app(2), bed.app(2));
        bed.route(&[&a, &b, &c]);
        assert_eq!(spread(bed, &caller, 300, &[&a, &b, &c]), [100; 3]);
        let (a, b, c) = (bed.app(2), bed.app(2), bed.app(2));
        bed.publish(&[weighted(&[(&a, 500), (&b, 100), (&c, 100)], Pick::Turns)]);
        assert_eq!(spread(bed, &caller, 700, &[&a, &b, &c]), [500, 100, 100]);
    });
}

#[test]
fn the_instance_with_less_to_do_is_picked() {
    in_bed(BOUND, |bed| {
        let caller = bed.app(1);
        let (a, b) = (bed.app(2), bed.app(2));
        bed.route(&[&a]);
        assert_eq!(spread(bed, &caller, 50, &[&a, &b]), [50, 0]);
        bed.publish(&[weighted(&[(&a, 1), (&b, 1)], Pick::Least)]);
        assert_eq!(spread(bed, &caller, 50, &[&a, &b]), [50, 50]);
        assert_eq!(spread(bed, &caller, 100, &[&a, &b]), [100, 100]);
        bed.publish(&[weighted(&[(&a, 1), (&b, 1)], Pick::Chance)]);
        let by_chance = spread(bed, &caller, 1000, &[&a, &b]);
        assert!(by_chance.iter().sum::<u64>() == 1200 && by_chance.iter().all(|had| *had > 400), "{by_chance:?}");
    });
}

#[test]
fn the_faster_instance_is_picked() {
    in_bed(BOUND, |bed| {
        let caller = bed.app(1);
        let (slow, fast) = (bed.app(2), bed.app(2));
        for (callee, pause_ms) in [(&slow, 20), (&fast, 0)] {
            bed.route(&[callee]);
            request(1, Vec::new()).send(&caller.app);
            let got = Whole::read(&callee.app);
            thread::sleep(std::time::Duration::from_millis(pause_ms));
            response(&got, Vec::new()).send(&callee.app);
            Whole::read(&caller.app);
        }
        bed.publish(&[weighted(&[(&slow, 1), (&fast, 1)], Pick::Faster)]);
        let had = spread(bed, &caller, 20, &[&slow, &fast]);
        assert!(had[1] > had[0], "{had:?}");
    });
}

#[test]
fn what_is_not_routed_goes_to_the_agent_as_it_was() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(7), bed.app(2));
        let open = route(SERVICE, &[&callee]);
        let expect = |route: LaneRoute, call: Whole, why: Unrouted| {
            bed.publish(&[route]);
            let before = bed.unrouted(why);
            call.send(&caller.app);
            // The agent learns which calls it has by chance.
            let receipt = if why == Unrouted::Share { BY_SHARE } else { call.header.receipt };
            let due = Whole { header: Header { receipt, ..call.header }, ..call };
            assert_eq!(Whole::read(&caller.agent), due, "{why:?}");
            assert_eq!(bed.unrouted(why), before + 1, "{why:?}");
        };
        let plain = || request(5, bytes(5, 100));
        let with = |flags: Flags| {
            let call = plain();
            Whole { header: Header { flags, ..call.header }, ..call }
        };
        expect(LaneRoute { callers: Some(vec![6, 8]), ..open.clone() }, plain(), Unrouted::Denied);
        expect(route(SERVICE + 1, &[&callee]), plain(), Unrouted::NoRoute);
        expect(LaneRoute { to_agent_per_million: 1_000_000, ..open.clone() }, plain(), Unrouted::Share);
        expect(LaneRoute { body_max: 99, ..open.clone() }, plain(), Unrouted::TooLarge);
        for flag in [Flags::ONE_WAY, Flags::SHADOW, Flags::SLOW_PATH] {
            expect(open.clone(), with(Flags::END_STREAM | flag), Unrouted::Flags);
        }
        expect(open.clone(), with(Flags::NONE), Unrouted::Flags);
        for kind in [Kind::Cancel, Kind::Ping, Kind::GoAway, Kind::Data] {
            let body = if kind == Kind::Data { vec![1] } else { Vec::new() };
            expect(open.clone(), Whole::new(Header { stream: 1, ..Header::new(kind) }, body), Unrouted::ForAgent);
        }
        bed.lanes.pause(callee.lane, true);
        expect(open.clone(), plain(), Unrouted::NoInstance);
        bed.lanes.pause(callee.lane, false);
        bed.publish(&[LaneRoute { callers: Some(vec![6, 7]), ..open }]);
        plain().send(&caller.app);
        Whole::read(&callee.app);
        bed.lanes.set_on(false);
        plain().send(&caller.app);
        assert_eq!((Whole::read(&caller.agent), bed.unrouted(Unrouted::Off)), (plain(), 1));
        expect_nothing(&callee.app);
        assert_eq!(bed.in_flight(&callee), 1);
    });
}

#[test]
fn services_that_turns_cannot_serve_are_refused() {
    in_bed(BOUND, |bed| {
        let callee = bed.app(2);
        let many = LaneRoute { instances: vec![(callee.lane, 1, 0); 65], ..route(1, &[]) };
        let twice = [route(2, &[&callee]), route(2, &[&callee])];
        let routes = [many, twice[0].clone(), twice[1].clone(), route(3, &[]), route(4, &[&callee])];
        assert_eq!(bed.lanes.publish(&routes).unwrap(), [1, 2, 3]);
    });
}

#[test]
fn the_path_turned_off_is_tcp_for_lanes_too() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        request(1, Vec::new()).send(&caller.app);
        Whole::read(&callee.app);
        bed.kernel.turn_off();
        let call = request(2, bytes(2, 1000));
        call.send(&caller.app);
        assert_eq!(Whole::read(&caller.agent), call);
        bed.kernel.turn_on();
        call.send(&caller.app);
        assert_eq!(Whole::read(&caller.agent), call);
        assert_eq!(bed.kernel.verdicts().unwrap().passed.messages, 2);
    });
}
