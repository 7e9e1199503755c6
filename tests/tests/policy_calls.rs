//! `moa calls`: what is shown of calls as they end, and that looking on costs nobody anything.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate, PATIENCE,
    agent::binary,
    fake::End,
    fleet::{Caller, named, section},
    until, until_true,
};
use serde_json::Value;

const ONE: &str = "[agent]\nworkers = 1\n";

fn one(instances: &[(&FakeMoa, &str)], policy: &str) -> Agent {
    Agent::start(&format!("{ONE}{}", section(DEMO, instances, policy)))
}

/// Whoever looks on, by the admin socket.
struct Onlooker {
    lines: mpsc::Receiver<String>,
    socket: UnixStream,
}

impl Onlooker {
    fn start(agent: &Agent, query: &str) -> Self {
        let mut socket = ask(agent, query);
        let copy = socket.try_clone().expect("a socket");
        let (sender, lines) = mpsc::channel();
        let mut reader = BufReader::new(socket.try_clone().expect("a socket"));
        let mut status = String::new();
        reader.read_line(&mut status).expect("a status");
        assert!(status.contains("200"), "{status}");
        socket.flush().expect("nothing");
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if line.starts_with('{') && sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { lines, socket: copy }
    }

    /// The next line.
    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }

    /// The next record of a call that was not made to find out whether somebody looks on.
    fn record(&self) -> Value {
        loop {
            let line = self.next();
            assert_eq!(line["kind"], "call", "{line}");
            if line["method"] != "probe" {
                return line;
            }
        }
    }

    /// Makes calls until this one is shown.
    fn ready(self, agent: &Agent, service: &str) -> Self {
        let mut caller = Caller::redis(agent, "");
        until("the first record", || {
            caller.call(service, "probe", &[]);
            self.lines.recv_timeout(Duration::from_millis(5)).ok()
        });
        self
    }
}

