//! At every bound a caller gets a clear, immediate answer; never silence.

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Gate, Judge, Reply, client::command, config, echo, envelope, expect_code,
    expect_mesh_error, until,
};

/// A fake whose calls of `wait` wait at the gate.
fn gated() -> (FakeMoa, Gate) {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    let own = gate.clone();
    fake.script(move |call| match call.method.as_str() {
        "wait" => Answer::ok(&call.args[0]).at(&own),
        _ => Answer::ok(&call.args[0]),
    });
    (fake, gate)
}

fn wait(text: &str) -> String {
    envelope(DEMO, "wait", &format!("\"{text}\""))
}

fn start(sections: &str, fake: &FakeMoa, policy: &str) -> Agent {
    let policy = format!("{policy}\n{}", config::NO_HEALTH_CHECK);
    Agent::start(&format!("{sections}\n{}", config::service(DEMO, &[fake.address()], &policy)))
}

/// A call of exactly so many bytes.
fn call_of(bytes: usize) -> String {
    let empty = echo("").len();
    echo(&"x".repeat(bytes - empty))
}

#[test]
fn an_argument_that_servers_of_2016_reset_at_is_not_sent() {
    let fake = FakeMoa::start();
    let agent = start("", &fake, "");
    let mut client = agent.connect();
    assert_eq!(client.call(&call_of(32_767))["ec"], 0);
    let before = fake.counts().bytes;
    let text = expect_mesh_error(&agent, &client.get(&call_of(32_768)), 302, DEMO);
    assert!(text.contains("32767") && text.contains("32768"), "the text names not both sizes: {text}");
    assert_eq!(fake.counts().bytes, before, "something was sent");
    assert_eq!(client.call(&echo("next"))["ec"], 0);
}

#[test]
fn a_service_may_have_a_bound_of_its_own() {
    let fake = FakeMoa::start();
    let agent = start("", &fake, "argument_bytes_max = 100");
    let mut client = agent.connect();
    assert_eq!(client.call(&call_of(100))["ec"], 0);
    expect_mesh_error(&agent, &client.get(&call_of(101)), 302, DEMO);
    assert_eq!(fake.counts().calls, 1);
}

#[test]
fn an_argument_over_the_applications_bound_is_passed_over() {
    let fake = FakeMoa::start();
    let agent = start("[app]\nargument_bytes_max = 1000\ncommand_bytes_max = 5000", &fake, "");
    let mut client = agent.connect();
    for size in [1_001, 4_000, 20_000, 3_000_000] {
        client.send(command(&["GET", &call_of(size)]));
        let text = expect_code(&client.read(), 302);
        assert!(text.contains("1000") || text.contains("5000"), "the text names no bound: {text}");
        assert_eq!(client.call(&echo("next"))["result"], "next");
    }
    assert_eq!(fake.counts().calls, 4);
}

#[test]
fn a_command_over_its_bound_is_answered_in_its_place() {
    let fake = FakeMoa::start();
    let agent = start("[app]\nargument_bytes_max = 1000\ncommand_bytes_max = 5000", &fake, "");
    let mut client = agent.connect();
    let keys: Vec<String> = (0..10).map(|_| call_of(900)).collect();
    let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    client.send(command(&["GET", &echo("before")]));
    client.send(command(&words));
    client.send(command(&["GET", &echo("after")]));
    assert!(client.read().text().contains("before"));
    match client.read() {
        Reply::Error(text) => assert!(text.contains("5000"), "{text}"),
        reply => assert!(expect_code(&reply, 302).contains("5000")),
    }
    assert!(client.read().text().contains("after"));
    assert_eq!(fake.counts().calls, 2);
}

#[test]
fn one_call_more_than_a_connections_depth_is_a_504_in_its_place() {
    let (fake, gate) = gated();
    let agent = start("[app]\npipeline_max = 4", &fake, "");
    let mut client = agent.connect();
    let calls: Vec<u8> = (0..6).flat_map(|number| command(&["GET", &wait(&number.to_string())])).collect();
    client.send(calls);
    fake.await_in_flight(4);
    // The first four hold their places: the others wait behind them with their 504.
    gate.open();
    for number in 0..4 {
        assert!(client.read().text().contains(&format!("\"result\":\"{number}\"")));
    }
    for _ in 4..6 {
        let text = expect_code(&client.read(), 504);
        assert!(text.contains(agent.name()) && text.contains('4'), "{text}");
    }
    assert_eq!(fake.counts().calls, 4);
    assert_eq!(client.call(&echo("next"))["result"], "next");
}

