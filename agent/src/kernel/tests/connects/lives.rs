//! The programs outlive the process that loaded them, are taken over by its successor, and go without trace.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_common::failover::Decision;

use super::bed::{Bed, PATIENCE, alone, at, in_bed, listen, nobody, reaches, refused, unique_name, until};
use crate::kernel::{
    Kernel, RemoveError,
    pins::{BPFFS, CONNECTS},
    tests::loaded,
    unhook, uninstall,
};

fn pins(name: &str) -> PathBuf {
    Path::new(BPFFS).join("moa").join(name)
}

fn programs(kernel: &Kernel) -> Vec<u32> {
    let names = CONNECTS.into_iter().chain(["established"]);
    names.map(|name| kernel.programs.program(name).unwrap().info().unwrap().id()).collect()
}

#[test]
fn two_agents_do_not_disturb_each_other() {
    in_bed(|one| {
        let other = Bed::new(None);
        let (agent, another) = (one.agent("127.0.0.1:0"), other.agent("127.0.0.1:0"));
        let siblings = [listen("127.0.0.1:0"), listen("127.0.0.1:0")];
        one.gate(at(&agent), &[at(&siblings[0])]);
        other.gate(at(&another), &[at(&siblings[1])]);
        reaches(at(&agent), &agent);
        reaches(at(&another), &another);
        one.hooks.set_away_until(u64::MAX);
        assert_eq!(reaches(at(&agent), &siblings[0]).peer_addr().unwrap(), at(&agent));
        reaches(at(&another), &another);
        other.hooks.set_away_until(u64::MAX);
        assert_eq!(reaches(at(&another), &siblings[1]).peer_addr().unwrap(), at(&another));
        one.expect(&[(Decision::Local, 1), (Decision::Away, 1)]);
        other.expect(&[(Decision::Local, 2), (Decision::Away, 1)]);
        let gate = at(&another);
        drop((other, another));
        refused(gate);
    });
}

#[test]
fn connects_are_diverted_with_nobody_there_and_the_next_one_adopts() {
    alone(|| {
        let name = unique_name();
        let first = Bed::new(Some(&name));
        let (agent, sibling) = (first.agent("127.0.0.1:0"), listen("127.0.0.1:0"));
        let gate = at(&agent);
        first.gate(gate, &[at(&sibling)]);
        first.hooks.set_workers(1);
        first.pulse.beat(0);
        first.hooks.set_away_until(u64::MAX);
        let ids = programs(&first.kernel);
        // As if it was killed.
        drop((first, agent));
        reaches(gate, &sibling);
        assert!(ids.iter().all(|id| loaded(*id)));
        let second = Bed::new(Some(&name));
        until("the first one's programs are gone", || !ids.iter().any(|id| loaded(*id)));
        reaches(gate, &sibling);
        assert_eq!(second.hooks.gates().len(), 1);
        // It is neither away nor silent, as its predecessor was.
        let agent = second.agent(&gate.to_string());
        reaches(gate, &agent);
        assert_eq!((second.peer(at(&sibling)).diverted, second.count(Decision::NoListener)), (2, 2));
        let ids = programs(&second.kernel);
        drop(agent);
        // It stops in good order, and leaves what its siblings are found by.
        second.kernel.detach(PATIENCE).unwrap();
        drop(second.hooks);
        reaches(gate, &sibling);
        assert!(ids.iter().all(|id| loaded(*id)));
        assert!(uninstall(&name, PATIENCE, false).unwrap());
        refused(gate);
        assert!(!pins(&name).exists());
        until("the programs are gone", || !ids.iter().any(|id| loaded(*id)));
        assert!(!uninstall(&name, PATIENCE, false).unwrap());
    });
}

#[test]
fn connects_find_a_program_at_every_moment_of_a_change() {
    alone(|| {
        let name = unique_name();
        let first = Bed::new(Some(&name));
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        first.gate(gate, &[at(&sibling)]);
        drop(first);
        let over = std::sync::atomic::AtomicBool::new(false);
        let netns = fs::File::open("/proc/thread-self/ns/net").unwrap();
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut count = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(reaches(gate, &sibling).peer_addr().unwrap(), gate);
                    count += 1;
                }
                count
            });
            for _ in 0..5 {
                drop(Bed::new(Some(&name)));
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(connecting.join().unwrap() > 0);
        });
        uninstall(&name, PATIENCE, false).unwrap();
    });
}

/// The verifier gives up after a million steps, and takes a different number of them in each version of the kernel.
#[test]
fn the_verifier_has_patience_left() {
    in_bed(|bed| {
        for (name, program) in bed.kernel.programs.programs().filter(|(name, _)| *name != "stub") {
            let steps = program.info().unwrap().verified_instruction_count().unwrap();
            assert!(steps < 100_000, "{name}: {steps}");
        }
    });
}

#[test]
fn without_siblings_nothing_stays() {
    alone(|| {
        let name = unique_name();
        let bed = Bed::new(Some(&name));
        bed.gate(nobody("127.0.0.2"), &[]);
        let ids = programs(&bed.kernel);
        bed.kernel.detach(PATIENCE).unwrap();
        drop(bed.hooks);
        assert!(!pins(&name).exists());
        until("the programs are gone", || !ids.iter().any(|id| loaded(*id)));
    });
}

#[test]
fn what_is_left_of_them_alone_can_be_removed() {
    alone(|| {
        let name = unique_name();
        let bed = Bed::new(Some(&name));
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        drop(bed);
        let folder = fs::read_dir(pins(&name)).unwrap().next().unwrap().unwrap().path();
        for pin in fs::read_dir(&folder).unwrap().map(|pin| pin.unwrap()) {
            if !CONNECTS.contains(&pin.file_name().to_str().unwrap()) {
                fs::remove_file(pin.path()).unwrap();
            }
        }
        reaches(gate, &sibling);
        assert!(uninstall(&name, Duration::ZERO, false).unwrap());
        refused(gate);
        assert!(!pins(&name).exists());
    });
}

#[test]
fn an_agent_without_programs_takes_the_old_ones_out_of_its_way() {
    alone(|| {
        let name = unique_name();
        assert!(!unhook(&name).unwrap());
        let bed = Bed::new(Some(&name));
        let sibling = listen("127.0.0.1:0");
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        drop(bed);
        reaches(gate, &sibling);
        assert!(unhook(&name).unwrap());
        // Nobody has marked it.
        let agent = listen(&gate.to_string());
        reaches(gate, &agent);
        drop(agent);
        // The next one has them again.
        drop(Bed::new(Some(&name)));
        reaches(gate, &sibling);
        assert!(uninstall(&name, PATIENCE, false).unwrap());
        assert!(matches!(uninstall(&name, PATIENCE, false), Ok::<bool, RemoveError>(false)));
    });
}
