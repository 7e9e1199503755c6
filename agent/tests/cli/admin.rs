//! The admin socket and the metrics, asked directly.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
};

use nix::unistd::Uid;

use crate::support::{Agent, PATIENCE, demo_server, http_get, run};

/// Who has no rights.
const NOBODY: u32 = 65_534;

/// The status and the body that the admin socket answers.
fn ask(agent: &Agent, request: &str) -> (u16, serde_json::Value) {
    let mut stream = UnixStream::connect(agent.socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "{request} HTTP/1.1\r\nHost: moa\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no HTTP: {text}"));
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("no JSON ({error}): {text}")))
}

#[test]
fn every_answer_is_json() {
    let agent = Agent::start(&Agent::config(demo_server()));
    for path in ["/v1/status", "/v1/services", "/v1/conns", "/v1/conns?limit=3", "/v1/config"] {
        assert_eq!(ask(&agent, &format!("GET {path}")).0, 200, "{path}");
    }
    assert_eq!(ask(&agent, "POST /v1/config/reload").1["generation"], 2);
    let wrong = [
        ("GET /v2/status", 404, "there is no /v2/status"),
        ("GET /v1/config/reload", 405, "does not take GET"),
        ("GET /v1/conns?limit=many", 400, "limit=NUMBER"),
        ("GET /v1/conns?limits=3", 400, "limit=NUMBER"),
        ("GET /v1/calls?errors=some", 400, "errors=true"),
        ("GET /v1/calls?of=/service/demo", 400, "service=URI"),
        ("POST /v1/calls", 405, "does not take POST"),
    ];
    for (request, status, says) in wrong {
        let (got, body) = ask(&agent, request);
        assert!(got == status && body["error"].as_str().is_some_and(|error| error.contains(says)), "{request}: {got} {body}");
    }
}

#[test]
fn only_root_the_owner_and_the_group_are_answered() {
    assert!(Uid::effective().is_root(), "this test becomes another user: run it as root");
    let agent = Agent::start("");
    assert_eq!(fs::metadata(agent.socket()).expect("it is there").permissions().mode() & 0o777, 0o660);
    // Where nobody can reach it and the binary.
    let own = agent.files.path().join("moa");
    fs::copy(env!("CARGO_BIN_EXE_moa"), &own).expect("copied");
    fs::set_permissions(agent.files.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let as_nobody = || {
        let mut command = std::process::Command::new(&own);
        command.args(["status", "--name", "test", "--run-dir"]).arg(agent.files.path().join("run"));
        run(command.uid(NOBODY).gid(NOBODY))
    };
    let refused = as_nobody();
    assert!(refused.code == Some(1) && refused.stderr.contains("this user may not open"), "{refused:?}");
    fs::set_permissions(agent.socket(), fs::Permissions::from_mode(0o666)).expect("opened");
    let refused = as_nobody();
    assert!(refused.code == Some(1) && refused.stderr.contains("user 65534 may not ask this agent"), "{refused:?}");
}

#[test]
fn metrics_are_in_the_format_that_is_accepted() {
    let agent = Agent::start(&Agent::config(demo_server()));
    agent.moa(&["call", "/service/demo", "echo"]);
    agent.moa(&["call", "/service/demo", "bad"]);
    let (status, own) = http_get(agent.metrics, "/metrics", "");
    assert_eq!(status, 200);
    let (_, open) = http_get(agent.metrics, "/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
    assert!(open.ends_with("# EOF\n") && !own.contains("# EOF"));
    for code in ["ok", "300"] {
        let series = format!("by=\"service\",code=\"{code}\"}} 1");
        assert!(own.lines().any(|line| line.starts_with("moa_calls_total{") && line.ends_with(&series)), "no {series}: {own}");
    }
    let mut seen = HashSet::new();
    for line in own.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(value.parse::<f64>().is_ok() && seen.insert(series), "{line}");
    }
    assert_eq!(http_get(agent.metrics, "/", "").0, 404);
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let agent = Agent::start("");
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(agent.metrics).expect("it listens")).collect();
    assert_eq!(http_get(agent.metrics, "/ready", ""), (200, "ready\n".into()));
    drop(idle);
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let agent = Agent::start("");
    let long = format!("X-Long: {}\r\n", "x".repeat(64 << 10));
    let mut stream = TcpStream::connect(agent.metrics).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The agent may close before it has read all of it.
    let _ = write!(stream, "GET /ready HTTP/1.1\r\nHost: moa\r\n{long}\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(http_get(agent.metrics, "/ready", "").0, 200);
}
