//! An agent that has too much to bear refuses calls by the priority of their service, tells others, and recovers.

use std::time::Duration;

use agent_common::frame::{Flags, Kind};
use moa_tests::{
    Agent, DEMO, FakeMoa, Gate, Judge, config, envelope, expect_mesh_error,
    fake::demo,
    fleet::{events, metric},
    frames::{FramePeer, caller, service},
    judge::Verdict,
    kernel, lanes,
    load::Load,
    machine::{http, memory_kib},
    mesh::tunnel,
    routed::{Routed, await_routed},
    until_true,
    wait::poll_within,
};

const LOW: &str = "/service/low";
const HIGH: &str = "/service/high";
const ALL: [(&str, &str); 3] = [(LOW, "low"), (DEMO, "normal"), (HIGH, "high")];
const WHOLE: Flags = Flags::END_STREAM;

/// A service of each priority.
fn services(fake: &FakeMoa) -> String {
    let section = |(uri, priority): (&str, &str)| {
        config::service(uri, &[fake.address()], &format!("priority = \"{priority}\"\n{}", config::NO_HEALTH_CHECK))
    };
    ALL.into_iter().map(section).collect()
}

/// What becomes of a call: 0 or the code of the error.
fn code(agent: &Agent, uri: &str) -> i64 {
    let ask = Judge.ask(uri, 10);
    match ask.judge(&agent.connect().get(&ask.json)) {
        Verdict::Right => 0,
        Verdict::Failed(code, text) => {
            assert!(code != 504 || text.contains("overload."), "{text}");
            code
        }
    }
}

fn codes(agent: &Agent) -> [i64; 3] {
    ALL.map(|(uri, _)| code(agent, uri))
}

fn level(agent: &Agent) -> u64 {
    agent.json(&["status"])["overload"]["level"].as_u64().expect("a number")
}

fn await_level(agent: &Agent, wanted: u64) {
    until_true(&format!("the level {wanted}"), || level(agent) == wanted);
}

#[test]
fn the_last_places_are_kept_for_calls_that_matter() {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    let held = gate.clone();
    fake.script(move |call| demo(call).at(&held));
    let head = "[agent]\nworkers = 1\ncalls_in_flight_max = 20\n[overload]\ncalls_percent = 50\n";
    let agent = Agent::start(&format!("{head}{}", services(&fake)));
    let mut client = FramePeer::connect(agent.address(), &caller());
    let begin = |client: &mut FramePeer, uri: &str| client.request(uri, WHOLE, envelope(uri, "echo", "\"x\"").as_bytes());
    // 10 of any kind; of those above half for what is usual; the rest for what matters.
    for (uri, priority, places, key) in [
        (LOW, "low", 10, "overload.calls_percent"),
        (DEMO, "normal", 5, "overload.calls_percent"),
        (HIGH, "high", 5, "agent.calls_in_flight_max"),
    ] {
        for _ in 0..places {
            begin(&mut client, uri);
        }
        let refused = begin(&mut client, uri);
        let answer = client.answer_to(refused);
        assert_eq!((answer.header.word, answer.has(Flags::NOT_EXECUTED)), (504, true), "{priority}: {}", answer.error());
        assert!(answer.error().contains(key) && answer.error().contains(uri), "{}", answer.error());
        if priority != "high" {
            let text = expect_mesh_error(&agent, &agent.connect().get(&envelope(uri, "echo", "\"x\"")), 504, uri);
            assert!(text.contains(&format!("priority {priority}")), "{text}");
        }
    }
    assert_eq!([events(&agent, LOW, "overload"), events(&agent, DEMO, "overload"), events(&agent, HIGH, "overload")], [2, 2, 0]);
    await_level(&agent, 3);
    let (status, text) = http(agent.metrics_address(), "/ready");
    assert!(status == 503 && text.contains("overload.calls_percent"), "{status} {text}");
    assert!(agent.verb(&["status"]).stdout.contains("refused"));
    gate.open();
    for _ in 0..20 {
        assert_eq!(client.expect(Kind::Response).header.word, 0);
    }
    // It lets calls in at once, and says that it is well after a while.
    assert_eq!(codes(&agent), [0, 0, 0]);
    await_level(&agent, 0);
    assert_eq!(http(agent.metrics_address(), "/ready").0, 200);
    assert_eq!((metric(&agent, "moa_overload_level"), metric(&agent, "moa_overload_refused_total")), (0, 4));
}