#[test]
fn one_connection_more_is_told_so_and_closed() {
    let fake = FakeMoa::start();
    let agent = start("[agent]\nworkers = 2\n[app]\nconnections_max = 4", &fake, "");
    until("the connection of the start to end", || (agent.json(&["status"])["app"]["connections"] == 0).then_some(()));
    let mut clients: Vec<Client> = (0..4).map(|_| agent.connect()).collect();
    clients.iter_mut().for_each(Client::expect_usable);
    for _ in 0..3 {
        let mut refused = agent.connect();
        assert_eq!(refused.read(), Reply::Error("ERR max number of clients reached".to_owned()));
        refused.expect_closed();
    }
    let status = agent.json(&["status"]);
    assert_eq!((&status["app"]["connections"], &status["app"]["refused"]), (&4.into(), &3.into()), "{status}");
    clients.iter_mut().for_each(Client::expect_usable);
    clients.pop();
    until("a place to be free", || {
        let mut client = agent.connect();
        client.try_send("*1\r\n$4\r\nPING\r\n").ok()?;
        client.try_read().ok().filter(|reply| *reply == Reply::Simple("PONG".to_owned()))
    });
}

#[test]
fn one_key_more_is_an_error_and_nothing_is_sent() {
    let fake = FakeMoa::start();
    let agent = start("[app]\nmget_keys_max = 3", &fake, "");
    let mut client = agent.connect();
    let key = echo("x");
    let error = client.command(&["MGET", &key, &key, &key, &key]);
    assert!(error.error().starts_with("ERR") && error.error().contains('3'), "{}", error.brief());
    assert_eq!(fake.counts().calls, 0);
    assert_eq!(client.command(&["MGET", &key, &key, &key]).array().len(), 3);
}

/// One connection, one place to wait: the third call is refused at once, and so clearly.
#[test]
fn one_call_more_than_may_wait_is_a_504() {
    let (fake, gate) = gated();
    let agent = start("[agent]\nworkers = 1", &fake, "connections_max = 1\nqueue_max = 1");
    let mut clients: Vec<Client> = (0..3).map(|_| agent.connect()).collect();
    clients[0].send(command(&["GET", &wait("first")]));
    fake.await_in_flight(1);
    clients[1].send(command(&["GET", &wait("second")]));
    until("the second call to wait", || agent.instance(DEMO, fake.address()).filter(|instance| instance["queued"] == 1));
    clients[2].send(command(&["GET", &wait("third")]));
    let text = expect_mesh_error(&agent, &clients[2].read(), 504, DEMO);
    println!("{text}");
    gate.open();
    assert!(clients[0].read().text().contains("first"));
    assert!(clients[1].read().text().contains("second"));
    assert_eq!(fake.counts().accepted, 1);
    assert_eq!(fake.counts().calls, 2);
}

#[test]
fn a_call_that_waits_too_long_for_a_connection_is_a_304() {
    let (fake, gate) = gated();
    let agent = start("[agent]\nworkers = 1", &fake, "connections_max = 1\ntimeout_ms = 300");
    let mut clients: Vec<Client> = (0..2).map(|_| agent.connect()).collect();
    clients[0].send(command(&["GET", &wait("first")]));
    fake.await_in_flight(1);
    clients[1].send(command(&["GET", &wait("second")]));
    for client in &mut clients {
        expect_mesh_error(&agent, &client.read(), 304, DEMO);
    }
    gate.open();
    assert_eq!(clients[0].call(&echo("next"))["result"], "next");
}

