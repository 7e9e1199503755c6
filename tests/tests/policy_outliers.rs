//! Instances that are taken out of traffic for what their calls show: after what, for how long, how many at once, and what is
//! said of it.

use agent_common::frame::Flags;
use moa_tests::{
    Agent, Answer, DEMO, FakeMoa, Gate, Several,
    client::{Client, command},
    config, echo,
    fake::End,
    fleet::{Caller, Server},
    frames::{FramePeer, caller},
    machine::http,
    mesh::tunnel,
    several::{ONE, by, call_of},
    until, until_true,
};
use serde_json::Value;

/// Every instance has its turn, nothing is sent again, and nothing but what a test asks for takes one out.
const BASE: &str = "balance.policy = \"round-robin\"\nretry.tries_max = 1\n";
const ROWS: &str = "outlier.success_rate_deviations = 0\noutlier.consecutive = 3\noutlier.codes = [777]\n";
const HOUR: &str = "outlier.ejection_ms = 3600000\noutlier.ejection_max_ms = 3600000\n";

fn rows(more: &str) -> String {
    format!("{BASE}{ROWS}{HOUR}{more}\n")
}

/// The service's own failure.
fn failure() -> Answer {
    Answer::envelope(777, "no", "null")
}

fn ejected(several: &Several, server: usize) -> Value {
    several.instance(server)["ejected"].clone()
}

/// Which of them are out.
fn out(several: &Several) -> Vec<usize> {
    (0..several.fakes.len()).filter(|server| !ejected(several, *server).is_null()).collect()
}

/// Calls until a server is out, and returns what is said of it.
fn until_out(several: &Several, client: &mut Client, server: usize) -> Value {
    until(&format!("server {server} to be taken out"), || {
        (0..3 * several.fakes.len()).for_each(|_| drop(client.call(&call_of("get", "x"))));
        Some(several.instance(server)).filter(|instance| !instance["ejected"].is_null())
    })
}

/// Expects so many calls to be answered, none of them by these servers.
fn expect_without(several: &Several, client: &mut Client, servers: &[usize], calls: usize) {
    let before = several.calls();
    for _ in 0..calls {
        let answer = client.call(&call_of("get", "without"));
        assert_eq!(answer["ec"], 0, "{answer}");
    }
    let after = several.calls();
    servers.iter().for_each(|server| assert_eq!(after[*server], before[*server], "server {server} is out"));
}

fn expect_reason(instance: &Value, text: &str) {
    let reason = instance["ejected"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(text), "{instance}");
}

#[test]
fn after_failures_in_a_row() {
    let kinds = [
        ("a lost connection", by(0).cut(0).then(End::Reset)),
        ("a code of the list", failure()),
        ("no answer in time", Answer::silence()),
        ("what is no answer", Answer::raw(&b"?\r\n"[..])),
    ];
    for (kind, answer) in kinds {
        println!("{kind}");
        let several = Several::start(3, &rows("timeout_ms = 250"));
        several.script(move |server, _| if server == 0 { answer.clone() } else { by(server) });
        let mut client = several.connect();
        let instance = until_out(&several, &mut client, 0);
        expect_reason(&instance, "3 failures in a row");
        assert!(several.calls()[0] >= 3, "{:?}", several.calls());
        assert_eq!((&instance["healthy"], &instance["ejections"]), (&true.into(), &1.into()), "{instance}");
        expect_without(&several, &mut client, &[0], 30);
        assert_eq!(out(&several), [0]);
    }
}

/// The callers notice nothing: what fails at one instance is answered by another.
#[test]
fn after_tries_that_were_late_though_others_answered() {
    let more =
        "retry.tries_max = 2\nretry.methods = [\"get\"]\nretry.budget_per_s = 1000\ntry_timeout_ms = 250\nretry.backoff_ms = 0";
    let several = Several::start(3, &rows(more).replace("retry.tries_max = 1\n", ""));
    several.script(|server, _| if server == 0 { Answer::silence() } else { by(server) });
    let mut client = several.connect();
    let instance = until("server 0 to be taken out", || {
        assert_eq!(client.call(&call_of("get", "x"))["ec"], 0);
        Some(several.instance(0)).filter(|instance| !instance["ejected"].is_null())
    });
    expect_reason(&instance, "3 failures in a row");
    expect_without(&several, &mut client, &[0], 30);
}

