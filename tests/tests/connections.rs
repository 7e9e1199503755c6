//! Applications that read slowly, write slowly, close half, or reset.

use std::{
    io::{ErrorKind, Write},
    thread,
};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Gate, Judge, Reply,
    client::command,
    config, echo, envelope, expect_code,
    judge::{Ask, Verdict},
    load::Load,
    machine::memory_kib,
    resp::read_reply,
    seed, until,
    wait::until_true,
};

const MIB: u64 = 1024;

const OTHER: &str = "/service/other";

fn start(sections: &str, fake: &FakeMoa, policy: &str) -> Agent {
    let policy = format!("{policy}\n{}", config::NO_HEALTH_CHECK);
    Agent::start(&format!("{sections}\n{}", config::service(DEMO, &[fake.address()], &policy)))
}

/// A second service, for those who must not be harmed; the first one's calls have a minute.
fn start_two(sections: &str, fake: &FakeMoa, other: &FakeMoa) -> Agent {
    let patient = format!("timeout_ms = 60_000\n{}", config::NO_HEALTH_CHECK);
    let first = config::service(DEMO, &[fake.address()], &patient);
    let second = config::service(OTHER, &[other.address()], config::NO_HEALTH_CHECK);
    Agent::start(&format!("{sections}\n{first}{second}"))
}

fn connections(agent: &Agent) -> u64 {
    agent.json(&["status"])["app"]["connections"].as_u64().expect("connections")
}

#[test]
fn a_client_that_closes_its_half_gets_all_its_answers() {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let agent = start("", &fake, "");
    let (mut client, judge) = (agent.connect(), Judge);
    let asks: Vec<Ask> = (0..50).map(|_| judge.ask(DEMO, 3_000)).collect();
    client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
    client.half_close();
    fake.await_in_flight(50);
    gate.open();
    asks.iter().for_each(|ask| ask.expect_right(&client.read()));
    client.expect_closed();
}

#[test]
fn a_client_that_closes_its_half_with_part_of_a_command_is_answered_what_is_whole() {
    let fake = FakeMoa::start();
    let agent = start("", &fake, "");
    let mut client = agent.connect();
    let mut bytes = command(&["GET", &echo("whole")]);
    bytes.extend_from_slice(&command(&["GET", &echo("part")])[..40]);
    client.send(bytes);
    client.half_close();
    assert!(client.read().text().contains("whole"));
    client.expect_closed();
    assert_eq!(fake.counts().calls, 1);
}

#[test]
fn a_client_that_resets_in_mid_call_leaves_nothing_behind() {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| match call.method.as_str() {
        "wait" => Answer::ok(&call.args[0]).at(&own),
        _ => Answer::ok(&call.args[0]),
    });
    let agent = start("", &fake, "");
    let mut others = agent.connect();
    for _ in 0..10 {
        let mut client = agent.connect();
        client.send(command(&["GET", &envelope(DEMO, "wait", "\"x\"")]));
        client.send(&command(&["GET", &echo("half a command")])[..50]);
        until_true("the call to arrive", || fake.counts().in_flight >= 1);
        client.reset();
        assert_eq!(others.call(&echo("others"))["result"], "others");
        until_true("the connection to be forgotten", || connections(&agent) == 1);
    }
    gate.open();
    until_true("no call to be in flight", || agent.json(&["status"])["calls"]["in_flight"] == 0);
    let judge = Judge;
    for _ in 0..50 {
        let ask = judge.ask(DEMO, 100);
        ask.expect_right(&others.get(&ask.json));
    }
    assert_eq!(fake.counts().in_flight_max_per_connection, 1);
}

#[test]
fn writers_of_a_byte_at_a_time() {
    let fake = FakeMoa::start();
    let agent = start("", &fake, "");
    let judge = Judge;
    let load = Load::start(agent.address(), &[DEMO], 2);
    let mut clients: Vec<(Client, Ask)> = (0..20).map(|_| (agent.connect(), judge.ask(DEMO, 200))).collect();
    let longest = 400;
    for at in 0..longest {
        for (client, ask) in &mut clients {
            if let Some(byte) = command(&["GET", &ask.json]).get(at) {
                client.send([*byte]);
            }
        }
    }
    for (client, ask) in &mut clients {
        ask.expect_right(&client.read());
    }
    load.stop().expect_all_right();
}

