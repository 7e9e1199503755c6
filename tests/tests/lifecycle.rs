//! Starting, stopping, and living beside others.

use std::time::Duration;

use moa_tests::{Agent, Answer, Client, DEMO, FakeMoa, Gate, client::command, config, echo, load::Load, until};
use nix::sys::signal::Signal;

fn gated() -> (FakeMoa, Gate) {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    (fake, gate)
}

fn section(fake: &FakeMoa) -> String {
    config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)
}

fn calls_in_flight(agent: &Agent, fake: &FakeMoa, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| agent.connect()).collect();
    for client in &mut clients {
        client.send(command(&["GET", &echo("in flight")]));
    }
    fake.await_in_flight(count);
    clients
}

#[test]
fn sigterm_finishes_what_is_in_flight() {
    let (fake, gate) = gated();
    let mut agent = Agent::start(&section(&fake));
    let mut idle = agent.connect();
    idle.expect_usable();
    let clients = calls_in_flight(&agent, &fake, 20);
    agent.signal(Signal::SIGTERM);
    until("new connections to be refused", || Client::try_connect(agent.address()).err());
    assert!(agent.ended().is_none(), "it ended with calls in flight");
    gate.open();
    for mut client in clients {
        let reply = client.read();
        assert!(reply.text().contains("in flight"), "{}", reply.brief());
        client.expect_closed();
    }
    idle.expect_closed();
    let status = agent.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

#[test]
fn a_stop_answers_each_call_of_a_pipeline() {
    let (fake, gate) = gated();
    let mut agent = Agent::start(&section(&fake));
    let mut client = agent.connect();
    client.send((0..40).flat_map(|number| command(&["GET", &echo(&number.to_string())])).collect::<Vec<u8>>());
    fake.await_in_flight(40);
    agent.signal(Signal::SIGTERM);
    until("new connections to be refused", || Client::try_connect(agent.address()).err());
    gate.open();
    for number in 0..40 {
        assert!(client.read().text().contains(&format!("\"result\":\"{number}\"")));
    }
    client.expect_closed();
    assert!(agent.wait(Duration::from_secs(5)).success());
}

#[test]
fn a_stop_under_load_loses_no_answer_of_a_call_in_flight() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    let load = Load::start(agent.address(), &[DEMO], 8);
    load.await_calls(500);
    agent.stop();
    let account = load.await_close();
    account.expect_all_right();
    // No call that reached the server went without its answer.
    assert_eq!(fake.ledger().len() as u64, account.right);
}

#[test]
fn the_drain_timeout_is_kept() {
    let (fake, _gate) = gated();
    let config = format!("[agent]\ndrain_timeout_ms = 300\n{}", section(&fake));
    let mut agent = Agent::start(&config);
    let clients = calls_in_flight(&agent, &fake, 3);
    agent.signal(Signal::SIGTERM);
    // Well before the call's own deadline of 4.5 s.
    agent.wait(Duration::from_secs(3));
    for mut client in clients {
        // A last word or none, but no answer that was not given.
        if let Ok(reply) = client.try_read() {
            assert!(reply.text().contains("\"ec\":30"), "{}", reply.brief());
        }
    }
}

#[test]
fn idle_applications_do_not_hold_a_stop_up() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    let mut clients: Vec<Client> = (0..100).map(|_| agent.connect()).collect();
    clients.iter_mut().for_each(Client::expect_usable);
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(Duration::from_secs(3)).success());
    clients.iter_mut().for_each(Client::expect_closed);
    fake.await_counts("the connections to the backend to end", |counts| counts.open == 0);
}

#[test]
fn sigint_stops_too() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    agent.signal(Signal::SIGINT);
    assert!(agent.wait(Duration::from_secs(3)).success());
}

#[test]
fn after_a_kill_it_starts_again_under_its_name() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    for _ in 0..3 {
        assert_eq!(agent.connect().call(&echo("x"))["result"], "x");
        agent.kill();
        fake.await_counts("its connections to end", |counts| counts.open == 0);
        agent.start_again();
        assert_eq!(agent.json(&["status"])["pid"], agent.pid());
    }
}

#[test]
fn after_a_stop_nothing_is_left_in_its_run_directory() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    let run = agent.run_dir().to_owned();
    assert!(run.read_dir().expect("the run directory").next().is_some());
    agent.stop();
    let left: Vec<_> = walk(&run).into_iter().filter(|path| !path.is_dir()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.flat_map(|path| walk(&path).into_iter().chain([path])).collect()
}

#[test]
fn two_agents_live_side_by_side() {
    let (one_fake, two_fake) = (FakeMoa::start(), FakeMoa::start());
    let mut one = Agent::start(&section(&one_fake));
    let two = Agent::prepare(&section(&two_fake)).beside(&one).start();
    let (mut to_one, mut to_two) = (one.connect(), two.connect());
    for _ in 0..10 {
        to_one.call(&echo("x"));
        to_two.call(&echo("x"));
    }
    assert_eq!((one_fake.counts().calls, two_fake.counts().calls), (10, 10));
    assert_eq!(one.json(&["status"])["name"], one.name());
    assert_eq!(two.json(&["status"])["name"], two.name());
    one.stop();
    assert_eq!(to_two.call(&echo("still"))["result"], "still");
}

#[test]
fn the_same_name_twice_is_refused_clearly() {
    let fake = FakeMoa::start();
    let agent = Agent::start(&section(&fake));
    let (status, said) = Agent::prepare(&section(&fake)).beside(&agent).name(agent.name()).start_in_vain();
    assert!(!status.success());
    assert!(said.contains(agent.name()), "{said}");
    assert!(said.contains(&agent.pid().to_string()) || said.to_lowercase().contains("already"), "{said}");
    assert_eq!(agent.connect().call(&echo("still"))["result"], "still");
    assert_eq!(agent.json(&["status"])["pid"], agent.pid());
}

#[test]
fn a_port_in_use_is_refused_clearly() {
    let fake = FakeMoa::start();
    let taken = Agent::start(&section(&fake));
    let (status, said) = Agent::prepare(&section(&fake)).listen_at(taken.address()).start_in_vain();
    assert!(!status.success());
    assert!(said.contains(&taken.address().to_string()) && said.to_lowercase().contains("in use"), "{said}");
    taken.connect().expect_usable();
}

#[test]
fn a_bad_configuration_is_refused_at_the_start() {
    let (status, said) = Agent::prepare("[app]\nlisen = 1\n").start_in_vain();
    assert!(!status.success());
    for word in [":2:", "lisen", "listen"] {
        assert!(said.contains(word), "nothing of {word}: {said}");
    }
}
