//! What may wait, where nobody reads.

use std::thread;

use super::bed::{App, BOUND, Bed, Whole, bytes, drain, in_bed, request, response};
use crate::proxy::Unrouted;

/// What a frame costs beside its bytes does not count in the receive memory.
const SIZE: usize = 16 * 1024;

/// As many of something.
fn number(count: u64) -> usize {
    usize::try_from(count).unwrap()
}

#[test]
fn an_instance_has_as_many_calls_as_it_may() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app_with(2, 5));
        bed.route(&[&callee]);
        for stream in 1..=8 {
            request(stream, bytes(1, 10)).send(&caller.app);
        }
        let at_agent: Vec<Whole> = (0..3).map(|_| Whole::read(&caller.agent)).collect();
        assert_eq!(at_agent, (6..=8).map(|stream| request(stream, bytes(1, 10))).collect::<Vec<_>>());
        assert_eq!((bed.in_flight(&callee), bed.unrouted(Unrouted::CalleeCalls)), (5, 3));
        response(&Whole::read(&callee.app), Vec::new()).send(&callee.app);
        request(9, Vec::new()).send(&caller.app);
        assert_eq!((bed.in_flight(&callee), bed.unrouted(Unrouted::CalleeCalls)), (5, 3));
    });
}

#[test]
fn an_instance_that_never_reads_costs_its_bound() {
    in_bed(BOUND, |bed| {
        let (caller, stalled, other) = (bed.app(1), bed.app(2), bed.app(2));
        bed.route(&[&stalled]);
        let count = 200;
        let sent: Vec<Whole> = (1..=count).map(|stream| request(stream, bytes(u64::from(stream), SIZE))).collect();
        let at_agent = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let rest = count as usize - number(BOUND) / (SIZE + 40);
                (0..rest).map(|_| Whole::read(&caller.agent)).collect::<Vec<_>>()
            });
            sent.iter().for_each(|call| call.send(&caller.app));
            reader.join().unwrap()
        });
        let routed = number(BOUND) / (SIZE + 40);
        assert_eq!(at_agent, sent[routed..]);
        let (unread, look) = (bed.unread(&stalled), bed.lanes.look(stalled.lane).unwrap());
        assert!(unread <= BOUND && unread >= (routed * SIZE) as u64, "{unread}");
        assert_eq!(look.queued, (routed * (SIZE + 40)) as u64);
        // Others are not held up.
        let caller = bed.app(1);
        bed.route(&[&stalled, &other]);
        for stream in 1..=4 {
            request(stream, bytes(3, SIZE)).send(&caller.app);
        }
        assert_eq!(bed.in_flight(&other), 4);
        // What it has, it has whole.
        for call in &sent[..routed] {
            let got = Whole::read(&stalled.app);
            assert_eq!((got.header.stream, &got.body), (call.header.stream, &call.body));
            response(&got, Vec::new()).send(&stalled.app);
        }
        assert_eq!((bed.in_flight(&stalled), bed.lanes.look(stalled.lane).unwrap().queued), (0, 0));
    });
}

/// One call, and its answer of so many bytes.
fn exchange(caller: &App, callee: &App, stream: u32, receipt: u32, size: usize) {
    let mut call = request(stream, Vec::new());
    call.header.receipt = receipt;
    call.send(&caller.app);
    response(&Whole::read(&callee.app), bytes(u64::from(stream), size)).send(&callee.app);
}

fn unread(bed: &Bed, app: &App) -> u64 {
    bed.lanes.look(app.lane).unwrap().unread
}

#[test]
fn a_caller_that_never_reads_costs_its_bound() {
    in_bed(BOUND, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        let routed = number(BOUND) / (SIZE + 40);
        for stream in 1..=100 {
            exchange(&caller, &callee, stream, 0, SIZE);
        }
        assert_eq!(bed.unrouted(Unrouted::CallerBytes), 100 - routed as u64);
        assert_eq!(drain(&callee.agent).len(), 100 - routed);
        assert!(bed.unread(&caller) <= BOUND, "{}", bed.unread(&caller));
        // Those that the agent got are its own to end.
        assert_eq!((bed.calls().len(), bed.in_flight(&callee)), (100 - routed, 100 - routed as u64));
        for (via, call) in bed.calls() {
            assert_eq!(bed.lanes.claim(via), Some(call));
            assert_eq!(bed.lanes.claim(via), None);
            bed.lanes.release(&call);
        }
        assert_eq!((bed.in_flight(&callee), bed.lanes.look(callee.lane).unwrap().queued), (0, 0));
        // What it has read it proves with its next call.
        let answers: Vec<Whole> = (0..routed).map(|_| Whole::read(&caller.app)).collect();
        assert!((1..).zip(&answers).all(|(stream, answer)| answer.body == bytes(stream, SIZE)));
        let receipt = answers.last().unwrap().header.receipt;
        assert_eq!(unread(bed, &caller), (routed * (SIZE + 40)) as u64);
        exchange(&caller, &callee, 101, receipt, SIZE);
        assert_eq!(Whole::read(&caller.app).header.stream, 101);
        assert!(unread(bed, &caller) < 1 << 17, "{}", unread(bed, &caller));
    });
}

#[test]
fn receipts_that_are_not_the_kernels_prove_nothing() {
    in_bed(BOUND, |bed| {
        let (caller, other, callee) = (bed.app(1), bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        for stream in 1..=20 {
            exchange(&caller, &callee, stream, 0, SIZE);
            exchange(&other, &callee, stream, 0, SIZE);
        }
        let answers = |app: &App| (0..20).map(|_| Whole::read(&app.app).header.receipt).collect::<Vec<_>>();
        let (own, others) = (answers(&caller), answers(&other));
        assert_ne!(own, others);
        let before = unread(bed, &caller);
        let guesses = own.iter().flat_map(|receipt| [receipt ^ 1, receipt.wrapping_add(1 << 24), !receipt]);
        for (stream, guess) in (21..).zip(guesses.chain(others)) {
            exchange(&caller, &callee, stream, guess, 0);
            Whole::read(&caller.app);
        }
        assert!(unread(bed, &caller) > before);
        exchange(&caller, &callee, 1000, own[10], 0);
        let after = unread(bed, &caller);
        assert!(after < before, "{after} {before}");
        // One that was used, or is older, changes nothing.
        exchange(&caller, &callee, 1001, own[10], 0);
        exchange(&caller, &callee, 1002, own[3], 0);
        assert!(unread(bed, &caller) > after);
    });
}

#[test]
fn a_full_table_of_calls_leaves_the_rest_to_the_agent() {
    const CALLS: u32 = agent_common::lane::CALLS_MAX + 100;
    in_bed(8 << 20, |bed| {
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        for stream in 1..=CALLS {
            request(stream, Vec::new()).send(&caller.app);
        }
        // Places are looked for by chance: the last ones are not found.
        let (full, all) = (bed.unrouted(Unrouted::CallsFull), bed.in_flight(&callee));
        assert_eq!(full + all, u64::from(CALLS));
        assert!((100..u64::from(CALLS / 4)).contains(&full), "{full} found no place");
        let at_agent = drain(&caller.agent);
        assert_eq!(at_agent.len(), number(full));
        assert!(at_agent.iter().all(|call| *call == request(call.header.stream, Vec::new())));
        let calls = bed.calls();
        assert_eq!(calls.len(), number(all));
        assert!(calls.iter().all(|(via, call)| bed.lanes.claim(*via) == Some(*call)));
        assert!(bed.calls().is_empty());
    });
}
