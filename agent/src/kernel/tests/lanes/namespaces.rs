//! The same addresses and ports in two network namespaces, and an agent that was killed.

use std::{fs, thread};

use agent_common::{Listener, WATCHED, lane::lane_state};

use super::bed::{App, BOUND, Whole, bytes, connect, expect_nothing, greet, in_bed, listen, request, response, route};
use crate::{
    kernel::{Kernel, Options, legs::lock},
    netns::thread::{cookie, enter_new},
    proxy::LanePath,
};

/// A caller and a callee with fixed ports, in the calling thread's namespace.
fn pair(kernel: &Kernel, lanes: &dyn LanePath, label: u32) -> [App; 2] {
    let listener = listen(kernel, 7000);
    let key = Listener::new(cookie().unwrap(), "127.0.0.1:7000".parse().unwrap());
    lock(&kernel.legs.listeners).insert(key, WATCHED, 0).unwrap();
    [7001, 7002].map(|port| {
        let (app, agent) = connect(&listener, Some(port));
        greet(lanes, app, agent, label, 100)
    })
}

#[test]
fn the_same_addresses_elsewhere_are_others() {
    in_bed(BOUND, |bed| {
        let here = pair(&bed.kernel, &*bed.lanes, 1);
        let (kernel, lanes) = (bed.kernel.clone(), bed.lanes.clone());
        let there = thread::spawn(move || {
            enter_new().unwrap();
            pair(&kernel, &*lanes, 2)
        });
        let there = there.join().unwrap();
        bed.publish(&[route(1, &[&here[1]]), route(2, &[&there[1]])]);
        for round in 0..100 {
            for (service, [caller, callee], [other, another]) in [(1, &here, &there), (2, &there, &here)] {
                let mut call = request(round + 1, bytes(service, 100));
                call.header.service = service;
                call.send(&caller.app);
                let got = Whole::read(&callee.app);
                assert_eq!(got.body, call.body);
                response(&got, bytes(service + 10, 100)).send(&callee.app);
                assert_eq!(Whole::read(&caller.app).body, bytes(service + 10, 100));
                for end in [&other.app, &another.app, &caller.agent, &callee.agent] {
                    expect_nothing(end);
                }
            }
        }
    });
}

#[test]
fn what_a_former_process_had_is_over() {
    in_bed(BOUND, |_| {
        let name = format!("test-lanes-{}", std::process::id());
        let options = Options { name: Some(name.clone()), bound: BOUND, ..Options::default() };
        let first = Kernel::attach(&options).unwrap();
        let lanes = first.lanes();
        let listener = listen(&first, 0);
        let apps = [1, 2].map(|label| {
            let (app, agent) = connect(&listener, None);
            greet(&*lanes, app, agent, label, 100)
        });
        assert!(lanes.publish(&[route(super::bed::SERVICE, &[&apps[1]])]).unwrap().is_empty());
        lanes.set_on(true);
        for stream in 1..=10 {
            request(stream, Vec::new()).send(&apps[0].app);
        }
        response(&Whole::read(&apps[1].app), Vec::new()).send(&apps[1].app);
        let key = first.lanes.routing.key();
        // As if it was killed: nothing is taken away.
        drop(first);
        let second = Kernel::attach(&options).unwrap();
        assert_eq!(second.lanes.routing.key(), key);
        let after = second.lanes();
        let mut left = 0;
        after.calls(&mut |_, _| left += 1);
        assert_eq!((left, after.look(apps[0].lane), after.look(apps[1].lane)), (0, None, None));
        for app in &apps {
            assert_eq!(second.lanes.table.state(app.lane.index), lane_state::FREE);
            assert_eq!(second.lanes.table.generation(app.lane.index), app.lane.generation + 1);
        }
        let routed = after.routed().unwrap();
        assert_eq!((routed.calls, routed.answers, after.member(0).unwrap().answered()), (10, 1, 1), "counters go on");
        // An old lane is none for the new process, even if calls are routed again.
        after.set_on(true);
        request(11, Vec::new()).send(&apps[0].app);
        assert_eq!(Whole::read(&apps[0].agent), request(11, Vec::new()));
        drop(apps);
        second.detach(std::time::Duration::from_secs(5)).unwrap();
        assert!(fs::read_dir("/sys/fs/bpf/moa").map_or(true, |mut all| all.all(|one| one.unwrap().file_name() != *name)));
    });
}
