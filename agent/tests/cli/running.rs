//! Verbs against a running agent.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Agent, demo_server, until};

#[test]
fn call_shows_result_code_and_time() {
    let agent = Agent::start(&Agent::config(demo_server()));
    let good = agent.moa(&["call", "/service/demo", "echo", r#"["hi", {"a": 1}]"#, "--prop", "hashid=7"]);
    let (first, result) = good.stdout.split_once('\n').expect("two lines");
    assert!(good.code == Some(0) && first.starts_with("ec 0 (") && result == "[\"hi\",{\"a\":1}]\n", "{good:?}");
    let bad = agent.moa(&["call", "/service/demo", "bad", "--json"]);
    assert_eq!((bad.code, &bad.json()["ec"]), (Some(1), &300.into()));
    let whole = agent.moa(&["call", r#"{"action":"/service/demo","params":{"m":"echo","args":[1]}}"#, "--json"]);
    assert_eq!((whole.code, &whole.json()["result"]), (Some(0), &serde_json::json!([1])));
    let unknown = agent.moa(&["call", "/service/none", "echo", "--addr", &agent.app.to_string()]);
    assert!(
        unknown.code == Some(1) && unknown.stdout.contains("ec 501") && unknown.stdout.contains("/service/none"),
        "{unknown:?}"
    );
    let late = agent.moa(&["call", "/service/demo", "hang", "--timeout-ms", "50"]);
    assert!(late.code == Some(1) && late.stderr.contains("no answer within 50ms"), "{late:?}");
}

#[test]
fn tables_in_a_pipe_line_up_and_are_plain() {
    let server = demo_server();
    let agent = Agent::start(&Agent::config(server));
    agent.moa(&["call", "/service/demo", "echo"]);
    let services = agent.moa(&["services"]);
    let lines: Vec<&str> = services.stdout.lines().collect();
    assert_eq!(services.code, Some(0));
    assert_eq!(lines[0].split("  ").next(), Some("SERVICE"));
    assert!(lines[1].starts_with("/service/demo") && lines[2].starts_with(&format!("  {server}")), "{}", services.stdout);
    let column = lines[0].find("HEALTH").expect("a column");
    assert!(lines[1][column..].starts_with("1/1 ") && lines[2][column..].starts_with("up "), "{}", services.stdout);
    for words in [&["services"][..], &["conns"], &["status"], &["config", "show"]] {
        let outcome = agent.moa(words);
        assert!(outcome.code == Some(0) && !outcome.stdout.contains('\x1b'), "{words:?}: {outcome:?}");
        assert!(outcome.stdout.lines().all(|line| line == line.trim_end()), "{words:?}: {outcome:?}");
    }
    assert_eq!(agent.moa(&["services", "/service/none"]).code, Some(1));
    assert_eq!(agent.moa(&["services", "/service/demo", "--json"]).json()[0]["stats"]["calls"], 1);
}

#[test]
fn status_is_that_of_the_process() {
    let agent = Agent::start("");
    let status = agent.moa(&["status", "--json"]).json();
    assert_eq!((&status["name"], &status["pid"]), (&"test".into(), &agent.pid().into()));
    assert_eq!(status["config"]["path"], agent.config_path().to_str().expect("text"));
    assert_eq!((&status["kernel"]["attached"], &status["kernel"]["reason"]), (&false.into(), &"kernel.mode is off".into()));
    let text = agent.moa(&["status"]).stdout;
    assert!(text.starts_with("agent     test, serving for "), "{text}");
}

#[test]
fn the_effective_configuration_says_where_it_came_from() {
    let agent = Agent::start(&Agent::config(demo_server()));
    let shown = agent.moa(&["config", "show"]).stdout;
    let line =
        |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}: {shown}")).to_owned();
    assert!(line("app.listen = ").ends_with("# --app-listen"), "{shown}");
    assert!(line(&format!("tunnel.listen = \"{}\"", agent.tunnel)).ends_with("# --tunnel-listen"), "{shown}");
    assert!(line("agent.workers = 0").ends_with("# default"), "{shown}");
    assert!(line("services.\"/service/demo\".instances = ").ends_with("moa.toml:2"), "{shown}");
}

#[test]
fn a_reload_applies_all_of_a_file_or_nothing() {
    let server = demo_server();
    let agent = Agent::start(&Agent::config(server));
    let generation = || agent.moa(&["status", "--json"]).json()["config"]["generation"].clone();
    fs::write(agent.config_path(), "[services.'/service/new']\ninstances = ['x:1']\n[app]\nlisten = 7\n").expect("written");
    let refused = agent.moa(&["config", "reload"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.starts_with("error: refused, and what was in force stays:\n"), "{refused:?}");
    assert!(refused.stderr.contains("moa.toml:2:14: ") && refused.stderr.contains("moa.toml:4:10: "), "{refused:?}");
    assert_eq!(generation(), 1);
    assert!(agent.moa(&["status"]).stdout.contains("the latest reload was refused: "));
    assert_eq!(agent.moa(&["call", "/service/demo", "echo"]).code, Some(0));
    let new = Agent::config(server).replace("/service/demo", "/service/new");
    fs::write(agent.config_path(), &new).expect("written");
    let taken = agent.moa(&["config", "reload"]);
    let expected = format!("{} is in force (generation 2)\n", agent.config_path().display());
    assert_eq!((taken.code, taken.stdout), (Some(0), expected));
    assert_eq!(agent.moa(&["call", "/service/new", "echo"]).code, Some(0));
    assert_eq!(agent.moa(&["call", "/service/demo", "echo"]).code, Some(1));
    fs::write(agent.config_path(), Agent::config(server)).expect("written");
    agent.signal(Signal::SIGHUP);
    until("the reload by SIGHUP", || (generation() == 3).then_some(()));
    assert_eq!(agent.moa(&["call", "/service/demo", "echo"]).code, Some(0));
}

#[test]
fn what_only_a_restart_can_change_is_refused() {
    let agent = Agent::start("");
    for (text, key) in [("[agent]\nworkers = 7\n", "agent.workers"), ("[app]\nunix = '/run/a.sock'\n", "app.unix")] {
        fs::write(agent.config_path(), text).expect("written");
        let refused = agent.moa(&["config", "reload"]);
        let expected = format!("{key} can't be changed while the agent runs");
        assert!(refused.code == Some(1) && refused.stderr.contains(&expected), "{refused:?}");
    }
    // The flags are stronger than the file, so this changes nothing.
    fs::write(agent.config_path(), "[metrics]\nlisten = '127.0.0.1:1'\n[tunnel]\nlisten = '127.0.0.1:2'\n").expect("written");
    assert_eq!(agent.moa(&["config", "reload"]).code, Some(0));
}

#[test]
fn the_doctor_asks_the_running_agent() {
    let agent = Agent::start(&Agent::config(demo_server()));
    let checks = agent.moa(&["doctor", "--json"]).json();
    for name in ["agent", "configuration", "applications' port"] {
        let check = checks.as_array().expect("a list").iter().find(|check| check["name"] == name);
        assert_eq!(check.map(|check| &check["outcome"]), Some(&"ok".into()), "{checks}");
    }
}
