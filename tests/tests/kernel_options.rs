//! What an operator may say about the kernel path: per service, per namespace, per agent; and what is wrong.

use std::{sync::mpsc, thread};

use moa_tests::{
    Agent, Client, DEMO, FakeMoa, Judge, config,
    kernel::{self, Look, Way},
    leg::in_new_namespace,
};

fn section(fake: &FakeMoa, policy: &str) -> String {
    config::service(DEMO, &[fake.address()], &format!("{}\n{policy}", config::NO_HEALTH_CHECK))
}

fn call(client: &mut Client, calls: usize) {
    for _ in 0..calls {
        let ask = Judge.ask(DEMO, 2_000);
        ask.expect_right(&client.get(&ask.json));
    }
}

/// Calls from a new connection, and the way that it took.
fn way_of_calls(agent: &Agent) -> (Client, Way) {
    let before = Look::at(agent);
    let mut client = agent.connect();
    call(&mut client, 20);
    let way = Look::at(agent).since(&before);
    (client, way)
}

/// An agent without the kernel path serves all the same; returns the reason that it gives.
fn reason(agent: &Agent) -> String {
    call(&mut agent.connect(), 10);
    let status = agent.json(&["status"])["kernel"].clone();
    assert!(status["attached"] == false && status["on"] == false && status["redirected_bytes"] == 0, "{status}");
    let outcome = agent.verb(&["kernel"]);
    let reason = status["reason"].as_str().unwrap_or_else(|| panic!("no reason: {status}")).to_owned();
    assert!(!outcome.status.success() && outcome.stderr.contains(&reason), "{}", outcome.stderr);
    assert!(!std::path::Path::new("/sys/fs/bpf/moa").join(agent.name()).exists(), "pins are left");
    reason
}

#[test]
fn a_service_may_opt_out() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, "kernel = false"));
    let (client, way) = way_of_calls(&agent);
    let (to_agent, from_agent) = client.traffic();
    // The application's side alone.
    assert_eq!(way, Way { to_agent, from_agent, enrolled: 2, ..Way::default() });
    assert!(fake.counts().bytes > 20 * 2_000);
}

#[test]
fn a_service_may_opt_out_and_in_again_while_the_agent_runs() {
    let fake = FakeMoa::start();
    let agent = kernel::start(&section(&fake, ""));
    way_of_calls(&agent).1.expect_kernel_only();
    agent.reload(&section(&fake, "kernel = false"));
    fake.hang_up(moa_tests::fake::End::Close);
    assert_eq!(way_of_calls(&agent).1.enrolled, 2);
    agent.reload(&section(&fake, "kernel = true"));
    fake.hang_up(moa_tests::fake::End::Close);
    let (_, way) = way_of_calls(&agent);
    assert_eq!(way.enrolled, 4);
    way.expect_kernel_only();
}

#[test]
fn a_namespace_is_left_alone() {
    let fake = FakeMoa::start();
    let excluded = "[kernel]\nexclude_namespaces = [\"/proc/self/ns/net\"]\n";
    let agent = kernel::start(&format!("{excluded}{}", section(&fake, "")));
    let (client, way) = way_of_calls(&agent);
    way.expect_tcp_only();
    // Two of the application's connection, and the agent's end of the one to the service.
    let refused = way.refusals.get("namespace-excluded").copied().unwrap_or_default();
    assert!(way.tcp == 0 && refused >= 3 && way.refusals.len() == 1, "{way:?}, {:?}", client.traffic());
    let look = Look::at(&agent);
    assert_eq!((look.enrolled, look.enrolled_total, look.status.share), (0, 0, 0.0), "{look:?}");
    assert!(look.status.attached && look.status.on);
}

#[test]
fn another_namespace_may_be_left_alone_and_ours_is_not() {
    let (tell, told) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // It is there as long as somebody is in it.
        scope.spawn(move || {
            in_new_namespace(move || {
                let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
                tell.send(path).expect("the test");
                // Ends when the test does.
                let _ = left.recv();
            });
        });
        let _leave = leave;
        let path = told.recv().expect("the path of a namespace");
        let fake = FakeMoa::start();
        let agent = kernel::start(&format!("[kernel]\nexclude_namespaces = [\"{path}\"]\n{}", section(&fake, "")));
        way_of_calls(&agent).1.expect_kernel_only();
    });
}