/// A client that asks for a hundred megabytes in many answers and reads none: the agent holds no more than its bound.
#[test]
fn a_client_that_never_reads_many_answers() {
    let (fake, other) = (FakeMoa::start(), FakeMoa::start());
    let agent = start_two("[agent]\nqueued_bytes_max = 33_554_432", &fake, &other);
    let before = memory_kib(agent.pid(), "VmHWM");
    let load = Load::start(agent.address(), &[OTHER], 2);
    let mut client = agent.connect();
    let big = envelope(DEMO, "big", "100000");
    client.send((0..1000).flat_map(|_| command(&["GET", &big])).collect::<Vec<u8>>());
    load.await_calls(3_000);
    let most = memory_kib(agent.pid(), "VmHWM");
    println!("a client that reads nothing of 100 MB: {before} KiB, at most {most} KiB");
    assert!(most < before + 80 * MIB, "{before} KiB grew to {most} KiB");
    for _ in 0..1000 {
        let reply = client.read();
        if reply.bulk().len() < 1_000 {
            expect_code(&reply, 504);
        } else {
            assert_eq!(reply.bulk().len(), 100_035 + 8, "{}", reply.brief());
        }
    }
    assert_eq!(client.call(&echo("next"))["result"], "next");
    load.stop().expect_all_right();
}

/// A client that does not read holds its answers up, and nobody else's: not even those of the same service.
#[test]
fn a_client_that_never_reads_leaves_connections_to_others() {
    let fake = FakeMoa::start();
    let agent = start("[agent]\nworkers = 1", &fake, "timeout_ms = 15_000");
    let mut client = agent.connect();
    let asks: Vec<Ask> = (0..600).map(|_| Judge.ask(DEMO, 20_000)).collect();
    client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
    fake.await_counts("more answers than the agent may hold", |counts| counts.calls >= 250);
    let ask = Judge.ask(DEMO, 100);
    ask.expect_right(&agent.connect().get(&ask.json));
    let load = Load::start(agent.address(), &[DEMO], 2);
    load.await_calls(200);
    load.stop().expect_all_right();
}

/// The same with one answer of 100 MB: the agent holds part of it, and gives up at the call's deadline.
#[test]
fn a_client_that_never_reads_one_answer_of_100_mb() {
    let (fake, other) = (FakeMoa::start(), FakeMoa::start());
    let big = Answer::ok(&"x".repeat(100 << 20).into());
    fake.script(move |_| big.clone());
    let services = [
        config::service("/service/big", &[fake.address()], "timeout_ms = 1500\nhealth = { check = \"off\" }"),
        config::service(DEMO, &[other.address()], config::NO_HEALTH_CHECK),
    ];
    let agent = Agent::start(&services.concat());
    let before = memory_kib(agent.pid(), "VmHWM");
    let load = Load::start(agent.address(), &[DEMO], 2);
    let mut client = agent.connect();
    client.send(command(&["GET", &envelope("/service/big", "m", "")]));
    fake.await_counts("the agent to give up", |counts| counts.ended_by_peer == 1);
    let most = memory_kib(agent.pid(), "VmHWM");
    println!("a client that reads nothing of one answer: {before} KiB, at most {most} KiB");
    assert!(most < before + 32 * MIB, "{before} KiB grew to {most} KiB");
    // What was begun cannot be taken back: the connection ends, so that the client does not wait for the rest.
    let error = client.try_read().expect_err("the connection to end within the answer");
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
    load.stop().expect_all_right();
}

/// Answers that wait for their turn fill the bound before the one whose turn it is has come: that one must still pass.
#[test]
fn answers_behind_a_late_one_do_not_hold_it_up() {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    let big = Answer::ok(&"x".repeat(200_000).into());
    fake.script(move |call| if call.text() == "0" { big.clone().at(&own) } else { big.clone() });
    let agent = start("", &fake, "");
    let mut client = agent.connect();
    client.send((0..60).flat_map(|number| command(&["GET", &echo(&number.to_string())])).collect::<Vec<u8>>());
    fake.await_counts("all but the first to be answered", |counts| counts.calls == 60 && counts.in_flight == 1);
    gate.open();
    for number in 0..60 {
        assert!(client.read().bulk().len() > 200_000, "the answer in place {number}");
    }
}

