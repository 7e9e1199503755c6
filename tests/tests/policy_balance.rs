//! Which instance a call goes to: each policy of the balancer, near and far ones, too few of them, and ones that come and go.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use moa_tests::{
    Agent, Answer, Client, DEMO, FakeMoa, Gate, Several,
    client::command,
    config, echo, envelope,
    load::Load,
    mesh::tunnel,
    seed,
    several::{ONE, by, call_of},
    until_true,
};
use rand::{RngExt, seq::SliceRandom};
use serde_json::Value;

/// Nothing is taken out of traffic for failing, and nothing is sent again.
const KEPT: &str = "outlier.consecutive = 0\noutlier.success_rate_deviations = 0\nretry.tries_max = 1\n";
const DAY: u64 = 86_400_000;

fn policy(balance: &str, more: &str) -> String {
    format!("{KEPT}balance.policy = \"{balance}\"\n{more}\n")
}

/// The same, with health checks that find out soon.
fn checked(balance: &str, more: &str) -> String {
    policy(balance, &format!("{}\n{more}", config::QUICK_HEALTH_CHECK))
}

/// Servers that say which one they are.
fn servers(count: usize) -> Vec<FakeMoa> {
    let fakes: Vec<_> = (0..count).map(|_| FakeMoa::start()).collect();
    for (number, fake) in fakes.iter().enumerate() {
        fake.script(move |_| by(number));
    }
    fakes
}

/// The section of the service whose instances have these further keys.
fn section<'a>(instances: impl IntoIterator<Item = (&'a FakeMoa, String)>, policy: &str) -> String {
    let instances: Vec<_> =
        instances.into_iter().map(|(fake, keys)| format!("{{ address = \"{}\"{keys} }}", fake.address())).collect();
    let health = if policy.contains("health") { "" } else { config::NO_HEALTH_CHECK };
    format!("[services.\"{DEMO}\"]\ninstances = [{}]\n{health}\n{policy}\n", instances.join(", "))
}

/// An agent for servers of these weights.
fn weighted(fakes: &[FakeMoa], weights: &[u32], policy: &str) -> Agent {
    let instances = fakes.iter().zip(weights).map(|(fake, weight)| (fake, format!(", weight = {weight}")));
    Agent::start(&format!("{ONE}{}", section(instances, policy)))
}

/// Which server answers.
fn ask(client: &mut Client, json: &str) -> usize {
    let answer = client.call(json);
    assert_eq!(answer["ec"], 0, "{answer}");
    usize::try_from(answer["result"].as_u64().expect("a server")).expect("a server")
}

/// So many calls one after another, and how many each server answers.
fn tally(client: &mut Client, servers: usize, calls: usize) -> Vec<usize> {
    let mut sums = vec![0; servers];
    (0..calls).for_each(|_| sums[ask(client, &echo("x"))] += 1);
    sums
}

/// A call with a hash key.
fn keyed(key: &str) -> String {
    format!(r#"{{"action":"{DEMO}","params":{{"m":"get","args":["x"]}},"props":{{"hashid":"{key}"}}}}"#)
}

/// Where each key goes.
fn owners(client: &mut Client, keys: &[String]) -> Vec<usize> {
    keys.iter().map(|key| ask(client, &keyed(key))).collect()
}

/// Keys, other ones in each run.
fn keys(test: &str, count: usize) -> Vec<String> {
    let mut rng = seed::rng(test);
    (0..count).map(|_| format!("key-{:x}", rng.random::<u64>())).collect()
}

/// Expects that so many of the calls are within six standard deviations of this share: fewer than one in ten million are not.
fn expect_share(count: usize, calls: usize, share: f64) {
    let (count, calls) = (count as f64, calls as f64);
    println!("{count} of {calls} calls for a share of {share}");
    let most = 6.0 * (calls * share * (1.0 - share)).sqrt() + 1.0;
    assert!((count - calls * share).abs() <= most, "{count} of {calls} calls for a share of {share}");
}

/// The instances of the service by the agent's own word, in the order of its list.
fn instances(agent: &Agent) -> Vec<Value> {
    agent.json(&["services", DEMO])[0]["instances"].as_array().expect("a list").clone()
}

/// The share of each of them.
fn shares(agent: &Agent) -> Vec<f64> {
    instances(agent).iter().map(|instance| instance["share"]["share"].as_f64().expect("a share")).collect()
}

/// What each of them weighs now.
fn weights(agent: &Agent) -> Vec<f64> {
    instances(agent).iter().map(|instance| instance["share"]["weight_now"].as_f64().expect("a weight")).collect()
}

fn expect_shares(agent: &Agent, expected: &[f64]) {
    let shares = shares(agent);
    let close = shares.iter().zip(expected).all(|(is, should)| (is - should).abs() < 1e-6);
    assert!(close && shares.len() == expected.len(), "{shares:?} and not {expected:?}");
}

#[test]
fn round_robin_is_exact() {
    let fakes = servers(4);
    let agent = weighted(&fakes, &[100; 4], &policy("round-robin", ""));
    let mut client = agent.connect();
    let first: Vec<_> = (0..4).map(|_| ask(&mut client, &echo("x"))).collect();
    let mut sorted = first.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 3], "each once in a round");
    for _ in 0..10 {
        // Whoever calls: the turn is the worker's.
        let again: Vec<_> = (0..4).map(|_| ask(&mut agent.connect(), &echo("x"))).collect();
        assert_eq!(again, first);
    }
}