#[test]
fn neither_after_failures_with_answers_between_nor_after_other_codes() {
    let several = Several::start(4, &rows(""));
    several.script(|server, call| match server {
        // Two of three.
        0 if call.number % 3 > 0 => failure(),
        1 => Answer::envelope(778, "no", "null"),
        2 if call.method == "fail" => failure(),
        _ => by(server),
    });
    let mut client = several.connect();
    (0..120).for_each(|_| drop(client.call(&echo("x"))));
    // Whoever watches has looked: a third one goes.
    until_true("server 2 to be taken out", || {
        (0..12).for_each(|_| drop(client.call(&call_of("fail", "x"))));
        !ejected(&several, 2).is_null()
    });
    assert_eq!(out(&several), [2]);
    let calls = several.calls();
    assert!(calls[0] > 30 && calls[1] > 30, "{calls:?}");
}

#[test]
fn an_application_that_has_dialled_in_goes_too() {
    let agent = Agent::start(&format!("{ONE}[defaults]\n{}", rows("")));
    let [well, ill] = ["well", "ill"].map(|name| Server::start(&agent, name, &[DEMO]));
    ill.answer(777);
    let instance = || -> Option<Value> {
        let services = agent.json(&["services", DEMO]);
        services[0]["instances"].as_array()?.iter().find(|one| one["address"] == "ill ill-1").cloned()
    };
    for mut caller in Caller::both(&agent) {
        let gone = until("it to be taken out", || {
            (0..6).for_each(|_| drop(caller.call(DEMO, "get", &[])));
            instance().filter(|instance| !instance["ejected"].is_null())
        });
        expect_reason(&gone, "3 failures in a row");
        let before = ill.calls().len();
        caller.expect("well", DEMO, "get", &[]);
        assert_eq!(ill.calls().len(), before);
    }
    assert!(well.calls().len() >= 16);
}

#[test]
fn for_a_success_rate_below_that_of_the_others() {
    // Never three in a row.
    let rate = "outlier.consecutive = 3\noutlier.codes = [777]\noutlier.interval_ms = 1000\noutlier.calls_min = 50\n";
    let several = Several::start(6, &format!("{BASE}{HOUR}{rate}"));
    several.script(|server, call| if server == 0 && call.number % 3 > 0 { failure() } else { by(server) });
    let mut client = several.connect();
    let instance = until_out(&several, &mut client, 0);
    expect_reason(&instance, "success rate 3");
    expect_reason(&instance, "on average");
    expect_without(&several, &mut client, &[0], 60);
    assert_eq!(out(&several), [0]);
}

#[test]
fn for_a_latency_above_that_of_the_others() {
    let late = "outlier.consecutive = 0\noutlier.success_rate_deviations = 0\noutlier.latency_percent = 300\n\
                outlier.interval_ms = 500\noutlier.calls_min = 3\noutlier.ejected_max_percent = 99\nretry.tries_max = 1\n";
    let several = Several::start(6, &format!("balance.policy = \"round-robin\"\n{HOUR}{late}"));
    let slow = std::time::Duration::from_millis(60);
    several.script(move |server, _| if server == 0 { by(0).after(slow) } else { by(server) });
    let mut client = several.connect();
    let instance = until_out(&several, &mut client, 0);
    expect_reason(&instance, "mean latency");
    expect_reason(&instance, "against a median of");
    expect_without(&several, &mut client, &[0], 30);
}

/// For how long the agent says that it has taken an instance out, each time.
fn times(agent: &Agent, instance: &FakeMoa) -> Vec<u64> {
    let name = instance.address().to_string();
    let lines = agent.log();
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["instance"] == name.as_str()).filter_map(|event| event["for_ms"].as_u64()).collect()
}

#[test]
fn it_comes_back_after_its_time_and_goes_for_longer_each_time() {
    let time = "outlier.ejection_ms = 800\noutlier.ejection_max_ms = 2000";
    let several = Several::start(3, &format!("{BASE}{ROWS}{time}"));
    several.script(|server, _| if server == 0 { failure() } else { by(server) });
    let mut client = several.connect();
    for n in 1..=4 {
        // Calls go on meanwhile: it fails again as soon as it is back.
        let instance = until("it to be taken out once more", || {
            (0..9).for_each(|_| drop(client.call(&echo("x"))));
            Some(several.instance(0)).filter(|instance| instance["ejections"] == n && !instance["ejected"].is_null())
        });
        let left = instance["ejected"]["for_ms"].as_u64().expect("a time");
        assert!(left <= [800, 1600, 2000, 2000][n - 1], "{instance}");
    }
    assert_eq!(times(&several.agent, &several.fakes[0]), [800, 1600, 2000, 2000]);
    // Well again, it gets its share again.
    several.script(|server, _| by(server));
    until_true("it to be back", || ejected(&several, 0).is_null());
    let before = several.calls()[0];
    (0..9).for_each(|_| assert_eq!(client.call(&echo("x"))["ec"], 0));
    assert_eq!(several.calls()[0] - before, 3);
}