/// With one worker: each has its share of the bound.
#[test]
fn one_call_more_in_the_whole_agent_is_a_504() {
    let (fake, gate) = gated();
    let agent = start("[agent]\nworkers = 1\ncalls_in_flight_max = 4", &fake, "");
    let mut clients: Vec<Client> = (0..4).map(|_| agent.connect()).collect();
    for client in &mut clients {
        client.send(command(&["GET", &wait("held")]));
    }
    fake.await_in_flight(4);
    let mut fifth = agent.connect();
    let text = expect_mesh_error(&agent, &fifth.get(&wait("fifth")), 504, DEMO);
    assert!(text.contains('4'), "the text names no bound: {text}");
    gate.open();
    for client in &mut clients {
        assert!(client.read().text().contains("held"));
    }
    assert_eq!(fifth.call(&echo("next"))["result"], "next");
    assert_eq!(agent.json(&["status"])["calls"]["in_flight"], 0);
}

/// Calls that wait for a connection hold their bytes; small calls of others go on beside them.
#[test]
fn more_bytes_than_may_wait_in_the_agent_are_a_504() {
    let (fake, gate) = gated();
    // The agent always takes one command of the longest kind.
    let sections =
        "[agent]\nworkers = 1\nqueued_bytes_max = 1_048_576\n[app]\nargument_bytes_max = 50_000\ncommand_bytes_max = 60_000";
    let agent = start(sections, &fake, "connections_max = 1");
    let mut client = agent.connect();
    let long = wait(&"x".repeat(30_000));
    client.send((0..60).flat_map(|_| command(&["GET", &long])).collect::<Vec<u8>>());
    fake.await_in_flight(1);
    let mut other = agent.connect();
    let refused = expect_code(&other.get(&long), 504);
    assert!(refused.contains("queued_bytes_max") && refused.contains(agent.name()), "{refused}");
    gate.open();
    let right = answers_until_refused(&mut client, 60);
    assert!((30..40).contains(&right), "{right} of 60 calls of 30 KB got their answer");
    assert_eq!(other.call(&long)["ec"], 0);
    assert_eq!(agent.json(&["status"])["calls"]["in_flight"], 0);
}

/// How many calls got their answer, of which each is long; a call is refused in its place, and a command for which there
/// is no room at all ends the connection, with a word.
fn answers_until_refused(client: &mut Client, calls: usize) -> usize {
    let mut right = 0;
    for _ in 0..calls {
        let reply = client.read();
        match &reply {
            Reply::Error(text) => {
                assert!(text.contains("queued_bytes_max"), "{text}");
                client.expect_closed();
                break;
            }
            Reply::Bulk(answer) if answer.len() > 30_000 => right += 1,
            _ => drop(expect_code(&reply, 504)),
        }
    }
    right
}

#[test]
fn one_slow_connect_is_bounded_by_its_own_timeout() {
    let fake = FakeMoa::start();
    // Reserved for documentation: nobody answers there.
    let nowhere = "192.0.2.1:9".parse().expect("an address");
    let policy = format!("connect_timeout_ms = 200\ntimeout_ms = 3000\n{}", config::NO_HEALTH_CHECK);
    let agent = Agent::start(&config::service(DEMO, &[nowhere, fake.address()], &policy));
    let judge = Judge;
    let mut client = agent.connect();
    for _ in 0..4 {
        let ask = judge.ask(DEMO, 20);
        ask.expect_right(&client.get(&ask.json));
    }
}

#[test]
fn idle_connections_end_after_their_time_but_for_the_least() {
    let fake = FakeMoa::start();
    let policy = "connections_min = 1\nidle_timeout_ms = 200";
    let agent = start("[agent]\nworkers = 1", &fake, policy);
    fake.await_counts("the first connection, before any call", |counts| counts.open == 1 && counts.calls == 0);
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let mut client = agent.connect();
    client.send((0..8).flat_map(|_| command(&["GET", &echo("x")])).collect::<Vec<u8>>());
    fake.await_in_flight(8);
    gate.open();
    (0..8).for_each(|_| drop(client.read()));
    fake.await_counts("all but one to end", |counts| counts.open == 1);
    assert_eq!(client.call(&echo("next"))["result"], "next");
    assert_eq!(fake.counts().accepted, 8);
}