#[test]
fn round_robin_is_exact_by_weight() {
    let fakes = servers(3);
    let agent = weighted(&fakes, &[50, 150, 300], &policy("round-robin", ""));
    expect_shares(&agent, &[0.1, 0.3, 0.6]);
    let mut client = agent.connect();
    let mut sums = vec![0; 3];
    for round in 1..=20 {
        for (sum, more) in sums.iter_mut().zip(tally(&mut client, 3, 10)) {
            *sum += more;
        }
        for (sum, share) in sums.iter().zip([1, 3, 6]) {
            assert!(sum.abs_diff(share * round) <= 1, "{sums:?} after {round} rounds");
        }
    }
}

#[test]
fn chance_goes_by_weight() {
    let fakes = servers(3);
    for (weights, expected) in [([100; 3], [1.0 / 3.0; 3]), ([10, 30, 160], [0.05, 0.15, 0.8])] {
        let agent = weighted(&fakes, &weights, &policy("random", ""));
        expect_shares(&agent, &expected);
        let sums = tally(&mut agent.connect(), 3, 2_000);
        sums.iter().zip(expected).for_each(|(sum, share)| expect_share(*sum, 2_000, share));
    }
}

#[test]
fn the_one_with_the_fewest_calls_in_flight_gets_the_next() {
    let several = Several::start(3, &policy("least-request", ""));
    let gate = Gate::closed();
    let held = gate.clone();
    several.script(move |server, call| if call.method == "hold" { by(server).at(&held) } else { by(server) });
    // Two are busy.
    let mut busy = [several.connect(), several.connect()];
    for (nth, client) in busy.iter_mut().enumerate() {
        client.send(command(&["GET", &call_of("hold", "held")]));
        until_true("the call to be held", || several.fakes.iter().map(|fake| fake.counts().in_flight).sum::<usize>() == nth + 1);
    }
    let held = several.seen("\"hold\"");
    assert!(held.iter().all(|calls| *calls <= 1), "{held:?}");
    let free = held.iter().position(|calls| *calls == 0).expect("one that is free");
    let mut client = several.connect();
    (0..50).for_each(|_| assert_eq!(ask(&mut client, &echo("x")), free));
    gate.open();
    busy.iter_mut().for_each(|client| drop(client.read()));
    several.await_idle();
    let sums = tally(&mut client, 3, 300);
    assert!(sums.iter().all(|calls| *calls > 50), "all are used again: {sums:?}");
}

#[test]
fn a_slow_one_gets_little() {
    let several = Several::start(3, &policy("peak-ewma", "balance.decay_ms = 3600000"));
    let slow = Duration::from_millis(300);
    several.script(move |server, _| if server == 0 { by(0).after(slow) } else { by(server) });
    let sums = tally(&mut several.connect(), 3, 400);
    assert!(sums[0] >= 1 && sums[0] < 40 && sums[1] > 40 && sums[2] > 40, "{sums:?}");
    // Nor does one that fails fast look like a fast one.
    several
        .script(|server, _| if server == 1 { Answer::bulk(b"no").cut(0).then(moa_tests::fake::End::Reset) } else { by(server) });
    let before = several.calls();
    let mut client = several.connect();
    for _ in 0..400 {
        client.get(&echo("x"));
    }
    let failing = several.calls()[1] - before[1];
    assert!(failing < 40, "{failing} of 400");
}