#[test]
fn only_a_part_of_them_goes() {
    // 34 % of six, all of them but for the last, and less than one.
    for (percent, most) in [(34, 2), (99, 5), (0, 1)] {
        let several = Several::start(6, &rows(&format!("outlier.ejected_max_percent = {percent}\nbalance.panic_percent = 0")));
        several.script(|_, _| failure());
        let mut client = several.connect();
        until_true("as many as may to be out", || {
            (0..18).for_each(|_| drop(client.call(&echo("x"))));
            out(&several).len() >= most
        });
        let gone = out(&several);
        for _ in 0..10 {
            let before = several.calls();
            (0..18).for_each(|_| drop(client.call(&echo("x"))));
            let after = several.calls();
            let unused = (0..6).filter(|server| before[*server] == after[*server]);
            assert_eq!(unused.collect::<Vec<_>>(), gone, "at {percent} %");
        }
        assert_eq!(out(&several), gone);
        let routes = several.agent.json(&["routes", DEMO]);
        assert_eq!((&routes[0]["ejected"], &routes[0]["instances"]), (&most.into(), &6.into()), "{routes}");
    }
}

#[test]
fn with_all_of_them_out_all_are_used_or_none() {
    let policy = |panic: u32| rows(&format!("outlier.ejected_max_percent = 100\nbalance.panic_percent = {panic}"));
    let several = Several::start(3, &policy(50));
    several.script(|_, _| failure());
    let mut client = several.connect();
    until_true("all to be out", || {
        (0..9).for_each(|_| assert_eq!(client.call(&echo("x"))["ec"], 777, "as too few can be used, all are"));
        out(&several).len() == 3
    });
    several.reload(&policy(0));
    let answer = client.call(&echo("x"));
    assert_eq!(answer["ec"], 303, "{answer}");
    assert!(answer["em"].as_str().is_some_and(|text| text.contains("taken out of traffic: 3 failures in a row")), "{answer}");
}

/// A service besides [`DEMO`], with its section.
const OTHER: &str = "/service/other";

fn two_services(demo: &[&FakeMoa], other: &[&FakeMoa], [demo_policy, other_policy]: [&str; 2]) -> String {
    let section = |uri: &str, fakes: &[&FakeMoa], policy: &str| {
        let addresses: Vec<_> = fakes.iter().map(|fake| fake.address()).collect();
        config::service(uri, &addresses, &format!("{}\n{policy}", config::NO_HEALTH_CHECK))
    };
    format!("{ONE}{}{}", section(DEMO, demo, demo_policy), section(OTHER, other, other_policy))
}

/// Calls of the other service until the server is out.
fn until_other_out(agent: &Agent, client: &mut Client, fake: &FakeMoa) {
    until_true("an instance of the other service to be taken out", || {
        let call = moa_tests::envelope(OTHER, "echo", "\"x\"");
        (0..9).for_each(|_| drop(client.call(&call)));
        agent.instance(OTHER, fake.address()).is_some_and(|instance| !instance["ejected"].is_null())
    });
}

#[test]
fn the_only_one_stays() {
    let [only, well, ill] = [(); 3].map(|()| FakeMoa::start());
    [&only, &ill].iter().for_each(|fake| fake.script(|_| failure()));
    let agent = Agent::start(&two_services(&[&only], &[&well, &ill], [&rows(""), &rows("")]));
    let mut client = agent.connect();
    for _ in 0..50 {
        assert_eq!(client.call(&echo("x"))["ec"], 777);
    }
    // Both are watched by the same.
    until_other_out(&agent, &mut client, &ill);
    assert_eq!(agent.instance(DEMO, only.address()).expect("it")["ejected"], Value::Null);
    assert_eq!(client.call(&echo("x"))["ec"], 777);
    assert_eq!(only.counts().calls, 51);
}

