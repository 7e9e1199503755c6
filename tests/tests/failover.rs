//! Applications that know nothing of it go to a sibling when their agent is gone, and come back when it is.

use std::thread;

use moa_tests::{
    Client, echo,
    pods::AGENT,
    siblings::{Became, Cluster, FAILOVER_PORT, Shopper, Tried, call_once, count, served_by},
    until_true,
};

fn served(node: &str) -> Became {
    Became::Served(node.to_owned())
}

/// What no test may see: anything but an answer, a refusal or a reset.
fn expect_nothing_else(tries: &[Tried]) {
    let failed: Vec<_> = tries.iter().filter(|tried| matches!(tried.became, Became::Failed(_))).collect();
    assert!(failed.is_empty(), "{:?}", &failed[..failed.len().min(5)]);
}

#[test]
fn an_agent_that_is_killed_is_stood_in_for_by_the_very_next_connect() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let shopper = Shopper::start(&pod);
    shopper.await_served_by("node-1");
    cluster.hosts[0].agent_mut().kill();
    shopper.await_served_by("node-2");
    cluster.hosts[0].start_again();
    shopper.await_served_by("node-1");
    let tries = shopper.stop();
    expect_nothing_else(&tries);
    let (refused, reset) = (count(&tries, &Became::Refused), count(&tries, &Became::Reset));
    assert!(refused <= 1, "{refused} of {} connects were refused", tries.len());
    // What the dying agent had taken, or its backlog.
    assert!(reset <= 2, "{reset} of {} calls were reset", tries.len());
    let first = tries.iter().position(|tried| tried.became == served("node-2")).expect("a call that was diverted");
    let back = tries.iter().rposition(|tried| tried.became == served("node-2")).expect("the same");
    assert!(tries[..first].iter().all(|tried| tried.became != served("node-2")), "nobody is diverted while the agent lives");
    assert!(tries[back + 1..].iter().all(|tried| tried.became == served("node-1")), "nor when it is back");
    assert!(cluster.hosts[0].decided("no-listener") > 0 && cluster.hosts[0].decided("local") > 0);
    assert_eq!(cluster.hosts[1].agent().json(&["failover"])["foreign"]["refused_total"], 0);
}

#[test]
fn an_agent_that_ends_in_good_order_refuses_nobody() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let shopper = Shopper::start(&pod);
    shopper.await_served_by("node-1");
    cluster.hosts[0].agent_mut().stop();
    shopper.await_served_by("node-2");
    let tries = shopper.stop();
    let bad: Vec<_> = tries.iter().filter(|tried| !matches!(tried.became, Became::Served(_))).take(5).collect();
    assert!(bad.is_empty(), "of {} calls: {bad:?}", tries.len());
}

#[test]
fn who_connects_to_an_agent_that_stands_still_is_served_by_a_sibling() {
    let cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let shopper = Shopper::start(&pod);
    shopper.await_served_by("node-1");
    cluster.hosts[0].agent().freeze();
    shopper.await_served_by("node-2");
    cluster.hosts[0].agent().thaw();
    shopper.await_served_by("node-1");
    let tries = shopper.stop();
    expect_nothing_else(&tries);
    assert_eq!(count(&tries, &Became::Refused), 0);
    assert!(count(&tries, &Became::Reset) <= 1, "only the call that the agent had");
    // Whether the watchdog has taken its listeners away by then is a matter of milliseconds.
    assert!(cluster.hosts[0].decided("stale") + cluster.hosts[0].decided("no-listener") > 0);
}

#[test]
fn with_all_siblings_dead_a_connect_goes_where_it_was_going() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    cluster.hosts[1].agent_mut().kill();
    cluster.hosts[0].await_sibling("node-2", false);
    assert_eq!(pod.inside(call_once).became, served("node-1"));
    cluster.hosts[0].agent_mut().kill();
    assert_eq!(pod.inside(call_once).became, Became::Refused);
    cluster.hosts[0].start_again();
    until_true("the agent to be back", || pod.inside(call_once).became == served("node-1"));
    assert!(cluster.hosts[0].decided("all-down") > 0);
}

#[test]
fn a_sibling_that_cannot_be_reached_is_passed_over() {
    let mut cluster = Cluster::start(3, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    let first = cluster.hosts[0].agent().json(&["failover"])["gates"][1]["siblings"][0].as_str().expect("a name").to_owned();
    let (first, second) = if first == "node-2" { (1, 2) } else { (2, 1) };
    cluster.hosts[0].agent_mut().kill();
    assert_eq!(pod.inside(call_once).became, served(&cluster.hosts[first].name()));
    // Nobody is there who could look at it: the first connect finds out, those after it know.
    cluster.plug(first, false);
    let mut client = thread::scope(|scope| {
        let waiting = scope.spawn(|| pod.inside(|| Client::try_connect(AGENT)));
        let name = cluster.hosts[second].name();
        until_true("connects to go to the second sibling", || pod.inside(call_once).became == served(&name));
        cluster.plug(first, true);
        waiting.join().expect("a client")
    });
    // It was on its way while the cable was pulled, and TCP tried again.
    if let Ok(client) = &mut client {
        assert_eq!(served_by(client.get(&echo("x")).bulk()), served(&cluster.hosts[first].name()));
    }
}

#[test]
fn an_application_that_belongs_elsewhere_is_turned_away() {
    let cluster = Cluster::start(2, "");
    let host = &cluster.hosts[0];
    let ask = || Client::connect(host.failover_address()).read().brief();
    let reply = host.inside(ask);
    assert!(reply.contains("10.78.0.1 belongs to no application here: add it to failover.applications"), "{reply}");
    let refused = || host.agent().json(&["failover"])["foreign"]["refused_total"].as_u64();
    assert_eq!(refused(), Some(1));
    // Another agent that looks whether anybody is there is no application.
    cluster.hosts[1].inside(ask);
    assert_eq!(refused(), Some(1));
    let pod = cluster.hosts[1].pod("pod-1", 1);
    let answer = pod.inside(|| Client::connect(host.failover_address()).get(&echo("x")));
    assert_eq!(served_by(answer.bulk()), served("node-1"));
}

#[test]
fn who_asks_for_its_peer_is_told_what_it_asked_for() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    cluster.hosts[0].agent_mut().kill();
    let mut client = pod.inside(|| Client::connect(AGENT));
    assert_eq!(client.stream().peer_addr().expect("an address"), AGENT);
    assert_eq!(served_by(client.get(&echo("x")).bulk()), served("node-2"));
    let conns = cluster.hosts[1].agent().json(&["conns"]);
    assert_eq!(conns.as_array().map(Vec::len), Some(1), "{conns}");
    assert!(conns[0]["peer"].as_str().is_some_and(|peer| peer.starts_with("10.79.1.1:")), "{conns}");
}

