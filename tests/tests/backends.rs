//! Backends that misbehave: the caller gets one clear answer, other callers are unharmed, nobody ever gets a wrong one.

use std::{io::ErrorKind, thread, time::Duration};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Gate, Judge, Reply,
    client::command,
    config, envelope, expect_code, expect_instance_error,
    fake::{End, Welcome},
    judge::{Ask, Ledger, Verdict},
    load::Load,
    seed, until,
};
use rand::RngExt;

/// Calls may take 400 ms; nothing but the test's calls reaches the backend.
const POLICY: &str = "timeout_ms = 400\nconnect_timeout_ms = 300\nhealth = { check = \"off\" }";

fn start(fakes: &[&FakeMoa]) -> Agent {
    let addresses: Vec<_> = fakes.iter().map(|fake| fake.address()).collect();
    Agent::start(&format!("[agent]\nworkers = 1\n{}", config::service(DEMO, &addresses, POLICY)))
}

/// One healthy call, after which the agent has an idle connection to the fake.
fn warm_up(agent: &Agent, judge: &Judge) -> Client {
    let mut client = agent.connect();
    let ask = judge.ask(DEMO, 20);
    ask.expect_right(&client.get(&ask.json));
    client
}

#[test]
fn servers_that_answer_out_of_order_never_get_two_calls_on_a_connection() {
    let fake = FakeMoa::start();
    let agent = start(&[&fake]);
    let load = Load::start(agent.address(), &[DEMO], 32);
    load.await_calls(2_000);
    load.stop().expect_all_right();
    let judge = Judge;
    let mut client = agent.connect();
    for _ in 0..20 {
        let asks: Vec<Ask> = (0..50).map(|_| judge.ask(DEMO, 30)).collect();
        client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
        asks.iter().for_each(|ask| ask.expect_right(&client.read()));
    }
    assert_eq!(fake.counts().in_flight_max_per_connection, 1);
}

#[test]
fn after_a_3041_the_late_result_reaches_nobody() {
    let fake = FakeMoa::builder().server_timeout(Duration::from_millis(100)).start();
    let late = Gate::closed();
    let gate = late.clone();
    fake.script(move |call| match call.method.as_str() {
        "late" => Answer::ok(&"late".into()).at(&gate),
        _ => Answer::ok(&call.args[0]),
    });
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = agent.connect();
    for round in 1..=3 {
        late.close();
        expect_code(&client.get(&envelope(DEMO, "late", "")), 3041);
        fake.await_counts("the connection of the 3041 to be dropped", |counts| counts.ended_by_peer == round);
        late.open();
        for _ in 0..10 {
            let ask = judge.ask(DEMO, 40);
            ask.expect_right(&client.get(&ask.json));
        }
    }
}

#[test]
fn no_answer_is_a_304_and_the_connection_is_dropped() {
    let fake = FakeMoa::start();
    let late = Gate::closed();
    let gate = late.clone();
    fake.script(move |call| match call.method.as_str() {
        "never" => Answer::silence(),
        "late" => Answer::ok(&"late".into()).at(&gate),
        _ => Answer::ok(&call.args[0]),
    });
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = agent.connect();
    for (round, method) in ["never", "late", "never"].into_iter().enumerate() {
        late.close();
        let text = expect_instance_error(&agent, &client.get(&envelope(DEMO, method, "")), 304, DEMO, fake.address());
        assert!(text.contains("400"), "the text names no deadline: {text}");
        fake.await_counts("the late connection to be dropped", |counts| counts.ended_by_peer == round + 1);
        late.open();
        let ask = judge.ask(DEMO, 40);
        ask.expect_right(&client.get(&ask.json));
    }
}

#[test]
fn a_slow_call_does_not_hold_others_up() {
    let fake = FakeMoa::start();
    fake.script(|call| match call.method.as_str() {
        "never" => Answer::silence(),
        _ => Answer::ok(&call.args[0]),
    });
    let agent = start(&[&fake]);
    let mut waiting = agent.connect();
    waiting.send(command(&["GET", &envelope(DEMO, "never", "")]));
    fake.await_in_flight(1);
    let judge = Judge;
    let mut client = agent.connect();
    for _ in 0..100 {
        let ask = judge.ask(DEMO, 40);
        ask.expect_right(&client.get(&ask.json));
    }
    expect_code(&waiting.read(), 304);
}

