//! A call ends once, whatever happens at the same moment.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use super::bed::{BOUND, Whole, bytes, drain, echo, expect_nothing, in_bed, request, response};
use crate::{
    kernel::{lanes::Places, legs::lock},
    proxy::Unrouted,
};

#[test]
fn a_lane_that_is_over_leaves_its_calls_to_the_agent() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        for stream in 1..=1000 {
            request(stream, Vec::new()).send(&caller.app);
        }
        bed.lanes.close(callee.lane);
        request(1001, Vec::new()).send(&caller.app);
        assert_eq!(Whole::read(&caller.agent), request(1001, Vec::new()));
        assert_eq!((bed.unrouted(Unrouted::NoInstance), bed.lanes.look(callee.lane)), (1, None));
        let calls = bed.calls();
        assert_eq!(calls.iter().map(|(_, call)| call.stream).collect::<HashSet<_>>(), (1..=1000).collect());
        let own = |call: &crate::proxy::RoutedCall| {
            (call.callee, call.callee_generation) == (callee.lane.index, callee.lane.generation)
                && call.via == u64::from(call.stream)
                && call.deadline_ns == call.started_ns + 5_000_000_000
        };
        assert!(calls.iter().all(|(via, call)| own(call) && bed.lanes.claim(*via).is_some()));
        // Its late answers are nobody's.
        response(&Whole::read(&callee.app), Vec::new()).send(&callee.app);
        assert_eq!(Whole::read(&callee.agent).header.via >> 63, 1);
        expect_nothing(&caller.app);
        bed.lanes.free(callee.lane);
    });
}

#[test]
fn an_answer_for_a_caller_that_is_over_goes_to_the_agent() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        request(1, Vec::new()).send(&caller.app);
        request(2, Vec::new()).send(&caller.app);
        let calls = [Whole::read(&callee.app), Whole::read(&callee.app)];
        let first = response(&calls[0], bytes(1, 100));
        bed.lanes.close(caller.lane);
        first.send(&callee.app);
        assert_eq!((Whole::read(&callee.agent), bed.unrouted(Unrouted::CallerGone)), (first, 1));
        assert_eq!(bed.calls().len(), 2);
        // What it sends itself is for the agent.
        request(3, Vec::new()).send(&caller.app);
        assert_eq!(Whole::read(&caller.agent), request(3, Vec::new()));
        expect_nothing(&caller.app);
    });
}

#[test]
fn a_caller_that_has_closed_loses_nothing_for_others() {
    in_bed(BOUND, |bed| {
        let (caller, callee, other) = (bed.app(1), bed.app(2), bed.app(3));
        bed.route(&[&callee]);
        request(1, Vec::new()).send(&caller.app);
        let call = Whole::read(&callee.app);
        drop(caller.app);
        let answer = response(&call, bytes(1, 10));
        answer.send(&callee.app);
        assert_eq!((Whole::read(&callee.agent), bed.unrouted(Unrouted::CallerGone)), (answer, 1));
        request(2, Vec::new()).send(&other.app);
        response(&Whole::read(&callee.app), Vec::new()).send(&callee.app);
        assert_eq!(Whole::read(&other.app).header.stream, 2);
    });
}

#[test]
fn either_the_agent_or_the_callee_ends_a_call() {
    const CALLS: u32 = 30_000;
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        let echo = echo(&callee.app);
        let (ended, receipt) = (AtomicU64::new(0), AtomicU32::new(0));
        let done = AtomicBool::new(false);
        let (claimed, late, answered) = thread::scope(|scope| {
            let claims = scope.spawn(|| {
                let mut claimed = HashMap::new();
                while !done.load(Relaxed) {
                    for (via, call) in bed.calls() {
                        if bed.lanes.claim(via).is_some() {
                            claimed.insert(via, call);
                            ended.fetch_add(1, Relaxed);
                        }
                    }
                }
                claimed
            });
            let late = scope.spawn(|| {
                let mut late = Vec::new();
                while !done.load(Relaxed) {
                    late.extend(drain(&callee.agent));
                }
                late.extend(drain(&callee.agent));
                late
            });
            let answers = scope.spawn(|| {
                let mut streams = Vec::new();
                caller.app.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                while !done.load(Relaxed) {
                    if let Ok(answer) = Whole::try_read(&caller.app) {
                        streams.push(answer.header.stream);
                        receipt.store(answer.header.receipt, Relaxed);
                        ended.fetch_add(1, Relaxed);
                    }
                }
                streams
            });
            for stream in 1..=CALLS {
                let mut call = request(stream, Vec::new());
                call.header.receipt = receipt.load(Relaxed);
                call.send(&caller.app);
                while u64::from(stream) > ended.load(Relaxed) + 16 {
                    thread::yield_now();
                }
            }
            while ended.load(Relaxed) < u64::from(CALLS) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(100));
            done.store(true, Relaxed);
            (claims.join().unwrap(), late.join().unwrap(), answers.join().unwrap())
        });
        let mut streams: Vec<u32> = claimed.values().map(|call| call.stream).chain(answered.iter().copied()).collect();
        streams.sort_unstable();
        assert!(streams.iter().copied().eq(1..=CALLS), "{} claimed, {} answered", claimed.len(), answered.len());
        // The agent has each late answer, once.
        let answers: HashSet<u64> = late.iter().map(|answer| answer.header.via).collect();
        assert_eq!((answers.len(), late.len()), (claimed.len(), claimed.len()));
        assert!(answers.iter().all(|via| claimed.contains_key(via)));
        claimed.values().for_each(|call| bed.lanes.release(call));
        assert_eq!((bed.in_flight(&callee), bed.lanes.look(callee.lane).unwrap().queued), (0, 0));
        println!("{} claimed, {} answered", claimed.len(), answered.len());
        drop(callee.app.shutdown(std::net::Shutdown::Both));
        assert_eq!(echo.join().unwrap(), u64::from(CALLS));
    });
}

