//! Towards applications the agent is a well-behaved Redis server.

use moa_tests::{Agent, Answer, DEMO, FakeMoa, Gate, Reply, ScriptedPeer, client::command, config, echo, envelope};

fn start(fake: &FakeMoa) -> Agent {
    Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK))
}

fn play(transcript: &str) {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    ScriptedPeer::play(agent.address(), transcript);
}

#[test]
fn what_clients_send_at_connect() {
    play(
        r#"
        $ AUTH secret
        < +OK\r\n
        $ AUTH user secret
        < +OK\r\n
        $ SELECT 0
        < +OK\r\n
        $ CLIENT SETNAME app-7
        < +OK\r\n
        $ CLIENT GETNAME
        < $5\r\napp-7\r\n
        $ CLIENT SETINFO LIB-NAME some-client
        < +OK\r\n
        $ CLIENT SETINFO LIB-VER 1.2.3
        < +OK\r\n
        $ client id
        ~ :
        $ CLIENT INFO
        ~ name=app-7
        $ CLIENT NO_SUCH
        ~ -ERR
        $ CLIENT SETNAME 'a name'
        ~ -ERR
        $ PING
        < +PONG\r\n
        "#,
    );
}

#[test]
fn ping_echo_quit_and_reset() {
    play(
        r#"
        $ PING
        < +PONG\r\n
        $ ping hello
        < $5\r\nhello\r\n
        $ ECHO text
        < $4\r\ntext\r\n
        $ ECHO
        ~ -ERR wrong number of arguments
        $ PING a b
        ~ -ERR wrong number of arguments
        $ CLIENT SETNAME before
        < +OK\r\n
        $ RESET
        < +RESET\r\n
        $ CLIENT GETNAME
        < $-1\r\n
        $ QUIT
        < +OK\r\n
        closed
        "#,
    );
}

#[test]
fn hello() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    let reply = client.command(&["HELLO"]);
    assert!(matches!(reply, Reply::Array(_)), "RESP2 has no maps: {}", reply.brief());
    assert_eq!(reply.field("proto"), Some(&Reply::Integer(2)));
    let reply = client.command(&["HELLO", "3", "AUTH", "user", "secret", "SETNAME", "app"]);
    assert!(matches!(reply, Reply::Map(_)), "RESP3 has maps: {}", reply.brief());
    assert_eq!(reply.field("proto"), Some(&Reply::Integer(3)));
    assert!(reply.field("server").is_some_and(|server| server.is_text("redis")));
    for field in ["version", "id", "mode", "role", "modules"] {
        assert!(reply.field(field).is_some(), "HELLO lacks {field}: {}", reply.brief());
    }
    assert!(client.command(&["CLIENT", "GETNAME"]).is_text("app"));
    assert_eq!(client.call(&echo("in RESP3"))["result"], "in RESP3");
    assert!(client.command(&["HELLO", "4"]).error().starts_with("NOPROTO"));
    assert!(client.command(&["HELLO", "nonsense"]).error().starts_with("ERR"));
    assert!(client.command(&["HELLO", "3", "NONSENSE"]).error().starts_with("ERR"));
    assert!(matches!(client.command(&["HELLO", "2"]), Reply::Array(_)));
    assert_eq!(client.call(&echo("in RESP2"))["result"], "in RESP2");
}

#[test]
fn reset_goes_back_to_resp2() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    assert!(matches!(client.command(&["HELLO", "3"]), Reply::Map(_)));
    assert_eq!(client.command(&["RESET"]), Reply::Simple("RESET".to_owned()));
    assert!(matches!(client.command(&["HELLO"]), Reply::Array(_)));
}

#[test]
fn null_is_as_the_protocol_has_it() {
    play(
        r#"
        $ CLIENT GETNAME
        < $-1\r\n
        "#,
    );
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    client.command(&["HELLO", "3"]);
    client.send(command(&["CLIENT", "GETNAME"]));
    assert_eq!(client.read_exact(3), b"_\r\n");
}

