//! What an operator sees: verbs, metrics, health for machines.

use moa_tests::{Agent, DEMO, FakeMoa, agent::run_verb, config, echo, envelope, machine::http, until, until_true};

fn start(fake: &FakeMoa) -> Agent {
    Agent::start(&config::service(DEMO, &[fake.address()], config::QUICK_HEALTH_CHECK))
}

#[test]
fn status_counts_calls_and_errors() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    for _ in 0..10 {
        client.call(&echo("x"));
    }
    client.call(&envelope(DEMO, "missing", ""));
    client.call(&envelope("/service/unknown", "m", ""));
    let status = until("the calls to be counted", || {
        let status = agent.json(&["status"]);
        (status["calls"]["calls"] == 12).then_some(status)
    });
    let calls = &status["calls"];
    assert_eq!(
        (&calls["mesh_errors"], &calls["service_errors"], &calls["in_flight"]),
        (&1.into(), &1.into(), &0.into()),
        "{status}"
    );
    assert!(calls["p50_us"].as_u64() > Some(0) && calls["p99_us"].as_u64() >= calls["p50_us"].as_u64(), "{status}");
    assert_eq!((&status["name"], &status["state"]), (&agent.name().into(), &"serving".into()));
    assert_eq!(status["app"]["listen"], agent.address().to_string());
    assert_eq!(status["kernel"]["attached"], status["kernel"]["reason"].is_null());
    let services = agent.json(&["services"]);
    assert_eq!(services[0]["stats"]["calls"], 11, "{services}");
    for verb in ["status", "services", "conns"] {
        let outcome = agent.verb(&[verb]);
        assert!(outcome.status.success() && !outcome.stdout.is_empty(), "moa {verb}: {}", outcome.stderr);
    }
}

#[test]
fn metrics_live_and_ready() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    agent.connect().call(&echo("x"));
    assert_eq!(http(agent.metrics_address(), "/live").0, 200);
    assert_eq!(http(agent.metrics_address(), "/ready").0, 200);
    assert_eq!(http(agent.metrics_address(), "/nothing").0, 404);
    let metrics = until("the call to be counted", || {
        let (status, metrics) = http(agent.metrics_address(), "/metrics");
        assert_eq!(status, 200);
        let counted = |line: &str| line.contains(DEMO) && !line.starts_with('#') && line.ends_with(" 1");
        metrics.lines().any(counted).then_some(metrics)
    });
    for line in metrics.lines() {
        let value = line.rsplit(' ').next().unwrap_or_default();
        assert!(line.starts_with('#') || value.parse::<f64>().is_ok(), "no line of metrics: {line}");
    }
}

#[test]
fn call_calls_as_an_application_would() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let outcome = agent.verb(&["call", DEMO, "echo", "[\"by hand\"]"]);
    assert!(outcome.status.success(), "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("by hand"), "{}", outcome.stdout);
    assert_eq!(fake.counts().calls, 1);
}

#[test]
fn verbs_without_an_agent_say_so() {
    let prepared = Agent::prepare("");
    for verb in ["status", "services", "conns"] {
        let outcome = prepared.verb(&[verb]);
        assert!(!outcome.status.success());
        assert!(outcome.stderr.contains(prepared.agent_name()), "moa {verb}: {}", outcome.stderr);
    }
}

#[test]
fn doctor_and_config_check_need_no_agent() {
    let outcome = run_verb(&["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let text = findings.to_string().to_lowercase();
    for subject in ["kernel", "cgroup2", "bpffs", "btf", "file"] {
        assert!(text.contains(subject), "doctor says nothing of {subject}: {findings}");
    }
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let outcome = run_verb(&["config", "check", &agent.config_path().display().to_string()]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
}

#[test]
fn the_log_is_silent_about_calls() {
    let fake = FakeMoa::start();
    let agent = start(&fake);
    let mut client = agent.connect();
    client.call(&echo("x"));
    // It listens before it says so.
    until_true("the agent to say that it serves", || agent.log().contains("serving"));
    let before = agent.log().len();
    for _ in 0..1_000 {
        client.call(&echo("x"));
        client.call(&envelope("/service/unknown", "m", ""));
    }
    assert_eq!(agent.log().len(), before, "{}", agent.log());
}