/// Each way to end a connection when a call has been written to it: 303 at once, and not sent again.
#[test]
fn a_connection_that_ends_under_a_call_is_a_303() {
    let whole = Answer::ok(&"x".repeat(1000).into());
    let length = whole.bytes().len();
    let ways = [
        ("close, no answer", Answer::silence().then(End::Close)),
        ("reset, no answer", Answer::silence().then(End::Reset)),
        ("half a close", Answer::silence().then(End::HalfClose)),
        ("close after 1 byte", whole.clone().cut(1).then(End::Close)),
        ("close after the length", whole.clone().cut(7).then(End::Close)),
        ("close in the middle", whole.clone().cut(500).then(End::Close)),
        ("close before the last byte", whole.clone().cut(length - 1).then(End::Close)),
        ("reset in the middle", whole.cut(500).then(End::Reset)),
    ];
    for (way, answer) in ways {
        let fake = FakeMoa::start();
        fake.script(move |_| answer.clone());
        let agent = start(&[&fake]);
        let mut client = agent.connect();
        let reply = client.get(&envelope(DEMO, "m", ""));
        let text = expect_instance_error(&agent, &reply, 303, DEMO, fake.address());
        println!("{way}: {text}");
        assert_eq!(fake.counts().calls, 1, "{way}: the call was sent again");
        client.expect_usable();
    }
}

#[test]
fn an_answer_is_good_when_the_server_closes_right_after_it() {
    let fake = FakeMoa::start();
    fake.script(|call| Answer::ok(&call.args[0]).then(End::Close));
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = agent.connect();
    for round in 1..=20 {
        let ask = judge.ask(DEMO, 100);
        ask.expect_right(&client.get(&ask.json));
        // Until the agent knows of the close, it could only guess.
        until("the agent to see the close", || {
            agent.instance(DEMO, fake.address()).filter(|instance| instance["connections"] == 0)
        });
        assert_eq!(fake.counts().accepted, round);
    }
}

/// What is not Redis protocol, or no reply that a call can have.
const GARBAGE: [&[u8]; 8] = [
    b"\x00\xff\xfe nonsense\r\n",
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    b"$abc\r\n",
    b"$99999999999999999999\r\nx\r\n",
    b"$3\r\nabcdef\r\n",
    b"$-5\r\n",
    b"\r\n\r\n",
    b"*1\r\n$2\r\nhi\r\n",
];

/// Replies that Redis servers give, but no MOA server gives to a call.
const OTHER_KINDS: [&[u8]; 4] = [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"-ERR unknown command 'GET'\r\n"];

#[test]
fn garbage_is_a_303_and_never_anybodys_answer() {
    expect_refused(&GARBAGE);
}

#[test]
fn a_reply_of_another_kind_is_a_303() {
    expect_refused(&OTHER_KINDS);
}

