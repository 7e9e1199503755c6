//! What an operator sees of the kernel path: the programs' log, doctor, status, metrics, and that they agree.

use std::collections::BTreeMap;

use moa_tests::{
    Agent, DEMO, FakeMoa, Judge,
    agent::run_verb,
    config,
    kernel::{self, Look},
    machine::http,
    until,
    wait::until_true,
};

fn section(fake: &FakeMoa) -> String {
    config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)
}

fn call(agent: &Agent) {
    let before = Look::at(agent);
    let mut client = agent.connect();
    for _ in 0..20 {
        let ask = Judge.ask(DEMO, 2_000);
        ask.expect_right(&client.get(&ask.json));
    }
    let way = Look::at(agent).since(&before);
    assert!(way.to_agent > 20 * 2_000 && way.from_agent > 20 * 2_000, "{way:?}");
}

#[test]
fn the_programs_log_reaches_the_agents() {
    let fake = FakeMoa::start();
    let agent = kernel::prepare(&section(&fake)).log("debug").start();
    call(&agent);
    let port = format!("port {}", agent.address().port());
    until_true("a line of the programs", || {
        agent.log().lines().any(|line| line.contains("enrolled: role") && line.contains(&port) && line.contains("DEBUG"))
    });
    let service = format!("to port {}", fake.address().port());
    until_true("a line about the service", || {
        agent.log().lines().any(|line| line.contains("enrolled: role") && line.contains(&service))
    });
}

#[test]
fn at_the_usual_level_they_log_nothing() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake));
    for _ in 0..20 {
        call(&agent);
    }
    // What is in the programs' log by now has been handed on when another line is.
    agent.json(&["kernel", "off"]);
    until_true("the agent to log the switch", || agent.log().contains("the kernel path is turned off"));
    assert!(!agent.log().contains("enrolled: "), "{}", agent.log());
}

#[test]
fn doctor_tries_the_kernel_path() {
    let outcome = run_verb(&["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let find = |name: &str| {
        let all = findings.as_array().expect("a list");
        all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("nothing of {name}: {findings}")).clone()
    };
    for name in ["kernel programs", "attaching", "kernel path"] {
        assert_eq!(find(name)["outcome"], "ok", "{findings}");
    }
    let found = find("kernel path")["found"].to_string();
    for what in ["redirect", "order and bound", "half-close", "close", "atomics", "FIONREAD", "sock_diag"] {
        assert!(found.contains(what), "nothing of {what}: {found}");
    }
}

#[test]
fn status_shows_the_share() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake));
    call(&agent);
    let (look, status) = (Look::at(&agent), agent.json(&["status"])["kernel"].clone());
    assert!(status["share"].as_f64() > Some(0.99), "{status}");
    assert_eq!((&status["attached"], &status["on"], &status["reason"]), (&true.into(), &true.into(), &().into()));
    assert_eq!(status["redirected_bytes"], look.redirected());
    let text = agent.verb(&["status"]).stdout;
    let line = text.lines().find(|line| line.contains("kernel")).unwrap_or_else(|| panic!("nothing of the kernel: {text}"));
    assert!(line.contains('%'), "{line}");

    agent.json(&["kernel", "off"]);
    let before = Look::at(&agent);
    for _ in 0..10 {
        let ask = Judge.ask(DEMO, 20_000);
        ask.expect_right(&agent.connect().get(&ask.json));
    }
    Look::at(&agent).since(&before).expect_tcp_only();
    let status = agent.json(&["status"])["kernel"].clone();
    assert!(status["share"].as_f64() < Some(0.5) && status["on"] == false, "{status}");
    assert_eq!(status["redirected_bytes"], before.redirected());
    assert!(agent.verb(&["kernel"]).stdout.contains("off: everything goes by TCP"));
}

/// Series by name and labels.
fn scrape(agent: &Agent) -> BTreeMap<String, u64> {
    let (status, text) = http(agent.metrics_address(), "/metrics");
    assert_eq!(status, 200);
    let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    series.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

#[test]
fn metrics_say_the_same() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake));
    call(&agent);
    agent.json(&["kernel", "off"]);
    let ask = Judge.ask(DEMO, 2_000);
    ask.expect_right(&agent.connect().get(&ask.json));
    let look = until("nothing to move", || {
        let (before, series, after) = (Look::at(&agent), scrape(&agent), Look::at(&agent));
        (before.bytes_total == after.bytes_total).then_some((after, series))
    });
    let (look, series) = look;
    let value = |name: &str| *series.get(name).unwrap_or_else(|| panic!("no series {name}: {series:#?}"));
    assert_eq!(value("moa_kernel_attached"), 1);
    assert_eq!(value("moa_kernel_on"), 0);
    assert_eq!(value("moa_kernel_enrolled_total"), look.enrolled_total);
    assert!(value("moa_kernel_established_total") > 0);
    for (path, sent) in [("to_agent", look.to_agent), ("from_agent", look.from_agent), ("tcp", look.tcp)] {
        assert_eq!(value(&format!("moa_kernel_sent_bytes_total{{path=\"{path}\"}}")), sent.bytes);
        assert_eq!(value(&format!("moa_kernel_messages_total{{path=\"{path}\"}}")), sent.messages);
    }
    for (name, reasons) in [("fallbacks", &look.fallbacks), ("refusals", &look.refusals)] {
        assert_eq!(reasons.len(), series.keys().filter(|key| key.contains(&format!("moa_kernel_{name}_total"))).count());
        for (reason, times) in reasons {
            assert_eq!(value(&format!("moa_kernel_{name}_total{{reason=\"{reason}\"}}")), *times);
        }
    }
    assert!(look.refusals["turned-off"] > 0);
}
