//! The path is turned off and on, and its programs are replaced, while bytes flow.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::fd::AsFd,
    path::PathBuf,
    process,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, Scope},
};

use agent::{
    kernel::{Kernel, Options, Pass, REASONS, Refusal, Verdicts},
    proxy::Fallback,
};
use moa_tests::{
    PATIENCE,
    leg::{AgentReader, AgentWriter, Inside, Legs, Pair, Stamps, Took},
    seed, until_true,
    wait::poll_within,
};
use rand::RngExt;

/// Has the streams end when the test does, also when it fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Streams both ways until it is told to stop, then to the end of both streams; how many bytes flew.
fn stream<'scope>(scope: &'scope Scope<'scope, '_>, legs: &'scope Legs, pair: Pair, stop: &'scope AtomicBool) {
    let Pair { app, agent } = pair;
    let enrolled = legs.path().enrolled(agent.as_fd()).is_some();
    let (mut to_agent, mut from_app) = (app.try_clone().unwrap(), app);
    let mut at_agent: Box<dyn Read + Send> = match enrolled {
        true => Box::new(AgentReader::new(legs, agent.try_clone().unwrap())),
        false => Box::new(agent.try_clone().unwrap()),
    };
    let mut from_agent: Box<dyn Write + Send> = match enrolled {
        true => Box::new(AgentWriter::new(legs, agent.try_clone().unwrap())),
        false => Box::new(agent.try_clone().unwrap()),
    };
    scope.spawn(move || {
        send_until(&mut to_agent, 1, stop);
        to_agent.shutdown(Shutdown::Write).unwrap();
    });
    scope.spawn(move || {
        send_until(&mut from_agent, 2, stop);
        agent.shutdown(Shutdown::Write).unwrap();
    });
    scope.spawn(move || Stamps::of(1).receive_to_end(&mut at_agent));
    scope.spawn(move || Stamps::of(2).receive_to_end(&mut from_app));
}

fn send_until(to: &mut impl Write, stream: u64, stop: &AtomicBool) {
    let (mut stamps, mut rng) = (Stamps::of(stream), seed::fixed(stream));
    while !stop.load(Ordering::Relaxed) {
        let piece = rng.random_range(1..20_000);
        stamps.send(to, piece, 20_000, &mut rng);
        thread::yield_now();
    }
}

#[test]
fn turned_off_and_on_in_mid_stream() {
    // Far more than waits while the readers keep up, so that nothing falls back but by the switch.
    let legs = Legs::bounded(64 << 20);
    let rounds = seed::count(40, 200) as u64;
    for round in 1..=rounds {
        let stop = AtomicBool::new(false);
        let before = legs.took();
        thread::scope(|scope| {
            let (legs, _stops) = (&legs, Stops(&stop));
            for _ in 0..2 {
                stream(scope, legs, legs.pair(), &stop);
            }
            until_true("bytes to be redirected both ways", || flow(&before, &legs.took()));
            legs.turn_off();
            until_true("all four to go by TCP", || legs.took().passes[Pass::Off as usize] == 4 * round);
            // What comes while it is off is left alone, and stays so.
            stream(scope, legs, legs.pair(), &stop);
            legs.turn_on();
            let off = legs.took();
            until_true("more bytes by TCP", || legs.took().passed.messages > off.passed.messages + 50);
            assert_eq!((legs.took().to_agent, legs.took().from_agent), (off.to_agent, off.from_agent), "it came back");
        });
        let took = legs.took();
        assert_eq!(took.enrolled, 4 * round);
        assert_eq!(took.passes.iter().sum::<u64>(), 4 * round, "{took:?}");
        assert_eq!(took.refusals[Refusal::Off as usize], 2 * round, "{took:?}");
    }
}

fn flow(before: &Verdicts, now: &Verdicts) -> bool {
    now.to_agent.messages > before.to_agent.messages + 100 && now.from_agent.messages > before.from_agent.messages + 100
}