fn expect_refused(answers: &[&'static [u8]]) {
    let mut passed_on = Vec::new();
    for &bytes in answers {
        let fake = FakeMoa::start();
        fake.script(move |call| match call.method.as_str() {
            "garbage" => Answer::raw(bytes),
            _ => Answer::ok(&call.args[0]),
        });
        let agent = start(&[&fake]);
        // A server that never gave a good answer would get no calls for a moment.
        warm_up(&agent, &Judge);
        match agent.connect().try_get(&envelope(DEMO, "garbage", "")) {
            Ok(reply @ Reply::Bulk(_)) => {
                expect_instance_error(&agent, &reply, 303, DEMO, fake.address());
            }
            other => passed_on.push(format!("{}: {other:?}", bytes.escape_ascii())),
        }
        let judge = Judge;
        let mut client = warm_up(&agent, &judge);
        for _ in 0..5 {
            let ask = judge.ask(DEMO, 40);
            ask.expect_right(&client.get(&ask.json));
        }
    }
    assert!(passed_on.is_empty(), "passed on to the application:\n{}", passed_on.join("\n"));
}

/// An answer so large that the agent has passed on its beginning cannot be taken back: the application's connection
/// ends, so that nobody takes what follows for the rest of it.
#[test]
fn a_large_answer_that_breaks_off_ends_the_applications_connection() {
    let whole = Answer::ok(&"x".repeat(10 << 20).into());
    let mut damaged = whole.bytes().to_vec();
    let last = damaged.len() - 2;
    damaged[last..].copy_from_slice(b"xx");
    let ways = [
        ("close", whole.clone().cut(5 << 20).then(End::Close)),
        ("reset", whole.clone().cut(5 << 20).then(End::Reset)),
        ("silence", whole.cut(5 << 20)),
        ("no end", Answer::raw(damaged)),
    ];
    for (way, answer) in ways {
        let fake = FakeMoa::start();
        fake.script(move |call| match call.method.as_str() {
            "large" => answer.clone(),
            _ => Answer::ok(&call.args[0]),
        });
        let agent = start(&[&fake]);
        let mut client = agent.connect();
        client.send(command(&["GET", &envelope(DEMO, "large", "")]));
        client.send(command(&["GET", &moa_tests::echo("behind it")]));
        let error = client.try_read().expect_err(way);
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{way}: {error}");
        warm_up(&agent, &Judge);
    }
}

#[test]
fn bytes_after_an_answer_never_become_another_answer() {
    let fake = FakeMoa::start();
    fake.script(|call| {
        let stray = Answer::ok(&"stray".into());
        match call.method.as_str() {
            "twice" => Answer::raw([Answer::ok(&"once".into()).bytes(), stray.bytes()].concat()),
            _ => Answer::ok(&call.args[0]),
        }
    });
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = agent.connect();
    for round in 1..=10 {
        assert_eq!(client.call(&envelope(DEMO, "twice", ""))["result"], "once");
        let ask = judge.ask(DEMO, 40);
        ask.expect_right(&client.get(&ask.json));
        fake.await_counts("the connection with stray bytes to be dropped", |counts| counts.ended_by_peer == round);
    }
}

#[test]
fn an_answer_that_drips_is_whole_if_it_is_in_time_and_a_304_if_not() {
    let fake = FakeMoa::start();
    fake.script(|call| {
        let pause = call.args[1].as_u64().expect("a pause");
        Answer::ok(&call.args[0]).slowly(1, Duration::from_millis(pause))
    });
    let agent = start(&[&fake]);
    let mut client = agent.connect();
    let drip = |pause: u32| envelope(DEMO, "drip", &format!("\"drop by drop\", {pause}"));
    assert_eq!(client.call(&drip(1))["result"], "drop by drop");
    expect_instance_error(&agent, &client.get(&drip(100)), 304, DEMO, fake.address());
    fake.await_counts("the dripping connection to be dropped", |counts| counts.ended_by_peer == 1);
    assert_eq!(client.call(&drip(1))["result"], "drop by drop");
}

#[test]
fn a_closed_port_is_a_303_that_says_so() {
    let fake = FakeMoa::start();
    fake.down(End::Close);
    let agent = start(&[&fake]);
    let reply = agent.connect().get(&envelope(DEMO, "m", ""));
    let text = expect_instance_error(&agent, &reply, 303, DEMO, fake.address());
    assert!(text.to_lowercase().contains("refused"), "{text}");
}

#[test]
fn nothing_written_is_sent_elsewhere() {
    let (gone, ledger) = (FakeMoa::start(), Ledger::default());
    let there = FakeMoa::builder().ledger(&ledger).start();
    gone.down(End::Close);
    let agent = start(&[&gone, &there]);
    let judge = Judge;
    let mut client = agent.connect();
    for _ in 0..50 {
        let ask = judge.ask(DEMO, 40);
        ask.expect_right(&client.get(&ask.json));
        assert_eq!(ledger.executions(&ask), 1);
    }
    assert_eq!(there.counts().calls, 50);
    assert!(agent.json(&["status"])["calls"]["retries"].as_u64() > Some(0));
}

/// Two instances, of which one breaks connections in every way: each call gets its answer or one error, and is
/// executed once at most.
#[test]
fn a_call_is_never_executed_twice() {
    let mut rng = seed::rng("a_call_is_never_executed_twice");
    let ledger = Ledger::default();
    let (bad, good) = (FakeMoa::builder().ledger(&ledger).start(), FakeMoa::builder().ledger(&ledger).start());
    let dice = rng.random::<u64>();
    bad.script(move |call| {
        let answer = Answer::ok(&call.args[0]);
        match (dice ^ call.number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 61 {
            0 => Answer::silence().then(End::Close),
            1 => Answer::silence().then(End::Reset),
            2 => answer.cut(9).then(End::Close),
            3 => answer.then(End::Close),
            4 => answer.then(End::Reset),
            _ => answer,
        }
    });
    bad.welcome(move |number| match number % 8 {
        0 => Welcome::End(End::Close),
        1 => Welcome::End(End::Reset),
        2 => Welcome::EndAfter(1, End::Close),
        3 => Welcome::EndAfter(50, End::Reset),
        _ => Welcome::Serve,
    });
    let agent = start(&[&bad, &good]);
    let judge = Judge;
    let (mut client, mut right) = (agent.connect(), 0);
    let calls = seed::count(2_000, 100_000);
    for _ in 0..calls {
        let ask = judge.ask(DEMO, rng.random_range(17..500));
        match ask.judge(&client.get(&ask.json)) {
            Verdict::Right => {
                right += 1;
                assert_eq!(ledger.executions(&ask), 1);
            }
            Verdict::Failed(303, _) => assert!(ledger.executions(&ask) <= 1, "a failed call was executed twice"),
            Verdict::Failed(code, text) => panic!("expected 303, got {code}: {text}"),
        }
    }
    ledger.expect_none_twice();
    assert!(right >= calls / 2, "only {right} of {calls} calls got their answer");
}

#[test]
fn an_idle_connection_that_the_server_closes_is_never_used() {
    let fake = FakeMoa::start();
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = warm_up(&agent, &judge);
    for end in [End::Close, End::Reset, End::HalfClose] {
        fake.hang_up(end);
        until("the agent to see the end", || {
            agent.instance(DEMO, fake.address()).filter(|instance| instance["connections"] == 0)
        });
        let ask = judge.ask(DEMO, 40);
        ask.expect_right(&client.get(&ask.json));
    }
}

/// The server's host is gone and nobody was told: what was written is lost, and what comes after is served.
#[test]
fn a_server_that_vanishes_loses_only_the_calls_written_to_it() {
    let ledger = Ledger::default();
    let fake = FakeMoa::builder().ledger(&ledger).start();
    let agent = start(&[&fake]);
    let judge = Judge;
    let mut client = warm_up(&agent, &judge);
    fake.hang_up(End::Vanish);
    let lost = judge.ask(DEMO, 40);
    expect_instance_error(&agent, &client.get(&lost.json), 303, DEMO, fake.address());
    assert_eq!(ledger.executions(&lost), 0);
    let next = judge.ask(DEMO, 40);
    next.expect_right(&client.get(&next.json));
}

#[test]
fn a_server_that_never_reads_times_out_and_harms_nobody() {
    let (deaf, fine) = (FakeMoa::builder().small_buffers().start(), FakeMoa::start());
    deaf.welcome(|_| Welcome::NeverRead);
    let both = [config::service("/service/deaf", &[deaf.address()], POLICY), config::service(DEMO, &[fine.address()], POLICY)];
    let agent = Agent::start(&format!("[agent]\nworkers = 1\n{}", both.concat()));
    let load = Load::start(agent.address(), &[DEMO], 4);
    let judge = Judge;
    let mut client = agent.connect();
    let asks: Vec<Ask> = (0..8).map(|_| judge.ask("/service/deaf", 32_000)).collect();
    client.send(asks.iter().flat_map(|ask| command(&["GET", &ask.json])).collect::<Vec<u8>>());
    for _ in &asks {
        expect_instance_error(&agent, &client.read(), 304, "/service/deaf", deaf.address());
    }
    // The server cannot see it: what it did not read is still before the end.
    until("the deaf connections to be dropped", || {
        agent.instance("/service/deaf", deaf.address()).filter(|instance| instance["connections"] == 0)
    });
    load.stop().expect_all_right();
}

#[test]
fn what_the_mesh_refuses_itself_is_not_sent() {
    let fake = FakeMoa::start();
    let agent = start(&[&fake]);
    let mut client = agent.connect();
    for (json, code, says) in [
        (r#"{"action":"/service/unknown","params":{"m":"m","args":[]}}"#, 501, "/service/unknown"),
        (r#"{"params":{"m":"m","args":[]}}"#, 401, "action"),
        (r#"{"action":"","params":{"m":"m","args":[]}}"#, 501, ""),
        ("not json", 302, ""),
        (r#"{"action":"/service/demo""#, 302, ""),
        (r#"["action","/service/demo"]"#, 302, ""),
        (r#"{"action":7}"#, 302, "action"),
    ] {
        let text = expect_code(&client.get(json), code);
        assert!(text.contains(says) && text.contains(agent.name()), "{json}: {text}");
    }
    assert_eq!(fake.counts().bytes, 0);
    client.expect_usable();
}

#[test]
fn one_bad_instance_harms_no_caller_of_another_service() {
    let (bad, good) = (FakeMoa::start(), FakeMoa::start());
    bad.script(|call| match call.number % 4 {
        0 => Answer::silence(),
        1 => Answer::raw(*b"garbage\r\n"),
        2 => Answer::silence().then(End::Reset),
        _ => Answer::ok(&call.args[0]).cut(5).then(End::Close),
    });
    let both = [config::service("/service/bad", &[bad.address()], POLICY), config::service(DEMO, &[good.address()], POLICY)];
    let agent = Agent::start(&format!("[agent]\nworkers = 1\n{}", both.concat()));
    let load = Load::start(agent.address(), &[DEMO], 4);
    let callers = (0..4).map(|_| {
        let address = agent.address();
        thread::spawn(move || {
            let (mut client, judge) = (Client::connect(address), Judge);
            for _ in 0..8 {
                let ask = judge.ask("/service/bad", 100);
                let verdict = ask.judge(&client.get(&ask.json));
                assert!(matches!(verdict, Verdict::Failed(303 | 304, _)), "{verdict:?}");
            }
        })
    });
    callers.collect::<Vec<_>>().into_iter().for_each(|caller| caller.join().expect("a caller of the bad service"));
    load.stop().expect_all_right();
}
