//! The agent's parent: both end together, signals come once, and it has no connection of its own.

use std::{fs, path::PathBuf};

use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate, PATIENCE,
    agent::run_verb,
    client::command,
    config, echo,
    machine::memory_kib,
    pods::{Pods, await_served},
    until_true,
};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, getpgid},
};

fn section(fake: &FakeMoa) -> String {
    config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)
}

/// Whether nothing is left of a process, or of each of its threads nothing but its number, which nobody has asked for.
fn is_gone(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.into_iter().all(|stat| stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['Z', 'X'])))
}

/// What each descriptor of a process is.
fn links(pid: u32) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).collect()
}

#[test]
fn a_parent_that_is_killed_takes_the_agent_with_it() {
    let fake = FakeMoa::start();
    let mut agent = Agent::start(&section(&fake));
    let itself = agent.pid();
    agent.connect().expect_usable();
    agent.signal(Signal::SIGKILL);
    agent.wait(PATIENCE);
    until_true("the agent to be gone", || is_gone(itself));
    agent.start_again();
    assert_ne!(agent.pid(), itself);
    assert_eq!(agent.connect().call(&echo("again"))["result"], "again");
}

#[test]
fn an_agent_that_is_killed_takes_its_parent_with_it() {
    let mut agent = Agent::start("");
    agent.signal_itself(Signal::SIGKILL);
    assert_eq!(agent.wait(PATIENCE).code(), Some(137));
    assert_eq!(agent.log().matches("the agent was killed by SIGKILL").count(), 1, "{}", agent.log());
}

#[test]
fn it_ends_as_the_agent_ends() {
    let (status, log) = Agent::prepare("[app]\nlisten = 7").start_in_vain();
    assert_eq!((status.code(), log.matches("app.listen: found the number 7").count()), (Some(1), 1), "{log}");
    let agent = Agent::start("");
    let (status, log) = Agent::prepare("").beside(&agent).name(agent.name()).start_in_vain();
    assert!(status.code() == Some(1) && log.contains(&format!("runs already (pid {}, ", agent.pid())), "{status} {log}");
    assert_eq!(run_verb(&["agent", "--nonsense"]).status.code(), Some(2));
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    fake.script(move |call| Answer::ok(&call.args[0]).at(&gate));
    let mut agent = Agent::start(&section(&fake));
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("x")]));
    fake.await_in_flight(1);
    [Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| agent.signal(signal));
    assert_eq!(agent.wait(PATIENCE).code(), Some(1), "a call was cut");
}

#[test]
fn nobody_else_is_a_parent() {
    let outcome = run_verb(&["agent", "--parent-fd", "7"]);
    assert!(outcome.status.code() == Some(1) && outcome.stderr.contains("--parent-fd 7 is no parent"), "{}", outcome.stderr);
}

#[test]
fn signals_come_once() {
    let (fake, gate) = (FakeMoa::start(), Gate::closed());
    let own = gate.clone();
    fake.script(move |call| Answer::ok(&call.args[0]).at(&own));
    let mut agent = Agent::start(&section(&fake));
    let group = |pid: u32| getpgid(Some(Pid::from_raw(pid.cast_signed()))).expect("a process");
    assert_ne!(group(agent.pid()), group(agent.parent_pid()), "the terminal would tell both");
    let generation = |agent: &Agent| agent.json(&["status"])["config"]["generation"].as_u64();
    for expected in 2..5 {
        agent.signal(Signal::SIGHUP);
        until_true("the reload", || generation(&agent) >= Some(expected));
        assert_eq!(generation(&agent), Some(expected));
    }
    let mut client = agent.connect();
    client.send(command(&["GET", &echo("in flight")]));
    fake.await_in_flight(1);
    // As a service manager does that tells every process.
    agent.signal_itself(Signal::SIGTERM);
    agent.signal(Signal::SIGTERM);
    until_true("the agent to drain", || agent.json(&["status"])["state"] == "draining");
    gate.open();
    assert!(client.read().text().contains("in flight"));
    assert!(agent.wait(PATIENCE).success());
}

#[test]
fn it_has_no_connection_and_keeps_nothing() {
    let (pods, fake) = (Pods::new(), FakeMoa::start());
    let pod = pods.pod("pod");
    let agent = Agent::start(&(pods.section("") + &section(&fake)));
    await_served(&agent, 1);
    pod.client().expect_usable();
    agent.connect().expect_usable();
    let parent = agent.parent_pid();
    let count = |begin: &str| links(parent).iter().filter(|link| link.to_string_lossy().starts_with(begin)).count();
    until_true("it to close what it has opened for the agent", || count("socket:") == 1);
    // Its own one, to come back to.
    assert_eq!(count("net:"), 1, "{:?}", links(parent));
    let inodes: Vec<String> = links(parent)
        .iter()
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/{parent}/net/{table}")).unwrap_or_default();
        let mut known = table.lines().filter_map(|line| line.split_whitespace().nth(9));
        assert!(known.all(|inode| !inodes.iter().any(|own| own == inode)), "{table}");
    }
    let threads = fs::read_dir(format!("/proc/{parent}/task")).expect("its threads").count();
    assert_eq!(threads, 1);
    println!("resident: {} KiB, of which its own {} KiB", memory_kib(parent, "VmRSS"), memory_kib(parent, "RssAnon"));
    assert!(memory_kib(parent, "RssAnon") < 4096);
    pods.remove("pod");
    await_served(&agent, 0);
    pods.await_end(pod);
}