#[test]
fn a_health_check_that_finds_it_down_and_up_again_brings_it_back() {
    let several = Several::start(3, &rows(config::QUICK_HEALTH_CHECK));
    several.script(|server, _| if server == 0 { failure() } else { by(server) });
    let mut client = several.connect();
    until_out(&several, &mut client, 0);
    several.script(|server, _| by(server));
    let address = several.fakes[0].address();
    several.fakes[0].answer_pings(false);
    several.agent.await_health(DEMO, address, false);
    assert!(!ejected(&several, 0).is_null(), "it is still out");
    several.fakes[0].answer_pings(true);
    several.agent.await_health(DEMO, address, true);
    until_true("it to be back", || ejected(&several, 0).is_null());
    let before = several.calls()[0];
    (0..9).for_each(|_| assert_eq!(client.call(&echo("x"))["ec"], 0));
    assert_eq!(several.calls()[0] - before, 3);
}

#[test]
fn a_reload_keeps_it_out_wherever_it_stands_then() {
    let several = Several::start(4, &rows(""));
    several.script(|server, _| if server == 1 { failure() } else { by(server) });
    let mut client = several.connect();
    let before = until_out(&several, &mut client, 1);
    for list in [&[3, 2, 1, 0][..], &[1, 0], &[0, 3, 1], &[0, 1, 2, 3]] {
        several.reload_with(list, &rows("timeout_ms = 3000"));
        expect_without(&several, &mut client, &[1], 20);
        let after = several.instance(1);
        assert_eq!((&after["ejected"]["reason"], &after["ejections"]), (&before["ejected"]["reason"], &1.into()), "{after}");
    }
    // Alone it is used; one that is taken in again is new.
    several.reload_with(&[1], &rows(""));
    until_true("it to be used", || client.call(&echo("x"))["ec"] == 777 && ejected(&several, 1).is_null());
}

#[test]
fn a_reload_that_turns_it_off_brings_them_back() {
    let [well, ill, other_well, other_ill] = [(); 4].map(|()| FakeMoa::start());
    [&ill, &other_ill].iter().for_each(|fake| fake.script(|_| failure()));
    let text = |policies: [&str; 2]| two_services(&[&well, &ill], &[&other_well, &other_ill], policies);
    let agent = Agent::start(&text([&rows(""), &rows("")]));
    let mut client = agent.connect();
    let is_out = |uri: &str, fake: &FakeMoa| !agent.instance(uri, fake.address()).expect("it")["ejected"].is_null();
    until_true("it to be taken out", || {
        (0..9).for_each(|_| drop(client.call(&echo("x"))));
        is_out(DEMO, &ill)
    });
    until_other_out(&agent, &mut client, &other_ill);
    // What one kind of fault has taken out stays out while another is looked for.
    let half = rows("").replace("consecutive = 3", "consecutive = 0").replace("deviations = 0", "deviations = 190");
    let off = rows("").replace("consecutive = 3", "consecutive = 0");
    agent.reload(&text([&half, &off]));
    until_true("the other one to be back", || !is_out(OTHER, &other_ill));
    assert!(is_out(DEMO, &ill));
    agent.reload(&text([&off, &off]));
    until_true("it to be back", || !is_out(DEMO, &ill));
    let before = ill.counts().calls;
    (0..20).for_each(|_| drop(client.call(&echo("x"))));
    assert_eq!(ill.counts().calls - before, 10, "and stays");
    assert!(!is_out(DEMO, &ill));
}

#[test]
fn it_is_shown_until_when_it_is_out_and_why() {
    let several = Several::start(3, &rows(""));
    several.script(|server, _| if server == 2 { failure() } else { by(server) });
    let mut client = several.connect();
    let instance = until_out(&several, &mut client, 2);
    let left = instance["ejected"]["for_ms"].as_u64().expect("a time");
    assert!((3_500_000..=3_600_000).contains(&left), "{instance}");
    let services = several.agent.json(&["services", DEMO]);
    let shares: Vec<_> = (0..3).map(|nth| services[0]["instances"][nth]["share"]["share"].as_f64()).collect();
    assert_eq!(shares, [Some(0.5), Some(0.5), Some(0.0)]);
    let shown = several.agent.verb(&["services", DEMO]).stdout;
    let address = several.fakes[2].address().to_string();
    let line = shown.lines().find(|line| line.contains(&address)).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains("out") && shown.contains("failures in a row"), "{shown}");
    let explained = several.agent.json(&["routes", "explain", DEMO]);
    let candidates = explained["ways"][0]["candidates"].as_array().expect("a list");
    let why = candidates.iter().find(|one| one["address"] == address.as_str()).map(|one| &one["why"]);
    assert!(why.and_then(Value::as_str).is_some_and(|why| why.contains("s more: 3 failures in a row")), "{explained}");
    let (_, metrics) = http(several.agent.metrics_address(), "/metrics");
    for (name, value) in [("moa_instance_ejected", "1"), ("moa_instance_ejections_total", "1")] {
        let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(&address));
        assert!(line.is_some_and(|line| line.ends_with(&format!(" {value}"))), "{name}: {line:?}");
    }
}