#[test]
fn a_client_that_stops_reading_and_goes_on_gets_all_in_order() {
    let (fake, other) = (FakeMoa::start(), FakeMoa::start());
    let agent = start_two("", &fake, &other);
    let mut client = agent.connect();
    let asks: Vec<Ask> = (0..600).map(|_| Judge.ask(DEMO, 20_000)).collect();
    let bytes: Vec<u8> = asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect();
    let stream = client.stream().try_clone().expect("a second handle");
    let writer = thread::spawn(move || (&stream).write_all(&bytes));
    let load = Load::start(agent.address(), &[OTHER], 2);
    load.await_calls(500);
    asks.iter().for_each(|ask| ask.expect_right(&client.read()));
    writer.join().expect("the writer").expect("writing all calls");
    load.stop().expect_all_right();
}

/// What is announced counts as if it were there, so that it is refused before it takes memory; small calls go on.
#[test]
fn clients_that_announce_much_and_send_nothing() {
    let fake = FakeMoa::start();
    let agent = start("[agent]\nqueued_bytes_max = 16_777_216", &fake, "");
    let before = memory_kib(agent.pid(), "VmHWM");
    let load = Load::start(agent.address(), &[DEMO], 2);
    let mut announcers: Vec<Client> = (0..100).map(|_| agent.connect()).collect();
    for client in &mut announcers {
        client.send("*2\r\n$3\r\nGET\r\n$1000000\r\n{");
    }
    load.await_calls(1_000);
    load.stop().expect_all_right();
    let most = memory_kib(agent.pid(), "VmHWM");
    println!("100 announcements of 1 MB: {before} KiB, at most {most} KiB");
    assert!(most < before + 24 * MIB, "{before} KiB grew to {most} KiB");
    drop(announcers);
    until_true("the announcers to be forgotten", || connections(&agent) == 0);
    let ask = Judge.ask(DEMO, 20_000);
    ask.expect_right(&agent.connect().get(&ask.json));
}

#[test]
fn random_splits_of_random_pipelines() {
    use rand::RngExt;
    let mut rng = seed::rng("random_splits_of_random_pipelines");
    let fake = FakeMoa::start();
    let agent = start("", &fake, "");
    let judge = Judge;
    for _ in 0..seed::count(30, 3_000) {
        let mut client = agent.connect();
        let asks: Vec<Ask> = (0..rng.random_range(1..60)).map(|_| judge.ask(DEMO, rng.random_range(17..4_000))).collect();
        let bytes: Vec<u8> = asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.random_range(1..=rest.len().min(3_000)));
            client.send(now);
            rest = later;
        }
        asks.iter().for_each(|ask| ask.expect_right(&client.read()));
    }
}

#[test]
fn conns_shows_what_an_application_does() {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let agent = start("", &fake, "");
    let mut client = agent.connect();
    client.command(&["HELLO", "3", "SETNAME", "shown"]);
    client.send(command(&["GET", &echo("x")]));
    fake.await_in_flight(1);
    let shown = until("the connection to be shown", || {
        let conns = agent.json(&["conns"]);
        conns.as_array()?.iter().find(|conn| conn["name"] == "shown").cloned()
    });
    let peer = client.stream().local_addr().expect("its address").to_string();
    assert_eq!((&shown["peer"], &shown["protocol"], &shown["in_flight"]), (&peer.into(), &"resp3".into(), &1.into()), "{shown}");
    gate.open();
    assert!(client.read().text().contains('x'));
}

#[test]
fn judge_and_reader_agree_on_a_reply_cut_anywhere() {
    let judge = Judge;
    let ask = judge.ask(DEMO, 50);
    let fake = FakeMoa::start();
    let agent = start("", &fake, "");
    let mut client = agent.connect();
    let reply = client.get(&ask.json);
    assert_eq!(ask.judge(&reply), Verdict::Right);
    let whole = [format!("${}\r\n", reply.bulk().len()).as_bytes(), reply.bulk(), b"\r\n"].concat();
    for at in 0..whole.len() {
        assert!(read_reply(&mut &whole[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(read_reply(&mut &whole[..]).ok(), Some(Reply::Bulk(reply.bulk().to_vec())));
}
