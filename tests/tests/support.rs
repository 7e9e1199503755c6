//! The support library itself: a fake server that is wrong would prove nothing.

use std::{process::Command, time::Duration};

use moa_tests::{
    Answer, Client, DEMO, FakeMoa, Gate, Judge, Reply, ScriptedPeer, echo, envelope, external,
    fake::{Builder, End, Welcome},
    judge::Verdict,
    until,
    vectors::{self, Vector},
};

/// Not replayed here: what takes seconds, what depends on the order in which a server ends calls, and what was said
/// by another server than the demo.
const ELSEWHERE: [&str; 6] = ["slow_", "timeout_3041", "pipelined", "stale", "client_session", "info"];

#[test]
fn the_fake_answers_as_the_recorded_server_did() {
    let fake = FakeMoa::start();
    let mut played = 0;
    for vector in vectors::all() {
        let Some(case) = vector.name.strip_prefix("moa16.") else {
            continue;
        };
        if ELSEWHERE.iter().any(|elsewhere| case.starts_with(elsewhere)) {
            continue;
        }
        played += 1;
        let answered = replay(&fake, &vector);
        assert_eq!(answered.escape_ascii().to_string(), vector.response.escape_ascii().to_string(), "{case}");
    }
    assert!(played > 25, "only {played} recorded cases were found");
}

/// What the fake answers; a PING behind the request shows where it ends, where the server is still there for one.
fn replay(fake: &FakeMoa, vector: &Vector) -> Vec<u8> {
    let mut client = Client::connect(fake.address());
    client.send(&vector.request);
    if vector.response.is_empty() {
        let unanswerable = ["bad_json", "unknown_command"].iter().any(|case| vector.name.contains(case));
        if unanswerable {
            client.expect_usable();
        } else {
            client.expect_closed();
        }
        return Vec::new();
    }
    let bytes = client.read_exact(vector.response.len());
    client.expect_usable();
    bytes
}

#[test]
fn the_fake_answers_a_pipeline_out_of_order() {
    let fake = FakeMoa::start();
    for name in ["moa16.pipelined_2", "moa16.pipelined_slow_fast", "moa16.pipelined_ping_get"] {
        let vector = vectors::load(name);
        let mut client = Client::connect(fake.address());
        client.send(&vector.request);
        let answered = client.read_exact(vector.response.len());
        assert_eq!(answered.escape_ascii().to_string(), vector.response.escape_ascii().to_string(), "{name}");
    }
    assert!(fake.counts().in_flight_max_per_connection >= 2);
}

#[test]
fn the_fake_in_order_keeps_the_order() {
    let fake = FakeMoa::builder().in_order().start();
    let mut client = Client::connect(fake.address());
    client.send(&vectors::load("moa16.pipelined_slow_fast").request);
    client.send("*1\r\n$4\r\nPING\r\n");
    assert!(client.read().text().contains("slow-600"));
    assert!(client.read().text().contains("fast"));
    assert_eq!(client.read(), Reply::Simple("PONG".to_owned()));
}

#[test]
fn the_fake_hands_a_late_result_to_the_next_call() {
    let fake = Builder::default().server_timeout(Duration::from_millis(100)).start();
    let late = Gate::closed();
    let gate = late.clone();
    fake.script(move |call| match call.text() {
        "slow" => Answer::ok(&call.args[0]).at(&gate),
        _ => Answer::ok(&call.args[0]),
    });
    let mut client = Client::connect(fake.address());
    assert_eq!(client.call(&echo("slow"))["ec"], 3041);
    late.open();
    fake.await_counts("the late result to be there", |counts| counts.kept == 1);
    assert_eq!(client.call(&echo("second"))["result"], "slow");
    assert_eq!(client.call(&echo("third"))["result"], "second");
    assert_eq!(client.command(&["PING"]), Reply::Simple("PONG".to_owned()));
}