#[test]
fn what_was_redirected_is_read_before_what_came_after_the_switch() {
    let legs = Legs::attach();
    let Pair { mut app, mut agent } = legs.pair();
    let mut rng = seed::rng("what_was_redirected_is_read_before_what_came_after_the_switch");
    let (mut there, mut back) = (Stamps::of(1), Stamps::of(2));
    there.send(&mut app, 50_000, 5_000, &mut rng);
    back.send(&mut agent, 50_000, 5_000, &mut rng);
    legs.turn_off();
    legs.turn_on();
    // The application's direction turns by itself, with bytes unread before it; the agent turns its own.
    there.send(&mut app, 50_000, 5_000, &mut rng);
    Stamps::of(1).receive(&mut agent, 100_000, &mut rng, |_| {});
    let mut received = Stamps::of(2);
    received.receive(&mut app, 50_000, &mut rng, |_| {});
    legs.keep_to_tcp(&agent, Fallback::Off);
    back.send(&mut agent, 50_000, 5_000, &mut rng);
    received.receive(&mut app, 50_000, &mut rng, |_| {});
    legs.expect(&Took {
        enrolled: 2,
        to_agent: 50_000,
        from_agent: 50_000,
        passed: 100_000,
        passes: &[(Pass::Off, 2)],
        ..Took::default()
    });
}

/// Removes what a test has pinned, however it ends.
struct Pinned(String);

impl Pinned {
    fn new(test: &str) -> Self {
        Self(format!("legs-{}-{test}", process::id()))
    }

    fn options(&self) -> Options {
        Options { name: Some(self.0.clone()), bound: 64 << 20, ..Options::default() }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(PathBuf::from("/sys/fs/bpf/moa").join(&self.0));
    }
}

#[test]
fn programs_are_replaced_under_load() {
    let pinned = Pinned::new("replaced");
    // Sockets belong to the cgroup in which they were made, for life.
    let _inside = Inside::enter();
    let rounds = seed::count(25, 100) as u64;
    let (stop, allowed) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut legs = Legs::with(&pinned.options());
    let mut before = legs.verdicts().unwrap();
    let listener = legs.listen("127.0.0.1:0");
    // Sockets of the first programs, which live on under all that follow.
    let Pair { app, agent } = Pair::accept(&listener, "127.0.0.1");
    let legs = thread::scope(|scope| {
        let (stop, allowed, _stops) = (&stop, &allowed, Stops(&stop));
        let (mut to_agent, mut at_agent) = (app.try_clone().unwrap(), agent.try_clone().unwrap());
        let (mut from_agent, mut at_app) = (agent, app);
        scope.spawn(move || {
            send_in_step(&mut to_agent, &mut at_agent, 1, (stop, allowed));
            to_agent.shutdown(Shutdown::Write).unwrap();
            assert_eq!(Stamps::of(1).receive_to_end(&mut at_agent), 0);
        });
        scope.spawn(move || {
            send_in_step(&mut from_agent, &mut at_app, 2, (stop, allowed));
            from_agent.shutdown(Shutdown::Write).unwrap();
            assert_eq!(Stamps::of(2).receive_to_end(&mut at_app), 0);
        });
        for round in 1..=rounds {
            drop(legs);
            legs = Legs::with(&pinned.options());
            // A restarted agent forgets what was published, so that the first 64 MiB are all that may be redirected: each round
            // has its share, however fast the machine is.
            allowed.store((60 << 20) / rounds * round, Ordering::Relaxed);
            let marked = socket2::SockRef::from(&listener);
            legs.mark_listener(&marked);
            let now = legs.verdicts().unwrap();
            assert_eq!(now.enrolled, 2 * round);
            let flows = poll_within(PATIENCE, || flow(&before, &legs.verdicts().unwrap()));
            assert!(flows, "in round {round} no bytes flow by the new programs: {:?}", legs.verdicts().unwrap());
            before = legs.verdicts().unwrap();
            // A new connection is enrolled by them.
            let Pair { mut app, mut agent } = Pair::accept(&listener, "127.0.0.1");
            app.write_all(&Stamps::of(round).make(1000)).unwrap();
            Stamps::of(round).receive(&mut agent, 1000, &mut seed::fixed(round), |_| {});
        }
        legs
    });
    let took = legs.verdicts().unwrap();
    assert_eq!((took.enrolled, took.passed.bytes, took.passes), (2 * (rounds + 1), 0, [0; REASONS]), "{took:?}");
    assert_eq!(took.refusals, [0; REASONS]);
}