#[test]
fn a_flood_of_what_matters_little_does_not_touch_what_matters() {
    let fake = FakeMoa::start();
    fake.script(|call| demo(call).after(Duration::from_millis(5)));
    let head = "[agent]\nworkers = 2\ncalls_in_flight_max = 24\n[overload]\ncalls_percent = 50\nlag_ms = 0\n";
    let agent = Agent::start(&format!("{head}{}", services(&fake)));
    let flood = Load::start(agent.address(), &[LOW], 48);
    let matters = Load::start(agent.address(), &[HIGH], 2);
    flood.await_calls(2_000);
    matters.await_calls(200);
    matters.stop().expect_all_right();
    let account = flood.stop();
    println!("{account:?}");
    assert!(account.failed.keys().all(|code| *code == 504) && account.failures() > 0 && account.right > 0, "{account:?}");
    assert!(account.texts.iter().all(|text| text.contains("overload.calls_percent")), "{account:?}");
    await_level(&agent, 0);
    assert_eq!(codes(&agent), [0, 0, 0]);
}

const HEAD: &str = "[agent]\nworkers = 1\n";

/// Gives an agent so little memory that it uses this share of it, in percent, and waits until it is at this level.
fn press(agent: &Agent, (percent, wanted): (u64, u64), services: &str) {
    until_true(&format!("the level {wanted} at {percent} %"), || {
        // A reload takes memory, too.
        let limit = memory_kib(agent.pid(), "VmRSS") * 1024 * 100 / percent;
        agent.reload(&format!("{HEAD}[overload]\nmemory_bytes_max = {limit}\n{services}"));
        poll_within(Duration::from_secs(1), || level(agent) == wanted)
    });
}

/// At the first level.
const LITTLE: (u64, u64) = (102, 1);
/// At rest.
const PLENTY: (u64, u64) = (50, 0);

#[test]
fn with_little_memory_left_less_and_less_is_taken_and_all_comes_back() {
    let fake = FakeMoa::start();
    let services = services(&fake);
    let agent = Agent::start(&format!("{HEAD}{services}"));
    assert_eq!(codes(&agent), [0, 0, 0]);
    for (percent, wanted, expected) in [(102, 1, [504, 0, 0]), (107, 2, [504, 504, 0]), (150, 3, [504, 504, 504])] {
        press(&agent, (percent, wanted), &services);
        assert_eq!(codes(&agent), expected, "{percent} %");
        let (status, text) = http(agent.metrics_address(), "/ready");
        assert!(status == 503 && text.contains("overload.memory_bytes_max"), "{status} {text}");
    }
    press(&agent, PLENTY, &services);
    assert_eq!(codes(&agent), [0, 0, 0]);
    // Three seconds of calm at least: what is on the edge does not flap.
    assert_eq!(metric(&agent, "moa_overload_raised_total"), 1);
}