impl Drop for Onlooker {
    fn drop(&mut self) {
        // Fails only if the agent has hung up already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn ask(agent: &Agent, query: &str) -> UnixStream {
    let mut socket = UnixStream::connect(agent.run_dir().join("agent.sock"))
        .or_else(|_| UnixStream::connect(agent.run_dir().join(agent.name()).join("agent.sock")));
    let socket = socket.as_mut().expect("the admin socket");
    write!(socket, "GET /v1/calls?{query} HTTP/1.1\r\nHost: moa\r\n\r\n").expect("a request");
    socket.try_clone().expect("a socket")
}

#[test]
fn a_record_says_what_an_operator_needs() {
    let fake = named("fake");
    let policy = r#"routes = [{ name = "all", to = {} }]"#;
    let agent = one(&[(&fake, "")], policy);
    let onlooker = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    for mut caller in Caller::both_as(&agent, "web") {
        let kind = if caller.kind() == "Redis" { "redis" } else { "frames" };
        caller.call(DEMO, "get", &[("moa.env.pre", "1"), ("moa.stress", "1")]).by();
        let record = onlooker.record();
        assert_eq!(record["protocol"], kind, "{record}");
        assert_eq!(record["application"], "web");
        assert_eq!((&record["service"], &record["method"]), (&DEMO.into(), &"get".into()));
        assert_eq!(record["instance"], fake.address().to_string());
        assert_eq!((&record["code"], &record["by"], &record["reason"]), (&0.into(), &"service".into(), &"".into()));
        assert_eq!((&record["tries"], &record["retries"], &record["hedged"]), (&1.into(), &0.into(), &false.into()));
        assert_eq!((&record["rule"], &record["shadow"], &record["fault"]), (&"all".into(), &false.into(), &Value::Null));
        assert_eq!((&record["environment"], &record["stress"]), (&"pre".into(), &true.into()));
        assert!(record["request_bytes"].as_u64() > Some(50) && record["response_bytes"].as_u64() > Some(10), "{record}");
        assert!(record["unix_ms"].as_u64() > Some(1_600_000_000_000), "{record}");
        assert!(record["duration_us"].as_u64() >= record["try_us"].as_u64(), "{record}");
    }
}

#[test]
fn refusals_and_failures_are_shown_with_their_reasons() {
    let fake = named("fake");
    let policy = r#"access.rules = [{ name = "no-guests", when = { application = "guest" }, verdict = "deny" }]
        faults = [{ name = "drill", when = { method = "put" }, code = 700 }, { name = "slow", when = { method = "late" }, code = 701, delay_ms = 5 }]"#;
    let agent = one(&[(&fake, "")], policy);
    let onlooker = Onlooker::start(&agent, "service=/service/demo&errors=true");
    let mut caller = Caller::redis(&agent, "guest");
    until("the first record", || {
        caller.call(DEMO, "probe", &[]);
        onlooker.lines.recv_timeout(Duration::from_millis(5)).ok()
    });
    for kind in 0..2 {
        let mut guest = Caller::both_as(&agent, "guest").into_iter().nth(kind).expect("one of two");
        let mut web = Caller::both_as(&agent, "web").into_iter().nth(kind).expect("one of two");
        guest.call(DEMO, "get", &[]).error(506);
        let record = onlooker.record();
        assert_eq!((&record["code"], &record["by"], &record["tries"]), (&506.into(), &"mesh".into(), &0.into()), "{record}");
        assert!(record["reason"].as_str().is_some_and(|reason| reason.contains("no-guests")), "{record}");
        assert_eq!(record["instance"], Value::Null);
        // Not shown: it went well.
        web.call(DEMO, "get", &[]).by();
        web.call(DEMO, "put", &[]).error(700);
        let record = onlooker.record();
        assert_eq!((&record["code"], &record["by"]), (&700.into(), &"mesh".into()), "{record}");
        assert!(record["reason"].as_str().is_some_and(|reason| reason.contains("drill")), "{record}");
        web.call(DEMO, "late", &[]).error(701);
        let record = onlooker.record();
        assert_eq!((&record["code"], &record["fault"]), (&701.into(), &"slow".into()), "{record}");
        fake.script(|_| Answer::envelope(333, "broken", "null"));
        assert_eq!(web.call(DEMO, "get", &[]).code, 333);
        let record = onlooker.record();
        assert_eq!((&record["code"], &record["by"]), (&333.into(), &"service".into()), "{record}");
        moa_tests::fleet::says_name(&fake, "fake");
    }
    fake.down(End::Reset);
    let mut web = Caller::redis(&agent, "web");
    web.call(DEMO, "get", &[]).error(303);
    let record = onlooker.record();
    assert_eq!((&record["code"], &record["by"]), (&303.into(), &"mesh".into()), "{record}");
}

#[test]
fn retries_are_counted_in_the_record() {
    let fake = named("fake");
    let policy =
        "retry.tries_max = 3\nretry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [321]\nretry.backoff_ms = 1";
    let agent = one(&[(&fake, "")], policy);
    let onlooker = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    for mut caller in Caller::both(&agent) {
        let first = fake.counts().calls;
        fake.script(
            move |call| if call.number < first + 2 { Answer::envelope(321, "again", "null") } else { Answer::ok(&"fake".into()) },
        );
        caller.call(DEMO, "get", &[]).by();
        let record = onlooker.record();
        assert_eq!((&record["tries"], &record["retries"], &record["code"]), (&3.into(), &2.into(), &0.into()), "{record}");
    }
}

#[test]
fn copies_are_marked() {
    let (now, next) = (named("now"), named("next"));
    let policy = r#"shadows = [{ name = "copy", to = { environment = "next" } }]"#;
    let agent = one(&[(&now, ""), (&next, "environment = \"next\"")], policy);
    let onlooker = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    for mut caller in Caller::both(&agent) {
        caller.call(DEMO, "get", &[]).by();
        let mut records = [onlooker.record(), onlooker.record()];
        records.sort_by_key(|record| record["shadow"] == true);
        let [call, copy] = records;
        assert_eq!((&call["shadow"], &copy["shadow"]), (&false.into(), &true.into()), "{call} {copy}");
        assert_eq!(copy["instance"], next.address().to_string());
        assert_eq!((&copy["method"], &copy["rule"]), (&"get".into(), &"copy".into()));
    }
}

#[test]
fn the_slow_ones_alone() {
    let fake = named("fake");
    let agent = one(&[(&fake, "")], r#"faults = [{ name = "slow", when = { method = "set" }, delay_ms = 60 }]"#);
    let onlooker = Onlooker::start(&agent, "service=/service/demo&slower_than_ms=50");
    let mut caller = Caller::redis(&agent, "");
    until("the first record", || {
        caller.call(DEMO, "set", &[]).by();
        onlooker.lines.recv_timeout(Duration::from_millis(5)).ok()
    });
    caller.call(DEMO, "set", &[]).by();
    assert!(onlooker.record()["duration_us"].as_u64() > Some(50_000));
}

#[test]
fn two_may_look_on_and_each_sees_what_it_asked_for() {
    const OTHER: &str = "/service/other";
    let fake = named("fake");
    let agent = Agent::start(&format!("{ONE}{}{}", section(DEMO, &[(&fake, "")], ""), section(OTHER, &[(&fake, "")], "")));
    let of_demo = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    let of_all = Onlooker::start(&agent, "").ready(&agent, OTHER);
    let mut caller = Caller::frames(&agent, "");
    for service in [OTHER, DEMO, OTHER] {
        caller.call(service, "get", &[]).by();
    }
    assert_eq!(of_demo.record()["service"], DEMO);
    assert_eq!([of_all.record(), of_all.record(), of_all.record()].map(|record| record["service"].clone()), [OTHER, DEMO, OTHER]);
    drop(of_demo);
    caller.call(DEMO, "get", &[]).by();
    assert_eq!(of_all.record()["service"], DEMO);
}

#[test]
fn a_reader_that_does_not_read_learns_what_it_missed() {
    let fake = named("fake");
    let agent = one(&[(&fake, "")], "");
    let mut socket = ask(&agent, "service=/service/demo");
    // It has begun when its head is there.
    let mut head = [0; 12];
    socket.read_exact(&mut head).expect("a head");
    let onlooker = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    let calls = 40_000;
    let read = thread::spawn(move || {
        let mut seen = 0;
        while seen < calls {
            let line = onlooker.next();
            seen += if line["kind"] == "dropped" {
                line["count"].as_u64().expect("a count")
            } else {
                u64::from(line["method"] == "get")
            };
        }
        seen
    });
    let mut caller = Caller::frames(&agent, "");
    for _ in 0..calls {
        caller.call(DEMO, "get", &[]).by();
    }
    assert_eq!(read.join().expect("the other reader"), calls);
    // Now it reads: what waits, what it missed, and all that comes.
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let (mut shown, mut missed) = (0, 0);
    let mut lines = BufReader::new(socket).lines().map_while(Result::ok).filter(|line| line.starts_with('{'));
    while shown + missed < calls {
        caller.call(DEMO, "probe", &[]).by();
        let line: Value = serde_json::from_str(&lines.next().expect("a line")).expect("JSON");
        match line["kind"].as_str() {
            Some("dropped") => missed += line["count"].as_u64().expect("a count"),
            _ => shown += 1,
        }
    }
    assert!(missed > 0 && shown > 0, "{shown} shown, {missed} missed");
}

#[test]
fn the_verb_follows_until_it_has_seen_enough() {
    let fake = named("fake");
    let agent = one(&[(&fake, "")], "");
    let run_dir = agent.run_dir().display().to_string();
    for json in [true, false] {
        let mut command = Command::new(binary());
        command.args(["calls", "--service", DEMO, "--follow", "--count", "3", "--name", agent.name(), "--run-dir", &run_dir]);
        if json {
            command.arg("--json");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("moa calls");
        let mut caller = Caller::redis(&agent, "web");
        until_true("it to have seen enough", || {
            caller.call(DEMO, "get", &[]).by();
            child.try_wait().expect("a child").is_some()
        });
        assert!(child.wait().expect("a child").success());
        let mut text = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        let lines: Vec<_> = text.lines().collect();
        if json {
            assert_eq!(lines.len(), 3, "{text}");
            assert!(
                lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["application"] == "web")),
                "{text}"
            );
        } else {
            assert_eq!(lines.len(), 4, "{text}");
            assert!(lines[1..].iter().all(|line| line.contains(DEMO) && line.contains("get") && line.contains("web")), "{text}");
        }
    }
}

#[test]
fn calls_that_their_caller_gives_up_are_shown_then() {
    let fake = named("fake");
    let agent = one(&[(&fake, "")], "");
    let onlooker = Onlooker::start(&agent, "service=/service/demo").ready(&agent, DEMO);
    let gate = Gate::closed();
    let held = gate.clone();
    fake.script(move |_| Answer::ok(&"late".into()).at(&held));
    let Caller::Frames(mut peer) = Caller::frames(&agent, "web") else { unreachable!() };
    let stream = moa_tests::fleet::begin(&mut peer, DEMO, "get", &[]);
    fake.await_in_flight(1);
    peer.cancel(DEMO, stream);
    peer.expect_quiet();
    let record = onlooker.record();
    assert_eq!((&record["method"], &record["application"]), (&"get".into(), &"web".into()), "{record}");
    assert_eq!((&record["by"], &record["code"]), (&"nobody".into(), &0.into()), "{record}");
    assert!(record["reason"].as_str().is_some_and(|reason| reason.contains("gave up")), "{record}");
    // Its late answer is nobody's, and no record: the next one is of the next call.
    gate.open();
    Caller::frames(&agent, "web").call(DEMO, "next", &[]);
    assert_eq!(onlooker.record()["method"], "next");
}