/// Stops those who look, even if the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// While the agent does not run all answers are late, whoever has given them.
#[test]
fn an_agent_that_stalls_still_knows_who_is_slow() {
    let several = Several::start(4, &policy("peak-ewma", "balance.decay_ms = 3600000"));
    let slow = Duration::from_millis(150);
    several.script(move |server, _| if server == 0 { by(0).after(slow) } else { by(server) });
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let calls = || {
        let mut client = several.connect();
        while !stop.load(Relaxed) {
            ask(&mut client, &echo("x"));
            done.fetch_add(1, Relaxed);
        }
    };
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(calls)));
        let _stops = Stops(&stop);
        let go_on = |stalls: usize| {
            let before = done.load(Relaxed);
            until_true(&format!("calls after {stalls} stalls"), || done.load(Relaxed) >= before + 100);
        };
        go_on(0);
        let is_known = || several.calls()[0] > 0 && several.fakes[0].counts().in_flight == 0;
        for stalls in 1..=8 {
            // So that only others can look slow for the stall.
            until_true("the slow one to be known, and idle", is_known);
            several.agent.freeze_all();
            thread::sleep(2 * slow);
            several.agent.thaw_all();
            go_on(stalls);
        }
    });
    let sums = tally(&mut several.connect(), 4, 400);
    println!("{sums:?} after {:?}", several.calls());
    assert!(sums[0] < 40, "{sums:?}");
}

#[test]
fn a_key_goes_to_the_same_instance_from_every_agent() {
    let fakes = servers(5);
    let keys = keys("a_key_goes_to_the_same_instance_from_every_agent", 200);
    let mut order: Vec<_> = (0..5).collect();
    order.shuffle(&mut seed::rng("the order"));
    println!("{order:?}");
    let agents = [vec![0, 1, 2, 3, 4], order].map(|order| {
        let list = order.iter().map(|server| (&fakes[*server], String::new()));
        Agent::start(&section(list, &policy("ketama", "")))
    });
    let [one, other] = [0, 1].map(|nth| owners(&mut agents[nth].connect(), &keys));
    assert_eq!(one, other);
    assert!((0..5).all(|server| one.contains(&server)), "every server has keys: {one:?}");
    // And on every worker.
    for _ in 0..4 {
        assert_eq!(owners(&mut agents[0].connect(), &keys[..20]), one[..20]);
    }
    // Without a key by chance.
    let sums = tally(&mut agents[0].connect(), 5, 1_000);
    sums.iter().for_each(|sum| expect_share(*sum, 1_000, 0.2));
}

#[test]
fn a_key_keeps_its_instance_while_another_is_out_and_comes_back_to_its_own() {
    let fakes = servers(4);
    let list = fakes.iter().map(|fake| (fake, String::new()));
    let agent = Agent::start(&section(list, &checked("ketama", "")));
    let keys = keys("a_key_keeps_its_instance", 100);
    let mut client = agent.connect();
    let explained = |key: &str| {
        let picked = agent.json(&["routes", "explain", DEMO, "--key", key])["ways"][0]["picked"].clone();
        fakes.iter().position(|fake| picked == fake.address().to_string()).unwrap_or_else(|| panic!("{picked} is no server"))
    };
    let before = owners(&mut client, &keys);
    for key in &keys[..10] {
        assert_eq!(explained(key), ask(&mut client, &keyed(key)));
    }
    fakes[2].answer_pings(false);
    agent.await_health(DEMO, fakes[2].address(), false);
    let during = owners(&mut client, &keys);
    for (key, (before, during)) in keys.iter().zip(before.iter().zip(&during)) {
        assert!(if *before == 2 { *during != 2 } else { during == before }, "{key}: from {before} to {during}");
    }
    let moved: Vec<_> = keys.iter().zip(&before).filter(|(_, owner)| **owner == 2).map(|(key, _)| key).take(5).collect();
    for key in moved {
        assert_eq!(explained(key), ask(&mut client, &keyed(key)), "{key}");
    }
    fakes[2].answer_pings(true);
    agent.await_health(DEMO, fakes[2].address(), true);
    assert_eq!(owners(&mut client, &keys), before);
}