#[test]
fn connections_stay_where_they_are_until_they_are_sent_home() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    cluster.hosts[0].agent_mut().kill();
    let mut client = pod.inside(|| Client::connect(AGENT));
    assert_eq!(served_by(client.get(&echo("x")).bulk()), served("node-2"));
    cluster.hosts[0].start_again();
    until_true("the agent to be back", || pod.inside(call_once).became == served("node-1"));
    assert_eq!(served_by(client.get(&echo("x")).bulk()), served("node-2"));
    let shown = cluster.hosts[1].agent().json(&["failover", "send-home"]);
    assert_eq!(shown["foreign"]["listen"], format!("10.78.0.2:{FAILOVER_PORT}"));
    client.expect_closed();
    until_true("nobody to be left", || {
        cluster.hosts[1].agent().json(&["failover"])["foreign"]["connections"].as_object().is_some_and(serde_json::Map::is_empty)
    });
}

#[test]
fn turned_off_it_touches_no_connect_and_stays_off() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    assert_eq!(cluster.hosts[0].agent().json(&["failover", "off"])["on"], false);
    cluster.hosts[0].agent_mut().kill();
    assert_eq!(pod.inside(call_once).became, Became::Refused);
    cluster.hosts[0].start_again();
    assert_eq!(cluster.hosts[0].agent().json(&["failover"])["on"], false, "a restart does not turn it on");
    assert!(cluster.hosts[0].decided("bypassed") > 0);
    assert_eq!(cluster.hosts[0].agent().json(&["failover", "on"])["on"], true);
    cluster.hosts[0].agent_mut().kill();
    assert_eq!(pod.inside(call_once).became, served("node-2"));
}

#[test]
fn pods_come_and_go_and_no_gate_is_left() {
    let cluster = Cluster::start(1, "");
    let host = &cluster.hosts[0];
    for round in 0..20 {
        let pod = host.pod("pod-1", 1);
        assert_eq!(pod.inside(call_once).became, served("node-1"), "round {round}");
        host.pods().remove("pod-1");
        until_true("its gate to be gone", || host.agent().json(&["failover"])["gates"].as_array().map(Vec::len) == Some(1));
        host.pods().await_end(pod);
    }
}

#[test]
fn what_outlives_the_agent_is_removed_without_trace() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    cluster.hosts[0].agent_mut().stop();
    assert_eq!(pod.inside(call_once).became, served("node-2"), "the hooks are still there");
    let removed = cluster.hosts[0].agent().json(&["kernel", "uninstall"]);
    assert_eq!(removed["removed"], true);
    assert_eq!(pod.inside(call_once).became, Became::Refused);
    let pins = std::path::Path::new("/sys/fs/bpf/moa").join(cluster.hosts[0].agent().name());
    assert!(!pins.exists(), "{}", pins.display());
}

#[test]
fn a_namespace_that_goes_while_the_agent_is_away_leaves_no_gate() {
    let mut cluster = Cluster::start(2, "");
    let pod = cluster.hosts[0].pod("pod-1", 1);
    cluster.hosts[0].agent_mut().kill();
    cluster.hosts[0].pods().remove("pod-1");
    cluster.hosts[0].pods().await_end(pod);
    cluster.hosts[0].start_again();
    until_true("its gate to be gone", || {
        cluster.hosts[0].agent().json(&["failover"])["gates"].as_array().map(Vec::len) == Some(1)
    });
}

#[test]
fn applications_of_both_nodes_are_served_while_agents_take_turns_to_die() {
    let mut cluster = Cluster::start(2, "");
    let pods = [cluster.hosts[0].pod("pod-1", 1), cluster.hosts[1].pod("pod-1", 1)];
    let shoppers = [Shopper::start(&pods[0]), Shopper::start(&pods[1])];
    for round in 0..4 {
        let dying = round % 2;
        let (own, other) = (cluster.hosts[dying].name(), cluster.hosts[1 - dying].name());
        // Nobody is left if the one that stood in is believed dead.
        cluster.hosts[dying].await_sibling(&other, true);
        shoppers[dying].await_served_by(&own);
        cluster.hosts[dying].agent_mut().kill();
        shoppers[dying].await_served_by(&other);
        cluster.hosts[dying].start_again();
        shoppers[dying].await_served_by(&own);
    }
    for shopper in shoppers {
        let tries = shopper.stop();
        expect_nothing_else(&tries);
        assert!(count(&tries, &Became::Refused) <= 2, "one for each death: {}", count(&tries, &Became::Refused));
    }
}
