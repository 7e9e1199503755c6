//! What `moa kernel` shows of single services' routed calls: how long they took, and what is decided about each of them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use agent_common::frame::{Flags, Kind};
use aya::maps::{Array, Map, MapData};
use moa_tests::{
    Agent, DEMO, LanePeer, PATIENCE,
    agent::binary,
    frames::{caller, service},
    kernel::{self, Look},
    lanes::{self, Way},
    routed::{Routed, await_idle, await_routed},
    until, until_true,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const OTHER: &str = "/service/other";
/// The body of calls that are made to find out whether somebody looks on.
const PROBE: &[u8] = b"";

/// `moa kernel trace --json`, as an operator runs it.
struct Trace {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Trace {
    fn start(agent: &Agent, uri: &str, more: &[&str]) -> Self {
        let run_dir = agent.run_dir().display().to_string();
        let mut command = Command::new(binary());
        command.args(["kernel", "trace", uri, "--json", "--name", agent.name(), "--run-dir", &run_dir]).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("moa kernel trace");
        let reader = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Makes calls until one is shown.
    fn ready(self, client: &mut LanePeer) -> Self {
        until("the first decision", || {
            client.call(DEMO, PROBE);
            self.lines.recv_timeout(Duration::from_millis(5)).ok()
        });
        self
    }

    /// The next line that is not of a probe.
    fn next(&self) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line");
            if line["bytes"].as_u64().is_none_or(|bytes| bytes > 200) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hash that the programs are told to look for.
fn traced(agent: &Agent) -> u64 {
    let id = Look::at(agent).kept_maps()["ROUTING"];
    let map = MapData::from_id(id).expect("the map");
    let routing: Array<_, [u64; 6]> = Map::Array(map).try_into().expect("an array");
    routing.get(&0, 0).expect("its entry")[4]
}

fn body(size: usize) -> Vec<u8> {
    vec![7; size]
}

#[test]
fn what_is_decided_about_calls_is_shown_as_it_is() {
    let agent = kernel::start("");
    let mut held = LanePeer::open(agent.address(), &service("held", &[DEMO]));
    let _other = lanes::echo(agent.address(), &service("other", &[OTHER]));
    [DEMO, OTHER].iter().for_each(|uri| await_routed(&agent, uri));
    let mut client = LanePeer::open(agent.address(), &caller());
    assert_eq!(traced(&agent), 0);
    let trace = Trace::start(&agent, DEMO, &[]);
    until_true("it to be traced", || traced(&agent) != 0);
    // A routed call, and its answer; one of another service, of which nothing is shown.
    assert_eq!(client.call(OTHER, &body(500)).0, Way::Lane);
    let stream = client.request(DEMO, Flags::END_STREAM, &body(1_000));
    let (_, call) = held.expect(Kind::Request);
    thread::sleep(Duration::from_millis(5));
    held.respond(&call, 0, &body(300));
    assert_eq!(client.answer_to(stream).0, Way::Lane);
    let (call, answer) = (trace.next(), trace.next());
    assert_eq!((&call["kind"], &call["verdict"], &call["took_ns"]), (&"call".into(), &"routed".into(), &Value::Null), "{call}");
    assert!(call["bytes"].as_u64() > Some(1_040) && call["bytes"].as_u64() < Some(1_200), "{call}");
    let names = [&call["caller"], &call["instance"]].map(|name| name.as_str().unwrap_or_default().to_owned());
    let hellos = [caller(), service("held", &[DEMO])].map(|hello| format!("{}/{}", hello.application, hello.instance));
    assert_eq!(names, hellos, "{call}");
    assert_eq!((&answer["kind"], &answer["verdict"], &answer["bytes"]), (&"answer".into(), &"routed".into(), &340.into()));
    assert_eq!((&answer["caller"], &answer["instance"]), (&call["caller"], &call["instance"]), "{answer}");
    let took = Duration::from_nanos(answer["took_ns"].as_u64().expect("a time"));
    assert!(took >= Duration::from_millis(5) && took < Duration::from_secs(5), "{answer}");
    let apart = answer["unix_us"].as_u64().expect("a time") - call["unix_us"].as_u64().expect("a time");
    assert!(Duration::from_micros(apart + 2) >= took, "{call} {answer}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    assert!(now.as_micros().abs_diff(answer["unix_us"].as_u64().expect("a time").into()) < 60_000_000, "{answer}");
    // One that is for the agent, and an error.
    let stream = client.request(DEMO, Flags::END_STREAM | Flags::SLOW_PATH, &body(400));
    let (way, slow) = held.expect(Kind::Request);
    held.respond_by(way, &slow, 0, b"slow");
    client.answer_to(stream);
    let shown = trace.next();
    assert_eq!((&shown["kind"], &shown["verdict"], &shown["instance"]), (&"call".into(), &"flags".into(), &Value::Null));
    assert_eq!(shown["caller"], call["caller"]);
    let stream = client.request(DEMO, Flags::END_STREAM, &body(600));
    let (_, failing) = held.expect(Kind::Request);
    held.respond(&failing, 777, &body(700));
    client.answer_to(stream);
    assert_eq!(trace.next()["verdict"], "routed");
    let shown = trace.next();
    assert_eq!(
        (&shown["kind"], &shown["verdict"], &shown["instance"]),
        (&"answer".into(), &"error-answer".into(), &call["instance"])
    );
    drop(trace);
    until_true("nothing to be traced", || traced(&agent) == 0);
    await_idle(&agent);
}

#[test]
fn one_trace_at_a_time_and_it_ends_with_whoever_looks_on() {
    let mut agent = kernel::start("");
    let _serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let trace = Trace::start(&agent, DEMO, &[]).ready(&mut client);
    let second = agent.verb(&["kernel", "trace", DEMO, "--for", "1"]);
    assert!(!second.status.success() && second.stderr.contains("one trace at a time"), "{}", second.stderr);
    trace.signal(Signal::SIGKILL);
    until_true("nothing to be traced", || traced(&agent) == 0);
    // Text, and so many lines.
    let run_dir = agent.run_dir().display().to_string();
    let mut command = Command::new(binary());
    command.args(["kernel", "trace", DEMO, "--count", "3", "--name", agent.name(), "--run-dir", &run_dir]);
    let child = command.stdout(Stdio::piped()).spawn().expect("moa kernel trace");
    until_true("it to be traced", || traced(&agent) != 0);
    (0..2).for_each(|_| assert_eq!(client.call(DEMO, b"x").0, Way::Lane));
    let output = child.wait_with_output().expect("an end");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.lines().count() == 4 && text.starts_with("TIME (UTC)"), "{text}");
    assert!(text.lines().skip(1).all(|line| line.contains("routed") && line.contains("echo")), "{text}");
    let nothing = agent.verb(&["kernel", "trace", DEMO, "--for", "1"]);
    assert!(nothing.status.success() && nothing.stderr.contains("no call of"), "{}", nothing.stderr);
    let unknown = agent.verb(&["kernel", "trace", "/service/dem"]);
    assert!(!unknown.status.success() && unknown.stderr.contains(DEMO), "{}", unknown.stderr);
    // A stop ends it, and does not wait for it.
    let mut trace = Trace::start(&agent, DEMO, &[]).ready(&mut client);
    drop(client);
    agent.signal(Signal::SIGTERM);
    let status = agent.wait(Duration::from_secs(3));
    assert!(status.success(), "{status}");
    assert!(!trace.child.wait().expect("an end").success(), "it says that the agent has ended");
}

#[test]
fn an_agent_that_is_killed_leaves_no_trace_on() {
    let mut agent = kernel::start("");
    let serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let _trace = Trace::start(&agent, DEMO, &[]).ready(&mut client);
    agent.kill();
    serving.join().expect("a service");
    agent.start_again();
    assert_eq!(traced(&agent), 0);
    let _serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let trace = Trace::start(&agent, DEMO, &[]).ready(&mut client);
    client.call(DEMO, &body(1_000));
    assert_eq!(trace.next()["verdict"], "routed");
}

#[test]
fn what_there_is_no_room_for_is_counted_and_said() {
    let agent = kernel::start("");
    let _serving = lanes::echo(agent.address(), &service("echo", &[DEMO]));
    await_routed(&agent, DEMO);
    let mut client = LanePeer::open(agent.address(), &caller());
    let trace = Trace::start(&agent, DEMO, &[]).ready(&mut client);
    trace.signal(Signal::SIGSTOP);
    let calls = 10_000;
    (0..calls).for_each(|_| drop(client.call(DEMO, &body(300))));
    trace.signal(Signal::SIGCONT);
    let (mut shown, mut dropped) = (0, 0);
    while shown + dropped < 2 * calls {
        let line = trace.next();
        match line["kind"].as_str() {
            Some("dropped") => dropped += line["count"].as_u64().expect("a count"),
            _ => shown += 1,
        }
        if shown + dropped < 2 * calls && line["kind"] == "dropped" {
            // What was dropped last is said with what comes next.
            client.call(DEMO, PROBE);
        }
    }
    assert!(dropped > 0 && shown > 4_000, "{shown} shown, {dropped} dropped");
    await_idle(&agent);
}

#[test]
fn each_services_latencies_are_shown() {
    let agent = kernel::start("");
    let _serving = [("one", DEMO), ("two", OTHER)].map(|(name, uri)| lanes::echo(agent.address(), &service(name, &[uri])));
    let mut held = LanePeer::open(agent.address(), &service("held", &["/service/slow"]));
    [DEMO, OTHER, "/service/slow"].iter().for_each(|uri| await_routed(&agent, uri));
    let mut client = LanePeer::open(agent.address(), &caller());
    (0..100).for_each(|_| assert_eq!(client.call(DEMO, b"x").0, Way::Lane));
    let stream = client.request("/service/slow", Flags::END_STREAM, b"x");
    let (_, call) = held.expect(Kind::Request);
    thread::sleep(Duration::from_millis(40));
    held.respond(&call, 0, b"y");
    client.answer_to(stream);
    let of = |uri: &str| {
        let services = agent.json(&["kernel"])["routing"]["services"].clone();
        let found = services.as_array().expect("services").iter().find(|service| service["service"] == uri).cloned();
        found.unwrap_or_else(|| panic!("{services}"))
    };
    until_true("all to be counted", || of(DEMO)["answered"] == 100 && of("/service/slow")["answered"] == 1);
    let (demo, other, slow) = (of(DEMO), of(OTHER), of("/service/slow"));
    let us = |service: &Value, name: &str| service[name].as_u64().expect("a time");
    let [p50, p90, p99, max] = ["p50_us", "p90_us", "p99_us", "max_us"].map(|name| us(&demo, name));
    assert!(0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{demo}");
    let sum: u64 = demo["latency"].as_array().expect("buckets").iter().map(|one| one["calls"].as_u64().expect("calls")).sum();
    assert_eq!((sum, &other["answered"], &other["latency"]), (100, &0.into(), &Value::Array(vec![])), "{demo} {other}");
    assert!(us(&slow, "p50_us") >= 40_000 && us(&slow, "max_us") == us(&slow, "p50_us"), "{slow}");
    let text = agent.verb(&["kernel", "latency", DEMO]).stdout;
    assert!(text.contains("100 answered; p50 ") && text.contains('█') && !text.contains(OTHER), "{text}");
    let text = agent.verb(&["kernel", "latency"]).stdout;
    assert!(text.contains(DEMO) && text.contains(&format!("{OTHER}  no call was routed")), "{text}");
    let listed = agent.json(&["kernel", "latency", "/service/slow"]);
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["answered"]), (Some(1), &1.into()), "{listed}");
    let unknown = agent.verb(&["kernel", "latency", "/service/none"]);
    assert!(!unknown.status.success() && unknown.stderr.contains("/service/none"), "{}", unknown.stderr);
    let table = agent.verb(&["kernel"]).stdout;
    assert!(table.lines().any(|line| line.starts_with(DEMO) && line.contains("100") && line.ends_with("yes")), "{table}");
    assert_eq!(Routed::at(&agent).answers, 101);
}