#[test]
fn peers_prefer_others_for_what_an_agent_refuses() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    let fars = fakes.each_ref().map(|fake| Agent::start(&format!("{HEAD}{}", services(fake))));
    let peers: String = ["one", "two"].iter().zip(&fars).map(|(name, far)| config::peer(name, far.tunnel_address())).collect();
    let served = |(uri, priority): (&str, &str)| {
        let policy = format!("priority = \"{priority}\"\nbalance.policy = \"round-robin\"\n{}", config::NO_HEALTH_CHECK);
        config::served_by(uri, &[], &["one", "two"], &policy)
    };
    let near = Agent::start(&format!("{HEAD}{peers}{}", ALL.map(served).concat()));
    until_true("both to be called", || {
        assert_eq!(codes(&near), [0, 0, 0]);
        fakes.iter().all(|fake| fake.counts().calls > 0)
    });
    let much = |far: &Agent, fake: &FakeMoa| press(far, LITTLE, &services(fake));
    much(&fars[0], &fakes[0]);
    until_true("it to say so", || tunnel(&near, "one").1.contains("priority low go elsewhere"));
    let before = [fakes[0].counts().calls, events(&fars[0], LOW, "overload").try_into().expect("few")];
    for _ in 0..20 {
        assert_eq!(code(&near, LOW), 0);
    }
    let after = [fakes[0].counts().calls, events(&fars[0], LOW, "overload").try_into().expect("few")];
    assert_eq!(after, before, "calls that it would have refused");
    for _ in 0..20 {
        assert_eq!(code(&near, DEMO), 0);
    }
    assert_eq!(fakes[0].counts().calls, before[0] + 10, "its turns of the others");
    // When all refuse them, they are refused.
    much(&fars[1], &fakes[1]);
    until_true("the other one to say so", || tunnel(&near, "two").1.contains("priority low go elsewhere"));
    assert_eq!(codes(&near), [504, 0, 0]);
    for (far, fake) in fars.iter().zip(&fakes) {
        press(far, PLENTY, &services(fake));
    }
    until_true("both to say that they are well", || ["one", "two"].iter().all(|name| tunnel(&near, name).1 == "connected"));
    assert_eq!(codes(&near), [0, 0, 0]);
    // One that connects while there is much to bear hears of it, too.
    much(&fars[0], &fakes[0]);
    let mut late = near;
    late.stop();
    late.start_again();
    until_true("it to be told", || tunnel(&late, "one").1.contains("priority low go elsewhere"));
}

#[test]
fn what_another_agent_refuses_for_its_load_goes_elsewhere() {
    let fakes = [FakeMoa::start(), FakeMoa::start()];
    // Where the caller's agent takes it for more important than the callee's does.
    let low =
        |fake: &FakeMoa| config::service(DEMO, &[fake.address()], &format!("priority = \"low\"\n{}", config::NO_HEALTH_CHECK));
    let fars = fakes.each_ref().map(|fake| Agent::start(&format!("{HEAD}{}", low(fake))));
    let peers: String = ["one", "two"].iter().zip(&fars).map(|(name, far)| config::peer(name, far.tunnel_address())).collect();
    let policy = format!("balance.policy = \"round-robin\"\n{}", config::NO_HEALTH_CHECK);
    let near = Agent::start(&format!("{HEAD}{peers}{}", config::served_by(DEMO, &[], &["one", "two"], &policy)));
    until_true("both to be called", || {
        assert_eq!(code(&near, DEMO), 0);
        fakes.iter().all(|fake| fake.counts().calls > 0)
    });
    press(&fars[0], LITTLE, &low(&fakes[0]));
    // Few, so that the budget for retries has enough.
    for _ in 0..6 {
        assert_eq!(code(&near, DEMO), 0);
    }
    assert!(events(&fars[0], DEMO, "overload") > 0, "it was asked, and has refused");
}

#[test]
fn what_is_refused_is_not_routed_in_the_kernel() {
    let services = format!("[services.\"{LOW}\"]\npriority = \"low\"\n[services.\"{DEMO}\"]\n");
    let agent = kernel::start(&format!("{HEAD}{services}"));
    let _serving = [LOW, DEMO].map(|uri| lanes::echo(agent.address(), &service(&format!("echo of {uri}"), &[uri])));
    [LOW, DEMO].iter().for_each(|uri| await_routed(&agent, uri));
    let mut client = lanes::LanePeer::open(agent.address(), &caller());
    press(&agent, LITTLE, &services);
    until_true("it to go by way of the agent", || {
        Routed::at(&agent).services.get(LOW).is_some_and(|why| why.as_deref() == Some("the agent has too much to bear"))
    });
    assert!(Routed::at(&agent).routes(DEMO), "what is not refused is routed as before");
    let (_, refused) = client.call(LOW, b"x");
    assert_eq!((refused.header.word, refused.has(Flags::NOT_EXECUTED)), (504, true), "{}", refused.error());
    assert_eq!(client.call(DEMO, b"x").1.body, b"x");
    press(&agent, PLENTY, &services);
    await_routed(&agent, LOW);
    assert_eq!(client.call(LOW, b"x").1.body, b"x");
}