#[test]
fn command_and_info() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    for protocol in ["2", "3"] {
        client.command(&["HELLO", protocol]);
        let commands = client.command(&["COMMAND"]);
        let Reply::Integer(count) = client.command(&["COMMAND", "COUNT"]) else { panic!("COMMAND COUNT is no number") };
        assert_eq!(i64::try_from(commands.array().len()), Ok(count));
        let docs = client.command(&["COMMAND", "DOCS"]);
        assert!(matches!(docs, Reply::Array(_) | Reply::Map(_)), "{}", docs.brief());
        let info = client.command(&["INFO"]);
        let info = match &info {
            Reply::Bulk(_) => info.text().to_owned(),
            Reply::Other('=', text) => String::from_utf8_lossy(text).into_owned(),
            other => panic!("INFO is no text: {}", other.brief()),
        };
        assert!(info.contains("redis_version:") && info.contains("\r\n# "), "{info}");
        client.command(&["INFO", "server"]);
        client.expect_usable();
    }
}

#[test]
fn an_unknown_command_leaves_the_connection_usable() {
    play(
        r#"
        $ SET key value
        ~ -ERR unknown command
        $ FLUSHALL
        ~ -ERR unknown command
        $ GET
        ~ -ERR wrong number of arguments
        $ GET a b
        ~ -ERR wrong number of arguments
        $ MGET
        ~ -ERR wrong number of arguments
        $ 'a\r\nb\x00' x
        ~ -ERR unknown command
        $ PING
        < +PONG\r\n
        "#,
    );
}

#[test]
fn inline_commands() {
    play(
        r#"
        > PING\r\n
        < +PONG\r\n
        > ping\n
        < +PONG\r\n
        >   ECHO   "two words"  \r\n
        < $9\r\ntwo words\r\n
        > ECHO "a\\x41\\n"\r\n
        < $3\r\naA\n\r\n
        > \r\n\r\n\nPING\r\n
        < +PONG\r\n
        > GET '{"action":"/service/demo","params":{"m":"echo","args":["typed by hand"]}}'\r\n
        ~ "result":"typed by hand"
        > ECHO "not closed\r\n
        ~ -ERR Protocol error
        closed
        "#,
    );
}

#[test]
fn empty_arrays_and_lines_are_passed_over() {
    play(
        r#"
        > *0\r\n*1\r\n$4\r\nPING\r\n
        < +PONG\r\n
        > *-1\r\n\r\n*1\r\n$4\r\nPING\r\n
        < +PONG\r\n
        "#,
    );
}

#[test]
fn a_protocol_error_is_told_and_ends_the_connection() {
    for wrong in [
        r"*abc\r\n",
        r"*1\r\n:4\r\nPING\r\n",
        r"*1\r\n$abc\r\n",
        r"*1\r\n$-1\r\n",
        r"*1\r\n$99999999999999999999\r\n",
        r"*99999999999\r\n",
        r"*1\r\n$4\r\nPINGxx",
        r"*2\r\n+GET\r\n",
    ] {
        // The call before it is answered first.
        play(&format!(
            r#"
            $ GET '{{"action":"/service/demo","params":{{"m":"echo","args":["before"]}}}}'
            > {wrong}
            ~ "result":"before"
            ~ -ERR Protocol error
            closed
            "#
        ));
    }
}

