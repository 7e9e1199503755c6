//! From the start of an agent to its end.

use std::{fs, net::TcpListener, time::Instant};

use nix::sys::signal::Signal;

use crate::support::{Agent, command, demo_server, free_address, http_get, moa, run, until};

#[test]
fn a_graceful_stop_finishes_and_leaves_nothing_behind() {
    let mut agent = Agent::start(&Agent::config(demo_server()));
    assert_eq!(agent.moa(&["call", "/service/demo", "echo"]).code, Some(0));
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
    let left = fs::read_dir(agent.files.path().join("run")).expect("it was named by the operator, so it stays");
    assert_eq!(left.count(), 0);
}

#[test]
fn while_it_drains_it_says_so_and_a_second_signal_ends_it() {
    let mut agent = Agent::start(&Agent::config(demo_server()));
    let mut hanging = moa(&["call", "/service/demo", "hang", "--addr", &agent.app.to_string()]).spawn().expect("the binary runs");
    let in_flight = |agent: &Agent| agent.moa(&["status", "--json"]).json()["calls"]["in_flight"].clone();
    until("the call to be in flight", || (in_flight(&agent) == 1).then_some(()));
    assert_eq!(http_get(agent.metrics, "/ready", ""), (200, "ready\n".into()));
    agent.signal(Signal::SIGTERM);
    until("the agent to drain", || agent.moa(&["status"]).stdout.contains("draining").then_some(()));
    assert_eq!(http_get(agent.metrics, "/ready", ""), (503, "draining\n".into()));
    assert_eq!(http_get(agent.metrics, "/live", "").0, 200);
    let started = Instant::now();
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.wait().code(), Some(1), "a call was cut: {}", agent.log());
    assert!(started.elapsed().as_millis() < 3_000, "the call itself would take 4.5 s: {:?}", started.elapsed());
    assert!(!hanging.wait().expect("a child").success());
}

#[test]
fn one_agent_has_a_name() {
    let agent = Agent::start("");
    let second = run(&mut command_beside(&agent));
    assert_eq!(second.code, Some(1));
    let log = agent.log();
    let expected = format!("an agent named test runs already (pid {}, ", agent.pid());
    assert!(log.contains(&expected), "{log}");
    assert_eq!(agent.moa(&["status"]).code, Some(0));
    let run_dir = agent.files.path().join("run");
    let gone = run(moa(&["status", "--name", "gone", "--run-dir"]).arg(&run_dir));
    assert!(gone.stderr.ends_with("choose by --name one that runs: test\n"), "{gone:?}");
}

/// A second agent with the same name; its complaints go to the same log.
fn command_beside(agent: &Agent) -> std::process::Command {
    command(agent.files.path(), free_address(), free_address(), free_address())
}

#[test]
fn what_a_killed_agent_left_is_replaced() {
    let agent = Agent::start("");
    let files = agent.kill();
    let socket = files.path().join("run/test/agent.sock");
    assert!(socket.exists());
    let status = run(moa(&["status", "--name", "test", "--run-dir"]).arg(files.path().join("run")));
    assert!(status.code == Some(1) && status.stderr.contains("no agent named test runs"), "{status:?}");
    let agent = Agent::start_in(files);
    assert_eq!(agent.moa(&["status"]).code, Some(0));
}

#[test]
fn a_bad_start_says_why_and_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("bound");
    let folder = tempfile::tempdir().expect("a folder");
    let start = |config: &str, app, metrics| {
        fs::write(folder.path().join("moa.toml"), config).expect("written");
        let outcome = run(&mut command(folder.path(), app, free_address(), metrics));
        (outcome.code, fs::read_to_string(folder.path().join("log")).expect("a log"))
    };
    let cases = [
        start("", taken, free_address()),
        start("", free_address(), taken),
        start("[app]\nlisten = 7", free_address(), free_address()),
        start("", taken, taken),
    ];
    let says = [format!("can't listen on {taken} for applications"), format!("can't listen on {taken} for metrics")];
    let says =
        says.iter().map(String::as_str).chain(["moa.toml:2:10: app.listen: found the number 7", "two addresses that differ"]);
    for ((code, log), says) in cases.iter().zip(says) {
        assert!(*code == Some(1) && log.contains(says), "nothing of {says}: {log}");
    }
    let left = fs::read_dir(folder.path().join("run")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn the_file_limit_is_raised() {
    let agent = Agent::start("");
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
}

#[test]
fn ports_belong_to_the_name_unless_something_stronger_says_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moa.toml");
    // The check knows the ports of the name, so it finds instances that are the agent itself.
    fs::write(&file, "[services.'/a']\ninstances = ['127.0.0.1:13000', '127.0.0.1:13100', '127.0.0.1:13900']\n")
        .expect("written");
    let default = run(moa(&["config", "check"]).arg(&file));
    assert_eq!(default.stderr.matches("where this agent itself listens").count(), 3, "{default:?}");
    assert_eq!(run(moa(&["config", "check", "--name", "other"]).arg(&file)).code, Some(0));
}