/// An agent with two servers and another agent, which has a third one and takes one call at a time.
struct Refusing {
    near: Agent,
    far: Agent,
    servers: [FakeMoa; 2],
    behind: FakeMoa,
}

impl Refusing {
    fn start(policy: &str) -> Self {
        let behind = FakeMoa::start();
        let one_at_a_time = format!("{}\nbreaker.service_calls_max = 1", config::NO_HEALTH_CHECK);
        let far = Agent::start(&config::service(DEMO, &[behind.address()], &one_at_a_time));
        let servers = [(); 2].map(|()| FakeMoa::start());
        let addresses = servers.each_ref().map(FakeMoa::address);
        let policy = format!("{}\nlocality.failover = false\n{policy}", config::NO_HEALTH_CHECK);
        let section = config::served_by(DEMO, &addresses, &["far"], &policy);
        let near = Agent::start(&format!("{ONE}{}{section}", config::peer("far", far.tunnel_address())));
        until_true("the tunnel to be open", || tunnel(&near, "far").0);
        Self { near, far, servers, behind }
    }

    /// Has the other agent refuse all further calls until the gate is opened.
    fn fill(&self) -> (Gate, Client) {
        let gate = Gate::closed();
        let held = gate.clone();
        self.behind.script(move |_| by(2).at(&held));
        let mut client = self.far.connect();
        client.send(command(&["GET", &echo("held")]));
        self.behind.await_in_flight(1);
        (gate, client)
    }

    /// What the agent near says of the other one.
    fn other(&self) -> Value {
        let services = self.near.json(&["services", DEMO]);
        let instances = services[0]["instances"].as_array().expect("a list");
        instances.iter().find(|instance| instance["address"] == "agent far").expect("the other agent").clone()
    }
}

#[test]
fn what_another_agent_refuses_does_not_take_it_out() {
    let rows = rows("outlier.ejected_max_percent = 67\nretry.on = []").replace("[777]", "[504, 777]");
    let bed = Refusing::start(&rows);
    let (gate, mut held) = bed.fill();
    let mut redis = bed.near.connect();
    let mut frames = FramePeer::connect(bed.near.address(), &caller());
    let mut refused = 0;
    for _ in 0..100 {
        refused += usize::from(redis.call(&echo("x"))["ec"] == 504);
        let got = frames.call(DEMO, echo("x").as_bytes());
        refused += usize::from(got.header.word == 504 && got.has(Flags::NOT_EXECUTED));
    }
    assert!(refused >= 60, "{refused} of 200 calls to three");
    // Whoever watches has looked: a server goes.
    bed.servers[1].script(|_| failure());
    until_true("the server to be taken out", || {
        (0..9).for_each(|_| drop(redis.call(&echo("x"))));
        !bed.near.instance(DEMO, bed.servers[1].address()).expect("it")["ejected"].is_null()
    });
    assert_eq!(bed.other()["ejected"], Value::Null, "{}", bed.other());
    assert_eq!(bed.behind.counts().calls, 1);
    // The same code, of the service itself.
    gate.open();
    held.read();
    bed.behind.script(|_| Answer::envelope(504, "no", "null"));
    let other = until("the other agent to be taken out", || {
        (0..6).for_each(|_| drop(redis.call(&echo("x"))));
        Some(bed.other()).filter(|other| !other["ejected"].is_null())
    });
    expect_reason(&other, "3 failures in a row");
    assert!(bed.behind.counts().calls >= 4, "{:?}", bed.behind.counts());
}

/// Who refuses at once is not quick.
#[test]
fn another_agent_that_refuses_gets_little() {
    for again in ["retry.budget_percent = 1000\nretry.budget_per_s = 1000\nretry.backoff_ms = 0", "retry.on = []"] {
        let bed = Refusing::start(&format!("balance.decay_ms = 3600000\n{again}"));
        let (_gate, _held) = bed.fill();
        let mut redis = bed.near.connect();
        let refused = (0..400).filter(|_| redis.call(&echo("x"))["ec"] == 504).count();
        let stats = bed.other()["stats"].clone();
        let again = stats["retries"].as_u64().expect("a count");
        assert!(refused < 40 && again < 40, "{refused} refused, {again} sent again: {stats}");
        assert!(refused > 0 || again > 0, "it was tried");
    }
}