/// While one process takes over from another, the program that enrols may be there twice.
#[test]
fn two_copies_of_the_program_enrol_once() {
    let pinned = Pinned::new("twice");
    let (_old, new) = (Legs::with(&pinned.options()), Legs::with(&pinned.options()));
    for at in 1..=4 {
        let mut pair = if at % 2 == 0 { new.pair() } else { new.dialled("127.0.0.1:0", "127.0.0.1") };
        let mut rng = seed::rng("two_copies_of_the_program_enrol_once");
        Stamps::of(1).send(&mut pair.app, 10_000, 1_000, &mut rng);
        Stamps::of(1).receive(&mut pair.agent, 10_000, &mut rng, |_| {});
        Stamps::of(2).send(&mut pair.agent, 10_000, 1_000, &mut rng);
        Stamps::of(2).receive(&mut pair.app, 10_000, &mut rng, |_| {});
        assert!(new.path().enrolled(pair.agent.as_fd()).is_some());
        new.expect_redirected(at, at * 10_000, at * 10_000);
    }
}

/// Sends and reads by turns, so that little waits; `total` is held under the bound by the number of turns.
fn send_in_step(to: &mut impl Write, from: &mut impl Read, stream: u64, (stop, allowed): (&AtomicBool, &AtomicU64)) {
    let (mut sent, mut received, mut rng) = (Stamps::of(stream), Stamps::of(stream), seed::fixed(stream));
    while !stop.load(Ordering::Relaxed) {
        if sent.at() < allowed.load(Ordering::Relaxed) {
            let piece = rng.random_range(1..1_000);
            sent.send(to, piece, 1_000, &mut rng);
            received.receive(from, piece, &mut rng, |_| {});
        }
        thread::yield_now();
    }
}

#[test]
fn what_is_pinned_outlives_the_process_and_goes_when_it_is_detached() {
    let pinned = Pinned::new("detached");
    let folder = PathBuf::from("/sys/fs/bpf/moa").join(&pinned.0);
    let kernel = Kernel::attach(&pinned.options()).unwrap();
    assert!(folder.exists());
    drop(kernel);
    assert!(folder.exists());
    let kernel = Kernel::attach(&pinned.options()).unwrap();
    kernel.detach(PATIENCE).unwrap();
    assert!(!folder.exists());
}

#[test]
fn sums_of_counters_are_exact() {
    const THREADS: u64 = 4;
    let legs = Legs::attach();
    let each = seed::count(20_000, 200_000) as u64;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let Pair { mut app, mut agent } = legs.pair();
            scope.spawn(move || {
                for at in 0..each {
                    app.write_all(&[1; 3]).unwrap();
                    if at % 1000 == 999 {
                        agent.read_exact(&mut [0; 3000]).unwrap();
                        agent.write_all(&[1]).unwrap();
                    }
                }
            });
        }
    });
    let took = legs.took();
    let all = THREADS * each;
    assert_eq!((took.to_agent.messages, took.to_agent.bytes), (all, 3 * all));
    assert_eq!((took.from_agent.messages, took.from_agent.bytes), (all / 1000, all / 1000));
    legs.expect_redirected(THREADS, 3 * all, all / 1000);
}
