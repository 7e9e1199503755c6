//! Real clients, unmodified: MOA's own callers use PHP; others use what their language has.

use std::process::Command;

use moa_tests::{Agent, DEMO, FakeMoa, Reply, config, echo, envelope, external};

fn agent(fakes: &[&FakeMoa]) -> Agent {
    let addresses: Vec<_> = fakes.iter().map(|fake| fake.address()).collect();
    Agent::start(&config::service(DEMO, &addresses, ""))
}

fn redis_cli(agent: &Agent, arguments: &[&str]) -> String {
    let port = agent.address().port().to_string();
    external::run(Command::new("redis-cli").args(["-p", &port]).args(arguments))
}

#[test]
fn redis_cli_calls() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    assert_eq!(redis_cli(&agent, &["PING"]).trim(), "PONG");
    let answer = r#"{"ec":0,"em":"\u003cnil\u003e","result":"hi"}"#;
    for arguments in [&["GET"][..], &["get"], &["-3", "GET"]] {
        let arguments: Vec<_> = arguments.iter().copied().chain([echo("hi").leak() as &str]).collect();
        assert_eq!(redis_cli(&agent, &arguments).trim(), answer);
    }
    let two = redis_cli(&agent, &["MGET", &echo("hi"), &envelope("/service/unknown", "m", "")]);
    let lines: Vec<_> = two.trim().lines().collect();
    assert_eq!(lines[0], answer);
    assert!(lines[1].contains("\"ec\":501"), "{two}");
    assert!(redis_cli(&agent, &["INFO"]).contains("redis_version:"));
    assert!(redis_cli(&agent, &["-3", "HELLO", "3"]).contains("proto"));
}

#[test]
fn redis_cli_is_told_what_is_wrong() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    assert!(redis_cli(&agent, &["SET", "a", "b"]).contains("ERR unknown command"));
    assert!(redis_cli(&agent, &["GET"]).contains("ERR wrong number of arguments"));
    assert!(redis_cli(&agent, &["GET", "no json"]).contains("\"ec\":302"));
    assert_eq!(fake.counts().calls + fake.counts().unanswerable, 0);
}

#[test]
fn redis_cli_in_a_session() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    let lines = format!("PING\nGET '{}'\nNONSENSE\nECHO on\n", echo("typed"));
    let port = agent.address().port().to_string();
    let said = external::run_with_input(Command::new("redis-cli").args(["-p", &port]), &lines);
    let said: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(said[0], "PONG");
    assert!(said[1].contains("\"result\":\"typed\""), "{said:?}");
    assert!(said[2].contains("ERR unknown command"), "{said:?}");
    assert_eq!(said[3], "on");
}

#[test]
fn redis_benchmark_gets_as_many_answers_as_it_asks_for() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    let port = agent.address().port().to_string();
    let before = fake.counts().calls;
    for (calls, extra) in [("2000", &["-c", "1"][..]), ("20000", &["-c", "50"]), ("20000", &["-c", "50", "-P", "16"])] {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &port, "-n", calls, "--csv", "-e"]).args(extra).args(["GET", &echo("hi")]);
        let said = external::run(&mut command);
        assert!(said.lines().any(|line| line.contains("GET")) && !said.contains("Error from server"), "{said}");
    }
    assert!(fake.counts().calls >= before + 42_000, "{:?}", fake.counts());
    assert_eq!(fake.counts().in_flight_max_per_connection, 1);
    let status = agent.json(&["status"]);
    assert_eq!(status["calls"]["mesh_errors"], 0, "{status}");
}

#[test]
fn php_redis() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    let port = agent.address().port().to_string();
    print!("{}", external::run(external::php().arg(external::script("calls.php")).arg(port)));
    fake.await_counts("the forgotten slow call to end", |counts| counts.in_flight == 0);
    assert_eq!(fake.counts().in_flight_max_per_connection, 1);
}

#[test]
fn redis_py() {
    let (one, two) = (FakeMoa::start(), FakeMoa::start());
    let agent = agent(&[&one, &two]);
    let port = agent.address().port().to_string();
    print!("{}", external::run(external::python().arg(external::script("calls.py")).arg(port)));
    assert!(one.counts().calls > 0 && two.counts().calls > 0, "one instance got all the calls");
}

#[test]
fn node_redis() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    let port = agent.address().port().to_string();
    print!("{}", external::run(external::node().arg(external::script("calls.cjs")).arg(port)));
}

#[test]
fn a_client_of_2016_needs_no_handshake() {
    let fake = FakeMoa::start();
    let agent = agent(&[&fake]);
    let mut client = agent.connect();
    for number in 0..100 {
        let reply = client.get(&echo(&format!("m{number}")));
        assert_eq!(reply, Reply::Bulk(format!(r#"{{"ec":0,"em":"\u003cnil\u003e","result":"m{number}"}}"#).into_bytes()));
    }
}
