//! A new configuration takes effect without the loss of a call; a bad one changes nothing.

use moa_tests::{
    Agent, DEMO, FakeMoa, agent, config, echo, envelope, expect_mesh_error, fake::End, judge::Ledger, load::Load, until,
    until_true,
};
use nix::sys::signal::Signal;

const MOVING: &str = "/service/moving";

fn services(demo: &[&FakeMoa], moving: &[&FakeMoa]) -> String {
    let section = |uri: &str, fakes: &[&FakeMoa]| {
        config::service(uri, &fakes.iter().map(|fake| fake.address()).collect::<Vec<_>>(), config::NO_HEALTH_CHECK)
    };
    section(DEMO, demo) + &section(MOVING, moving)
}

fn generation(agent: &Agent) -> u64 {
    agent.json(&["status"])["config"]["generation"].as_u64().expect("a generation")
}

#[test]
fn instances_come_move_and_go_under_load_and_no_call_is_lost() {
    let ledger = Ledger::default();
    let fakes: Vec<FakeMoa> = (0..4).map(|_| FakeMoa::builder().ledger(&ledger).start()).collect();
    let [a, b, c, d] = &fakes[..] else { panic!("four fakes") };
    let agent = Agent::start(&services(&[a], &[b]));
    let load = Load::start(agent.address(), &[DEMO, MOVING], 8);
    let steps: [(&[&FakeMoa], &[&FakeMoa]); 6] =
        [(&[a, c], &[b]), (&[c], &[b, d]), (&[b], &[d]), (&[b, a, c, d], &[a]), (&[d], &[d]), (&[a], &[b])];
    for (number, (demo, moving)) in steps.into_iter().enumerate() {
        load.await_calls(300);
        agent.reload(&services(demo, moving));
        assert_eq!(generation(&agent), number as u64 + 2);
        load.await_calls(300);
    }
    load.stop().expect_all_right();
    ledger.expect_none_twice();
    assert!(fakes.iter().all(|fake| fake.counts().calls > 0), "an instance never got a call");
    for gone in [c, d] {
        gone.await_counts("the connections to an instance that is gone to end", |counts| counts.open == 0);
    }
}

#[test]
fn sighup_reloads() {
    let (one, two) = (FakeMoa::start(), FakeMoa::start());
    let agent = Agent::start(&services(&[&one], &[&one]));
    let load = Load::start(agent.address(), &[DEMO], 4);
    load.await_calls(100);
    agent.write_config(&services(&[&two], &[&one]));
    agent.signal(Signal::SIGHUP);
    until("the reload", || (generation(&agent) == 2).then_some(()));
    let before = two.counts().calls;
    load.await_calls(100);
    load.stop().expect_all_right();
    assert!(two.counts().calls > before);
    one.await_counts("the old instance's connections to end", |counts| counts.open == 0);
}

#[test]
fn services_come_and_go() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], ""));
    let mut client = agent.connect();
    expect_mesh_error(&agent, &client.get(&envelope(MOVING, "nop", "")), 501, MOVING);
    agent.reload(&services(&[&fake], &[&fake]));
    assert_eq!(client.call(&envelope(MOVING, "nop", ""))["ec"], 0);
    agent.reload(&config::service(DEMO, &[fake.address()], ""));
    expect_mesh_error(&agent, &client.get(&envelope(MOVING, "nop", "")), 501, MOVING);
    assert_eq!(client.call(&echo("still"))["result"], "still");
}

#[test]
fn calls_in_flight_on_an_instance_that_goes_are_answered() {
    let (old, new) = (FakeMoa::start(), FakeMoa::start());
    let gate = moa_tests::Gate::closed();
    let own = gate.clone();
    old.script(move |call| moa_tests::Answer::ok(&call.args[0]).at(&own));
    let agent = Agent::start(&services(&[&old], &[&old]));
    let mut client = agent.connect();
    client.send(moa_tests::client::command(&["GET", &echo("in flight")]));
    old.await_in_flight(1);
    agent.reload(&services(&[&new], &[&new]));
    assert_eq!(agent.connect().call(&echo("new"))["result"], "new");
    gate.open();
    assert!(client.read().text().contains("in flight"));
    old.await_counts("the old connection to end", |counts| counts.open == 0);
}

