//! Routes that change under load.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use agent_common::lane::ROUTES_MAX;

use super::bed::{BOUND, SERVICE, Whole, bytes, echo, in_bed, request, route};
use crate::proxy::{LaneRoute, Unrouted};

#[test]
fn snapshots_change_and_no_call_is_lost() {
    const CALLS: u32 = 30_000;
    in_bed(BOUND, |bed| {
        let (caller, a, b) = (bed.app(1), bed.app(2), bed.app(3));
        let echoes = [echo(&a.app), echo(&b.app)];
        let done = AtomicBool::new(false);
        let publish = |flip: bool| {
            let instances = if flip { [&a] } else { [&b] };
            let one = LaneRoute { callers: Some(vec![if flip { 1 } else { 9 }, 1]), ..route(SERVICE, &instances) };
            let others = (0..20).map(|other| route(other + u64::from(flip), &instances));
            bed.publish(&others.chain([one]).collect::<Vec<_>>());
        };
        publish(true);
        let flips = thread::scope(|scope| {
            let flipping = scope.spawn(|| {
                let mut flips = 0_u64;
                while !done.load(Relaxed) {
                    flips += 1;
                    publish(flips.is_multiple_of(2));
                }
                flips
            });
            let (mut at_agent, mut receipt) = (0, 0);
            for stream in 1..=CALLS {
                let mut call = request(stream, bytes(u64::from(stream), 64));
                call.header.receipt = receipt;
                call.send(&caller.app);
                // Either the answer, or the call is the agent's.
                caller.agent.set_nonblocking(true).unwrap();
                caller.app.set_nonblocking(true).unwrap();
                let begun = Instant::now();
                loop {
                    if let Ok(answer) = Whole::try_read(&caller.app) {
                        assert_eq!((answer.header.stream, &answer.body), (stream, &call.body));
                        receipt = answer.header.receipt;
                        break;
                    }
                    if let Ok(unrouted) = Whole::try_read(&caller.agent) {
                        assert_eq!(unrouted, call);
                        at_agent += 1;
                        break;
                    }
                    assert!(begun.elapsed() < Duration::from_secs(10), "call {stream} was lost");
                    thread::yield_now();
                }
                caller.app.set_nonblocking(false).unwrap();
            }
            done.store(true, Relaxed);
            let routed = bed.lanes.routed().unwrap();
            assert_eq!(routed.answers + at_agent, u64::from(CALLS));
            assert_eq!(
                at_agent,
                bed.unrouted(Unrouted::Changed) + bed.unrouted(Unrouted::NoRoute) + bed.unrouted(Unrouted::Denied)
            );
            println!("{at_agent} at the agent: {routed:?}");
            flipping.join().unwrap()
        });
        assert!(flips > 100, "{flips}");
        assert_eq!((bed.in_flight(&a), bed.in_flight(&b), bed.calls().len()), (0, 0, 0));
        drop((a.app.shutdown(std::net::Shutdown::Both), b.app.shutdown(std::net::Shutdown::Both)));
        let [in_a, in_b] = echoes.map(|echo| echo.join().unwrap());
        assert!(in_a > 0 && in_b > 0, "{in_a} {in_b}");
    });
}

#[test]
fn more_services_than_there_is_room_for_do_not_keep_others_from_changing() {
    const MANY: usize = 5_000;
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        let denied = || bed.unrouted(Unrouted::Denied);
        for round in 0..5_u32 {
            // Allowed and forbidden in turn, and others each time.
            let allowed = round.is_multiple_of(2);
            let callers = Some(vec![if allowed { 1 } else { 9 }]);
            let one = LaneRoute { callers, ..route(SERVICE, &[&callee]) };
            let others = (0..MANY as u64).map(|nth| route(nth << 8 | u64::from(round), &[&callee]));
            let refused = bed.lanes.publish(&[one].into_iter().chain(others).collect::<Vec<_>>()).unwrap();
            assert_eq!(refused.len(), MANY + 1 - ROUTES_MAX as usize / 2);
            bed.lanes.set_on(true);
            let before = (bed.in_flight(&callee), denied());
            request(round + 1, bytes(u64::from(round), 64)).send(&caller.app);
            let after = (bed.in_flight(&callee), denied());
            assert_eq!(after, if allowed { (before.0 + 1, before.1) } else { (before.0, before.1 + 1) }, "{round}");
        }
    });
}
