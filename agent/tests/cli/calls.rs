//! `moa calls`: its ends, and what it says when nothing is called.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Agent, demo_server, moa, until};

/// `moa calls --follow`, once it follows.
struct Following {
    child: Child,
    title: String,
}

impl Following {
    fn start(agent: &Agent, words: &[&str]) -> Self {
        let mut command = moa(&["calls", "--follow", "--name", "test", "--run-dir"]);
        command.arg(agent.files.path().join("run")).args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let mut title = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut title).expect("a title");
        Self { child, title }
    }

    /// Its exit code, and what it complained about.
    fn end(mut self) -> (Option<i32>, String) {
        let status = until("its end", || self.child.try_wait().expect("a child"));
        let mut text = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        (status.code(), text)
    }

    fn interrupt(self) -> (Option<i32>, String) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).expect("it runs");
        self.end()
    }
}

#[test]
fn ctrl_c_is_a_good_end() {
    let agent = Agent::start(&Agent::config(demo_server()));
    let following = Following::start(&agent, &[]);
    assert!(following.title.starts_with("TIME (UTC)    CODE  BY "), "{}", following.title);
    assert_eq!(following.interrupt(), (Some(0), "no call ended meanwhile\n".into()));
    let of_demo = Following::start(&agent, &["--service", "/service/demo#two", "--errors", "--slower-than", "5"]);
    let expected = "no call of /service/demo#two failed after more than 5 ms meanwhile\n";
    assert_eq!(of_demo.interrupt(), (Some(0), expected.into()));
}

#[test]
fn a_service_that_is_not_known_is_named() {
    let agent = Agent::start(&Agent::config(demo_server()));
    let (code, text) = Following::start(&agent, &["--service", "/service/none"]).interrupt();
    assert!(code == Some(0) && text.contains("the agent test knows no service /service/none: `moa services`"), "{text}");
}

#[test]
fn the_agents_end_is_an_end() {
    let mut agent = Agent::start("");
    let following = Following::start(&agent, &[]);
    agent.signal(Signal::SIGTERM);
    assert_eq!(following.end(), (Some(1), "error: the agent test has ended\n".into()));
    assert!(agent.wait().success());
    let outcome = agent.moa(&["calls"]);
    assert!(outcome.code == Some(1) && outcome.stdout.is_empty() && outcome.stderr.contains("no agent named test runs"));
}

#[test]
fn there_is_room_for_so_many() {
    let agent = Agent::start("");
    let following: Vec<_> = (0..16).map(|_| Following::start(&agent, &[])).collect();
    let refused = agent.moa(&["calls"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("16 others are looking on already"), "{refused:?}");
    assert_eq!(agent.moa(&["status"]).code, Some(0));
    for one in following {
        assert_eq!(one.interrupt().0, Some(0));
    }
    assert_eq!(Following::start(&agent, &[]).interrupt().0, Some(0));
}