/// What counts is the policy of whoever gets the call.
#[test]
fn a_group_that_calls_are_sent_to_picks_by_its_own_policy() {
    let fakes = servers(6);
    let (own, blue) = fakes.split_at(1);
    let rule = "routes = [{ name = \"blue\", when = { method = \"get\" }, to = { group = \"blue\" } }]\n\
                shadows = [{ name = \"copies\", when = { method = \"copied\" }, to = { group = \"blue\" } }]";
    let list = blue.iter().map(|fake| (fake, String::new()));
    let grouped = section(list, &policy("ketama", "")).replace(DEMO, &format!("{DEMO}#blue"));
    let own = section([(&own[0], String::new())], &policy("round-robin", rule));
    let agent = Agent::start(&format!("{ONE}{own}{grouped}"));
    let keys = keys("a_group_that_calls_are_sent_to_picks_by_its_own_policy", 60);
    let mut client = agent.connect();
    let owners: Vec<_> = owners(&mut client, &keys);
    assert!(!owners.contains(&0) && owners.iter().any(|owner| *owner != owners[0]), "{owners:?}");
    for (key, owner) in keys.iter().zip(&owners) {
        assert_eq!(ask(&mut client, &keyed(key)), *owner, "{key}");
    }
    for (key, owner) in keys.iter().zip(&owners).take(5) {
        let explained = agent.json(&["routes", "explain", DEMO, "--method", "get", "--key", key]);
        assert_eq!(explained["ways"][0]["picked"], fakes[*owner].address().to_string(), "{explained}");
    }
    let before: Vec<_> = fakes.iter().map(|fake| fake.counts().calls).collect();
    for (nth, key) in keys.iter().enumerate() {
        assert_eq!(ask(&mut client, &keyed(key).replace("\"get\"", "\"copied\"")), 0);
        let copies = || (1..6).map(|server| fakes[server].counts().calls - before[server]).sum::<usize>();
        until_true("its copy", || copies() == nth + 1);
    }
    for server in 1..6 {
        let owned = owners.iter().filter(|owner| **owner == server).count();
        assert_eq!(fakes[server].counts().calls - before[server], owned, "copies at server {server}");
    }
}

/// An agent in a zone, with one server here and other agents in its zone, in its data centre and elsewhere.
struct Places {
    near: Agent,
    far: Vec<Agent>,
    fakes: Vec<FakeMoa>,
}

impl Places {
    /// With so many servers here; the last three are the far ones.
    fn start(here: usize, policy: &str) -> Self {
        let fakes = servers(here + 3);
        let far: Vec<_> = fakes[here..]
            .iter()
            .map(|fake| Agent::start(&config::service(DEMO, &[fake.address()], config::NO_HEALTH_CHECK)))
            .collect();
        let mut text = format!("{ONE}zone = \"a\"\ndata_centre = \"one\"\n");
        for ((agent, name), (zone, centre)) in far.iter().zip(NAMES).zip([("a", "one"), ("b", "one"), ("c", "two")]) {
            text += &config::peer(name, agent.tunnel_address());
            text += &format!("zone = \"{zone}\"\ndata_centre = \"{centre}\"\n");
        }
        let local: Vec<_> = fakes[..here].iter().map(FakeMoa::address).collect();
        let near = Agent::start(&format!("{text}{}", config::served_by(DEMO, &local, &NAMES, policy)));
        let places = Self { near, far, fakes };
        NAMES.iter().for_each(|name| places.await_tunnel(name, true));
        places
    }

    fn await_tunnel(&self, name: &str, up: bool) {
        until_true("the tunnel to be as it should", || tunnel(&self.near, name).0 == up);
    }

    fn tally(&self, calls: usize) -> Vec<usize> {
        tally(&mut self.near.connect(), self.fakes.len(), calls)
    }