/// Lanes end while they are given calls: whoever looks at all calls after that finds every one of them, so that none comes
/// later. Their places are given away again at once, and counters begin anew.
#[test]
fn no_call_is_entered_for_a_lane_that_is_over() {
    const ROUNDS: usize = 300;
    /// Bytes that are under way.
    const AHEAD: u64 = 64 * 1024;
    in_bed(BOUND, |bed| {
        let mut callee = bed.app(2);
        let callers = [bed.app(1), bed.app(1)];
        *lock(&bed.kernel.lanes.places) = Places::all_taken(3);
        bed.route(&[&callee]);
        let (done, sent, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for caller in &callers {
                scope.spawn(|| {
                    for stream in 1.. {
                        while sent.load(Relaxed) > read.load(Relaxed) + AHEAD {
                            thread::yield_now();
                        }
                        if done.load(Relaxed) {
                            return;
                        }
                        sent.fetch_add(40, Relaxed);
                        request(stream, Vec::new()).send(&caller.app);
                    }
                });
            }
            let ends = [&callers[0].agent, &callers[1].agent, &callee.app].map(|end| end.try_clone().unwrap());
            for end in ends {
                let (read, done) = (&read, &done);
                scope.spawn(move || {
                    let own = bed.kernel.path().enrolled(end.as_fd()).map(|enrolled| enrolled.end);
                    let mut here = 0;
                    end.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                    while !done.load(Relaxed) {
                        let count = (&end).read(&mut [0; 65_536]).unwrap_or(0) as u64;
                        here += count;
                        read.fetch_add(count, Relaxed);
                        // Only an agent's end has somebody who looks at it.
                        if let Some(own) = &own {
                            bed.kernel.path().publish(own, here + 40);
                        }
                    }
                });
            }
            let (mut claimed, mut index) = (0, callee.lane.index);
            for round in 0..ROUNDS {
                let over = callee.lane;
                bed.lanes.close(over);
                let of_it =
                    |call: &crate::proxy::RoutedCall| (call.callee, call.callee_generation) == (over.index, over.generation);
                for (via, call) in bed.calls() {
                    claimed += usize::from(of_it(&call) && bed.lanes.claim(via).is_some());
                }
                bed.lanes.free(over);
                callee.lane = bed.lanes.open(callee.agent.as_fd(), 40, 2, u32::MAX).unwrap();
                assert_eq!(callee.lane.index, index, "another place");
                index = callee.lane.index;
                bed.route(&[&callee]);
                let before = bed.lanes.routed().unwrap().calls;
                while bed.lanes.routed().unwrap().calls < before + 5 {
                    thread::yield_now();
                }
                let late = bed.calls().iter().filter(|(_, call)| of_it(call)).count();
                assert_eq!(late, 0, "calls of a lane that is over, in round {round}");
                let look = bed.lanes.look(callee.lane).unwrap();
                assert!(look.in_flight < 1 << 32 && look.queued <= BOUND, "{look:?}");
            }
            done.store(true, Relaxed);
            println!("{claimed} claimed; {} undone", bed.unrouted(Unrouted::Changed));
        });
        let of_it = bed.calls().len() as u64;
        assert_eq!(bed.in_flight(&callee), of_it);
    });
}