#[test]
fn a_namespace_that_is_not_there_leaves_the_agent_in_userspace() {
    let fake = FakeMoa::start();
    let excluded = "[kernel]\nexclude_namespaces = [\"/run/netns/nobody\"]\n";
    let agent = kernel::start(&format!("{excluded}{}", section(&fake, "")));
    let reason = reason(&agent);
    assert!(reason.contains("/run/netns/nobody") && reason.contains("kernel.exclude_namespaces"), "{reason}");
    assert!(agent.log().contains("userspace only") && agent.log().contains("/run/netns/nobody"), "{}", agent.log());
}

#[test]
fn off_is_off() {
    let fake = FakeMoa::start();
    let config = format!("[kernel]\nmode = \"off\"\n{}", section(&fake, ""));
    let agent = Agent::prepare(&config).kernel_as_configured().start();
    assert!(reason(&agent).contains("kernel.mode is off"));
    // A flag is stronger than the file, both ways.
    let agent = Agent::prepare(&config).kernel("on").start();
    way_of_calls(&agent).1.expect_kernel_only();
    let config = format!("[kernel]\nmode = \"on\"\n{}", section(&fake, ""));
    let agent = Agent::prepare(&config).kernel("off").start();
    assert!(reason(&agent).contains("kernel.mode is off"));
    let agent = Agent::prepare(&config).kernel_as_configured().start();
    way_of_calls(&agent).1.expect_kernel_only();
}

#[test]
fn auto_says_what_was_measured_and_decided() {
    let fake = FakeMoa::start();
    // Auto is also what nobody says anything about.
    for config in [section(&fake, ""), format!("[kernel]\nmode = \"auto\"\n{}", section(&fake, ""))] {
        let agent = Agent::prepare(&config).kernel_as_configured().start();
        let look = Look::at(&agent);
        let decision = look.status.decision.clone().expect("a decision");
        println!("{decision}");
        assert!(look.status.attached && decision.starts_with("auto: ") && decision.matches("µs").count() == 2, "{decision}");
        assert_eq!(look.status.on, decision.contains("auto: faster"), "{decision}");
        assert!(agent.verb(&["status"]).stdout.contains("auto: ") && agent.verb(&["kernel"]).stdout.contains(&decision));
        // Whatever was decided, the operator may decide otherwise; but sockets that block, as this client's, stay with TCP.
        agent.json(&["kernel", "on"]);
        let (_, way) = way_of_calls(&agent);
        assert!(Look::at(&agent).status.on && way.fallbacks.get("blocking-socket") > Some(&0), "{way:?}");
    }
    let agent = kernel::start(&section(&fake, ""));
    assert_eq!(Look::at(&agent).status.decision, None, "nothing is measured when it is on");
}

#[test]
fn bad_values_are_refused_at_the_start() {
    let cases = [
        ("mode = \"maybe\"", &["kernel.mode", "maybe", "auto"][..]),
        ("leg_bytes_max = 65_535", &["kernel.leg_bytes_max", "65535", "65536"]),
        ("leg_bytes_max = 1_073_741_825", &["kernel.leg_bytes_max", "1073741825"]),
        ("exclude_namespaces = \"one\"", &["kernel.exclude_namespaces"]),
        ("bound = 1", &["kernel", "bound"]),
    ];
    for (line, words) in cases {
        let (status, said) = kernel::prepare(&format!("[kernel]\n{line}\n")).start_in_vain();
        assert!(!status.success(), "{line} was taken");
        for word in words {
            assert!(said.contains(word), "{line}: nothing of {word}: {said}");
        }
    }
}

#[test]
fn a_reload_cannot_change_it() {
    let fake = FakeMoa::start();
    let agent = Agent::prepare(&format!("[kernel]\nmode = \"on\"\n{}", section(&fake, ""))).kernel_as_configured().start();
    let (mut client, way) = way_of_calls(&agent);
    way.expect_kernel_only();
    let changes = [
        ("kernel.mode", "mode = \"off\""),
        ("kernel.leg_bytes_max", "mode = \"on\"\nleg_bytes_max = 100_000"),
        ("kernel.exclude_namespaces", "mode = \"on\"\nexclude_namespaces = [\"/proc/self/ns/net\"]"),
    ];
    for (key, lines) in changes {
        agent.write_config(&format!("[kernel]\n{lines}\n{}", section(&fake, "")));
        let outcome = agent.verb(&["config", "reload"]);
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!outcome.status.success() && said.contains(key) && said.contains("restart"), "{said}");
    }
    let before = Look::at(&agent);
    call(&mut client, 10);
    Look::at(&agent).since(&before).expect_kernel_only();
}