    /// A server here is unhealthy.
    fn ail(&self, server: usize) {
        self.fakes[server].answer_pings(false);
        self.near.await_health(DEMO, self.fakes[server].address(), false);
    }
}

/// In the order of lists.
const NAMES: [&str; 3] = ["a-same-zone", "b-same-centre", "c-elsewhere"];

#[test]
fn the_nearest_come_first() {
    let mut places = Places::start(1, &checked("round-robin", "balance.panic_percent = 0"));
    let levels: Vec<_> = instances(&places.near).iter().map(|instance| instance["level"].clone()).collect();
    assert_eq!(levels, ["node", "zone", "data_centre", "elsewhere"]);
    assert_eq!(places.tally(50), [50, 0, 0, 0]);
    places.ail(0);
    expect_shares(&places.near, &[0.0, 1.0, 0.0, 0.0]);
    assert_eq!(places.tally(50), [0, 50, 0, 0]);
    places.far[0].stop();
    places.await_tunnel(NAMES[0], false);
    assert_eq!(places.tally(50), [0, 0, 50, 0]);
    places.far[1].stop();
    places.await_tunnel(NAMES[1], false);
    assert_eq!(places.tally(50), [0, 0, 0, 50]);
    places.fakes[0].answer_pings(true);
    places.near.await_health(DEMO, places.fakes[0].address(), true);
    assert_eq!(places.tally(50), [50, 0, 0, 0]);
}

#[test]
fn what_part_of_a_level_cannot_carry_goes_to_the_next() {
    let places = Places::start(4, &checked("round-robin", "balance.panic_percent = 0"));
    places.ail(0);
    // Three of four carry all of it, at 140 %.
    let sums = places.tally(90);
    assert_eq!(sums, [0, 30, 30, 30, 0, 0, 0]);
    places.ail(1);
    expect_shares(&places.near, &[0.0, 0.0, 0.35, 0.35, 0.3, 0.0, 0.0]);
    let sums = places.tally(1_000);
    expect_share(sums[4], 1_000, 0.3);
    assert!(sums[2].abs_diff(sums[3]) <= 1 && sums[2] + sums[3] + sums[4] == 1_000, "{sums:?}");
    places.ail(2);
    expect_shares(&places.near, &[0.0, 0.0, 0.0, 0.35, 0.65, 0.0, 0.0]);
}

#[test]
fn instances_on_this_node_get_what_the_policy_says() {
    let always = Places::start(1, &policy("round-robin", config::NO_HEALTH_CHECK));
    assert_eq!(always.tally(20), [20, 0, 0, 0]);
    drop(always);
    let some = format!("{}\nlocality.local = \"weighted\"\nlocality.local_percent = 70", config::NO_HEALTH_CHECK);
    let weighted = Places::start(1, &policy("round-robin", &some));
    expect_shares(&weighted.near, &[0.7, 0.3, 0.0, 0.0]);
    let sums = weighted.tally(1_000);
    expect_share(sums[0], 1_000, 0.7);
    assert_eq!(sums[0] + sums[1], 1_000);
    drop(weighted);
    let never = Places::start(1, &policy("round-robin", &format!("{}\nlocality.local = \"never\"", config::NO_HEALTH_CHECK)));
    assert_eq!(never.tally(40), [20, 20, 0, 0]);
    drop(never);
    let any = Places::start(1, &policy("round-robin", &format!("{}\nlocality.failover = false", config::NO_HEALTH_CHECK)));
    assert_eq!(any.tally(40), [10; 4]);
}

#[test]
fn with_too_few_that_can_be_used_all_are() {
    let several = Several::start(4, &checked("round-robin", ""));
    several.script(|server, _| by(server));
    let mut client = several.connect();
    let ail = |server: usize| {
        several.fakes[server].answer_pings(false);
        several.agent.await_health(DEMO, several.fakes[server].address(), false);
    };
    ail(0);
    ail(1);
    assert_eq!(tally(&mut client, 4, 40), [0, 0, 20, 20], "half of them are not too few");
    ail(2);
    assert_eq!(tally(&mut client, 4, 40), [10; 4]);
    let shown = instances(&several.agent);
    assert!(shown.iter().all(|one| one["share"]["panic"] == true && one["share"]["used"] == true), "{shown:?}");
    let explained = several.agent.json(&["routes", "explain", DEMO]);
    assert_eq!(explained["ways"][0]["panic"], true, "{explained}");
    several.reload(&checked("round-robin", "balance.panic_percent = 0"));
    assert_eq!(tally(&mut client, 4, 40), [0, 0, 0, 40]);
    ail(3);
    let answer = client.call(&echo("x"));
    assert_eq!(answer["ec"], 303, "{answer}");
}