#[test]
fn an_endless_line_is_a_protocol_error() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    for start in ["", "*1", "*1\r\n$1"] {
        let mut client = agent.connect();
        client.send(start);
        // The agent may close before it has taken all of it.
        let _ = client.try_send("1".repeat(200_000));
        match client.try_read() {
            Ok(reply) => assert!(reply.error().contains("Protocol error"), "{}", reply.brief()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    agent.connect().expect_usable();
}

#[test]
fn a_pipeline_runs_in_parallel_and_is_answered_in_order() {
    let fake = FakeMoa::start();
    let gates: Vec<Gate> = (0..32).map(|_| Gate::closed()).collect();
    let own = gates.clone();
    fake.script(move |call| {
        let number: usize = call.text().parse().expect("the number of a call");
        Answer::ok(&call.args[0]).at(&own[number])
    });
    let agent = start(&fake);
    let mut client = agent.connect();
    let pipeline: Vec<u8> = (0..32).flat_map(|number| command(&["GET", &echo(&number.to_string())])).collect();
    client.send(&pipeline);
    client.send(command(&["PING", "last"]));
    // All of them are at the server at once, each on a connection of its own.
    fake.await_in_flight(32);
    // The last ends first.
    for (number, gate) in gates.iter().enumerate().rev() {
        gate.open();
        if number > 0 {
            fake.await_in_flight(number);
        }
    }
    for number in 0..32 {
        assert!(client.read().text().contains(&format!("\"result\":\"{number}\"")), "the answer in place {number}");
    }
    assert!(client.read().is_text("last"));
    assert_eq!(fake.counts().in_flight_max_per_connection, 1);
}

#[test]
fn a_pipelined_service_gets_its_calls_on_few_connections() {
    let fake = FakeMoa::builder().in_order().start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let policy = format!("pipelined = true\nconnections_max = 1\n{}", config::NO_HEALTH_CHECK);
    let agent = Agent::start(&config::service(DEMO, &[fake.address()], &policy));
    let mut client = agent.connect();
    let pipeline: Vec<u8> = (0..100).flat_map(|number| command(&["GET", &echo(&number.to_string())])).collect();
    client.send(&pipeline);
    fake.await_in_flight(100);
    gate.open();
    for number in 0..100 {
        assert!(client.read().text().contains(&format!("\"result\":\"{number}\"")), "the answer in place {number}");
    }
    let counts = fake.counts();
    assert_eq!((counts.accepted, counts.in_flight_max_per_connection), (1, 100));
}

#[test]
fn mget_runs_in_parallel_and_each_answer_is_in_its_place() {
    let fake = FakeMoa::start();
    let gate = Gate::closed();
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let agent = start(&fake);
    let mut client = agent.connect();
    let mut keys: Vec<String> = (0..20).map(|number| echo(&number.to_string())).collect();
    keys.insert(3, envelope("/service/unknown", "echo", "\"x\""));
    keys.insert(7, "no json".to_owned());
    let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    client.send(command(&words));
    fake.await_in_flight(20);
    gate.open();
    let reply = client.read();
    let mut answers = reply.array().to_vec();
    assert!(answers.remove(7).text().contains("\"ec\":302"));
    assert!(answers.remove(3).text().contains("\"ec\":501"));
    assert_eq!(answers.len(), 20);
    for (number, answer) in answers.iter().enumerate() {
        assert!(answer.text().contains(&format!("\"result\":\"{number}\"")), "place {number}: {}", answer.brief());
    }
}

#[test]
fn mget_has_one_deadline_for_the_whole() {
    let fake = FakeMoa::start();
    fake.script(|call| match call.text() {
        "never" => Answer::silence(),
        _ => Answer::ok(&call.args[0]),
    });
    let text = format!("[app]\nmget_timeout_ms = 300\n{}", config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK));
    let agent = Agent::start(&text);
    let mut client = agent.connect();
    let reply = client.command(&["MGET", &echo("a"), &echo("never"), &echo("b"), &echo("never")]);
    let answers: Vec<&str> = reply.array().iter().map(Reply::text).collect();
    assert!(answers[0].contains("\"result\":\"a\"") && answers[2].contains("\"result\":\"b\""), "{answers:?}");
    for late in [answers[1], answers[3]] {
        assert!(late.contains("\"ec\":304") && late.contains(DEMO), "{late}");
    }
    fake.await_counts("the two late connections to be dropped", |counts| counts.ended_by_peer == 2);
    assert_eq!(client.call(&echo("next"))["result"], "next");
}

#[test]
fn mget_in_a_pipeline_keeps_its_place() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    let mut pipeline = command(&["GET", &echo("first")]);
    pipeline.extend(command(&["MGET", &echo("second"), &echo("third")]));
    pipeline.extend(command(&["PING"]));
    pipeline.extend(command(&["MGET", &echo("fourth")]));
    client.send(pipeline);
    assert!(client.read().text().contains("first"));
    let pair = client.read();
    assert!(pair.array()[0].text().contains("second") && pair.array()[1].text().contains("third"));
    assert_eq!(client.read(), Reply::Simple("PONG".to_owned()));
    assert!(client.read().array()[0].text().contains("fourth"));
}
