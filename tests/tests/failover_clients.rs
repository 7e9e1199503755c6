//! Real clients, unmodified, in a pod whose agent is killed and comes back; and the SDK.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent_common::sdk::{Client, Request};
use moa_tests::{
    DEMO, echo, external,
    process::kill_after,
    siblings::{Became, Cluster, served_by},
    until_true,
};
use serde_json::Value;
use tokio::runtime;

/// How long a client may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A client that prints lines.
struct Talker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Talker {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a client");
        let out = child.stdout.take().expect("its output");
        Self { child, lines: BufReader::new(out).lines() }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line: see what the client complained about").expect("its output")
    }
}

/// Kills the agent and starts it again, under a client that makes calls.
fn outlives(mut command: Command, script: &str) {
    command.arg(external::script(script));
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let mut talker = pod.inside(|| Talker::start(command));
    let watch = kill_after(talker.child.id(), LIMIT);
    assert_eq!(talker.line(), "node-1");
    cluster.hosts[0].agent_mut().kill();
    assert_eq!(talker.line(), "node-2");
    cluster.hosts[0].start_again();
    assert_eq!(talker.line(), "node-1");
    let said: Value = serde_json::from_str(&talker.line()).expect("JSON");
    watch.cancel();
    assert!(talker.child.wait().expect("its end").success());
    let number = |name: &str| said[name].as_u64().expect("a number");
    let (calls, errors) = (number("calls"), number("errors"));
    assert!(errors <= 2, "{errors} of {calls} calls failed: the one that the agent had, and one that was caught on its way");
}

#[test]
fn redis_py() {
    outlives(external::python(), "outlive.py");
}

#[test]
fn node_redis() {
    outlives(external::node(), "outlive.cjs");
}

#[test]
fn php_redis() {
    outlives(external::php(), "outlive.php");
}

#[test]
fn redis_benchmark_ends_with_all_its_answers_while_the_agent_leaves_in_good_order() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    // Each call has a connection of its own: of those that stay, redis-benchmark takes an end for an error.
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", "13000", "-n", "20000", "-c", "20", "-k", "0", "--csv", "-e", "GET", &echo("x")]);
    let before = cluster.hosts[1].fake.counts().calls;
    let mut benchmark = pod.inside(|| Talker::start(command));
    let watch = kill_after(benchmark.child.id(), LIMIT);
    until_true("calls to be made", || cluster.hosts[0].fake.counts().calls > 100);
    cluster.hosts[0].agent_mut().stop();
    let said: Vec<String> = benchmark.lines.by_ref().map(|line| line.expect("its output")).collect();
    watch.cancel();
    assert!(benchmark.child.wait().expect("its end").success(), "{said:?}");
    assert!(said.iter().any(|line| line.contains("GET")), "{said:?}");
    assert!(cluster.hosts[1].fake.counts().calls > before, "the sibling has served some");
}

#[test]
fn the_sdk_loses_no_idempotent_call() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seen = std::sync::Mutex::new(Vec::<String>::new());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| {
            pod.inside(|| {
                runtime.block_on(async {
                    // The one address is enough: the agent names its siblings.
                    let client = Client::builder("shop").agents(["127.0.0.1:13000"]).build().expect("an address");
                    let mut calls = 0_u32;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let request = Request::new(DEMO).method("echo").idempotent(true).timeout(Duration::from_secs(10));
                        let answered = async { client.call(request.body(echo("x"))).await?.body.bytes().await };
                        let body = answered.await.unwrap_or_else(|error| panic!("call {calls}: {error}"));
                        let Became::Served(name) = served_by(&body) else { panic!("{body:?}") };
                        let mut seen = seen.lock().expect("what it has seen");
                        if seen.last() != Some(&name) {
                            seen.push(name);
                        }
                        calls += 1;
                    }
                });
            });
        });
        let await_last = |name: &str| {
            until_true(&format!("{name} to serve"), || {
                seen.lock().expect("what it has seen").last().is_some_and(|last| last == name)
            });
        };
        await_last("node-1");
        cluster.hosts[0].agent_mut().kill();
        await_last("node-2");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        calling.join().expect("an application");
    });
}