#[test]
fn one_that_comes_back_or_is_new_starts_with_a_tenth() {
    let fakes = servers(3);
    let several = Several::with(fakes, ONE, &checked("round-robin", &format!("balance.slow_start_ms = {DAY}")));
    let agent = &several.agent;
    let mut client = several.connect();
    assert_eq!(tally(&mut client, 3, 30), [10; 3], "none is new at the agent's start");
    several.fakes[0].answer_pings(false);
    agent.await_health(DEMO, several.fakes[0].address(), false);
    assert_eq!(tally(&mut client, 3, 20), [0, 10, 10]);
    several.fakes[0].answer_pings(true);
    agent.await_health(DEMO, several.fakes[0].address(), true);
    let weights = || weights(agent);
    assert_eq!(weights(), [10., 100., 100.]);
    let share = 1. / 21.;
    expect_shares(agent, &[share, 10. * share, 10. * share]);
    let sums = tally(&mut client, 3, 210);
    assert!((9..=11).contains(&sums[0]), "{sums:?}");
    // A reload does not end it, wherever the instance stands then.
    several.reload_with(&[2, 1, 0], &checked("round-robin", &format!("balance.slow_start_ms = {DAY}\ntimeout_ms = 3000")));
    assert_eq!(weights(), [100., 100., 10.]);
    several.reload_with(&[1, 0], &checked("round-robin", &format!("balance.slow_start_ms = {DAY}")));
    several.reload_with(&[0, 1, 2], &checked("round-robin", &format!("balance.slow_start_ms = {DAY}")));
    assert_eq!(weights(), [10., 100., 10.], "one that is taken in again is new");
    several.reload(&checked("round-robin", "balance.slow_start_ms = 1"));
    until_true("all of them to have started", || weights() == [100.; 3]);
}

/// Nobody has called since it came back: its return is seen after the reload only.
#[test]
fn one_that_comes_back_just_before_a_reload_starts_with_a_tenth() {
    let slow = |more: &str| checked("round-robin", &format!("balance.slow_start_ms = {DAY}\n{more}"));
    let several = Several::start(2, &slow(""));
    several.script(|server, _| by(server));
    let mut client = several.connect();
    several.fakes[0].answer_pings(false);
    several.agent.await_health(DEMO, several.fakes[0].address(), false);
    assert_eq!(tally(&mut client, 2, 10), [0, 10]);
    several.fakes[0].answer_pings(true);
    several.agent.await_health(DEMO, several.fakes[0].address(), true);
    several.reload(&slow("timeout_ms = 3000"));
    assert_eq!(weights(&several.agent), [10., 100.]);
    several.reload(&slow("timeout_ms = 4000"));
    assert_eq!(weights(&several.agent), [10., 100.]);
    let sums = tally(&mut client, 2, 110);
    assert!((9..=11).contains(&sums[0]), "{sums:?}");
}

#[test]
fn calls_outside_of_the_mesh_go_by_chance_once() {
    let more = "mesh_per_10k = 0\nretry.methods = [\"get\"]\nretry.on = [\"code\"]\nretry.codes = [777]\nretry.tries_max = 3\n";
    let policy = format!("outlier.consecutive = 0\noutlier.success_rate_deviations = 0\nbalance.policy = \"ketama\"\n{more}");
    let several = Several::start(3, &policy);
    several.script(|server, _| by(server));
    let mut client = several.connect();
    let mut sums = [0; 3];
    (0..900).for_each(|_| sums[ask(&mut client, &keyed("same"))] += 1);
    sums.iter().for_each(|sum| expect_share(*sum, 900, 1.0 / 3.0));
    several.script(|_, _| Answer::envelope(777, "no", "null"));
    let mut sent = |calls: usize| {
        let before = several.sum();
        (0..calls).for_each(|_| assert_eq!(client.call(&keyed("same"))["ec"], 777));
        several.sum() - before
    };
    assert_eq!(sent(10), 10, "each once");
    several.reload(&policy.replace("mesh_per_10k = 0", ""));
    assert_eq!(sent(1), 3, "as often as it may be");
    several.script(|server, _| by(server));
    let first = ask(&mut client, &keyed("same"));
    (0..20).for_each(|_| assert_eq!(ask(&mut client, &keyed("same")), first));
}