#[test]
fn the_fake_goes_away_and_comes_back() {
    let fake = FakeMoa::start();
    for end in [End::Close, End::Reset, End::Vanish] {
        let mut client = Client::connect(fake.address());
        client.expect_usable();
        fake.down(end);
        until("the fake to refuse connections", || Client::try_connect(fake.address()).err());
        if end == End::Vanish {
            client.send("*1\r\n$4\r\nPING\r\n");
        }
        client.expect_closed();
        fake.up();
        Client::connect(fake.address()).expect_usable();
    }
    fake.welcome(|number| if number % 2 == 0 { Welcome::End(End::Reset) } else { Welcome::EndAfter(3, End::Close) });
    for _ in 0..4 {
        let Ok(mut client) = Client::try_connect(fake.address()) else {
            continue;
        };
        // The server may have ended it already.
        let _ = client.try_send("*1\r\n$4\r\nPING\r\n");
        client.expect_closed();
    }
}

#[test]
fn the_fake_counts_and_keeps_what_it_was_sent() {
    let fake = FakeMoa::start();
    let mut client = Client::connect(fake.address());
    let request = vectors::load("moa16.get_ok_string").request;
    client.send(&request);
    client.read();
    client.expect_usable();
    assert_eq!(fake.requests(), [request]);
    drop(client);
    let counts = fake.await_counts("the end of the connection", |counts| counts.open == 0);
    assert_eq!((counts.calls, counts.pings, counts.in_flight, counts.ended_by_peer), (1, 1, 0, 1));
}

#[test]
fn the_fake_is_slow_cut_and_silent_on_demand() {
    let fake = FakeMoa::start();
    fake.script(|call| match call.method.as_str() {
        "slowly" => Answer::bulk(b"slow").slowly(1, Duration::from_millis(1)),
        "cut" => Answer::bulk(b"never whole").cut(6).then(End::Close),
        _ => Answer::silence(),
    });
    let mut client = Client::connect(fake.address());
    assert_eq!(client.get(&envelope(DEMO, "slowly", "")).text(), "slow");
    client.send(moa_tests::client::command(&["GET", &envelope(DEMO, "silent", "")]));
    fake.await_in_flight(1);
    client.expect_usable();
    let mut client = Client::connect(fake.address());
    assert!(client.try_get(&envelope(DEMO, "cut", "")).is_err());
}

#[test]
fn redis_cli_finds_the_fake_a_server() {
    let fake = FakeMoa::start();
    let port = fake.address().port().to_string();
    let said = external::run(Command::new("redis-cli").args(["-p", &port, "GET", &echo("hi")]));
    assert_eq!(said.trim(), r#"{"ec":0,"em":"\u003cnil\u003e","result":"hi"}"#);
    assert_eq!(external::run(Command::new("redis-cli").args(["-p", &port, "PING"])).trim(), "PONG");
}

#[test]
fn the_judge_knows_a_wrong_answer() {
    let (fake, judge) = (FakeMoa::start(), Judge);
    let mut client = Client::connect(fake.address());
    let (first, second) = (judge.ask(DEMO, 10), judge.ask(DEMO, 5_000));
    let reply = client.get(&first.json);
    first.expect_right(&reply);
    second.expect_right(&client.get(&second.json));
    assert_eq!((fake.ledger().executions(&first), fake.ledger().len()), (1, 2));
    let wrong = std::panic::catch_unwind(|| second.judge(&reply)).expect_err("the answer to another call");
    assert!(wrong.downcast_ref::<String>().is_some_and(|text| text.contains("a WRONG answer")));
    fake.script(|_| Answer::envelope(504, "pool full", "null"));
    let verdict = first.judge(&client.get(&first.json));
    assert_eq!(verdict, Verdict::Failed(504, "pool full".to_owned()));
    assert_eq!(fake.ledger().executions(&first), 2);
}

#[test]
fn a_scripted_peer_plays_its_transcript() {
    let fake = FakeMoa::start();
    let mut peer = ScriptedPeer::play(
        fake.address(),
        r#"
        # the fake closes at an inline command
        > *1\r\n$4\r\nPING\r\n
        < +PONG\r\n
        $ GET '{"action":"/service/demo","params":{"m":"echo","args":["a b"]}}'
        ~ "result":"
        "#,
    );
    peer.go_on("> PING\\r\\n\nclosed");
    until("both connections to end", || (fake.counts().open == 0).then_some(()));
}
