//! Who calls is known by the cgroup of its socket, whatever it says. The test's own process is the caller, in a cgroup of its own.

use std::{fs, path::PathBuf, process::Command};

use agent_common::frame::Hello;
use moa_tests::{
    Agent, DEMO, FakeMoa,
    agent::{Outcome, binary},
    config, echo,
    fleet::{Caller, named},
    frames::{self, FramePeer},
    leg::{Inside, cgroup2_root},
    until_true,
};

const WEB_ONLY: &str = "access.default = \"deny\"\naccess.rules = [{ name = \"web\", when = { application = \"web\" } }]";

/// The cgroup that the test's process is in, as the configuration has it.
fn own() -> String {
    format!("/moa-legs-{}", std::process::id())
}

fn configured(fake: &FakeMoa, cgroups: &[(&str, &str)]) -> String {
    let lines: String = cgroups.iter().map(|(path, application)| format!("{path:?} = {application:?}\n")).collect();
    let service = config::service(DEMO, &[fake.address()], &format!("{}\n{WEB_ONLY}", config::NO_HEALTH_CHECK));
    format!("[agent]\nworkers = 2\n[cgroups.applications]\n{lines}{service}")
}

/// A cgroup that is removed when it is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: &str) -> Self {
        let folder = cgroup2_root().join(path.trim_start_matches('/'));
        fs::create_dir(&folder).expect("a cgroup: run this test as root");
        Self(folder)
    }

    /// Calls the agent from there.
    fn call(&self, agent: &Agent) -> Outcome {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&self.0).arg(binary());
        let address = agent.address().to_string();
        shell.args(["call", DEMO, "get", "[]", "--addr", &address]);
        let output = shell.output().expect("this test needs sh");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may not be gone for a moment.
        until_true("a cgroup to be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_caller_is_who_its_cgroup_says() {
    let (_inside, fake) = (Inside::enter(), named("fake"));
    let agent = Agent::start(&configured(&fake, &[(&own(), "web")]));
    let mut callers = Caller::both_as(&agent, "liar");
    callers.iter_mut().for_each(|caller| caller.expect("fake", DEMO, "get", &[]));
    let conns = agent.json(&["conns"]);
    let names: Vec<_> = conns.as_array().expect("connections").iter().map(|conn| conn["name"].as_str()).collect();
    assert_eq!(names, [Some("web"), Some("web")], "{conns}");
    // It counts for connections that are open, too.
    agent.reload(&configured(&fake, &[(&own(), "guest")]));
    for caller in &mut callers {
        let text = caller.call(DEMO, "get", &[]).error(506);
        assert!(text.contains("guest"), "{text}");
    }
    for mut caller in Caller::both_as(&agent, "web") {
        caller.call(DEMO, "get", &[]).error(506);
    }
    // Whoever is in none of them is who it says.
    agent.reload(&configured(&fake, &[("/nowhere", "guest")]));
    for mut caller in Caller::both_as(&agent, "web") {
        caller.expect("fake", DEMO, "get", &[]);
    }
    callers.iter_mut().for_each(|caller| drop(caller.call(DEMO, "get", &[]).error(506)));
}

#[test]
fn it_is_known_on_every_worker() {
    let (_inside, fake) = (Inside::enter(), named("fake"));
    let agent = Agent::start(&configured(&fake, &[(&own(), "web")]));
    for connection in 0..6 {
        let hello = Hello { connection: Some(connection), ..frames::caller() };
        let answer = FramePeer::connect(agent.address(), &hello).call(DEMO, echo("x").as_bytes());
        assert_eq!(answer.header.word, 0, "{}", answer.error());
    }
}

#[test]
fn cgroups_below_count_and_those_that_come_later() {
    let (_inside, fake) = (Inside::enter(), named("fake"));
    let (guest, web) = (format!("{}/guest", own()), format!("{}/guest/web", own()));
    let agent = Agent::start(&configured(&fake, &[(&guest, "guest"), (&web, "web")]));
    let outer = Cgroup::make(&guest);
    let refused = outer.call(&agent);
    assert!(!refused.status.success() && format!("{}{}", refused.stdout, refused.stderr).contains("guest"), "{}", refused.stdout);
    let inner = Cgroup::make(&web);
    let below = Cgroup::make(&format!("{web}/below"));
    for cgroup in [&inner, &below] {
        let answered = cgroup.call(&agent);
        assert!(answered.status.success(), "{}{}", answered.stdout, answered.stderr);
    }
    // Nobody's.
    let other = Cgroup::make(&format!("{}/other", own()));
    let refused = other.call(&agent);
    assert!(format!("{}{}", refused.stdout, refused.stderr).contains("without a name"), "{}{}", refused.stdout, refused.stderr);
    drop((below, inner));
}