/// Holds so many calls at the servers at once, and expects each of `among` to have the same number of them.
fn expect_balanced(several: &Several, among: &[usize], each: usize) {
    let gate = Gate::closed();
    let held = gate.clone();
    several.script(move |server, _| by(server).at(&held));
    let mut clients: Vec<_> = (0..among.len() * each).map(|_| several.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(command(&["GET", &echo("held")])));
    let in_flight = || several.fakes.iter().map(|fake| fake.counts().in_flight).collect::<Vec<_>>();
    until_true("the calls to be held", || in_flight().iter().sum::<usize>() == clients.len());
    for server in among {
        assert_eq!(in_flight()[*server], each, "{:?}", in_flight());
    }
    gate.open();
    clients.iter_mut().for_each(|client| drop(client.read()));
    several.await_idle();
}

#[test]
fn instances_that_come_go_and_move_under_load_lose_no_call() {
    let several = Several::start(6, &policy("least-request", ""));
    let mut rng = seed::rng("instances_that_come_go_and_move_under_load_lose_no_call");
    let loads = [Load::start(several.agent.address(), &[DEMO], 4), Load::start_frames(several.agent.address(), &[DEMO], 4)];
    for _ in 0..seed::count(25, 250) {
        let mut list: Vec<_> = (0..6).collect();
        list.shuffle(&mut rng);
        list.truncate(rng.random_range(1..=6));
        several.reload_with(&list, &policy("least-request", ""));
        loads.iter().for_each(|load| load.await_calls(40));
    }
    loads.into_iter().for_each(|load| load.stop().expect_all_right());
    several.reload_with(&[3, 1, 5, 0, 4, 2], &policy("least-request", ""));
    several.await_idle();
    expect_balanced(&several, &[0, 1, 2, 3, 4, 5], 3);
}

#[test]
fn calls_in_flight_count_where_they_are_after_a_reload() {
    let several = Several::start(4, &policy("least-request", ""));
    several.reload_with(&[0, 1, 2], &policy("least-request", ""));
    let gate = Gate::closed();
    let held = gate.clone();
    several.script(move |server, call| if call.method == "hold" { by(server).at(&held) } else { by(server) });
    let in_flight = || several.fakes.iter().map(|fake| fake.counts().in_flight).collect::<Vec<_>>();
    let mut held = Vec::new();
    let mut hold = |count: usize| {
        let sum = in_flight().iter().sum::<usize>();
        for _ in 0..count {
            let mut client = several.connect();
            client.send(command(&["GET", &envelope(DEMO, "hold", "\"x\"")]));
            held.push(client);
        }
        until_true("the calls to be held", || in_flight().iter().sum::<usize>() == sum + count);
        in_flight()
    };
    assert_eq!(hold(6), [2, 2, 2, 0]);
    // One more, and the others elsewhere in the list.
    several.reload_with(&[3, 2, 1, 0], &policy("least-request", ""));
    assert_eq!(hold(2), [2, 2, 2, 2]);
    // One goes with its calls, and comes back while they are under way: it begins anew.
    several.reload_with(&[2, 3, 1], &policy("least-request", ""));
    assert_eq!(hold(3), [2, 3, 3, 3]);
    several.reload_with(&[0, 1, 2, 3], &policy("least-request", ""));
    assert_eq!(hold(3), [5, 3, 3, 3]);
    gate.open();
    thread::scope(|scope| {
        for client in &mut held {
            scope.spawn(|| assert_eq!(serde_json::from_slice::<Value>(client.read().bulk()).expect("JSON")["ec"], 0));
        }
    });
    several.await_idle();
    expect_balanced(&several, &[0, 1, 2, 3], 4);
}