#[test]
fn a_bad_file_changes_nothing_and_says_where_it_is_wrong() {
    let fake = FakeMoa::start();
    let good = config::service(DEMO, &[fake.address()], "");
    let agent = Agent::start(&good);
    let cases: [(&str, &[&str]); 8] = [
        ("[app]\nlisen = \"127.0.0.1:1\"\n", &[":2:", "lisen", "listen"]),
        ("[app]\npipeline_max = \"many\"\n", &[":2:", "pipeline_max", "number"]),
        ("[app\n", &[":1:"]),
        ("\n\n[apps]\nlisten = \"127.0.0.1:1\"\n", &[":3:", "apps", "app"]),
        ("[services.\"/service/demo\"]\ninstances = [\"nowhere\"]\n", &[":2:", "instances"]),
        ("[services.\"/service/demo\"]\ninstances = []\ntimeout_m = 5\n", &[":3:", "timeout_m", "timeout_ms"]),
        ("[defaults]\ntimeout_ms = -1\n", &[":2:", "timeout_ms"]),
        ("[services.\"/service/demo\"]\ninstances = [\"127.0.0.1:1\"]\ntimeout_ms = \"soon\"\n", &[":3:", "timeout_ms"]),
    ];
    for (bad, says) in cases {
        agent.write_config(bad);
        for verb in [&["config", "reload"][..], &["config", "check", &agent.config_path().display().to_string()]] {
            let outcome = if verb[1] == "check" { agent::run_verb(verb) } else { agent.verb(verb) };
            assert!(!outcome.status.success(), "moa {verb:?} took {bad:?}: {}", outcome.stdout);
            for word in says {
                let said = format!("{}{}", outcome.stdout, outcome.stderr);
                assert!(said.contains(word), "moa {verb:?} of {bad:?} says nothing of {word}: {said}");
            }
        }
        assert_eq!(generation(&agent), 1);
        assert!(agent.json(&["status"])["config"]["last_error"].is_string());
        assert_eq!(agent.connect().call(&echo("still"))["result"], "still");
    }
    agent.reload(&good);
    assert_eq!(generation(&agent), 2);
    assert!(agent.json(&["status"])["config"]["last_error"].is_null());
}

#[test]
fn a_bad_file_by_sighup_is_logged_and_changes_nothing() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], ""));
    agent.write_config("[app]\nlisen = 1\n");
    agent.signal(Signal::SIGHUP);
    until("the refusal to be logged", || agent.log().contains("lisen").then_some(()));
    assert_eq!(agent.connect().call(&echo("still"))["result"], "still");
    assert_eq!(generation(&agent), 1);
}

#[test]
fn the_death_of_an_instance_fails_only_what_is_in_flight_there() {
    let ledger = Ledger::default();
    let (mortal, other) = (FakeMoa::builder().ledger(&ledger).start(), FakeMoa::builder().ledger(&ledger).start());
    let addresses = [mortal.address(), other.address()];
    let agent = Agent::start(&config::service(DEMO, &addresses, config::QUICK_HEALTH_CHECK));
    for end in [End::Reset, End::Close] {
        let callers = 8;
        let load = Load::start(agent.address(), &[DEMO], callers);
        load.await_calls(500);
        mortal.down(end);
        load.await_calls(500);
        agent.await_health(DEMO, mortal.address(), false);
        load.await_calls(500);
        mortal.up();
        agent.await_health(DEMO, mortal.address(), true);
        let before = mortal.counts().calls;
        // Its pool may wait a quarter of a second before it tries to connect again.
        until_true("the instance that came back to get calls", || mortal.counts().calls > before);
        let account = load.stop();
        println!("{account:?}");
        assert!(account.failed.keys().all(|code| *code == 303), "{account:?}");
        assert!(account.failures() <= callers as u64, "more calls failed than were in flight: {account:?}");
    }
    ledger.expect_none_twice();
}
